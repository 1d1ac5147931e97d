"""Which candidates a command compares: from `base,rehearsal:roles=2,NAME=DIR` to candidates by name.

What always holds: the names are those that people wrote, distinct, in their order; every setting is checked before a
model is asked anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from matrix_graph.config import LONGEST_ANSWER, SceneConfig, explain
from matrix_graph.errors import ConfigError
from matrix_graph.evaluate.candidates.best_of_n import BestOfN
from matrix_graph.evaluate.candidates.budget import matched_to
from matrix_graph.evaluate.candidates.candidate import Candidate
from matrix_graph.evaluate.candidates.critique_revise import CritiqueRevise
from matrix_graph.evaluate.candidates.debate import Debate
from matrix_graph.evaluate.candidates.decrim import DecomposeCritiqueRefine
from matrix_graph.evaluate.candidates.foresee import Foresee
from matrix_graph.evaluate.candidates.mistake_analysis import MistakeAnalysis
from matrix_graph.evaluate.candidates.plain import Plain, SafePrompt
from matrix_graph.evaluate.candidates.rehearsal import RehearsalCandidate
from matrix_graph.evaluate.candidates.rlcd import ContrastPair
from matrix_graph.evaluate.candidates.self_align import SelfAlign
from matrix_graph.models.bundled import longest_answer, name_on_server

METHODS: dict[str, type[Candidate]] = {
    kind.method: kind
    for kind in (
        Plain,
        RehearsalCandidate,
        Foresee,
        CritiqueRevise,
        SelfAlign,
        SafePrompt,
        Debate,
        BestOfN,
        DecomposeCritiqueRefine,
    )
}
"""What can be compared, by name."""
TRAINING_METHODS: dict[str, type[Candidate]] = {kind.method: kind for kind in (ContrastPair, MistakeAnalysis)}
"""What makes rows to train on, by name."""

_NAME = re.compile(r"[\w.@/+-]{1,80}")


class Roster(NamedTuple):
    """Who takes part."""

    candidates: dict[str, Candidate]
    """By name, in the order given."""
    adapters: dict[str, Path]
    """Folders of adapters that the server must load first, by the name that it shall serve them under."""
    served: list[str]
    """Names that the server must serve already."""


def roster_from(
    text: str,
    scene: SceneConfig | None = None,
    methods: Mapping[str, type[Candidate]] = METHODS,
    *,
    model: str | None = None,
) -> Roster:
    """The candidates that a text names, separated by commas.

    Each is a method, with settings if you like (`best-of-n:n=8`, `best-of-n:tokens=matched`, `debate:model=kind`), an
    adapter to load (`NAME=DIR`), or the name of an adapter that the server serves.

    Args:
        text: such as `base,rehearsal,kind=adapters/kind`.
        scene: settings of `rehearsal`; `temperature` and `max_answer_tokens` hold for all methods without their own.
        methods: by name.
        model: that answers, as it was asked for or as its server names it; all candidates share its longest answer
            where `scene` names none. None: not known.

    Raises:
        ConfigError: an item names nothing, twice the same, or a setting that there is not, or is to match a rehearsal
            where there is none; tells what is allowed.
    """
    scene = scene or SceneConfig()
    scene = scene.model_copy(update={"max_answer_tokens": longest_of(scene, model)})
    candidates: dict[str, Candidate] = {}
    adapters: dict[str, Path] = {}
    served: list[str] = []
    for item in (part.strip() for part in text.split(",")):
        if not item:
            raise ConfigError(f"The candidates {text!r} hold an empty name. Write them as base,rehearsal,NAME=DIR.")
        name, settings, folder = _parts(item)
        if name in candidates or item in candidates:
            raise ConfigError(f"The candidate {item!r} is named twice; name each once.")
        if folder is not None:
            if name in methods:
                raise ConfigError(
                    f"{name!r} is a method; give the adapter in {folder} another name, such as my-{name}."
                )
            adapters[name] = Path(folder)
            candidates[name] = _made(item, Plain, {"model": name}, scene)
        elif name in methods:
            candidates[item] = _made(item, methods[name], settings, scene)
        elif settings or methods is not METHODS:
            raise ConfigError(f"There is no method {name!r}; there are {', '.join(methods)}.")
        else:
            served.append(name)
            candidates[name] = _made(item, Plain, {"model": name}, scene)
    matched_to(candidates)  # raises if there is nothing to match
    named = {candidate.model for candidate in candidates.values()} - {None}
    served += sorted(str(name) for name in named if name not in adapters and name not in served)
    return Roster(candidates, adapters, served)


def longest_of(scene: SceneConfig, model: str | None) -> int:
    """The longest answer of a model by its name, in tokens; see `scene.stage.answer_limit`.

    Args:
        scene: whose `max_answer_tokens` wins.
        model: as it was asked for or as its server names it; None: not known.
    """
    name = name_on_server(model)
    return scene.max_answer_tokens or (longest_answer(name) if name else None) or LONGEST_ANSWER


def _parts(item: str) -> tuple[str, dict[str, str], str | None]:
    """Name, settings and folder of one item."""
    name, sign, rest = item.partition("=")
    if sign and ":" not in name:
        if not rest or not _NAME.fullmatch(name):
            raise ConfigError(f"The adapter {item!r} is not of the form NAME=DIR, such as kind=adapters/kind.")
        return name, {}, rest
    name, *settings = item.split(":")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"The candidate {item!r} has no usable name: 1 to 80 letters, digits and .@/+-_ are allowed. "
            f"Methods: {', '.join(METHODS)}; or NAME=DIR, or an adapter that the server serves."
        )
    given: dict[str, str] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not (key and sign and value) or key in given:
            raise ConfigError(
                f"In the candidate {item!r}, {setting!r} is not a setting, or comes twice; "
                f"write {name}:key=value:key=value."
            )
        given[key] = value
    return name, given, None


def _made(item: str, kind: type[Candidate], settings: dict[str, Any], scene: SceneConfig) -> Candidate:
    shared: dict[str, Any] = {"max_answer_tokens": scene.max_answer_tokens}
    if not kind.own_temperature:
        shared["temperature"] = scene.temperature
    try:
        if kind is RehearsalCandidate:
            own = {key: value for key, value in settings.items() if key != "model"}
            played = SceneConfig.model_validate({**scene.model_dump(), **own})
            return RehearsalCandidate(model=settings.get("model"), scene=played)
        return kind.model_validate({**shared, **settings})
    except ValidationError as error:
        fields = SceneConfig.model_fields if kind is RehearsalCandidate else kind.model_fields
        allowed = ", ".join(dict.fromkeys(["model", *fields]))
        raise ConfigError(
            f"The candidate {item!r} cannot be used:\n{explain(error)}\nIts settings: {allowed}."
        ) from error
