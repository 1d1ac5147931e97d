"""Leaks: what a role was told and may not know. Read from the trace's messages alone; there must be none.

Why apart from the scene: the rule that nobody knows what they did not see is checked here on what was really sent, by
code that shares nothing with the code that sent it but the fixed words of its prompt, which tell nothing. What always
holds: a role may be told its own profile and what it did and said, who everybody is, why something of its own could not
happen, and of each action that it observed what could be seen of it, once, in a later round. Any other line of
somebody's doing is a leak, and so is, wherever it stands: another's profile, an action or the sight of it that was not
observed (yet), what was done where something else was seen, a judgement, the plan and the draft that are the ego's
alone, the situation that nobody is told.

What cannot be told from text: a leak in other words; one of texts shorter than `SHORTEST`, which occur by chance; and
one of an action that says what prompts said before it was done, as small models do that imitate their prompts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple

from matrix_graph.records import Call, Cast, Role, Trace
from matrix_graph.scene.cast import introduced
from matrix_graph.scene.prompts import fill

SHORTEST = 12
"""Bytes that a text must have to count as a leak by itself; observation lines count however short they are."""

_BULLET = re.compile(r"^- .*\S.*$", re.MULTILINE)

Kind = Literal["observation", "action", "profile", "judgement", "plan"]


class Leak(NamedTuple):
    """Something that a role was told and may not know."""

    role: str
    round: int
    kind: Kind
    text: str


def leaks(trace: Trace) -> list[Leak]:
    """All leaks of a scene, each role's each text once, with the round in which it was first told."""
    if trace.cast is None:
        return []
    found: dict[tuple[str, Kind, str], Leak] = {}
    for role in trace.cast.roles:
        calls = [call for call in trace.calls if call.role == role.name and call.purpose in ("act", "recap")]
        for number, call in enumerate(calls):
            for leak in _in_call(trace, trace.cast, call, calls[:number]):
                found.setdefault((leak.role, leak.kind, leak.text), leak)
    return list(found.values())


def _in_call(trace: Trace, cast: Cast, call: Call, before: list[Call]) -> Iterator[Leak]:
    name, round = call.role or "", call.round or 0
    profile = cast.role(name)
    own = [profile.name, profile.traits, profile.goal]
    public = [text for role in cast.roles for text in (role.name, role.who)]
    if name == cast.ego:
        own += [*cast.plan, trace.question, trace.draft or ""]
    own += [text for earlier in before for text in (earlier.completion, earlier.completion.strip())]
    own += [event.action for event in trace.events if event.role == name]
    own += [event.reason for event in trace.events if event.role == name and event.round < round]
    lines = [f"- {event.told}" for event in trace.events if name in event.observers and event.round < round]
    heard = "\n".join(message.content for message in call.messages if message.role == "user")
    allowed = _bullets("\n".join(lines))
    for text in {text.strip() for text in own} - {""}:
        for line, times in _bullets(text).items():  # its own summary may tell of others in lines like these
            allowed[line] += times * heard.count(text)
    for line in _bullets(heard) - allowed:
        yield Leak(name, round, "observation", line)

    known = _flat("\n".join([*_fixed_words(cast, profile), *own, *public, *lines]))
    told = _flat("\n".join(message.content for message in call.messages))
    said = _flat("\n".join(message.content for message in call.messages if message.role != "system"))
    for secret in _secrets(trace, cast, name):
        text, where = _flat(secret.text), told if secret.since is None else said
        if len(text.encode()) < SHORTEST or text in known or text not in where:
            continue
        if secret.since is None or text not in _said_until(trace, secret.since):
            yield Leak(name, round, secret.kind, text)


def _bullets(text: str) -> Counter[str]:
    """The lines that tell of somebody's doing, and how often each stands there."""
    return Counter(line.strip() for line in _BULLET.findall(text))


def _fixed_words(cast: Cast, profile: Role) -> list[str]:
    """What stands in every role's prompt, whatever happens: small models bring its words forth as their own."""
    own = {"name": profile.name, "traits": profile.traits or "-", "goal": profile.goal or "-"}
    people = introduced({role.name: role.who for role in cast.roles})
    turns = {"seen": "observations", "failed": "reason", "step": "step", "step_again": "step", "recalled": "summary"}
    return [
        fill("role", "system", people=people, **own),
        *(fill("role", section, **{value: ""}) for section, value in turns.items()),
        fill("role", "ask"),
        fill("role", "recap"),
    ]


class _Secret(NamedTuple):
    """A text that is not this role's by itself; `since` is the round that brought it forth, None before all rounds."""

    kind: Kind
    text: str
    since: int | None


def _secrets(trace: Trace, cast: Cast, name: str) -> Iterator[_Secret]:
    """All texts of the scene that a role may not know unless it has seen them."""
    for other in cast.roles:
        if other.name != name:
            yield _Secret("profile", other.traits, None)
            yield _Secret("profile", other.goal, None)
    if name != cast.ego:
        for text in (*cast.plan, trace.draft or "", trace.question):
            yield _Secret("plan", text, None)
    yield _Secret("plan", cast.situation, None)
    for event in trace.events:
        if event.role != name:
            yield _Secret("action", event.action, event.round)
            yield _Secret("action", event.seen or "", event.round)
            yield _Secret("judgement", event.reason, event.round)
        for text in (event.consequence or "", *(change.after for change in event.changes)):
            yield _Secret("judgement", text, event.round)


def _said_until(trace: Trace, round: int) -> str:
    """All that roles were told up to a round, when nothing that it brought forth could be among it."""
    return _flat(
        "\n".join(
            message.content
            for call in trace.calls
            if call.purpose == "act" and (call.round or 0) <= round
            for message in call.messages
        )
    )


def _flat(text: str) -> str:
    return " ".join(text.split()).casefold()
