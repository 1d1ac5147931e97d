"""What every node of a scene shares: the one model, the settings, and the way to the watchers.

`Stage.ask` is the only way from a node to the model, so that limits, recording and live events hold everywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel

from matrix_graph.config import LONGEST_ANSWER, UNKNOWN_CONTEXT_LENGTH, SceneConfig
from matrix_graph.errors import ModelError, SceneError
from matrix_graph.models.ask import TRIES, Answer, ChatMessage, Question, ask, describe, parse_text
from matrix_graph.models.bundled import longest_answer
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.complete import name_of
from matrix_graph.models.wrapped import leaves
from matrix_graph.records import Purpose
from matrix_graph.scene import dialogue as chat
from matrix_graph.scene.prompts import fill
from matrix_graph.scene.state import Dialogue, Plain

T = TypeVar("T")

SMALLEST_CONTEXT = 2048
"""Tokens that any model takes; as long as a dialogue is shorter, nobody has to be asked for the model's context."""
PLAY_SHARE = 0.8
"""How much of `max_seconds` the scene may take before it has to come to its end."""
_PATIENCE = 10.0
"""Seconds to wait for the server to tell its context."""
_JUDGING: frozenset[Purpose] = frozenset({"judge", "recap", "reflect", "check"})
"""Calls that find out what is so, and are sampled near 0."""
_CLOSING: frozenset[Purpose] = frozenset({"reflect", "revise", "check"})
"""Calls for which play leaves a share of the time."""


def answer_limit(model: BaseChatModel, config: SceneConfig) -> int:
    """The longest draft or revision of this model, in tokens."""
    if config.max_answer_tokens is not None:
        return config.max_answer_tokens
    return longest_answer(name_of(model)) or LONGEST_ANSWER


@dataclass(frozen=True)
class Stage:
    """One node's view of the world outside the scene.

    Attributes:
        model: the one chat model that plays everybody.
        config: settings of this scene.
        emit: takes live events, plain dicts with a "type", for whoever watches.
        clock: seconds that the scene has taken when this node begins.
        tokens_left: what the scene may still generate; None where the round's own limit has seen to that.
        sync: whether the graph runs synchronously, so that its checkpointer and store may be synchronous too.
    """

    model: BaseChatModel
    config: SceneConfig
    emit: Callable[[Plain], None]
    clock: float = 0.0
    tokens_left: int | None = None
    sync: bool = False

    async def ask(
        self,
        purpose: Purpose,
        messages: Sequence[ChatMessage],
        parse: Callable[[str], T],
        max_tokens: int,
        *,
        schema: dict[str, Any] | None = None,
        role: str | None = None,
        round: int | None = None,
        again: Sequence[ChatMessage] | None = None,
    ) -> Answer[T]:
        """Ask the model within what is left of the scene's limits; the caller adds the answer's calls to the state."""
        if self.tokens_left is not None:
            max_tokens = min(max_tokens, self.tokens_left // TRIES)
            if max_tokens < 1:
                limit = SceneError(
                    f"max_output_tokens ({self.config.max_output_tokens}) leaves nothing for {purpose}; raise it."
                )
                return Answer(None, "", list(messages), 0, [], describe(limit))
        return await ask(
            self.model,
            Question(
                purpose=purpose,
                messages=messages,
                parse=parse,
                max_tokens=max_tokens,
                temperature=self.config.judge_temperature if purpose in _JUDGING else self.config.temperature,
                schema=schema,
                again=again,
                role=role,
                round=round,
                seconds=self.seconds_left(purpose),
            ),
        )

    def without(self, tokens: int) -> Stage:
        """The stage with so many tokens less to generate: those that a call at its side may take."""
        return self if self.tokens_left is None else replace(self, tokens_left=max(0, self.tokens_left - tokens))

    @property
    def answer_tokens(self) -> int:
        """The longest draft or revision, in tokens."""
        return answer_limit(self.model, self.config)

    async def context_length(self) -> int:
        """The model's context in tokens: configured, else as the server or the model's profile tells."""
        if self.config.context_length is not None:
            return self.config.context_length
        # A prompt must fit whichever model a wrapper turns to.
        lengths = [await self._context_of(leaf) for leaf, _ in leaves(self.model)]
        return min((length for length in lengths if length), default=UNKNOWN_CONTEXT_LENGTH)

    async def _context_of(self, model: BaseChatModel) -> int | None:
        if isinstance(model, ChatVLLM):
            try:
                async with asyncio.timeout(min(_PATIENCE, self.seconds_left("recap"))):
                    return await model.acontext_length()
            except (ModelError, TimeoutError):
                # Whether the server can be had is for the next call to find out, which records it.
                return None
        profile: Any = getattr(model, "profile", None) or {}
        return int(profile.get("max_input_tokens") or 0) or None

    async def _thinking_room(self) -> int:
        """The tokens that a reply takes besides, because the model thinks."""
        inside = [(leaf, bound.get("model")) for leaf, bound in leaves(self.model)]
        return max([await leaf.athinking_room(name) for leaf, name in inside if isinstance(leaf, ChatVLLM)], default=0)

    def seconds_left(self, purpose: Purpose) -> float:
        """What a call of this purpose may take; play leaves a share of the time to reflection and revision."""
        share = 1.0 if purpose in _CLOSING else PLAY_SHARE
        return max(0.0, self.config.max_seconds * share - self.clock)

    async def fitted(
        self,
        dialogue: Dialogue,
        opening: list[ChatMessage],
        new: Sequence[str],
        reply_tokens: int,
        *,
        prompt: str,
        role: str | None,
        round: int,
    ) -> tuple[Dialogue, list[Plain]]:
        """The dialogue, condensed by a recorded summary if what comes next might not fit into the model's context.

        Args:
            dialogue: the chat so far.
            opening: what it began with; a condensed dialogue begins so again.
            new: texts about to be said.
            reply_tokens: the longest reply, in tokens.
            prompt: the speaker's prompt file, with the sections "recap" and "recalled".
            role: whose dialogue it is; None is the modulator's.
            round: from 1.

        Returns:
            The dialogue to go on with, and the recap's call records (none if it fitted).
        """
        request = fill(prompt, "recap")
        reserve = reply_tokens + self.config.max_reflection_tokens + len(request) + await self._thinking_room()
        counted, since = chat.split(dialogue)
        if not counted or not chat.outgrows(dialogue, new, reserve, self.config.context_length or SMALLEST_CONTEXT):
            return dialogue, []
        if not chat.outgrows(dialogue, new, reserve, await self.context_length()):
            return dialogue, []
        # What was counted had room for a reply and this request, so that the recap of it fits whatever came since.
        recap = await self.ask(
            "recap",
            [*counted, {"role": "user", "content": request}],
            parse_text,
            self.config.max_reflection_tokens,
            role=role,
            round=round,
        )
        if recap.value is None:
            return dialogue, recap.calls
        return chat.resumed(opening, fill(prompt, "recalled", summary=recap.value), since), recap.calls
