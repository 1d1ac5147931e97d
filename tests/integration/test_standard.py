"""LangChain's standard integration tests for chat models, on ChatVLLM over real HTTP to the fake server."""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests

from matrix_graph.models.chat_vllm import ChatVLLM
from tests.integration.model_server import ModelServer
from tests.integration.random_reply import Reply, random_reply


def apt(body: dict[str, Any]) -> Reply | None:
    """What the suite expects a capable model to say; None leaves it to chance."""
    called = random_reply(body).tool_calls
    if called and called[0][0] == "magic_function":
        return Reply("", "tool_calls", (("magic_function", '{"input": 3}'),))
    if called and called[0][0] == "unicode_customer":
        quoted = re.findall(r"'([^']+)'", body["messages"][-1]["content"])
        arguments = json.dumps({"customer_name": quoted[0], "description": "技术"}, ensure_ascii=False)
        return Reply("", "tool_calls", (("unicode_customer", arguments),))
    if body.get("response_format") == {"type": "json_object"}:
        return Reply('{"setup": "Why?", "punchline": "Because."}')
    return None


class TestStandardIntegration(ChatModelIntegrationTests):
    server: ModelServer

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls) -> Iterator[None]:
        with ModelServer(models=("fake-model", "other-model"), reply=apt) as server:
            cls.server = server
            yield

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatVLLM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "fake-model", "base_url": self.server.base_url}

    @property
    def supports_json_mode(self) -> bool:
        return True

    # The suite fetches the files of its image, audio and PDF tests from the web; test_messages.py covers such blocks.

    @property
    def model_override_value(self) -> str:
        return "other-model"

    @property
    def supported_usage_metadata_details(
        self,
    ) -> dict[
        Literal["invoke", "stream"],
        list[Literal["audio_input", "audio_output", "reasoning_output", "cache_read_input", "cache_creation_input"]],
    ]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        model = self.chat_model_class(**self.chat_model_params)
        if not stream:
            return model.invoke("the same prefix as before")
        chunks = list(model.stream("the same prefix as before"))
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole = whole + chunk
        return whole
