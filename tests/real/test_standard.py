"""LangChain's standard integration tests for chat models, on a real vLLM server with the bundled model."""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.server import VLLMServer


class TestStandardIntegration(ChatModelIntegrationTests):
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
            "temperature": 0.0,
            "max_tokens": 256,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @pytest.mark.xfail(reason="The 135M model fills an object that has no properties with blanks, without an end.")
    def test_tool_calling_with_no_arguments(self, model: BaseChatModel) -> None:
        super().test_tool_calling_with_no_arguments(model)

    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    @pytest.mark.xfail(reason="The 135M model calls no tool where it is free not to.")
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason="The 135M model goes on with a sentence of free length until its tokens are used up.")
    def test_structured_output_optional_param(self, model: BaseChatModel) -> None:
        super().test_structured_output_optional_param(model)

    @pytest.mark.xfail(reason="The 135M model goes on with a sentence of free length until its tokens are used up.")
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)
