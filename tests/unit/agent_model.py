"""A chat model for agents under test: says one given message after the other, word by word where it is streamed."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field


class AgentModel(BaseChatModel):
    """Raises when its messages are used up.

    Args:
        replies: what it says, in this order.
        bound: the names of the tools that were bound to it.
        heard: the messages of each call.
    """

    replies: list[AIMessage] = Field(exclude=True)
    bound: list[str] = Field(default=[], exclude=True)
    heard: list[list[BaseMessage]] = Field(default=[], exclude=True)

    @property
    def _llm_type(self) -> str:
        return "agent-model"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        self.bound.extend(getattr(tool, "name", str(tool)) for tool in tools)
        return self

    def _next(self, messages: list[BaseMessage]) -> AIMessage:
        if len(self.heard) == len(self.replies):
            raise AssertionError("the agent's model was called more often than scripted")
        self.heard.append(messages)
        return self.replies[len(self.heard) - 1].model_copy()

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next(messages))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in _chunks(self._next(messages)):
            if run_manager:
                run_manager.on_llm_new_token(str(chunk.text), chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in _chunks(self._next(messages)):
            if run_manager:
                await run_manager.on_llm_new_token(str(chunk.text), chunk=chunk)
            yield chunk


def _chunks(message: AIMessage) -> list[ChatGenerationChunk]:
    if not isinstance(message.content, str) or message.tool_calls:
        whole = AIMessageChunk(**message.model_dump(exclude={"type", "tool_calls", "invalid_tool_calls"}))
        whole.tool_call_chunks = [
            {"type": "tool_call_chunk", "name": call["name"], "args": _json(call["args"]), "id": call["id"], "index": n}
            for n, call in enumerate(message.tool_calls)
        ]
        return [ChatGenerationChunk(message=whole)]
    words = re.findall(r"\S+\s*", message.content) or [""]
    told: dict[str, Any] = {"response_metadata": message.response_metadata, "usage_metadata": message.usage_metadata}
    return [
        ChatGenerationChunk(message=AIMessageChunk(content=word, id=message.id, **(told if word is words[-1] else {})))
        for word in words
    ]


def _json(value: Any) -> str:
    import json

    return json.dumps(value)
