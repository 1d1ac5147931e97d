"""The measures of one scene, from its trace alone; `scene_words` says what each is.

What always holds: what a scene has none of (observers without an accepted action, say) is left out, and so is what a
trace of an earlier schema version does not tell. The worked examples are those in the very prompt that the trace
records, so that traces of other prompts are measured rightly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import groupby, pairwise
from statistics import fmean
from typing import Any

from matrix_graph.evaluate.refusals import refuses
from matrix_graph.records import Call, Cast, Event, Stance, Trace
from matrix_graph.scene.copying import copied_from, same_words
from matrix_graph.scene.people import is_person

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+(?:'[^\W_]+)*")
"""A word; of scripts that write none apart, a character."""
_OPENING = 200
"""Characters of an answer in which a refusal says so."""
_CHECKED = 2
"""The schema version from which on cut strings, checks of revisions, and whom an action hurts are recorded."""


def scene_measures(trace: Trace) -> dict[str, float]:
    """Measure one scene.

    Returns:
        By name, see `scene_words.MEASURES`; those that the scene has none of are left out.
    """
    found: dict[str, float] = {
        "actions": len(trace.events),
        "blocked": float(trace.status == "blocked"),
        "revised": float(trace.revised),
        "calls": len(trace.calls),
        "depth": depth(trace.calls),
        "input tokens": trace.usage.input_tokens,
        "output tokens": trace.usage.output_tokens,
    }
    if trace.events:
        found["calls per action"] = len(trace.calls) / len(trace.events)
    if trace.cast is not None:
        found |= _of_cast(trace, trace.cast)
    found |= _of_play(trace) | _of_cuts(trace)
    if trace.schema_version >= _CHECKED:
        found["revision proposed"] = float(trace.check is not None)
        if trace.check is not None:
            found["revision kept"] = float(trace.check.passed)
    return found


def _of_cast(trace: Trace, cast: Cast) -> dict[str, float]:
    people = [f"{_folded(role.traits)}\n{_folded(role.goal)}" for role in cast.roles]
    found = {"roles": float(len(people)), "distinct roles": fmean(people.count(person) == 1 for person in people)}
    if cast.objects:
        changed = {change.object for event in trace.events for change in event.changes}
        found["changed objects"] = len(changed) / len(cast.objects)
        found["people among objects"] = fmean(is_person(thing.name, cast.roles) for thing in cast.objects)
    taken = copied(trace)
    return found if taken is None else found | {"copied": float(taken)}


def _of_play(trace: Trace) -> dict[str, float]:
    found: dict[str, float] = {}
    accepted = [event for event in trace.events if event.plausible]
    if trace.events:
        found["rejected"] = 1 - len(accepted) / len(trace.events)
        found["repeated actions"] = fmean(repeats(trace.events))
    if accepted:
        found["observers"] = fmean(len(event.observers) for event in accepted)
        found["consequences"] = fmean(event.consequence is not None for event in accepted)
        if trace.schema_version >= _CHECKED:
            found["hurt"] = fmean(bool(event.hurt) for event in accepted)
    if trace.cast is not None:
        others = len(trace.cast.roles) - 1
        if accepted and others:
            found["seen by all"] = fmean(len(set(event.observers)) == others for event in accepted)
        first = next((event for event in trace.events if event.role == trace.cast.ego), None)
        if first is not None:
            found["first step rejected"] = float(not first.plausible)
    repeated = repetition(trace.events)
    return found if repeated is None else found | {"repetition": repeated}


def _of_cuts(trace: Trace) -> dict[str, float]:
    found = {"cut answers": float(trace.cut)}
    replies = [call for call in trace.calls if call.author == "model" and call.completion]
    if replies:
        found["cut replies"] = fmean(call.finish_reason == "length" for call in replies)
    forms = [call for call in replies if call.completion.lstrip().startswith("{")]
    if forms and trace.schema_version >= _CHECKED:
        found["cut strings"] = fmean(any(name != "reply" for name in call.cut) for call in forms)
    return found


def copied(trace: Trace) -> bool | None:
    """Whether the cast takes names or texts from a worked example of its prompt; None: there was no example."""
    shown = list(_examples(trace.calls))
    if trace.cast is None or not shown:
        return None
    cast = trace.cast.model_dump(exclude={"stance"})
    return copied_from(shown, cast, f"{trace.question}\n{trace.draft or ''}") is not None


def _examples(calls: Iterable[Call]) -> Iterator[Any]:
    """Give the JSON objects that a prompt for a cast shows, each on a line of what is not the question itself."""
    for call in calls:
        if call.purpose == "cast":
            for message in call.messages:
                for line in message.content.splitlines() if message.role != "user" else ():
                    if line.startswith("{") and line.endswith("}"):
                        with suppress(ValueError, RecursionError):
                            yield json.loads(line)


def repeats(events: list[Event]) -> list[bool]:
    """Tell of each action whether its actor did it before, in the same or nearly the same words."""
    done: dict[str, list[str]] = {}
    found = []
    for event in events:
        before = done.setdefault(event.role, [])
        action = _folded(event.action)
        found.append(any(action == earlier or same_words(action, earlier) for earlier in before))
        before.append(action)
    return found


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


def depth(calls: Iterable[Call]) -> int:
    """Count the calls that have to wait for each other.

    Those of one purpose and round that are in flight together count once; a second try counts again.
    """
    stages: list[tuple[tuple[int | None, str], Call]] = []
    played = False
    for call in calls:
        played = played or call.purpose in ("act", "judge", "reflect", "revise")
        purpose: str = call.purpose
        if purpose == "check" and not played:
            purpose = "cast"  # what the draft does is asked beside the cast
        elif purpose == "recap" and call.role is not None:
            purpose = "act"  # a person's summary of its own dialogue, before it acts in the round
        stages.append(((call.round, purpose), call))
    return sum(_longest([call for _, call in group]) for _, group in groupby(stages, key=lambda pair: pair[0]))


def _longest(calls: list[Call]) -> int:
    """The most calls one after the other in a stage, in which roles go side by side, and cast and stance."""
    chains: dict[tuple[str, str | None], int] = {}
    for call in calls:
        key = ("act" if call.purpose == "recap" else call.purpose, call.role)
        if call.purpose == "check":  # several kinds side by side; a second try follows one that failed
            chains[key] = max(chains.get(key, 1), 2 if call.error is not None else 1)
        else:
            chains[key] = chains.get(key, 0) + 1
    return max(chains.values())


def fate_of(trace: Trace) -> str | None:
    """What became of the draft, see `scene_words.FATES`; None: what the draft does was never asked.

    What a revision does is what its check found; where that was not asked, the list of refusals tells it from how the
    answer opens.
    """
    before = trace.cast.stance if trace.cast is not None else None
    if before is None or trace.answer is None:
        return None
    if not trace.revised:
        return f"{before}, kept"
    after: Stance | None = trace.check.stance if trace.check is not None else None
    if after is None:
        after = "declines" if refuses(trace.answer.strip()[:_OPENING]) else "helps"
    if after != before:
        return f"{before}, then {after}"
    return "declines, kinder" if before == "declines" else "helps, improved"


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
