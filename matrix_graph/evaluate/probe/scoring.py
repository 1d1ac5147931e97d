"""What is right and wrong in the replies, and what it adds up to.

What always holds: a reply that cannot be used is wrong in all that it was asked for, and counts against the model in
every share, also where less is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, computed_field

from matrix_graph.evaluate.probe.items import (
    EffectItem,
    Item,
    Kind,
    ObserversItem,
    PlausibleItem,
)
from matrix_graph.evaluate.statistics import wilson
from matrix_graph.records import Cast, Problem


class Mark(BaseModel):
    """One thing that a reply was asked for."""

    model_config = ConfigDict(frozen=True)

    about: str = Field(description="The action, the person, or who is wanted.")
    expected: str
    got: str | None = Field(description="null: there was no usable reply.")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def right(self) -> bool:
        """Whether the reply says what the label says."""
        return self.got == self.expected


class Outcome(BaseModel):
    """What came of one item."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: Kind
    marks: list[Mark]
    said: str = Field(description="The model's reason, or what else explains its reply; empty: nothing.")
    problem: Problem | None = Field(description="Why there was no usable reply; null: there was one.")
    calls: list[dict[str, Any]] = Field(description="Every call, with the fields of `records.Call`.")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def right(self) -> bool:
        """Whether all of it is right."""
        return all(mark.right for mark in self.marks)


class Measure(BaseModel):
    """A share of the probe."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Kind
    of: str = Field(description="What is counted.")
    total: int
    hits: int | None = Field(description="null of a mean of shares.")
    share: float
    low: float | None = Field(description="Lower end of Wilson's 95% interval; null of a mean of shares.")
    high: float | None = Field(description="Upper end.")
    bar: float | None = Field(description="What a model should reach; null: there is no bar.")
    at_most: bool = Field(default=False, description="Whether less is better.")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def met(self) -> bool | None:
        """Whether the share reaches the bar; null without one."""
        if self.bar is None:
            return None
        return self.share <= self.bar if self.at_most else self.share >= self.bar


def marks_of(item: Item, value: Any) -> list[Mark]:
    """Compare a reply with the item's label.

    Args:
        item: what was asked.
        value: the value of the scene's answer: a judgement, a reflection as a mapping, or a cast; None: there is none.
    """
    if isinstance(item, PlausibleItem):
        said = None if value is None else _possible(value.plausible)
        return [Mark(about=f"{item.action.role}: {item.action.action}", expected=_possible(item.label), got=said)]
    if isinstance(item, ObserversItem):
        return [
            Mark(
                about=name,
                expected=_notices(sees),
                got=None if value is None else _notices(value.notices.get(name) == "sees"),
            )
            for name, sees in item.label.items()
        ]
    if isinstance(item, EffectItem):
        effects = {} if value is None else {person["name"]: person["effect"] for person in value["people"]}
        return [Mark(about=name, expected=effect, got=effects.get(name)) for name, effect in item.label.items()]
    return [Mark(about=wanted.about, expected="there", got=_there(wanted.met_by, value)) for wanted in item.label]


def explanation(item: Item, value: Any) -> str:
    """Give the model's reason for its reply, or what else helps to understand it."""
    if value is None:
        return ""
    if isinstance(item, PlausibleItem | ObserversItem):
        rejected = "" if value.plausible or isinstance(item, PlausibleItem) else " (judged impossible)"
        return f"{value.reason}{rejected}"
    if isinstance(item, EffectItem):
        return "; ".join(f"{person['name']}: {person['how']}" for person in value["people"])
    return "; ".join(f"{role.name} ({role.who})" for role in value.roles if role.name != value.ego)


class _Share(NamedTuple):
    name: str
    kind: Kind
    of: str
    bar: float | None
    at_most: bool
    counted: Callable[[Item, Outcome], list[bool]]
    """What the item adds: for each thing counted, whether it is a hit."""


def _all(item: Item, outcome: Outcome) -> list[bool]:
    return [mark.right for mark in outcome.marks]


def _after_trap(item: Item, outcome: Outcome) -> list[bool]:
    return _all(item, outcome) if isinstance(item, PlausibleItem) and item.trap == "already_happened" else []


def _blocked(item: Item, outcome: Outcome) -> list[bool]:
    return [not mark.right for mark in outcome.marks] if isinstance(item, PlausibleItem) and item.label else []


def _let_through(item: Item, outcome: Outcome) -> list[bool]:
    return [not mark.right for mark in outcome.marks] if isinstance(item, PlausibleItem) and not item.label else []


def _seen_by_all(item: Item, outcome: Outcome) -> list[bool]:
    if not isinstance(item, ObserversItem) or not item.covert:
        return []
    return [all(mark.got != _notices(False) for mark in outcome.marks)]


def _harm_found(item: Item, outcome: Outcome) -> list[bool]:
    return [mark.right for mark in outcome.marks if mark.expected == "harmed"]


def _harm_imagined(item: Item, outcome: Outcome) -> list[bool]:
    if any(mark.expected == "harmed" for mark in outcome.marks):
        return []
    return [any(mark.got in ("harmed", None) for mark in outcome.marks)]


TRAP = "already-happened trap passed"
BLOCKED = "possible actions rejected"
LET_THROUGH = "impossible actions accepted"
SEEN_BY_ALL = "covert acts seen by all"
BALANCED = "mean over the effects"
HARM_FOUND = "harmed people found"
HARM_IMAGINED = "harmless scenes called harmful"

_SHARES = (
    _Share("plausible", "plausible", "actions", 0.85, False, _all),
    _Share(TRAP, "plausible", "actions", 0.90, False, _after_trap),
    _Share(BLOCKED, "plausible", "actions", None, True, _blocked),
    _Share(LET_THROUGH, "plausible", "actions", None, True, _let_through),
    _Share("observers", "observers", "people", 0.75, False, _all),
    _Share(SEEN_BY_ALL, "observers", "acts", 0.20, True, _seen_by_all),
    _Share("effect", "effect", "people", 0.80, False, _all),
    _Share(HARM_FOUND, "effect", "people", None, False, _harm_found),
    _Share(HARM_IMAGINED, "effect", "scenes", None, True, _harm_imagined),
    _Share("cast", "cast", "people", 0.80, False, _all),
)


def measures_of(pairs: Sequence[tuple[Item, Outcome]]) -> list[Measure]:
    """Add up what came of the items.

    Args:
        pairs: items and their outcomes; what they hold nothing of is left out.
    """
    found = []
    for share in _SHARES:
        hits = [hit for item, outcome in pairs if item.kind == share.kind for hit in share.counted(item, outcome)]
        interval = wilson(sum(hits), len(hits))
        if interval is None:
            continue
        found.append(
            Measure(
                name=share.name,
                kind=share.kind,
                of=share.of,
                total=len(hits),
                hits=sum(hits),
                share=interval.estimate,
                low=interval.low,
                high=interval.high,
                bar=share.bar,
                at_most=share.at_most,
            )
        )
        if share.name == "effect":
            found.append(
                _balanced([mark for item, outcome in pairs if item.kind == "effect" for mark in outcome.marks])
            )
    return found


def _balanced(marks: Iterable[Mark]) -> Measure:
    """The mean of the shares that are right of each effect, so that the frequent "none" does not hide the others."""
    by_effect: dict[str, list[bool]] = {}
    for mark in marks:
        by_effect.setdefault(mark.expected, []).append(mark.right)
    return Measure(
        name=BALANCED,
        kind="effect",
        of="effects",
        total=len(by_effect),
        hits=None,
        share=fmean(fmean(rights) for rights in by_effect.values()),
        low=None,
        high=None,
        bar=None,
    )


def _possible(value: bool) -> str:
    return "possible" if value else "impossible"


def _notices(value: bool) -> str:
    return "notices" if value else "does not notice"


def _there(met: Callable[[list[Any]], bool], value: Cast | None) -> str | None:
    if value is None:
        return None
    return "there" if met([role for role in value.roles if role.name != value.ego]) else "missing"
