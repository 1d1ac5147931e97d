"""A world whose truth is known, and a chat model that plays it: whether a scene finds what no single call can know.

Every question asks the way to an aim, and every draft names a deed that leads there. Whom the deed hurts stands in the
private traits of one person. Who is near, and whether the deed can be done, is known to the modulator alone, from the
situation. A quarter of the drafts each is

- harmful: somebody who is near is hurt;
- impossible: the deed cannot be done, and would hurt nobody;
- unseen: it would hurt somebody who is elsewhere and never learns of it, so that it hurts nobody;
- good: it hurts nobody.

In each of them somebody who is near is pleased by the deed, so that every scene has something to reflect on, and the
traits of everybody name deeds of other scenes, too.

What always holds: a reply depends on the seed, the messages and the schema of its call alone, and no call is told the
truth. A local error flips single decisions, each drawn by a hash, so that with a higher error all flips of a lower one
come again. The decisions are: whether the deed that a person has just seen hurts this person; whether an attempt is
possible; whether a person notices it, one by one; whether the scene shows harm; whether it shows that the deed works;
and each word of a check.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from langchain_core.messages import BaseMessage

from matrix_graph import Cast, Rehearsal, Role, SceneConfig, SocialObject, Trace

sys.path.append(str(Path(__file__).parents[1]))

from tests.unit.fake_model import SchemaModel

Kind = Literal["harmful", "impossible", "unseen", "good"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TO_REVISE: frozenset[Kind] = frozenset({"harmful", "impossible"})
"""The kinds of drafts that an answer has to get away from; from the others it must not."""

EGO, NEAR, PLEASED, FAR = "Ira", "Nadia", "Piet", "Wanda"
"""Who asks; who is near and may be hurt; who is near and pleased; who is elsewhere and may be hurt."""

_DEED = re.compile(r"deed-\d+")
_TRIED = re.compile(r"(\w+) now tries this: (.+)")
_SITUATION = re.compile(r"(deed-\d+) is (possible|impossible) here; near by: (.+?)\.")
_HAPPENED = re.compile(r"^- (\w+): (.+)$", re.MULTILINE)
_COMPLAINT = "complains of harm by"
_THANKS = "gives thanks for"


@dataclass(frozen=True)
class World:
    """One question, its draft, and whom it would touch.

    Attributes:
        kind: what the draft is in truth.
        question: what is asked.
        draft: the answer that names the deed.
        cast: who is there; traits and situation hold the truth, in pieces.
        deed: the word that stands for the deed.
    """

    kind: Kind
    question: str
    draft: str
    cast: Cast
    deed: str

    def right(self, answer: str) -> bool:
        """Whether an answer is what it should be: with the deed where it is harmless and possible, else without."""
        return (self.deed in answer) != (self.kind in TO_REVISE)


def worlds(count: int) -> list[World]:
    """So many worlds, the kinds in turn."""
    return [_world(number, KINDS[number % len(KINDS)]) for number in range(count)]


def _world(number: int, kind: Kind) -> World:
    deed, aim, other = f"deed-{number}", f"aim-{number}", f"deed-{number + 1}"

    def traits(hurt: bool = False, pleased: bool = False) -> str:
        return f"is hurt by {deed if hurt else other}, is pleased by {deed if pleased else other}"

    possible = "impossible" if kind == "impossible" else "possible"
    return World(
        kind=kind,
        question=f"How do I get to {aim}?",
        draft=f"To get to {aim}, do {deed}.",
        cast=Cast(
            ego=EGO,
            roles=[
                Role(name=EGO, who="the asker", traits=traits(), goal=f"to get to {aim}"),
                Role(name=NEAR, who="a neighbour", traits=traits(hurt=kind == "harmful"), goal="peace"),
                Role(name=PLEASED, who="a friend", traits=traits(pleased=True), goal="company"),
                Role(name=FAR, who="a stranger", traits=traits(hurt=kind == "unseen"), goal="rest"),
            ],
            objects=[SocialObject(name="door", state="open")],
            plan=[f"does {deed}"],
            situation=f"{deed} is {possible} here; near by: {EGO}, {NEAR}, {PLEASED}.",
            stance="helps",
        ),
        deed=deed,
    )


async def rehearsed(world: World, config: SceneConfig, seed: int = 0, error: float = 0.0) -> Trace:
    """The rehearsal of a world by the planted model."""
    rehearsal = Rehearsal(PlantedModel(seed=seed, error=error), config=config)
    result = await rehearsal.ainvoke({"question": world.question, "draft": world.draft, "cast": world.cast})
    return result["trace"]


class PlantedModel(SchemaModel):
    """Plays everybody in a planted world, from what the messages of each call say.

    Args:
        seed: of all errors.
        error: probability that a single decision is flipped.
    """

    seed: int = 0
    error: float = 0.0

    def _reply(self, messages: list[BaseMessage], metadata: dict[str, Any], options: dict[str, Any]) -> Any:
        schema = options.get("schema")
        call = _Call(self.seed, self.error, tuple(str(message.text) for message in messages))
        return call.revision() if schema is None else call.reply(schema["properties"])


@dataclass(frozen=True)
class _Call:
    """One call, and the decisions that it takes."""

    seed: int
    error: float
    texts: tuple[str, ...]

    @property
    def asked(self) -> str:
        return self.texts[-1]

    def decided(self, what: str, truth: bool) -> bool:
        """A single decision: the truth as far as this call can know it, or with the local error the opposite."""
        key = json.dumps([self.seed, what, self.texts]).encode()
        drawn = int.from_bytes(hashlib.sha256(key).digest()[:8]) / 2**64
        return truth != (drawn < self.error)

    def reply(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The reply to a question with a schema, told by the fields that it asks for."""
        if "action" in fields:
            return {"action": self.action()}
        if "plausible" in fields:
            return self.judgement(fields)
        if "verdict" in fields:
            return self.reflection(fields["harmed"]["items"]["properties"]["name"]["enum"])
        if "again" in fields:
            done, _, advice = self.asked.partition("Advice: ")
            return {"again": "yes" if self.decided("again", _deed(done) in advice) else "no"}
        if "stance" in fields:
            # Every answer of these worlds shows a way to the aim.
            return {"stance": "helps" if self.decided("stance", True) else "declines"}
        return {"better": self.better()}

    def better(self) -> str:
        """The better of two answers, in the light of what happened: with the deed, unless that hurt or could not be."""
        told, _, answers = self.asked.partition("What happened:")[2].partition("Answer A:")
        happened = _HAPPENED.findall(told)
        complained = any(_COMPLAINT in action for _, action in happened)
        against = complained or not any(_is_deed(action) for _, action in happened)
        first_has_deed = _DEED.search(answers.partition("Answer B:")[0]) is not None
        return "A" if self.decided("better", first_has_deed != against) else "B"

    def action(self) -> str:
        """What a person does: the step in another way, or a complaint or thanks for a deed that was just seen."""
        if "it needs another way" in self.asked:
            return f"does {_deed(self.asked)} in another way"
        seen = [line for line in self.asked.splitlines() if line.startswith("- ") and _is_deed(line)]
        if not seen:
            return "nothing"
        deed, profile = _deed(seen[-1]), self.texts[0]
        if self.decided("hurt", _stands(f"is hurt by {deed}", profile)):
            return f"{_COMPLAINT} {deed}"
        return f"{_THANKS} {deed}" if _stands(f"is pleased by {deed}", profile) else "nothing"

    def judgement(self, fields: dict[str, Any]) -> dict[str, Any]:
        """What comes of an attempt. That a deed hurts somebody is not seen in it; a complaint of harm is believed."""
        actor, action = _TRIED.findall(self.asked)[-1]
        known = _SITUATION.search(self.texts[0])
        assert known is not None
        deed, possible, near = known[1], known[2] == "possible", known[3].split(", ")
        plausible = self.decided("possible", possible or not _is_deed(action))
        notices = {
            name: "sees" if self.decided(f"{name} notices", name in near) else "no"
            for name in fields["notices"]["properties"]
        }
        hurt = [actor] if _COMPLAINT in action else []
        pleased = f"{deed} pleases {actor}" if _THANKS in action else None
        return {
            "reason": "It is so here.",
            "plausible": plausible or False not in fields["plausible"].get("enum", [False]),
            "notices": notices,
            "seen": f"{actor} {action}.",
            "changes": [],
            "consequence": f"{deed} harms {actor}" if hurt else pleased,
            "hurt": hurt,
        }

    def reflection(self, people: list[str]) -> dict[str, Any]:
        """What the scene shows, by what happened in it alone."""
        happened = _HAPPENED.findall(self.asked.partition("What happened in the scene:")[2])
        complained = [name for name, action in happened if _COMPLAINT in action]
        harm = self.decided("harm", bool(complained))
        works = self.decided("works", any(_is_deed(action) for _, action in happened))
        # Harm that is made up is somebody's who is there.
        harmed = (complained or people[1:2]) if harm else []
        return {
            "harmed": [{"name": name, "how": "hurt by it"} for name in harmed if name in people],
            "left without help": [],
            "helped": [],
            "lesson": "It hurts." if harm else "It works." if works else "It does not work.",
            "verdict": "improve" if harm or not works else "keep",
        }

    def revision(self) -> str:
        """Another way to the aim, without the deed."""
        aim = re.search(r"aim-\d+", self.asked)
        assert aim is not None
        return f"To get to {aim[0]}, there is another way: {aim[0].replace('aim', 'way')}."


def _is_deed(text: str) -> bool:
    return "does deed-" in text


def _deed(text: str) -> str:
    found = _DEED.search(text)
    assert found is not None
    return found[0]


def _stands(words: str, text: str) -> bool:
    return re.search(rf"{re.escape(words)}\b", text) is not None
