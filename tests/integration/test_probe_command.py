"""The command `probe` as people run it, on a fake model behind real HTTP."""

from __future__ import annotations

import json
from pathlib import Path

from matrix_graph.evaluate.probe.items import load_items
from tests.integration.model_server import ModelServer
from tests.integration.test_cli import Shell

ITEMS = len(load_items())


def test_a_random_model_is_not_good_enough(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    with ModelServer() as server:
        done = shell.run("probe", "--base-url", server.base_url, "--errors", "--out", "probe")
        assert server.peak_in_flight <= 32
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.startswith(f"fake-model: {ITEMS} items")
    assert lines[0].startswith("plausible")
    assert "at least 85%: missed" in lines[0]
    assert "Expect of scenes from this model: " in done.stdout
    assert "; right is: " in done.stdout
    assert f"items: {ITEMS} of {ITEMS}" in done.stderr
    calls = (tmp_path / "probe" / "calls.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(calls) == ITEMS
    result = json.loads((tmp_path / "probe" / "probe.json").read_text(encoding="utf-8"))
    assert result["items"] == ITEMS


def test_json_and_kinds(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    with ModelServer() as server:
        done = shell.run("probe", "--base-url", server.base_url, "--kinds", "cast", "--json")
        wrong = shell.run("probe", "--base-url", server.base_url, "--kinds", "casts")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert [measure["name"] for measure in json.loads(line)["measures"]] == ["cast"]
    assert wrong.returncode == 2
    assert "use plausible, observers, effect, cast" in wrong.stderr
