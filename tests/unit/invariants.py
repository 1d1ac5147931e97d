"""DESIGN's rules 2 to 9, checked against the trace alone. Each function raises AssertionError with what it found."""

from __future__ import annotations

import re
from collections import Counter

from matrix_graph.records import Call, Cast, Edit, Trace, Usage

TOKEN = re.compile(r"tok[0-9a-f]{9,12}")
"""What the fake models mark each of their texts with: twelve hexadecimal digits, or the fake server's nine digits."""


def check_all(trace: Trace) -> None:
    for check in (rounds, knowledge, plausibility, objects, delivery, answer, failure, record, bounds):
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
    """Rule 3: a role's messages hold its profile, its own actions and what was routed to it before, nothing else."""
    if trace.cast is None:
        return
    for role in trace.cast.roles:
        profile = f"{role.name} {role.traits} {role.goal}"
        if role.name == trace.cast.ego:
            profile = " ".join([profile, *trace.cast.plan])
        said = ""
        for call in trace.calls:
            if call.role != role.name or call.purpose not in ("act", "recap"):
                continue
            known = f"{profile} {said}"
            for event in trace.events:
                if event.round >= (call.round or 0):
                    continue
                if event.role == role.name:
                    known += f" {event.action} {'' if event.plausible else event.reason}"
                if role.name in event.observers:
                    known += f" {event.role} {event.action}"
            text = _text(call)
            leaked = set(TOKEN.findall(text)) - set(TOKEN.findall(known))
            assert not leaked, f"{role.name} was told {leaked}"
            said += f" {call.completion}"
            _routed(trace, call)
    for event in trace.events:
        assert event.role not in event.observers, "somebody observed themselves"


def _routed(trace: Trace, call: Call) -> None:
    """A role has been told of each action as often as it observed it, all in earlier rounds; a summary tells less."""
    routed: Counter[str] = Counter()
    for event in trace.events:
        seen = call.role in event.observers and event.round < (call.round or 0)
        routed[f"- {event.role}: {event.action}"] += seen
    condensed = any(c.purpose == "recap" and c.role == call.role for c in trace.calls)
    for line, times in routed.items():
        told = len(re.findall(rf"^{re.escape(line)}$", _text(call), re.MULTILINE))
        late = call.purpose == "recap"  # what is new is said after the summary
        assert told <= times, f"{call.role} was told of what it did not see, or not yet: {line}"
        assert condensed or late or told == times, f"{call.role} was told {told} times of {line}, seen {times} times"


def plausibility(trace: Trace) -> None:
    """Rule 4: rejected means no change, no observer, no consequence; a step rejected twice blocks the plan."""
    for event in trace.events:
        if not event.plausible:
            assert not event.observers and not event.changes and event.consequence is None
    for event in trace.events:
        if event.plausible:
            continue
        later = [c for c in trace.calls if (c.purpose, c.role) == ("act", event.role) and (c.round or 0) > event.round]
        assert not later or event.reason in _text(later[0]), f"{event.role} was not told why"
    if trace.cast is None:
        return
    done, blocked = _plan(trace, trace.cast)
    if trace.status != "failed":
        assert (trace.status == "blocked") == blocked
    if trace.ended_by == "quiet" and not blocked:
        assert done == len(trace.cast.plan), "play ended before the plan was done"


def _plan(trace: Trace, cast: Cast) -> tuple[int, bool]:
    """How many steps of the plan were accepted, and whether it is blocked, as rule 4 has it."""
    done = attempt = 0
    for event in trace.events:
        if event.role != cast.ego or done == len(cast.plan):
            continue
        if event.plausible:
            done, attempt = done + 1, 0
        elif attempt:
            return done, True
        else:
            attempt = 1
    return done, False


def objects(trace: Trace) -> None:
    """Rule 5: each change starts where the one before it ended, and the modulator judges by how things then stand."""
    if trace.cast is None:
        return
    states = {thing.name: thing.state for thing in trace.cast.objects}
    begins: dict[int | None, dict[str, str]] = {}
    edits = list(trace.edits)
    for event in trace.events:
        _edited(states, edits, event.round)
        begins.setdefault(event.round, dict(states))
        for change in event.changes:
            assert event.plausible
            assert change.before == states[change.object], "a change from a state that was not there"
            assert change.after != change.before
            states[change.object] = change.after
    _edited(states, edits, None)
    assert states == trace.object_states
    for call in trace.calls:
        if call.purpose == "judge" and call.round in begins:
            lines = [line for message in call.messages[1:] for line in message.content.splitlines()]
            for name, state in begins[call.round].items():
                told = [line for line in lines if line.startswith(f"- {name}: ")]
                assert told, f"the modulator was not told how {name} stands"
                assert told[-1] == f"- {name}: {state}", f"the modulator was not told that {name} is {state}"


def _edited(states: dict[str, str], edits: list[Edit], before: int | None) -> None:
    """Objects changed by hand after earlier rounds, each from the state in which it then was."""
    while edits and (before is None or edits[0].round < before):
        edit = edits.pop(0)
        assert edit.before == states[edit.object] != edit.after
        states[edit.object] = edit.after


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
            line = f"- {event.role}: {event.action}"
            assert re.search(rf"^{re.escape(line)}$", told[-1].messages[-1].content, re.MULTILINE)


def answer(trace: Trace) -> None:
    """Rule 7: unrevised means the draft to the letter; nothing against it means unrevised."""
    if not trace.revised:
        assert trace.answer == trace.draft
    else:
        assert trace.answer != trace.draft
        assert trace.calls[-1].purpose == "revise" and trace.calls[-1].completion == trace.answer
    ego = trace.cast.ego if trace.cast else None
    closing = [call for call in trace.calls if call.purpose in ("reflect", "revise")]
    if not trace.consequences and all(event.plausible or event.role != ego for event in trace.events):
        assert not trace.revised
        assert not closing
    for call in closing:
        if call.purpose == "reflect" and call.error is None:
            wanted = re.findall(r'"revise":\s*(true|false)', call.completion)[-1] == "true"
            assert wanted == any(other.purpose == "revise" for other in closing)


def failure(trace: Trace) -> None:
    """Rule 9: what failed is recorded, asked for at most twice, and a failed scene says why."""
    assert (trace.status == "failed") == (trace.error is not None)
    if trace.status == "failed":
        assert not trace.revised
    asked: dict[tuple[str, str | None, int | None], list[Call]] = {}
    for call in trace.calls:
        asked.setdefault((call.purpose, call.role, call.round), []).append(call)
    for calls in asked.values():
        assert len(calls) <= 2
        assert all(call.error is not None for call in calls[:-1]), "asked again although the reply could be used"
    recorded = [(item.purpose, item.role, item.round) for item in trace.failures]
    assert len(set(recorded)) == len(recorded)
    for item in trace.failures:
        failed = asked[item.purpose, item.role, item.round]
        assert all(call.error is not None for call in failed) and item.error == failed[-1].error
        assert not any((event.role, event.round) == (item.role, item.round) for event in trace.events)
    for key, calls in asked.items():
        if calls[-1].error is None or key[0] == "recap":
            continue
        if key[0] in ("act", "judge"):
            assert key in recorded, f"{key} failed, and nothing says so"
        else:
            assert trace.status == "failed" and trace.error == calls[-1].error


def record(trace: Trace) -> None:
    """Rule 10: usage adds up, and every prompt is a chat whose sides take turns and that ends with a question."""
    assert trace.usage == sum((call.usage for call in trace.calls), Usage())
    for call in trace.calls:
        said = [message.role for message in call.messages if message.role != "system"]
        assert said == ["user", "assistant"] * (len(said) // 2) + ["user"]
        assert all(message.role != "system" for message in call.messages[1:])
        assert call.completion or call.error is not None or call.author == "human"  # silence


def bounds(trace: Trace) -> None:
    """Rule 11: no more calls, tokens and rounds than the settings allow."""
    limits = trace.settings
    most = limits["max_rounds"] or limits["steps"] + 1
    assert max((event.round for event in trace.events), default=0) <= most
    assert len(trace.calls) <= limits["max_calls"]
    assert trace.usage.output_tokens <= limits["max_output_tokens"]


def _text(call: Call) -> str:
    return "\n".join(message.content for message in call.messages)


def _order(cast: Cast) -> list[str]:
    return [cast.ego, *(role.name for role in cast.roles if role.name != cast.ego)]
