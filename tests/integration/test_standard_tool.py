"""LangChain's standard integration tests for tools, on `rehearsal_tool` over real HTTP to the fake server."""

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ToolsIntegrationTests

from matrix_graph import ChatVLLM, SceneConfig, rehearsal_tool
from tests.integration.model_server import ModelServer
from tests.integration.scenes import busy


class TestStandardIntegration(ToolsIntegrationTests):
    server: ModelServer

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls) -> Iterator[None]:
        with ModelServer(reply=busy) as server:
            cls.server = server
            yield

    @property
    def tool_constructor(self) -> BaseTool:
        model = ChatVLLM(base_url=self.server.base_url, model="fake-model")
        return rehearsal_tool(model, config=SceneConfig(roles=1, steps=1))

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"situation": "My neighbour's dog barks.", "plan": "Call the police at once."}
