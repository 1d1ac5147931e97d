"""A chat model that plays a random but repeatable part: same seed, same scene, whatever the order of the calls.

Every text that it makes holds a token of its own (`tok...`), so that a test can follow each piece of information.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import Field

from matrix_graph.scene.prompts import examples
from tests.unit.fake_model import SchemaModel

Override = Callable[[str, str, int, random.Random], Any]


class ScriptedModel(SchemaModel):
    """Random replies that fit the schema asked for.

    Args:
        seed: of everything that is random.
        plausible: probability that an action is judged plausible.
        nonsense: probability that a reply cannot be used (empty, not JSON, cut off, wrong shape).
        broken: probability that a call raises.
        harmless: probability that a consequence is null.
        unseen: probability that nothing can be seen of an action.
        hurtful: probability that an action hurts somebody.
        declines: probability that an answer counts as one that declines.
        passes: probability that a role does nothing.
        repeats: probability that a role does again what it has done before.
        copies: probability that a cast or an action is taken from the prompt's example.
        full: probability that a string is as long as its schema allows.
        cut: probability that a reply ends at the limit of tokens.
        jitter: longest time that a call takes, in seconds; it varies from call to call and from run to run.
        override: may give the reply itself: called with purpose, role, round and a random generator; a dict or list
            is sent as JSON, a str as it is, an exception is raised, None leaves the reply to the model. For a check,
            the purpose is what is asked for: "stance", "again" or "better".
    """

    seed: int = 0
    plausible: float = 0.8
    nonsense: float = 0.0
    broken: float = 0.0
    harmless: float = 0.5
    unseen: float = 0.2
    hurtful: float = 0.3
    declines: float = 0.0
    passes: float = 0.0
    repeats: float = 0.0
    copies: float = 0.0
    full: float = 0.0
    cut: float = 0.0
    jitter: float = 0.0
    override: Override | None = Field(default=None, exclude=True)
    log: list[tuple[str, str, int]] = Field(default=[], exclude=True)

    def _pause(self) -> float:
        return random.random() * self.jitter

    def _reply(self, messages: list[BaseMessage], metadata: dict[str, Any], options: dict[str, Any]) -> Any:
        schema = options.get("schema")
        purpose = metadata["matrix_graph_purpose"]
        role, round = metadata["matrix_graph_role"], metadata["matrix_graph_round"]
        self.log.append((purpose, role, round))
        key = json.dumps([self.seed, purpose, role, round, [message.text for message in messages]])
        rng = random.Random(hashlib.sha256(key.encode()).digest())
        wanted = next(iter(schema["properties"])) if purpose == "check" else purpose
        reply: Any = self.override(wanted, role, round, rng) if self.override else None
        if isinstance(reply, Exception):
            return reply
        if reply is None and rng.random() < self.broken:
            return ConnectionError("scripted connection loss")
        if reply is None:
            reply = self._value(schema, rng, "") if schema else words(rng)
            reply = self._habit(purpose, messages, rng) or reply
        text = reply if isinstance(reply, str) else json.dumps(reply, ensure_ascii=False)
        if self.override is None and rng.random() < self.nonsense:
            text = rng.choice(
                ["", "  \n", "I would rather not.", text[: len(text) // 2], '{"wrong": "shape"}', "[1, 2]"]
            )
        return AIMessage(
            content=text,
            response_metadata={"finish_reason": "length" if rng.random() < self.cut else "stop"},
            usage_metadata={
                "input_tokens": sum(len(m.text.split()) for m in messages),
                "output_tokens": len(text.split()),
                "total_tokens": sum(len(m.text.split()) for m in messages) + len(text.split()),
            },
        )

    def _habit(self, purpose: str, messages: list[BaseMessage], rng: random.Random) -> Any:
        """A reply as small models tend to give it; None for another."""
        if purpose in ("act", "cast") and rng.random() < self.copies:
            return rng.choice(examples("role" if purpose == "act" else "cast"))
        if purpose != "act":
            return None
        if rng.random() < self.passes:
            return {"action": rng.choice(["nothing", "Nothing.", "does nothing"])}
        done = [message.text for message in messages if message.type == "ai"]
        return rng.choice(done) if done and rng.random() < self.repeats else None

    def _value(self, schema: dict[str, Any], rng: random.Random, name: str) -> Any:
        if name == "stance":
            return "declines" if rng.random() < self.declines else "helps"
        if "enum" in schema:
            return rng.choice(schema["enum"])
        if "anyOf" in schema:
            null = rng.random() < (self.unseen if name == "seen" else self.harmless)
            return None if null else self._value(schema["anyOf"][0], rng, name)
        if name == "hurt" and rng.random() >= self.hurtful:
            return []
        kind = schema["type"]
        if kind == "object":
            return {key: self._value(value, rng, key) for key, value in schema["properties"].items()}
        if kind == "array":
            count = rng.randint(schema.get("minItems", 0), schema.get("maxItems", 3))
            return [self._value(schema["items"], rng, name) for _ in range(count)]
        if kind == "boolean":
            return rng.random() < (self.plausible if name == "plausible" else 0.5)
        longest = schema.get("maxLength", 100)
        text = words(rng)
        return f"{text} {'o' * longest}"[:longest] if rng.random() < self.full else text[:longest]


def words(rng: random.Random) -> str:
    """A short text that begins with a token of its own."""
    return f"tok{rng.getrandbits(48):012x} {rng.choice(['goes', 'says', 'waits', 'gives'])}"


def everybody_sees(*names: str) -> Override:
    """Judgements by which all these people see what each of them does, and nothing comes of it."""

    def override(purpose: str, role: str, round: int, rng: random.Random) -> Any:
        if purpose != "judge":
            return None
        return {
            "reason": "so",
            "plausible": True,
            "observers": [name for name in names if name != role],
            "seen": f"{role} moves in round {round}",
            "changes": [],
            "consequence": None,
            "hurt": [],
        }

    return override
