"""What a rehearsal leaves behind, from `Role` to `Trace`: the one schema that scene, store, export and report share.

Everything here crosses the disk, so everything is a pydantic model that forbids unknown keys where people write it
(`Cast`) and keeps the keys of DESIGN fixed where programs read it (`Trace`). Derived values are properties, never
stored. Times are UTC, durations seconds, lengths tokens as the model server counts them.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from matrix_graph.errors import CastError

SCHEMA_VERSION = 2
"""Version 2 added the situation, the stance, who people are, what observers perceive, whom an action hurts, the
reflection, the check of a revision, and what was cut. Version 1 still loads: what it lacks is empty."""
NAME_LENGTH = 60
"""The longest name of a role or an object, in characters."""
RESERVED_NAMES = frozenset({"modulator"})
"""Names, casefolded, that no role may have, because a reader of the trace would mistake whose words he reads."""

OUTSIDE = "others outside"
"""What stands for people who are not in the scene, where an action or a reflection says whom something harms."""

Purpose = Literal["draft", "cast", "act", "judge", "recap", "reflect", "revise", "check", "feedback", "observe"]
Status = Literal["finished", "blocked", "failed"]
EndedBy = Literal["quiet", "max_rounds", "max_calls", "max_output_tokens", "max_seconds"]
Stance = Literal["helps", "declines"]
"""What an answer does with its question: it helps with it, or it declines to."""
Effect = Literal["helped", "harmed", "left without help", "none"]
"""What a scene did to a person."""
Verdict = Literal["keep", "improve", "kinder", "help"]
"""What a scene says about the draft: keep it; help in a better way; decline more kindly; help instead of declining."""
Author = Literal["model", "runnable", "human", "what_if"]


_UNDECODED = re.compile("[\udc80-\udcff]")
"""How Python holds bytes of a name that are not UTF-8."""
_SURROGATES = {code: "\ufffd" for code in range(0xD800, 0xE000)}


def clean(text: str) -> str:
    """The text with lone surrogates replaced by U+FFFD, since no UTF-8 file, socket or database takes them."""
    return text if text.isascii() else text.translate(_SURROGATES)


def escaped(name: str) -> str:
    """A file's name for people and records: bytes that are not UTF-8 as `\\xNN`, the rest as `clean` has it."""
    return clean(_UNDECODED.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", name))


def same_name(one: str, other: str) -> bool:
    """Whether two texts name the same role or object: case and white space do not tell people apart."""
    return _folded(one) == _folded(other)


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


class _Given(BaseModel):
    """What people write too: a misspelt key is refused, and text that no file could hold is mended."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _encodable(cls, value: Any) -> Any:
        if isinstance(value, str):
            return clean(value)
        return [clean(item) if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


class _Record(BaseModel):
    """What programs write: keys may be added by a later release."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Role(_Given):
    """A person in the scene."""

    name: str = Field(description="How others address this person; distinct in the cast, case and spaces ignored.")
    who: str = Field(default="", description="Who this person is to the asker, as everybody in the scene knows it.")
    traits: str = Field(default="", description="What this person is like.")
    goal: str = Field(default="", description="What this person wants in the scene.")


class SocialObject(_Given):
    """A thing whose state matters to people in the scene, such as money in a vault."""

    name: str = Field(description="Distinct in the cast, case and spaces ignored.")
    state: str = Field(description="Its state when the scene begins.")


class Cast(_Given):
    """Who and what stands on the stage, and what the ego sets out to do.

    Raises:
        CastError: names that are empty, too long, reserved or used twice, or an ego that is not among the roles.
    """

    ego: str = Field(description="Name of the role that asked the question and acts on the draft.")
    roles: list[Role] = Field(description="All roles, the ego among them; their order is the order of settlement.")
    objects: list[SocialObject] = Field(default=[], description="Objects in their state before the first round.")
    plan: list[str] = Field(default=[], description="The ego's steps; empty lets the model plan from the draft.")
    situation: str = Field(default="", description="One sentence: who asks, why, and where. The roles are not told.")
    stance: Stance | None = Field(
        default=None,
        description="What the draft does with the question. The scene asks the model where it is null.",
    )

    @model_validator(mode="after")
    def _playable(self) -> Self:
        for kind, names in (("role", [r.name for r in self.roles]), ("object", [o.name for o in self.objects])):
            seen: set[str] = set()
            for name in names:
                if not name.strip():
                    raise CastError(f"A {kind} of the cast has an empty name; give every {kind} a name.")
                if len(name) > NAME_LENGTH:
                    raise CastError(
                        f"The {kind} name {name[:NAME_LENGTH]!r}... has {len(name)} characters; "
                        f"at most {NAME_LENGTH} are allowed. Put the rest into its traits or state."
                    )
                if kind == "role" and _folded(name) in RESERVED_NAMES:
                    raise CastError(f"The role name {name!r} is taken by the scene itself; choose another.")
                if _folded(name) in seen:
                    raise CastError(
                        f"The {kind} name {name!r} appears twice; names must differ, case and spaces ignored."
                    )
                seen.add(_folded(name))
        if self.ego not in {role.name for role in self.roles}:
            names_ = ", ".join(repr(role.name) for role in self.roles) or "none"
            raise CastError(f"The ego {self.ego!r} is not among the roles ({names_}).")
        if any(not step.strip() for step in self.plan):
            raise CastError("The plan has an empty step; leave it out, or give an empty plan to have one made.")
        return self

    def role(self, name: str) -> Role:
        """The role of that name.

        Raises:
            KeyError: nobody has that name.
        """
        for role in self.roles:
            if role.name == name:
                return role
        raise KeyError(name)


class Change(_Record):
    """One object passing from one state to another through an accepted action."""

    object: str
    before: str
    after: str


class Event(_Record):
    """One judged action. A rejected one has no observers, no changes and no consequence."""

    round: int = Field(description="From 1.")
    role: str = Field(description="Who acted.")
    action: str
    plausible: bool
    reason: str = Field(description="Why the modulator judged so; of a rejected action its actor alone is told.")
    observers: list[str] = Field(description="Roles that perceived the action, in cast order, never the actor.")
    seen: str | None = Field(
        default=None, description="What the observers see and hear of it; null: nobody does, or the action itself."
    )
    changes: list[Change]
    consequence: str | None = Field(description="Effect on people, good or bad; null if there is none.")
    hurt: list[str] = Field(
        default=[], description=f"Roles that the action harms, in cast order; {OUTSIDE!r} for people who are not there."
    )

    @property
    def told(self) -> str:
        """The line that each observer is told."""
        return self.seen or f"{self.role}: {self.action}"


class Usage(_Record):
    """Tokens as the server counts them."""

    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens, output_tokens=self.output_tokens + other.output_tokens
        )


class Problem(_Record):
    """An error as data: the name of its type, and its message."""

    type: str
    message: str


class Failure(_Record):
    """A part of the scene that could not be played: a role silent for a round, an action that could not be judged."""

    purpose: Purpose
    role: str | None
    round: int | None
    error: Problem


class Message(_Record):
    """One chat message exactly as sent."""

    role: Literal["system", "user", "assistant"]
    content: str


class Call(_Record):
    """One model call, or one turn of somebody else who plays a role: exact messages in, exact completion out."""

    purpose: Purpose
    role: str | None = Field(description="Whose dialogue or action this is about; null where no role speaks.")
    round: int | None
    messages: list[Message]
    completion: str = Field(description="Exactly as received; empty if the call brought none.")
    finish_reason: str | None = Field(description='The server\'s: "stop", "length", ...; null if it told none.')
    model: str
    sampling: dict[str, Any] = Field(description="Sampling settings sent with the request, a JSON schema among them.")
    usage: Usage
    seconds: float = Field(description="Wall time of the call, retries of the connection included.")
    error: Problem | None = Field(default=None, description="Why the completion could not be used; null if it was.")
    author: Author = Field(
        default="model",
        description="Who wrote the completion: the model, a runnable or a human who plays the role, or whoever asked "
        "\"what if\". Only the model's own may be taught as the model's.",
    )
    reasoning: str | None = Field(default=None, description="What the model thought before the completion, if told.")
    cut: list[str] = Field(
        default=[], description='What of the completion ended at a limit: "reply", or names of strings in its JSON.'
    )
    taken_over: bool = Field(default=False, description="Made in the parent scene, and not again in this branch.")


class Outcome(_Record):
    """What the scene did to one person, as the reflection saw it."""

    name: str
    effect: Effect
    how: str = Field(description="How, in a few words.")


class Reflection(_Record):
    """What the scene means for the draft."""

    people: list[Outcome] = Field(description=f"In cast order, then {OUTSIDE!r}: people who are not in the scene.")
    lesson: str
    verdict: Verdict

    @property
    def harmed(self) -> list[str]:
        """The names of those whom the scene harmed."""
        return [person.name for person in self.people if person.effect == "harmed"]


class Check(_Record):
    """Whether a proposed revision may take the draft's place (rule "never worse")."""

    proposed: str = Field(description="The proposed revision, to the letter.")
    harm: bool = Field(description="Whether the deed did harm in the scene.")
    stance: Stance | None = Field(description="What the revision does with the question; null if it could not be told.")
    repeats_deed: bool | None = Field(
        default=None,
        description="Whether the revision still helps to do what did harm in the scene. Null: not asked.",
    )
    preferred: list[Literal["draft", "revision"]] = Field(
        default=[], description="Which of both was preferred: with the draft shown first, and shown second."
    )
    passed: bool
    why: str = Field(description="Why it passed or did not, in a sentence.")


class Edit(_Record):
    """An object whose state was changed by hand for a what-if; nobody acted, and nobody saw it happen."""

    round: int = Field(description="The round after which it was changed.")
    object: str
    before: str
    after: str


class Parent(_Record):
    """Where a what-if branch came from."""

    id: str = Field(description="Of the scene that it branches off.")
    round: int = Field(description="Where the change was made.")
    change: str = Field(description="What was changed, as people write it; see `compose.what_if.parse_change`.")


class Trace(BaseModel):
    """The full record of one rehearsal; export, report and evaluation read nothing else. One JSON object a line."""

    model_config = ConfigDict(extra="allow", frozen=True)

    schema_version: int = SCHEMA_VERSION
    id: str
    question: str
    draft: str | None = Field(description="The answer before; null if the scene failed before there was one.")
    answer: str | None = Field(description="The answer after. Equal to the draft, to the letter, unless `revised`.")
    revised: bool
    status: Status
    error: Problem | None = Field(default=None, description='Why the scene failed; null unless status is "failed".')
    cast: Cast | None = Field(description="Null if the scene failed before it was cast.")
    events: list[Event]
    calls: list[Call]
    reflection: Reflection | None = Field(default=None, description="Null if nothing in the scene asked for one.")
    check: Check | None = Field(default=None, description="Null if no revision was proposed.")
    failures: list[Failure] = Field(default=[], description="What failed without ending the scene.")
    ended_by: EndedBy | None = Field(default=None, description='Why play ended: "quiet" or the limit that was reached.')
    settings: dict[str, Any]
    usage: Usage
    seconds: float = Field(description="Wall time from question to answer, pauses between resumptions left out.")
    created_at: datetime
    parent: Parent | None = Field(default=None, description="Null if the scene is not a what-if branch of another.")
    edits: list[Edit] = Field(default=[], description="Objects changed by hand, in this branch or in one before it.")

    @property
    def consequences(self) -> list[str]:
        """The consequences of the accepted actions, in order."""
        return [event.consequence for event in self.events if event.consequence is not None]

    @property
    def cut(self) -> bool:
        """Whether the answer ended at its limit of tokens, so that its end is missing."""
        wanted = "revise" if self.revised else "draft"
        calls = [call for call in self.calls if call.purpose == wanted and call.error is None]
        return bool(calls) and calls[-1].finish_reason == "length"

    @property
    def object_states(self) -> dict[str, str]:
        """Every object's state at the end of the scene."""
        states = {o.name: o.state for o in self.cast.objects} if self.cast else {}
        # Stable: what was changed by hand after a round comes after that round's events.
        items: list[Event | Edit] = [*self.events, *self.edits]
        for item in sorted(items, key=lambda item: item.round):
            for change in [item] if isinstance(item, Edit) else item.changes:
                states[change.object] = change.after
        return states

    def to_json_line(self) -> str:
        """One line of JSON, without the newline."""
        return self.model_dump_json()
