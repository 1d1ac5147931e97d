"""Ablation: what a part of the scene is good for, by playing the same questions without it, with more or less of it.

What always holds: an ablation is an evaluation whose candidates are rehearsals that differ from the first in one
setting each, so that its folder, its resumption and its win rates are an evaluation's; what is said of scenes is read
from their traces; differences are paired by question.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matrix_graph.config import SceneConfig, explain
from matrix_graph.errors import ConfigError, TraceError
from matrix_graph.evaluate import folder as evaluation
from matrix_graph.evaluate.document import Section, Table, number, percent, to_html, to_markdown
from matrix_graph.evaluate.plots import Whisker, whiskers
from matrix_graph.evaluate.quality import Quality, SceneFacts, facts_of, quality_of
from matrix_graph.evaluate.results_document import interval
from matrix_graph.evaluate.scene_words import MEASURES, SHARES
from matrix_graph.evaluate.statistics import Interval, mean_interval
from matrix_graph.files import replace_file
from matrix_graph.traces.store import read_traces

Without = Literal["plausible_all", "everyone_sees", "off"]
"""Ways to play without a part of the modulator: nothing is rejected, everybody sees everything, no modulator at all."""
WITHOUT: tuple[Without, ...] = get_args(Without)
SCHEMA_VERSION = 1
RESULTS_NAME, MARKDOWN_NAME, PAGE_NAME = "ablation.json", "ablation.md", "ablation.html"
FULL = "rehearsal"
"""The variant with all parts, as configured, which the others are compared with."""
_PLOTTED = (
    "rejected",
    "observers",
    "changed objects",
    "consequences",
    "repetition",
    "revised",
    "calls",
    "output tokens",
)


class Variant(BaseModel):
    """One way to play."""

    model_config = ConfigDict(frozen=True)

    name: str
    changed: dict[str, Any] = Field(description="The settings that differ from the configured ones.")
    scene: SceneConfig


class VariantResult(BaseModel):
    """How the scenes of one variant turned out."""

    model_config = ConfigDict(frozen=True)

    name: str
    settings: dict[str, Any]
    quality: Quality


class SceneDifference(BaseModel):
    """How much more of a measure the scenes of a variant have, over questions that both came to an end with."""

    model_config = ConfigDict(frozen=True)

    variant: str
    measure: str
    questions: int
    interval: Interval | None = Field(description="Mean of the paired differences; null of fewer than two questions.")


class AblationResults(BaseModel):
    """What an ablation found about scenes; about answers, `results.json` beside it."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    baseline: str
    variants: list[VariantResult]
    differences: list[SceneDifference]


def variants(
    config: SceneConfig,
    *,
    roles: Sequence[int] = (),
    steps: Sequence[int] = (),
    rounds: Sequence[int] = (),
    without: Sequence[str] = (),
) -> list[Variant]:
    """The ways to play: as configured, and with one setting changed each.

    Args:
        config: all parts, as configured.
        roles: numbers of other people.
        steps: numbers of steps of the plan.
        rounds: numbers of rounds at most.
        without: parts of the modulator to do without, see `Without`.

    Returns:
        `FULL` first; what equals the configured setting, or comes twice, is left out.

    Raises:
        ConfigError: a setting out of range, or nothing to vary.
    """
    changes: list[tuple[str, str, Any]] = [
        *(("roles", f"roles={count}", count) for count in roles),
        *(("steps", f"steps={count}", count) for count in steps),
        *(("max_rounds", f"rounds={count}", count) for count in rounds),
        *(("modulator", f"modulator={part}", part) for part in without),
    ]
    found = {FULL: Variant(name=FULL, changed={}, scene=config)}
    for field, name, value in changes:
        if field == "modulator" and value not in WITHOUT:
            raise ConfigError(f"The scene cannot be played without {value!r}; there are {', '.join(WITHOUT)}.")
        if (config.rounds if field == "max_rounds" else getattr(config, field, None)) == value:
            continue
        try:
            scene = SceneConfig.model_validate({**config.model_dump(), field: value})
        except ValidationError as error:
            raise ConfigError(f"The variant {name} cannot be played:\n{explain(error)}") from error
        found[name] = Variant(name=name, changed={field: value}, scene=scene)
    if len(found) == 1:
        raise ConfigError("There is nothing to vary; give --roles, --steps, --rounds or --without other values.")
    return list(found.values())


def write_ablation(folder: Path) -> AblationResults:
    """Work out what an ablation found and write it beside the evaluation's results, each file whole or not at all.

    Args:
        folder: of the evaluation, whose first candidate is the variant that the others are compared with.

    Returns:
        What `ablation.json` holds.

    Raises:
        TraceError: the folder holds no evaluation.
        ConfigError: the files cannot be written.
    """
    plan = evaluation.read_plan(folder)
    names = [name for name, settings in plan.candidates.items() if settings.get("method") == "rehearsal"]
    if not names:
        raise TraceError(f"{folder} holds an evaluation without scenes; an ablation compares rehearsals.")
    scenes = _scenes(folder, names)
    found = AblationResults(
        baseline=names[0],
        variants=[
            VariantResult(
                name=name,
                settings=plan.candidates[name],
                quality=quality_of(scenes[name][q] for q in sorted(scenes[name])),
            )
            for name in names
        ],
        differences=[
            difference for name in names[1:] for difference in _differences(name, scenes[name], scenes[names[0]])
        ],
    )
    sections = to_sections(found)
    note = (
        f"The same questions, played in {len(names)} ways; {names[0]} has all parts, and every other differs from it "
        "in the one setting that names it. Brackets hold 95% intervals."
    )
    try:
        replace_file(folder / RESULTS_NAME, (found.model_dump_json(indent=1) + "\n").encode(), sync=True)
        replace_file(folder / MARKDOWN_NAME, to_markdown("Ablation", note, sections).encode(), sync=True)
        replace_file(folder / PAGE_NAME, to_html("Ablation", note, sections).encode(), sync=True)
    except OSError as error:
        raise ConfigError(f"The ablation cannot be written to {folder}: {error.strerror or error}.") from error
    return found


def _scenes(folder: Path, names: Sequence[str]) -> dict[str, dict[str, SceneFacts]]:
    """What each scene comes down to, by variant and question id."""
    wanted = {
        answer.trace_id: (answer.candidate, answer.question_id)
        for answer in evaluation.read_answers(folder)
        if answer.trace_id is not None
    }
    scenes: dict[str, dict[str, SceneFacts]] = {name: {} for name in names}
    path = folder / evaluation.TRACES_NAME
    for trace in read_traces(path) if path.exists() else ():
        if trace.id in wanted and wanted[trace.id][0] in scenes:
            name, question = wanted[trace.id]
            scenes[name][question] = facts_of(trace)
    return scenes


def _differences(name: str, own: dict[str, SceneFacts], full: dict[str, SceneFacts]) -> list[SceneDifference]:
    found = []
    for measure in MEASURES:
        paired = [
            own[question].measures[measure] - full[question].measures[measure]
            for question in sorted(own.keys() & full.keys())
            if measure in own[question].measures and measure in full[question].measures
        ]
        if paired:
            found.append(
                SceneDifference(variant=name, measure=measure, questions=len(paired), interval=mean_interval(paired))
            )
    return found


def to_sections(found: AblationResults) -> list[Section]:
    """Tables of all measures and of the differences, and plots of those that vary most with the settings."""
    qualities = [variant.quality for variant in found.variants]
    rows = [[name, *(str(getattr(quality, name)) for quality in qualities)] for name in ("scenes", "failed", "leaks")]
    rows += [[measure, *(_cell(quality, measure) for quality in qualities)] for measure in MEASURES]
    changed = {(item.variant, item.measure): item for item in found.differences}
    others = [variant.name for variant in found.variants if variant.name != found.baseline]
    differences = [
        [
            measure,
            *(
                interval(changed[name, measure].interval, share=measure in SHARES, digits=2)
                if (name, measure) in changed
                else interval(None)
                for name in others
            ),
        ]
        for measure in MEASURES
    ]
    meanings = Table(["measure", "what it is"], [[name, meaning] for name, meaning in MEASURES.items()], prose=True)
    return [
        Section(
            "Scenes",
            "Means over scenes that came to an end. Leaks must be 0.",
            [Table(["measure", *(variant.name for variant in found.variants)], rows)],
            [(_plot(found, measure), f"{measure}: {MEASURES[measure]}") for measure in _PLOTTED],
        ),
        Section(
            "Differences",
            f"Variant less {found.baseline}, paired by question.",
            [Table(["measure", *others], differences)],
        ),
        Section("Measures", "", [meanings]),
    ]


def _cell(quality: Quality, measure: str) -> str:
    value = quality.measures.get(measure)
    mean = None if value is None else value.mean
    return percent(mean) if measure in SHARES else number(mean, 2)


def _plot(found: AblationResults, measure: str) -> str:
    rows = [
        Whisker(variant.name, value.mean, value.interval)
        for variant in found.variants
        if (value := variant.quality.measures.get(measure)) is not None
    ]
    return whiskers(rows, MEASURES[measure], percent=measure in SHARES)
