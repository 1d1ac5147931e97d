"""How good scenes are, from their traces alone: leaks, copies, liveliness, repetition, what is cut, the fate of drafts.

What always holds: a scene is the unit of every mean and interval; what a scene has none of (observers without an
accepted action, say) it does not weigh in; failed scenes are counted, looked through for leaks and copies, and left out
of the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from matrix_graph.errors import CopiedError
from matrix_graph.evaluate.leaks import leaks
from matrix_graph.evaluate.scene_measures import fate_of, scene_measures
from matrix_graph.evaluate.scene_words import FATES, MEASURES, TURNED
from matrix_graph.evaluate.statistics import Interval, mean_interval
from matrix_graph.records import Trace


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
    copied_replies: int = Field(
        default=0, description="Replies that were refused because they copy a worked example, over all scenes."
    )
    measures: dict[str, Measure | None] = Field(
        description="By name, see `scene_words.MEASURES`; null where no scene has it."
    )
    fates: dict[str, int] = Field(
        default={}, description="How many drafts each fate met, see `scene_words.FATES`; empty where it is unknown."
    )
    turned: dict[str, list[str]] = Field(
        default={}, description="Ids of scenes whose revision does the opposite of the draft, by fate: to be read."
    )


class SceneFacts(NamedTuple):
    """What one scene comes down to."""

    id: str
    failed: bool
    leaks: int
    measures: dict[str, float]
    """By name; empty of a failed scene."""
    copied_replies: int = 0
    fate: str | None = None
    """None of a failed scene, and where nobody asked what the draft does."""


def facts_of(trace: Trace, more: Mapping[str, float] | None = None) -> SceneFacts:
    """What a trace comes down to.

    Args:
        trace: of any scene.
        more: further measures of it, such as `caricature.caricatures` and `telling.tellings` give.
    """
    failed = trace.status == "failed"
    refused = sum(call.error is not None and call.error.type == CopiedError.__name__ for call in trace.calls)
    measures = {} if failed else scene_measures(trace) | dict(more or {})
    return SceneFacts(trace.id, failed, len(leaks(trace)), measures, refused, None if failed else fate_of(trace))


def quality_of(scenes: Iterable[SceneFacts]) -> Quality:
    """Means and intervals over the scenes that came to an end; leaks and refused copies over all."""
    scenes = list(scenes)
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    for scene in scenes:
        for name, value in scene.measures.items():
            values.setdefault(name, []).append(value)
    fates = Counter(scene.fate for scene in scenes if scene.fate is not None)
    return Quality(
        scenes=len(scenes),
        failed=sum(scene.failed for scene in scenes),
        leaks=sum(scene.leaks for scene in scenes),
        leaking=sorted(scene.id for scene in scenes if scene.leaks),
        copied_replies=sum(scene.copied_replies for scene in scenes),
        measures={name: _measure(got) for name, got in values.items()},
        fates={fate: fates[fate] for fate in FATES} if fates else {},
        turned={fate: sorted(scene.id for scene in scenes if scene.fate == fate) for fate in TURNED} if fates else {},
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
