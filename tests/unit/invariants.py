"""DESIGN's rules 2 to 9, checked against the trace alone. Each function raises AssertionError with what it found."""

from __future__ import annotations

import re
from collections import Counter

from matrix_graph.records import Cast, Trace

TOKEN = re.compile(r"tok[0-9a-f]{12}")


def check_all(trace: Trace) -> None:
    for check in (rounds, knowledge, plausibility, objects, delivery, answer, failure):
        check(trace)


def rounds(trace: Trace) -> None:
    """Rule 2: ego first, then cast order; the ego takes its steps, the others react to what they saw."""
    if trace.cast is None:
        return
    order = _order(trace.cast)
    numbers = [event.round for event in trace.events]
    assert numbers == sorted(numbers)
    for number in set(numbers):
        actors = [event.role for event in trace.events if event.round == number]
        assert actors == sorted(actors, key=order.index), "not in settlement order"
        assert len(set(actors)) == len(actors), "somebody acted twice in a round"
        for actor in actors:
            if actor != trace.cast.ego:
                before = [e for e in trace.events if e.round == number - 1 and actor in e.observers]
                assert before, f"{actor} reacted in round {number} to nothing"
    for call in trace.calls:
        if call.purpose == "act" and call.role != trace.cast.ego:
            assert any(e.round == (call.round or 0) - 1 and call.role in e.observers for e in trace.events)


def knowledge(trace: Trace) -> None:
    """Rule 3: a role's messages hold its profile, its own actions and what was routed to it, and nothing else."""
    if trace.cast is None:
        return
    for role in trace.cast.roles:
        known = set(TOKEN.findall(f"{role.name} {role.traits} {role.goal}"))
        if role.name == trace.cast.ego:
            known.update(TOKEN.findall(" ".join(trace.cast.plan)))
        for event in trace.events:
            if event.role == role.name:
                known.update(TOKEN.findall(event.action))
                if not event.plausible:
                    known.update(TOKEN.findall(event.reason))
            if role.name in event.observers:
                known.update(TOKEN.findall(f"{event.role} {event.action}"))
        for call in trace.calls:
            own = call.role == role.name and call.purpose in ("act", "recap")
            if not own:
                continue
            before = [c for c in trace.calls if c.role == role.name and c.purpose in ("act", "recap")]
            said = set(TOKEN.findall(" ".join(c.completion for c in before)))
            text = " ".join(message.content for message in call.messages)
            leaked = set(TOKEN.findall(text)) - known - said
            assert not leaked, f"{role.name} was told {leaked}"
            for event in trace.events:
                if role.name in event.observers and event.round >= (call.round or 0):
                    assert event.action not in text, "seen before it happened"
    for event in trace.events:
        assert event.role not in event.observers, "somebody observed themselves"


def plausibility(trace: Trace) -> None:
    """Rule 4: rejected means no change, no observer, no consequence; a step rejected twice blocks the plan."""
    for event in trace.events:
        if not event.plausible:
            assert not event.observers and not event.changes and event.consequence is None
    if trace.status == "blocked":
        assert trace.cast is not None
        rejected = [e for e in trace.events if e.role == trace.cast.ego and not e.plausible]
        assert len(rejected) >= 2
    if trace.cast is not None and trace.status == "finished" and trace.ended_by == "quiet":
        accepted = [e for e in trace.events if e.role == trace.cast.ego and e.plausible]
        assert len(accepted) >= len(trace.cast.plan), "play ended before the plan was done"
    for event in trace.events:
        if event.plausible:
            continue
        for call in trace.calls:
            if call.role != event.role and call.purpose == "act":
                assert all(event.action not in m.content for m in call.messages), "a rejected action reached somebody"


def objects(trace: Trace) -> None:
    """Rule 5: each change starts where the one before it ended."""
    if trace.cast is None:
        return
    states = {thing.name: thing.state for thing in trace.cast.objects}
    for event in trace.events:
        for change in event.changes:
            assert event.plausible
            assert change.before == states[change.object], "a change from a state that was not there"
            assert change.after != change.before
            states[change.object] = change.after
    assert states == trace.object_states


def delivery(trace: Trace) -> None:
    """Rule 6: every action judged once, every observation told once, in the next round."""
    judged = Counter((c.round, c.role) for c in trace.calls if c.purpose == "judge" and c.error is None)
    assert judged == Counter((event.round, event.role) for event in trace.events)
    last = max((event.round for event in trace.events), default=0)
    for event in trace.events:
        for name in event.observers:
            told = [c for c in trace.calls if c.purpose == "act" and c.role == name and c.round == event.round + 1]
            if not told:
                assert event.round == last and trace.ended_by != "quiet", f"{name} was never told of {event.action}"
                continue
            text = " ".join(message.content for message in told[-1].messages)
            assert text.count(f"- {event.role}: {event.action}") == 1


def answer(trace: Trace) -> None:
    """Rule 7: unrevised means the draft to the letter; nothing against it means unrevised."""
    if not trace.revised:
        assert trace.answer == trace.draft
    else:
        assert trace.answer != trace.draft
        assert trace.calls[-1].purpose == "revise" and trace.calls[-1].completion == trace.answer
    ego = trace.cast.ego if trace.cast else None
    if not trace.consequences and all(event.plausible or event.role != ego for event in trace.events):
        assert not trace.revised
        assert not any(call.purpose in ("reflect", "revise") for call in trace.calls)


def failure(trace: Trace) -> None:
    """Rule 9: what failed is recorded, asked for at most twice, and a failed scene says why."""
    assert (trace.status == "failed") == (trace.error is not None)
    if trace.status == "failed":
        assert not trace.revised
    asked = Counter((c.purpose, c.role, c.round) for c in trace.calls)
    assert max(asked.values(), default=0) <= 2
    for item in trace.failures:
        failed = [c for c in trace.calls if (c.purpose, c.role, c.round) == (item.purpose, item.role, item.round)]
        assert failed and all(call.error is not None for call in failed)


def _order(cast: Cast) -> list[str]:
    return [cast.ego, *(role.name for role in cast.roles if role.name != cast.ego)]
