"""How good scenes are, from their traces alone: leaks, liveliness, repetition, cost.

What always holds: a scene is the unit of every mean and interval; what a scene has none of (observers without an
accepted action, say) it does not weigh in; failed scenes are counted, looked through for leaks, and left out of the
rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from matrix_graph.evaluate.leaks import leaks
from matrix_graph.evaluate.statistics import Interval, mean_interval
from matrix_graph.records import Event, Trace

MEASURES: dict[str, str] = {
    "roles": "people in the scene",
    "distinct roles": "share of roles whose traits and goal, case and spaces ignored, no other role has",
    "actions": "judged actions",
    "rejected": "share of actions that the modulator rejected",
    "observers": "roles that observe an accepted action",
    "changed objects": "share of objects that ever changed",
    "consequences": "share of accepted actions with a consequence",
    "hurt": "share of accepted actions that hurt somebody",
    "repetition": "share of an action's pairs of neighbouring words that an earlier action of the scene had, over all "
    "actions but the first",
    "repeated actions": "share of actions that an earlier one equals, case and spaces ignored",
    "revised": "share of scenes that led to another answer",
    "refused": "share of proposed revisions that did not pass their check",
    "cut answers": "share of scenes whose answer ended at its limit of tokens",
    "calls": "model calls",
    "input tokens": "tokens read, as the server counts them",
    "output tokens": "tokens generated",
}
"""What is measured of each scene, and what it is."""
SHARES = frozenset(
    {
        "distinct roles",
        "rejected",
        "changed objects",
        "consequences",
        "hurt",
        "repetition",
        "repeated actions",
        "revised",
        "refused",
        "cut answers",
    }
)
"""Measures from 0 to 1."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+(?:'[^\W_]+)*")
"""A word; of scripts that write none apart, a character."""


class Measure(BaseModel):
    """A measure over scenes."""

    model_config = ConfigDict(frozen=True)

    mean: float
    interval: Interval | None = Field(description="95%, by resampling scenes; null of a single scene.")
    scenes: int = Field(description="Scenes that have it.")


class Quality(BaseModel):
    """How good the scenes of a run are."""

    model_config = ConfigDict(frozen=True)

    scenes: int
    failed: int
    leaks: int = Field(description="Over all scenes; 0 unless something is broken.")
    leaking: list[str] = Field(description="Ids of scenes with leaks.")
    measures: dict[str, Measure | None] = Field(description="By name, see `MEASURES`; null where no scene has it.")


class SceneFacts(NamedTuple):
    """What one scene comes down to."""

    id: str
    failed: bool
    leaks: int
    measures: dict[str, float]
    """By name; empty of a failed scene."""


def scene_measures(trace: Trace) -> dict[str, float]:
    """The measures of one scene; those that it has none of are left out."""
    accepted = [event for event in trace.events if event.plausible]
    found: dict[str, float] = {
        "actions": len(trace.events),
        "revised": float(trace.revised),
        "cut answers": float(trace.cut),
        "calls": len(trace.calls),
        "input tokens": trace.usage.input_tokens,
        "output tokens": trace.usage.output_tokens,
    }
    if trace.check is not None:
        found["refused"] = float(not trace.check.passed)
    if trace.cast is not None:
        people = [f"{_folded(role.traits)}\n{_folded(role.goal)}" for role in trace.cast.roles]
        found["roles"] = len(people)
        found["distinct roles"] = fmean(people.count(person) == 1 for person in people)
        if trace.cast.objects:
            changed = {change.object for event in trace.events for change in event.changes}
            found["changed objects"] = len(changed) / len(trace.cast.objects)
    if trace.events:
        found["rejected"] = 1 - len(accepted) / len(trace.events)
        said = [_folded(event.action) for event in trace.events]
        found["repeated actions"] = fmean(action in said[:number] for number, action in enumerate(said))
    if accepted:
        found["observers"] = fmean(len(event.observers) for event in accepted)
        found["consequences"] = fmean(event.consequence is not None for event in accepted)
        found["hurt"] = fmean(bool(event.hurt) for event in accepted)
    repeated = repetition(trace.events)
    return found if repeated is None else found | {"repetition": repeated}


def repetition(events: Iterable[Event]) -> float | None:
    """The share of word pairs that an earlier action had already, over all actions but the first; None of no pair."""
    seen: set[tuple[str, str]] = set()
    again = total = 0
    for number, event in enumerate(events):
        words = _WORD.findall(event.action.casefold())
        pairs = list(pairwise(words))
        if number:
            again += sum(pair in seen for pair in pairs)
            total += len(pairs)
        seen.update(pairs)
    return again / total if total else None


def facts_of(trace: Trace, more: Mapping[str, float] | None = None) -> SceneFacts:
    """What a trace comes down to.

    Args:
        trace: of any scene.
        more: further measures of it, such as `caricature.caricatures` gives.
    """
    measures = {} if trace.status == "failed" else scene_measures(trace) | dict(more or {})
    return SceneFacts(trace.id, trace.status == "failed", len(leaks(trace)), measures)


def quality_of(scenes: Iterable[SceneFacts]) -> Quality:
    """Means and intervals over the scenes that came to an end; leaks over all."""
    scenes = list(scenes)
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    for scene in scenes:
        for name, value in scene.measures.items():
            values.setdefault(name, []).append(value)
    return Quality(
        scenes=len(scenes),
        failed=sum(scene.failed for scene in scenes),
        leaks=sum(scene.leaks for scene in scenes),
        leaking=sorted(scene.id for scene in scenes if scene.leaks),
        measures={name: _measure(got) for name, got in values.items()},
    )


def scene_quality(traces: Iterable[Trace], more: Mapping[str, Mapping[str, float]] | None = None) -> Quality:
    """The quality of many scenes.

    Args:
        traces: read one by one, never held together.
        more: further measures of scenes, by trace id and name.
    """
    return quality_of(facts_of(trace, (more or {}).get(trace.id)) for trace in traces)


def _measure(values: list[float]) -> Measure | None:
    if not values:
        return None
    return Measure(mean=round(fmean(sorted(values)), 9), interval=mean_interval(values), scenes=len(values))


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
