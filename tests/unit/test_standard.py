"""LangChain's standard unit tests for chat models, on ChatVLLM."""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.unit_tests import ChatModelUnitTests

from matrix_graph.models.chat_vllm import ChatVLLM


class TestStandardUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatVLLM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "some-model", "base_url": "http://127.0.0.1:9/v1"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {"VLLM_API_KEY": "from-env", "MATRIX_GRAPH_BASE_URL": "http://127.0.0.1:8123/v1"},
            {"model": "some-model"},
            {"api_key": "from-env", "base_url": "http://127.0.0.1:8123/v1"},
        )

    @pytest.mark.xfail(
        reason="langchain-core loads only the classes on its own list, even with allowed_objects='all'; "
        "test_chat_vllm.py has the round trip with allowed_objects=[ChatVLLM]"
    )
    def test_serdes(self, *args: Any) -> None:
        super().test_serdes(*args)
