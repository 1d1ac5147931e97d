"""The command `adapters` against a real server process that stands in for vLLM."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from matrix_graph.commands.adapters import adapters
from matrix_graph.errors import ConfigError, ServerError
from matrix_graph.models.server import ServerConfig, VLLMServer
from tests.integration.test_server import make_adapter

STUB = Path(__file__).with_name("stub_engine.py")
APP = typer.Typer()
APP.command()(adapters)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VLLMServer]:
    monkeypatch.setenv("MATRIX_GRAPH_CACHE", str(tmp_path / "cache"))
    settings = ServerConfig(command=(sys.executable, str(STUB)), health_interval=0.2)
    with VLLMServer("stub/model", config=settings) as running:
        monkeypatch.setenv("MATRIX_GRAPH_BASE_URL", running.base_url)
        monkeypatch.setenv("VLLM_API_KEY", running.api_key)
        yield running


def run(*arguments: str) -> str:
    result = CliRunner().invoke(APP, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_load_unload(server: VLLMServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = make_adapter(tmp_path / "kind")
    assert json.loads(run("--json")) == {"base_url": server.base_url, "adapters": []}
    loaded = json.loads(run("load", f"kind={kind}", "--json"))["adapters"]
    assert loaded == [{"name": "kind", "base": "stub/model", "path": str(kind)}]
    assert "kind  on stub/model  from " in run()
    assert "kind" not in run("unload", "kind")

    with pytest.raises(ServerError, match="has no adapter 'kind'; it has none"):
        run("unload", "kind")
    with pytest.raises(ServerError, match="does not exist"):
        run("load", f"kind={tmp_path / 'none'}")
    with pytest.raises(ServerError, match="the base model's"):
        run("load", f"stub/model={kind}")
    for wrong in (["load"], ["unload"], ["list", "kind"], ["load", "kind"]):
        with pytest.raises(ConfigError):
            run(*wrong)
    monkeypatch.setenv("VLLM_API_KEY", "wrong")
    with pytest.raises(ServerError, match="refuses the key"):
        run()
    assert server.healthy
    with pytest.raises(ServerError, match="No model server answers"):
        run("--base-url", "http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="not an address"):
        run("--base-url", "127.0.0.1:9")
    monkeypatch.delenv("MATRIX_GRAPH_BASE_URL")
    with pytest.raises(ConfigError, match="Which server"):
        run()
