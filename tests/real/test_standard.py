"""LangChain's standard integration tests for chat models, on a real vLLM server with the bundled model."""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.server import VLLMServer


@pytest.mark.flaky(reruns=3)
class TestStandardIntegration(ChatModelIntegrationTests):
    """What a test asks for is at times beyond a model of 135M parameters, whatever the client does.

    Left alone it goes on with a sentence until its tokens are used up, which a frequency penalty ends. What it writes
    also hangs on the processor's arithmetic and on what the prefix cache holds, even at temperature 0: a test has four
    tries, drawn anew. A client that is wrong fails all of them.
    """

    server: VLLMServer

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, server: VLLMServer) -> None:
        cls.server = server

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatVLLM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": self.server.model_name,
            "base_url": self.server.base_url,
            "api_key": self.server.api_key,
            "temperature": 0.2,
            "max_tokens": 256,
            "extra_body": {"frequency_penalty": 0.7},
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    @pytest.mark.xfail(reason="The 135M model calls no tool where it is free not to.")
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason="Free to write any JSON object, the 135M model writes one without the keys asked for.")
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)
