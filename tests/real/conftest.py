"""One real vLLM server on the bundled model for all tests in this folder: a start takes about 45 s."""

from collections.abc import Iterator

import pytest

from matrix_graph.models import engine
from matrix_graph.models.server import ServerConfig, VLLMServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test bears the server's start, which takes minutes on a machine that is busy."""
    for item in items:
        if "tests/real/" in item.nodeid and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def server() -> Iterator[VLLMServer]:
    """A ready server: `base_url`, `api_key`, `model_name`. A test may kill its engine: it comes back."""
    if not engine.engine_installed():
        pytest.fail(f"tests/real needs a real engine. {engine.missing_engine_message()}")
    # A model this small keeps to the parameters of a tool only if it is held to them.
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--tool-strict-level", "parameter")
    config = ServerConfig(extra_args=tools)
    with VLLMServer(config=config, on_status=lambda line: print(f"vLLM: {line}", flush=True)) as running:
        yield running
