"""`matrix-graph rehearse --what-if`: a scene that was kept, changed and played on, in another process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from matrix_graph import Trace, read_traces
from tests.integration.model_server import ModelServer
from tests.integration.test_cli import QUESTION, Shell


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


def chats(server: ModelServer) -> int:
    return sum(method == "POST" for method, _ in server.requests)


def test_a_scene_is_changed_and_played_on(shell: Shell, server: ModelServer) -> None:
    where = ("--base-url", server.base_url, "--out", "kept")
    assert shell.run("rehearse", QUESTION, *where).returncode == 0
    (parent,) = read_traces(shell.folder / "kept")
    assert parent.cast is not None
    asked = chats(server)

    done = shell.run("rehearse", "--what-if", f'round 1: "{parent.cast.ego}": walks away without a word', *where)
    assert done.returncode == 0, done.stderr
    assert "walks away without a word" in done.stdout
    assert "kept: kept/traces.jsonl" in done.stdout
    _, branch = read_traces(shell.folder / "kept")
    assert branch.parent is not None
    assert (branch.parent.id, branch.parent.round) == (parent.id, 1)
    assert (branch.question, branch.draft, branch.cast) == (parent.question, parent.draft, parent.cast)
    assert branch.events[0].action == "walks away without a word"
    taken_over = sum(call.taken_over for call in branch.calls)
    assert taken_over == 3  # the draft, its stance and the cast
    assert chats(server) - asked == sum(call.author == "model" for call in branch.calls) - taken_over

    verdict = f"round 1: verdict: {parent.cast.ego}: no: the door is locked"
    done = shell.run("rehearse", "--what-if", verdict, "--scene", parent.id[:10], "--json", *where)
    assert done.returncode == 0, done.stderr
    judged = Trace.model_validate_json(done.stdout)
    assert judged.parent is not None and judged.parent.id == parent.id
    first = judged.events[0]
    assert (first.plausible, first.reason, first.observers, first.changes) == (False, "the door is locked", [], [])


def test_what_cannot_be_changed_is_told_before_a_server_is_asked(shell: Shell, server: ModelServer) -> None:
    where = ("--base-url", server.base_url, "--out", "kept", "--steps", 1)
    assert shell.run("rehearse", QUESTION, *where).returncode == 0
    asked = chats(server)
    change = "round 1: money: gone"
    cases = {
        ("--what-if", change, "--out", "kept", QUESTION): "takes no question",
        ("--what-if", change, "--out", "kept", "--steps", 2): "takes no question",
        ("--what-if", "the money is gone", "--out", "kept"): "round 2: object: money: in the bag",
        ("--what-if", change, "--out", "nowhere"): "There is no folder nowhere",
        ("--what-if", change, "--out", "kept", "--scene", "zzz"): "0 scenes in kept",
        ("--scene", "zzz", "--out", "kept", QUESTION): "--scene goes with --what-if",
    }
    for arguments, said in cases.items():
        done = shell.run("rehearse", *arguments)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    done = shell.run("rehearse", "--what-if", "round 9: nobody: waves", "--base-url", server.base_url, "--out", "kept")
    assert done.returncode == 1 and "Round 9 was not played" in done.stderr
    assert chats(server) == asked
