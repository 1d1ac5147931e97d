"""What every node of a scene shares: the one model, the settings, and the way to the watchers.

`Stage.ask` is the only way from a node to the model, so that limits, recording and live events hold everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel

from matrix_graph.config import SceneConfig
from matrix_graph.errors import ModelError
from matrix_graph.models.ask import Answer, ChatMessage, Question, ask, parse_text
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.records import Purpose
from matrix_graph.scene import dialogue as chat
from matrix_graph.scene.prompts import fill
from matrix_graph.scene.state import Dialogue, Plain

T = TypeVar("T")

DEFAULT_CONTEXT_LENGTH = 4096


@dataclass(frozen=True)
class Stage:
    """One node's view of the world outside the scene.

    Attributes:
        model: the one chat model that plays everybody.
        config: settings of this scene.
        emit: takes live events, plain dicts with a "type", for whoever watches.
        clock: seconds that the scene has taken when this node begins.
    """

    model: BaseChatModel
    config: SceneConfig
    emit: Callable[[Plain], None]
    clock: float = 0.0

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
    ) -> Answer[T]:
        """Ask the model within what is left of the scene's time; the caller adds the answer's calls to the state."""
        return await ask(
            self.model,
            Question(
                purpose=purpose,
                messages=messages,
                parse=parse,
                max_tokens=max_tokens,
                temperature=self.config.temperature,
                schema=schema,
                role=role,
                round=round,
                seconds=max(0.0, self.config.max_seconds - self.clock),
            ),
        )

    async def context_length(self) -> int:
        """The model's context in tokens: configured, else as the server tells, else 4096."""
        if self.config.context_length is not None:
            return self.config.context_length
        if isinstance(self.model, ChatVLLM):
            try:
                return await self.model.acontext_length() or DEFAULT_CONTEXT_LENGTH
            except ModelError:
                # Whether the server can be had is for the next call to find out, which records it.
                return DEFAULT_CONTEXT_LENGTH
        profile: Any = getattr(self.model, "profile", None) or {}
        return int(profile.get("max_input_tokens") or DEFAULT_CONTEXT_LENGTH)

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
        reserve = reply_tokens + self.config.max_reflection_tokens
        if len(dialogue["messages"]) <= len(opening) or not chat.outgrows(
            dialogue, new, reserve, await self.context_length()
        ):
            return dialogue, []
        recap = await self.ask(
            "recap",
            chat.say(dialogue, fill(prompt, "recap"))["messages"],
            parse_text,
            self.config.max_reflection_tokens,
            role=role,
            round=round,
        )
        if recap.value is None:
            return dialogue, recap.calls
        return chat.say(chat.begin(opening), fill(prompt, "recalled", summary=recap.value)), recap.calls
