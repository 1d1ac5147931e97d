"""The probe itself: every item is asked once, side by side, and scored.

What always holds: the same replies give the same result, in whatever order they come; a server that is gone ends the
probe with an error, and is never taken for a bad model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from pydantic import BaseModel, ConfigDict, Field

from matrix_graph.compose.single_calls import SingleCalls
from matrix_graph.config import SceneConfig
from matrix_graph.errors import ModelUnavailableError, TraceError
from matrix_graph.evaluate.asking import together
from matrix_graph.evaluate.probe.items import KINDS, EffectItem, Item, Kind, ObserversItem, PlausibleItem, load_items
from matrix_graph.evaluate.probe.outlook import outlook
from matrix_graph.evaluate.probe.scoring import Measure, Outcome, explanation, marks_of, measures_of
from matrix_graph.evaluate.progress import Progress
from matrix_graph.files import replace_file
from matrix_graph.models.ask import Answer
from matrix_graph.models.complete import name_of
from matrix_graph.records import Event, Problem

IN_FLIGHT = 32
"""Calls in flight at most, unless told otherwise."""
_OF_THE_MODEL = frozenset({"ReplyError", "CopiedError", "UnfinishedThoughtError", "ContextLengthError"})
"""Problems that tell of the model; all others tell of the server or the connection."""


class ProbeResult(BaseModel):
    """How good a model is at the single calls of a scene."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(description="As the server or the model names it.")
    items: int = Field(description="How many were asked.")
    unusable: int = Field(description="How many got no usable reply, though each was asked for twice.")
    measures: list[Measure]
    outlook: str = Field(description="What to expect of scenes from this model.")
    wrong: list[str] = Field(description="Ids of items with anything wrong.")
    outcomes: list[Outcome] = Field(exclude=True, description="What came of each item, in the items' order.")


async def run_probe(
    model: BaseChatModel,
    *,
    kinds: Sequence[Kind] = KINDS,
    config: SceneConfig | None = None,
    items: Sequence[Item] | None = None,
    most: int = IN_FLIGHT,
    on_progress: Callable[[Progress], object] = lambda _: None,
) -> ProbeResult:
    """Find out whether a model is good enough to play, judge and reflect on scenes.

    Args:
        model: any LangChain chat model.
        kinds: which kinds of calls.
        config: settings of the scenes; None takes the defaults.
        items: what to ask in the place of the package's items.
        most: calls in flight at once.
        on_progress: hears how far it has come.

    Raises:
        ModelUnavailableError: the server is gone, or no call at all got a reply.
    """
    asked = list(load_items(kinds) if items is None else items)
    calls = SingleCalls(model, config or SceneConfig())
    room = asyncio.Semaphore(most)
    progress = Progress()
    progress.begin("items", len(asked), 0)

    async def one(item: Item) -> Outcome:
        async with room:
            progress.begun()
            on_progress(progress)
            answer = await _ask(calls, item)
            for call in answer.calls:
                progress.call_ended(call["usage"]["input_tokens"], call["usage"]["output_tokens"])
            progress.job_ended(failed=answer.problem is not None)
            on_progress(progress)
        if answer.problem is not None and answer.problem["type"] == ModelUnavailableError.__name__:
            raise ModelUnavailableError(answer.problem["message"])
        return Outcome(
            id=item.id,
            kind=item.kind,
            marks=marks_of(item, answer.value),
            said=explanation(item, answer.value),
            problem=None if answer.problem is None else Problem(**answer.problem),
            calls=answer.calls,
        )

    outcomes = await together([one(item) for item in asked])
    _require_replies(outcomes)
    measures = measures_of(list(zip(asked, outcomes, strict=True)))
    unusable = sum(outcome.problem is not None for outcome in outcomes)
    return ProbeResult(
        model=_name(outcomes) or name_of(model),
        items=len(outcomes),
        unusable=unusable,
        measures=measures,
        outlook=outlook(measures, unusable / len(outcomes) if outcomes else 0.0),
        wrong=[outcome.id for outcome in outcomes if not outcome.right],
        outcomes=outcomes,
    )


def keep(result: ProbeResult, out: Path) -> list[Path]:
    """Write the result (probe.json) and every call (calls.jsonl, a line an item) into a folder that exists.

    Returns:
        The files.

    Raises:
        TraceError: they cannot be written.
    """
    lines = "".join(f"{outcome.model_dump_json()}\n" for outcome in result.outcomes)
    kept = {out / "probe.json": f"{result.model_dump_json(indent=2)}\n", out / "calls.jsonl": lines}
    for path, content in kept.items():
        try:
            replace_file(path, content.encode(), sync=False)
        except OSError as error:
            raise TraceError(f"{path} cannot be written: {error.strerror}.") from error
    return list(kept)


async def _ask(calls: SingleCalls, item: Item) -> Answer[Any]:
    if isinstance(item, PlausibleItem | ObserversItem):
        return await calls.judge(
            item.cast(item.objects),
            item.question,
            item.action.role,
            item.action.action,
            [(deed.role, deed.action) for deed in item.history],
        )
    if isinstance(item, EffectItem):
        return await calls.reflect(item.cast([]), item.question, item.draft, _events(item))
    return await calls.cast(item.question, item.draft)


def _events(item: EffectItem) -> list[Event]:
    """What was played, without what the modulator would have told of it: the reflection has to see it by itself."""
    return [
        Event(
            round=number,
            role=played.role,
            action=played.action,
            plausible=played.plausible,
            reason=played.reason,
            observers=[],
            changes=[],
            consequence=None,
        )
        for number, played in enumerate(item.events, 1)
    ]


def _require_replies(outcomes: Sequence[Outcome]) -> None:
    problems = [outcome.problem for outcome in outcomes if outcome.problem is not None]
    if problems and len(problems) == len(outcomes) and not any(p.type in _OF_THE_MODEL for p in problems):
        raise ModelUnavailableError(f"No call got a reply: {problems[0].type}: {problems[0].message}")


def _name(outcomes: Sequence[Outcome]) -> str | None:
    return next((call["model"] for outcome in outcomes for call in outcome.calls if call["model"]), None)
