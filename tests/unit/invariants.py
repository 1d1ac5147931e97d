"""DESIGN's rules 2 to 14, checked against the trace alone. Each function raises AssertionError with what it found."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from matrix_graph.records import OUTSIDE, Call, Cast, Edit, Trace, Usage
from matrix_graph.scene.copying import same_words
from matrix_graph.scene.role import does_nothing

TOKEN = re.compile(r"tok[0-9a-f]{9,12}")
"""What the fake models mark each of their texts with: twelve hexadecimal digits, or the fake server's nine digits."""


def check_all(trace: Trace) -> None:
    for rule in (
        rounds,
        knowledge,
        plausibility,
        objects,
        delivery,
        answer,
        checked,
        failure,
        record,
        bounds,
        told_what_the_draft_said,
        passes,
        cuts,
    ):
        rule(trace)


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
    """Rule 3: a role's messages hold its profile, what all know of all, its own actions and what it perceived before.

    What it perceived is the line that it was told, which need not be what was done.
    """
    if trace.cast is None:
        return
    public = " ".join(f"{role.name} {role.who}" for role in trace.cast.roles)
    for role in trace.cast.roles:
        profile = f"{public} {role.traits} {role.goal}"
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
                    known += f" {event.told}"
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
        routed[f"- {event.told}"] += seen
    condensed = any(c.purpose == "recap" and c.role == call.role for c in trace.calls)
    chat = "\n".join(message.content for message in call.messages[1:])
    for line, times in routed.items():
        told = len(re.findall(rf"^{re.escape(line)}$", chat, re.MULTILINE))
        late = call.purpose == "recap"  # what is new is said after the summary
        assert told <= times, f"{call.role} was told of what it did not see, or not yet: {line}"
        assert condensed or late or told == times, f"{call.role} was told {told} times of {line}, seen {times} times"


def plausibility(trace: Trace) -> None:
    """Rule 4: rejected means no change, no observer, no consequence; a step rejected twice blocks the plan."""
    for event in trace.events:
        if not event.plausible:
            assert not event.observers and not event.changes and event.consequence is None
            assert event.seen is None and not event.hurt
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
    """How many steps of the plan are behind the ego, accepted or left out, and whether it is blocked, by rule 4."""
    done = attempt = 0
    passed = _passes(trace)
    events = {event.round: event for event in trace.events if event.role == cast.ego}
    last = max((call.round or 0 for call in trace.calls), default=0)
    for number in range(1, max([last, *events]) + 1):
        if done == len(cast.plan):
            break
        event = events.get(number)
        if (number, cast.ego) in passed or (event is not None and event.plausible):
            done, attempt = done + 1, 0
        elif event is not None and attempt:
            return done, True
        elif event is not None:
            attempt = 1
    return done, False


def _proposed(completion: str) -> str:
    """The answer that a revision's completion is: the text itself, or the sentences of a kinder refusal."""
    try:
        parts = json.loads(completion)
    except (ValueError, RecursionError):
        return completion
    if not isinstance(parts, dict) or set(parts) != {"no", "hurts", "instead"}:
        return completion
    return " ".join(" ".join(str(part) for part in parts.values()).split())


def _whole_plan_was_done(trace: Trace, cast: Cast) -> bool:
    """Whether the ego took every step of its plan, none rejected and none left out."""
    own = [event for event in trace.events if event.role == cast.ego]
    steps = own[: len(cast.plan)]
    left_out = any(role == cast.ego and steps and number < steps[-1].round for number, role in _passes(trace))
    return len(steps) == len(cast.plan) and all(event.plausible for event in own) and not left_out


def _passes(trace: Trace) -> set[tuple[int, str]]:
    """Who had a turn and did nothing in it: (round, role)."""
    acted = {(event.round, event.role) for event in trace.events}
    silent = {(item.round, item.role) for item in trace.failures}
    turns = {(call.round or 0, call.role or "") for call in trace.calls if call.purpose == "act"}
    return turns - acted - silent


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
    for event in trace.events:
        assert event.observers or event.seen is None, "seen, and nobody saw it"
        if trace.cast is not None:
            names = [role.name for role in trace.cast.roles]
            assert event.observers == [name for name in names if name in event.observers], "not in cast order"
            assert event.hurt == [name for name in [*names, OUTSIDE] if name in event.hurt], "not in cast order"
    last = max((event.round for event in trace.events), default=0)
    for event in trace.events:
        for name in event.observers:
            told = [c for c in trace.calls if c.purpose == "act" and c.role == name and c.round == event.round + 1]
            if not told:
                assert event.round == last and trace.ended_by != "quiet", f"{name} was never told of {event.action}"
                continue
            line = f"- {event.told}"
            assert re.search(rf"^{re.escape(line)}$", told[-1].messages[-1].content, re.MULTILINE)


def answer(trace: Trace) -> None:
    """Rule 7: unrevised means the draft to the letter; nothing against it means unrevised."""
    if trace.revised:
        assert trace.check is not None and trace.check.passed, "revised without a check that passed"
        assert trace.answer == trace.check.proposed != trace.draft
    else:
        assert trace.answer == trace.draft
        assert trace.check is None or not trace.check.passed
    asked = {purpose: [c for c in trace.calls if c.purpose == purpose] for purpose in ("reflect", "revise")}
    if trace.cast is None:
        assert not asked["reflect"] and not asked["revise"] and trace.reflection is None
        return
    ego, stance = trace.cast.ego, trace.cast.stance
    nothing = not trace.consequences and all(event.plausible or event.role != ego for event in trace.events)
    if (nothing and stance == "helps") or not trace.events:
        assert not asked["reflect"], "there was nothing to reflect on"
    elif trace.error is None:
        assert trace.reflection is not None, "what speaks against the draft was not reflected on"
    if trace.reflection is None:
        assert not asked["revise"] and trace.check is None
        return
    assert asked["reflect"][-1].error is None
    assert [person.name for person in trace.reflection.people] == [*(role.name for role in trace.cast.roles), OUTSIDE]
    verdict = trace.reflection.verdict
    assert verdict in (("keep", "improve") if stance == "helps" else ("keep", "kinder", "help"))
    if stance == "helps":
        worse_off = any(person.effect in ("harmed", "left without help") for person in trace.reflection.people)
        wanted = worse_off or trace.status == "blocked" or (verdict == "improve" and _harm(trace))
    else:
        wanted = _harm(trace) or (verdict == "help" and _whole_plan_was_done(trace, trace.cast))
    assert wanted == bool(asked["revise"])
    if trace.error is None and wanted:
        proposed = _proposed(asked["revise"][-1].completion)
        assert (trace.check is None) == (proposed == trace.draft)
        assert trace.check is None or trace.check.proposed == proposed


def checked(trace: Trace) -> None:
    """Rule 7: a revision takes the draft's place only if its check passes, and the check is what its calls say."""
    check = trace.check
    if check is None:
        return
    assert trace.cast is not None and trace.reflection is not None and check.why
    assert check.harm == _harm(trace)
    after = [number for number, call in enumerate(trace.calls) if call.purpose == "revise"][-1]
    calls = trace.calls[after + 1 :]
    assert all(call.purpose == "check" and call.role is None and call.round is None for call in calls)
    groups = _together(calls)
    assert len(groups) == 3, "a check is three questions"
    said = [_choice(group[-1]) for group in groups]
    declined = trace.cast.stance == "declines"
    if check.harm and not declined:
        assert check.stance is None
        assert check.repeats_deed == {"yes": True, "no": False, None: None}[said[0]]
        fits = check.repeats_deed is False
    else:
        assert check.repeats_deed is None and check.stance == said[0]
        fits = check.stance == ("declines" if check.harm else "helps")
    shown_first = [trace.draft, check.proposed]
    preferred = []
    for group, choice, first in zip(groups[1:], said[1:], shown_first, strict=True):
        second = check.proposed if first == trace.draft else trace.draft
        prompt = group[0].messages[-1].content
        assert str(first) in prompt and str(second) in prompt
        assert prompt.rindex(f": {second}") > prompt.index(f": {first}") or str(first) in str(second)
        if choice is not None:
            preferred.append("draft" if (choice == "A") == (first == trace.draft) else "revision")
    assert check.preferred == preferred
    unspoken = not check.why.startswith("The revision speaks of the scene.")
    assert check.passed == (fits and len(preferred) == 2 and "revision" in preferred and unspoken)


def _harm(trace: Trace) -> bool:
    """Whether the deed did harm in the scene."""
    harmed = trace.reflection is not None and bool(trace.reflection.harmed)
    return harmed or any(event.hurt for event in trace.events)


def _together(calls: list[Call]) -> list[list[Call]]:
    """The tries of each question, in the order in which the questions were asked."""
    groups: dict[tuple[str, str], list[Call]] = {}
    for call in calls:
        groups.setdefault((call.messages[0].content, _asked(call)), []).append(call)
    return list(groups.values())


def _asked(call: Call) -> str:
    """What a call asks, without the note that comes with a second try."""
    return call.messages[-1].content.split("\n\n(Your last reply to this could not be used:")[0]


def _choice(call: Call) -> str | None:
    if call.error is not None:
        return None
    found = re.findall(r'"(?:stance|again|better)"\s*:\s*"(\w+)"', call.completion)
    return str(found[-1]) if found else call.completion.strip().strip(".\"'")


def failure(trace: Trace) -> None:
    """Rule 9: what failed is recorded, asked for at most twice, and a failed scene says why."""
    assert (trace.status == "failed") == (trace.error is not None)
    if trace.status == "failed":
        assert not trace.revised
    asked: dict[tuple[str, str | None, int | None], list[Call]] = {}
    for call in trace.calls:
        if call.purpose != "check":
            asked.setdefault((call.purpose, call.role, call.round), []).append(call)
    checks = _together([call for call in trace.calls if call.purpose == "check"])
    for calls in checks:
        assert len(calls) <= 2
        assert all(call.error is not None for call in calls[:-1]), "asked again although the reply could be used"
    if trace.calls and trace.cast is None:
        assert trace.status == "failed"
    if trace.cast is not None and trace.cast.stance is None:
        assert trace.status == "failed", "played without a stance"
    for calls in asked.values():
        assert len(calls) <= 2
        assert all(call.error is not None for call in calls[:-1]), "asked again although the reply could be used"
    recorded = [(item.purpose, item.role, item.round) for item in trace.failures]
    assert len(set(recorded)) == len(recorded)
    for item in trace.failures:
        failed = asked[item.purpose, item.role, item.round]
        assert all(call.error is not None for call in failed) and item.error == failed[-1].error
        assert not any((event.role, event.round) == (item.role, item.round) for event in trace.events)
        assert item.error.type != "RepeatedError", "doing the same again is a pass"
    for key, calls in asked.items():
        if calls[-1].error is None or key[0] == "recap":
            continue
        if key[0] == "act" and calls[-1].error.type == "RepeatedError":
            assert key not in recorded, "doing the same again is a pass"
        elif key[0] in ("act", "judge"):
            assert key in recorded, f"{key} failed, and nothing says so"
        else:
            assert trace.status == "failed" and trace.error == calls[-1].error
    if checks and trace.status == "failed" and trace.error == checks[0][-1].error:
        assert not trace.events, "only the draft's stance can end a scene"


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
    most = limits["max_rounds"] or limits["steps"] + 2
    assert max((event.round for event in trace.events), default=0) <= most
    assert len(trace.calls) <= limits["max_calls"]
    assert trace.usage.output_tokens <= limits["max_output_tokens"]


def told_what_the_draft_said(trace: Trace) -> None:
    """Rule 12: the stance is known, and everybody who judges knows the question, the situation and who is who."""
    if trace.cast is None:
        return
    cast = trace.cast
    stances = _together([call for call in trace.calls if call.purpose == "check"])[:1]
    if stances and trace.check is None and cast.stance is not None and _asked_stance(trace, stances[0][0]):
        assert _choice(stances[0][-1]) == cast.stance
    if any(call.round is not None for call in trace.calls):
        assert cast.stance is not None
    for call in trace.calls:
        if call.purpose not in ("judge", "reflect", "revise"):
            continue
        text = _text(call)
        assert trace.question in text, f"{call.purpose} does not know the question"
        assert cast.situation in text, f"{call.purpose} does not know the situation"
        assert cast.ego in text, f"{call.purpose} does not know who asked"
        if call.purpose != "judge":
            assert str(trace.draft) in text
        if call.purpose != "revise":
            assert all(f"{role.name}, {role.who}" in text for role in cast.roles if role.who)


def _asked_stance(trace: Trace, call: Call) -> bool:
    before = [c for c in trace.calls if c.round is not None or c.purpose in ("reflect", "revise")]
    return not before or trace.calls.index(call) < trace.calls.index(before[0])


def passes(trace: Trace) -> None:
    """Rule 13: who does nothing costs no judgement, and nobody does the same twice in the same words, unasked."""
    passed = _passes(trace)
    for call in trace.calls:
        assert call.purpose != "judge" or (call.round, call.role) not in passed
    for event in trace.events:
        assert not does_nothing(event.action) or (trace.cast and event.action in trace.cast.plan)
    if trace.cast is None:
        return
    for role in trace.cast.roles:
        calls = [call for call in trace.calls if call.role == role.name and call.purpose in ("act", "recap")]
        if any(call.purpose == "recap" or call.author != "model" for call in calls):
            continue
        asked = {call.round for call in calls if call.error is None}
        done: list[str] = []
        for event in trace.events:
            if event.role == role.name:
                if event.round in asked:
                    assert not any(event.action == old or same_words(event.action, old) for old in done)
                done.append(event.action)


def cuts(trace: Trace) -> None:
    """Rule 14: what ended at a limit is named."""
    for call in trace.calls:
        assert (call.finish_reason == "length") == ("reply" in call.cut)
        schema = (call.sampling.get("structured_outputs") or {}).get("json")
        try:
            value = json.loads(call.completion)
        except (ValueError, RecursionError):
            continue
        if schema is not None:
            assert set(call.cut) - {"reply"} == set(_full(value, schema, ""))
    wanted = [c for c in trace.calls if c.purpose == ("revise" if trace.revised else "draft") and c.error is None]
    assert trace.cut == (bool(wanted) and "reply" in wanted[-1].cut)


def _full(value: Any, schema: dict[str, Any], path: str) -> list[str]:
    """The paths of the strings that are as long as the schema allows."""
    if "anyOf" in schema:
        return [found for branch in schema["anyOf"] for found in _full(value, branch, path)]
    if isinstance(value, dict) and "properties" in schema:
        parts = [(f"{path}.{key}".lstrip("."), part, schema["properties"].get(key, {})) for key, part in value.items()]
    elif isinstance(value, list) and "items" in schema:
        parts = [(f"{path}[{number}]", part, schema["items"]) for number, part in enumerate(value)]
    else:
        return [path] if isinstance(value, str) and len(value) >= schema.get("maxLength", len(value) + 1) else []
    return [found for name, part, inner in parts for found in _full(part, inner, name)]


def _text(call: Call) -> str:
    return "\n".join(message.content for message in call.messages)


def _order(cast: Cast) -> list[str]:
    return [cast.ego, *(role.name for role in cast.roles if role.name != cast.ego)]
