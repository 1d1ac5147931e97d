"""Training rows: every word of them stands in the traces, and every usable word of the scenes stands in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matrix_graph import Rehearsal, SceneConfig
from matrix_graph.errors import ExportError, TraceError
from matrix_graph.records import Trace
from matrix_graph.traces.export import export, rows
from matrix_graph.traces.store import append_trace, read_traces
from tests.unit.scripted import ScriptedModel
from tests.unit.test_records import a_call, a_trace

LOAD = """
import json, sys
from datasets import load_dataset
rows = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
print(json.dumps([dict(row) for row in rows]))
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    """Scenes of many kinds: with bad replies, with condensed dialogues, blocked, failed, unrevised."""
    made = []
    for seed in range(32):
        config = SceneConfig(steps=5, max_rounds=8, context_length=[1024, 2048, None][seed % 3])
        model = ScriptedModel(seed=seed, plausible=[0.4, 0.9][seed % 2], nonsense=[0, 0.35][seed % 4 // 2])
        made.append(Rehearsal(model, config=config).invoke(f"Question {seed}?")["trace"])
    assert {"finished", "blocked", "failed"} <= {trace.status for trace in made}
    assert any(call.purpose == "recap" for trace in made for call in trace.calls)
    assert any(call.error for trace in made if trace.status != "failed" for call in trace.calls)
    return made


def chats(trace: Trace) -> Iterator[tuple[Any, list[dict[str, str]]]]:
    for call in trace.calls:
        if call.purpose in ("act", "judge", "recap") and call.error is None:
            sent = [message.model_dump() for message in call.messages]
            yield call, [*sent, {"role": "assistant", "content": call.completion}]


def test_answers_stand_as_they_are(traces: list[Trace]) -> None:
    ended = [trace for trace in traces if trace.status != "failed"]
    assert list(rows(traces)) == [
        {
            "messages": [
                {"role": "user", "content": trace.question},
                {"role": "assistant", "content": trace.answer},
            ],
            "taught": [1],
            "kind": "answer",
            "speaker": "",
            "trace_id": trace.id,
            "purpose": "revise" if trace.revised else "draft",
            "round": 0,
            "run": "",
        }
        for trace in ended
    ]


def test_scene_rows_are_calls_of_their_trace_to_the_letter(traces: list[Trace]) -> None:
    for trace in traces:
        said = [chat for _, chat in chats(trace)]
        for row in rows([trace], scene=True):
            assert row["trace_id"] == trace.id
            if row["kind"] != "answer":
                assert row["messages"] in said
                completions = [chat[-1]["content"] for chat in said]
                assert row["taught"][-1] == len(row["messages"]) - 1
                assert all(row["messages"][at]["content"] in completions for at in row["taught"])


def test_every_usable_completion_stands_in_a_row(traces: list[Trace]) -> None:
    for trace in traces:
        made = [row["messages"] for row in rows([trace], scene=True)]
        if trace.status == "failed":
            assert made == []
            continue
        for call, chat in chats(trace):
            held = [messages for messages in made if messages[: len(chat)] == chat]
            assert held, f"{call.purpose} of {call.role} in round {call.round} is lost"


def test_rows_of_roles_are_whole_dialogues(traces: list[Trace]) -> None:
    for trace in traces:
        made = [row for row in rows([trace], scene=True) if row["kind"] == "role"]
        for row in made:
            assert row["messages"][0]["role"] == "system" and row["speaker"] in row["messages"][0]["content"]
            assert all(message["role"] == "assistant" for message in row["messages"][2::2])
            longer = [other for other in made if other is not row]
            assert not any(other["messages"][: len(row["messages"])] == row["messages"] for other in longer)
        recaps = Counter(call.role for call, _ in chats(trace) if call.purpose == "recap")
        for speaker, count in Counter(row["speaker"] for row in made).items():
            assert count <= recaps[speaker] + 1, "a dialogue is one row; only a recap begins another"


def test_what_was_said_by_whom(traces: list[Trace]) -> None:
    for trace in traces:
        cast = {role.name for role in trace.cast.roles} if trace.cast else set()
        for row in rows([trace], scene=True):
            assert (row["speaker"] in cast) == (row["kind"] == "role")
            assert row["kind"] in ("answer", "role", "modulator")
            columns = ["messages", "taught", "kind", "speaker", "trace_id", "purpose", "round", "run"]
            assert list(row) == columns and None not in row.values()


def test_unusable_completions_are_left_out() -> None:
    wrong = a_call(purpose="act", role="Robber", round=1, completion="no", error={"type": "E", "message": "m"})
    right = a_call(purpose="act", role="Robber", round=1, completion="yes")
    made = list(rows([a_trace(calls=[wrong, right])], scene=True))
    assert [row["messages"][-1]["content"] for row in made] == ["Ask for a loan.", "yes"]


def test_failed_scenes_are_never_exported(tmp_path: Path) -> None:
    failed = a_trace(id="f", status="failed", answer="Rob it.", revised=False, error={"type": "E", "message": "m"})
    blocked = a_trace(id="b", status="blocked")
    out = tmp_path / "rows.jsonl"
    assert export([failed, blocked, a_trace(answer=None)], out, scene=True) == 1
    assert [json.loads(line)["trace_id"] for line in out.read_text().splitlines()] == ["b"]


@pytest.mark.parametrize("nothing", [[], [a_trace(status="failed", error={"type": "E", "message": "m"})]])
def test_nothing_to_export(tmp_path: Path, nothing: list[Trace]) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text("older")
    with pytest.raises(ExportError, match="nothing to export"):
        export(nothing, out)
    assert out.read_text() == "older" and names(tmp_path) == ["rows.jsonl"]


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "new" / "rows.jsonl"

    def torn() -> Iterator[Trace]:
        yield a_trace()
        assert not out.exists()
        raise TraceError("line 2 is no trace")

    with pytest.raises(TraceError, match="line 2"):
        export(torn(), out)
    assert names(out.parent) == []
    assert export([a_trace()], out) == 1
    assert export([a_trace(), a_trace()], out) == 2
    assert len(out.read_text().splitlines()) == 2 and names(out.parent) == ["rows.jsonl"]


def test_odd_texts_stand_to_the_letter(tmp_path: Path) -> None:
    texts = ["a\x00b", "\u202eكيف\u202c", "好\u2028🙂\r\n", "x" * 100_000, '"\\']
    out = tmp_path / "rows.jsonl"
    export([a_trace(question=text, answer=text) for text in texts], out)
    lines = out.read_bytes().decode().removesuffix("\n").split("\n")
    assert [[message["content"] for message in json.loads(line)["messages"]] for line in lines] == [
        [text, text] for text in texts
    ]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExportError, match="folder cannot be written"):
        export([a_trace()], tmp_path / "folder")
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("name", ["file/rows.jsonl", "n" * 300])
def test_a_path_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="cannot be written"):
        export([a_trace()], tmp_path / name)


def test_a_text_that_no_file_takes(tmp_path: Path) -> None:
    try:
        export([a_trace(answer="broken \ud83d")], tmp_path / "rows.jsonl")
    except ExportError:
        assert names(tmp_path) == []


def test_rows_load_as_a_dataset(tmp_path: Path, traces: list[Trace]) -> None:
    pytest.importorskip("datasets", reason="the extra `train` is not installed")
    for trace in traces:
        append_trace(tmp_path, trace)
    out, cache = tmp_path / "rows.jsonl", tmp_path / "cache"
    count = export(read_traces(tmp_path), out, scene=True)
    environment = {
        **os.environ,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(out), str(cache)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert loaded == list(rows(traces, scene=True)) and len(loaded) == count
    assert {row["kind"] for row in loaded} == {"answer", "role", "modulator"}
