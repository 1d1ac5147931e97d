"""What the chat models of tests and benchmarks share: each says what a function of its own makes of a call."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda


class FakeModel(BaseChatModel):
    """A chat model that knows nothing of structured output. A subclass gives `_reply`."""

    @property
    def _llm_type(self) -> str:
        return "fake"

    def _reply(self, messages: list[BaseMessage], metadata: dict[str, Any], options: dict[str, Any]) -> Any:
        """The reply to one call.

        Args:
            messages: as sent.
            metadata: of the call, such as "matrix_graph_purpose".
            options: of the call, such as the "schema" of `SchemaModel`.

        Returns:
            A message or a text; an exception, which is raised; anything else is sent as JSON.
        """
        raise NotImplementedError

    def _pause(self) -> float:
        """How long the call takes, in seconds."""
        return 0.0

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if pause := self._pause():
            time.sleep(pause)
        return self._result(messages, run_manager, kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if pause := self._pause():
            await asyncio.sleep(pause)
        return self._result(messages, run_manager, kwargs)

    def _result(self, messages: list[BaseMessage], run_manager: Any, options: dict[str, Any]) -> ChatResult:
        reply = self._reply(messages, (run_manager.metadata or {}) if run_manager else {}, options)
        if isinstance(reply, Exception):
            raise reply
        if not isinstance(reply, AIMessage):
            reply = AIMessage(reply if isinstance(reply, str) else json.dumps(reply, ensure_ascii=False))
        return ChatResult(generations=[ChatGeneration(message=reply)])


class SchemaModel(FakeModel):
    """A chat model that is told the schema of its reply, which comes as it is: `options["schema"]` of `_reply`."""

    def with_structured_output(self, schema: Any, *, include_raw: bool = False, **kwargs: Any) -> Runnable[Any, Any]:
        assert include_raw
        return self.bind(schema=schema) | RunnableLambda(
            lambda raw: {"raw": raw, "parsed": None, "parsing_error": None}
        )
