"""The report as a file: it holds what the traces hold, exactly, in one page that can run nothing but its own script."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from matrix_graph.commands.report import report as command
from matrix_graph.errors import ExportError, TraceError
from matrix_graph.records import Trace
from matrix_graph.traces import report as report_module
from matrix_graph.traces.page.contents import Words, list_row, scene_of, searched_text, to_json
from matrix_graph.traces.report import write_report
from matrix_graph.traces.store import append_trace, read_traces
from tests.unit.report_scenes import HOSTILE_TEXTS, a_robbery, a_what_if, hostile_scenes, many_scenes
from tests.unit.test_records import a_call, a_trace, an_event

BLOCK = re.compile(r'<script type="application/gzip" id="([a-z]+(?:-\d+)?)">([A-Za-z0-9+/=]*)</script>\n')
# Whatever makes markup or code of a text, and whatever fetches.
SINKS = (
    r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|DOMParser|srcdoc|fetch\(|XMLHttp|import\("
)


def blocks(page: Path) -> dict[str, Any]:
    """The data of a page."""
    found = BLOCK.findall(page.read_text(encoding="ascii", errors="replace"))
    return {name: json.loads(gzip.decompress(base64.b64decode(packed))) for name, packed in found}


def folder(at: Path, *traces: Trace) -> Path:
    for trace in traces:
        append_trace(at, trace)
    return at


def command_line(*arguments: str | Path) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_page_holds_each_scene_and_every_word_of_its_calls(tmp_path: Path) -> None:
    traces = [a_robbery(), a_what_if(), *many_scenes(40)]
    written = write_report([folder(tmp_path / "run", *traces)], tmp_path / "page.html")
    held = blocks(written.path)
    assert written.scenes == len(traces) == len(held["rows"]) == len(held["searched"])
    assert (written.finished, written.blocked, written.failed) == (26, 8, 8)
    assert written.bytes == written.path.stat().st_size
    for trace, row in zip(traces, held["rows"], strict=True):
        assert row["id"] == trace.id
        scene = held[f"scenes-{row['block']}"][row["place"]]
        words = held[f"words-{row['block']}"]
        for name in ("question", "draft", "answer", "revised", "status", "ended_by"):
            assert scene[name] == getattr(trace, name)
        assert scene["events"] == [event.model_dump() for event in trace.events]
        assert scene["cast"] == (trace.cast.model_dump() if trace.cast else None)
        assert scene["parent"] == (trace.parent.model_dump() if trace.parent else None)
        said = words["scenes"][row["place"]]
        for call, kept, exact in zip(trace.calls, scene["calls"], said, strict=True):
            assert (kept["purpose"], kept["role"], kept["round"]) == (call.purpose, call.role, call.round)
            assert (kept["input"], kept["output"]) == (call.usage.input_tokens, call.usage.output_tokens)
            messages = [[role, words["texts"][number]] for role, number in exact["messages"]]
            assert messages == [[message.role, message.content] for message in call.messages]
            assert words["texts"][exact["completion"]] == call.completion
            reasoning = None if exact["reasoning"] is None else words["texts"][exact["reasoning"]]
            assert (reasoning, kept["cut"]) == (call.reasoning, call.cut)
            assert json.loads(words["texts"][exact["sampling"]]) == call.sampling


def test_the_list_counts_what_its_filters_ask_for() -> None:
    row = list_row(a_robbery(), source=0, block=0, place=0)
    assert (row["rounds"], row["people"], row["actions"], row["rejected"], row["failures"]) == (4, 4, 7, 1, 1)
    assert (row["calls"], row["input"], row["output"], row["parent"]) == (11, 4520, 612, None)
    assert (row["cut"], row["refused"]) == (False, False)
    assert list_row(a_what_if(), source=0, block=0, place=0)["refused"]
    cut = a_robbery(calls=[a_call(purpose="revise", finish_reason="length")])
    assert list_row(cut, source=0, block=0, place=0)["cut"] and scene_of(cut)["cut"]
    text = searched_text(a_robbery())
    assert all(word in text for word in ("robbery", "rent is due", "Mrs. Okafor", "small loan"))


def test_a_page_without_calls_has_their_figures_and_none_of_their_words(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", *many_scenes(40))
    whole = write_report([run], tmp_path / "whole.html")
    small = write_report([run], tmp_path / "small.html", calls=False)
    held = blocks(small.path)
    assert not [name for name in held if name.startswith("words")] and held["about"]["calls"] is False
    assert held["scenes-0"][0]["calls"][1]["input"] == 380
    assert small.bytes < whole.bytes


def test_the_policy_allows_this_script_and_these_looks_and_nothing_else(tmp_path: Path) -> None:
    page = write_report([folder(tmp_path, a_trace())], tmp_path / "page.html").path.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    looks = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(scripts) == len(looks) == 1
    for directive, content in (("script-src", scripts[0]), ("style-src", looks[0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'; ") and "unsafe" not in policy[1]
    assert not re.search(SINKS, scripts[0])
    assert not re.search(r"https?:|url\(|@import|\ssrc=", BLOCK.sub("", page))
    assert not re.search(r"\son[a-z]+=|\sstyle=", page.partition("<script>")[0])


def test_no_text_of_a_trace_is_markup_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "read_traces", lambda path: hostile_scenes())
    folder(tmp_path, a_trace())
    page = write_report([tmp_path], tmp_path / "page.html").path
    frame = BLOCK.sub("", page.read_text(encoding="utf-8"))
    assert "hacked" not in frame and frame.count("<script") == 1
    held = blocks(page)
    questions = [scene["question"] for name, block in held.items() if name.startswith("scenes") for scene in block]
    assert questions[: len(HOSTILE_TEXTS)] == HOSTILE_TEXTS
    assert "\ud800" in questions[7]


def test_what_json_has_no_form_for_is_told_as_text() -> None:
    trace = a_trace(
        seconds=float("nan"),
        settings={"seed": 2**63 + 1, "limit": float("inf")},
        calls=[a_call(seconds=float("inf"), sampling={"seed": 2**63 + 1})],
    )
    scene = json.loads(to_json(scene_of(trace)))
    words = Words()
    words.add(trace)
    assert scene["settings"] == {"seed": "9223372036854775809", "limit": "Infinity"}
    assert scene["seconds"] is None and scene["calls"][0]["seconds"] is None
    assert '{\n  "seed": 9223372036854775809\n}' in words.content()["texts"]
    assert words.size == sum(len(text) for text in words.content()["texts"])


def test_the_same_traces_give_the_same_page(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", *many_scenes(20))
    first = write_report([run], tmp_path / "1.html").path.read_bytes()
    assert write_report([run], tmp_path / "2.html").path.read_bytes() == first


def test_a_block_ends_before_it_is_too_long_for_a_browser_to_unpack_quickly(tmp_path: Path) -> None:
    traces = [a_trace(id=str(n), calls=[a_call(completion=str(n) * 300_000)]) for n in range(4)]
    held = blocks(write_report([folder(tmp_path, *traces)], tmp_path / "page.html").path)
    assert [row["block"] for row in held["rows"]] == [0, 0, 1, 1]


def test_several_folders_stand_on_one_page_and_each_is_read_once(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", a_trace(id="a"), a_trace(id="b"))
    two = folder(tmp_path / "two", a_trace(id="a"))
    written = write_report([one, two, one / "traces.jsonl", str(two)], tmp_path / "page.html")
    held = blocks(written.path)
    assert [(row["id"], row["source"]) for row in held["rows"]] == [("a", 0), ("b", 0), ("a", 1)]
    assert len(held["about"]["sources"]) == 2


@pytest.mark.parametrize(
    ("limit", "ids"), [(1, ["a"]), (2, ["c", "a"]), (3, ["b", "c", "a"]), (9, ["a", "b", "c", "a"])]
)
def test_a_limit_keeps_the_last_scenes(tmp_path: Path, limit: int, ids: list[str]) -> None:
    one = folder(tmp_path / "one", *(a_trace(id=id) for id in "abc"))
    two = folder(tmp_path / "two", a_trace(id="a"))
    written = write_report([one, two], tmp_path / "page.html", limit=limit)
    held = blocks(written.path)
    assert [row["id"] for row in held["rows"]] == ids
    assert written.left_out == held["about"]["left_out"] == 4 - len(ids)


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    run = folder(tmp_path, a_trace(id="a"), a_trace(id="b"))
    with (run / "traces.jsonl").open("rb+") as file:
        file.truncate(file.seek(0, 2) - 40)
    assert write_report([run], tmp_path / "page.html").scenes == 1


def test_a_broken_line_is_named_and_the_older_page_stays(tmp_path: Path) -> None:
    run = folder(tmp_path, a_trace(), a_trace())
    page = tmp_path / "page.html"
    page.write_text("older")
    lines = (run / "traces.jsonl").read_bytes().split(b"\n")
    (run / "traces.jsonl").write_bytes(b"\n".join([lines[0], b"{broken", lines[1], b""]))
    with pytest.raises(TraceError, match="line 2"):
        write_report([run], page)
    assert page.read_text() == "older" and not list(tmp_path.glob(".page*"))


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TraceError, match=r"traces\.jsonl"):
        write_report([tmp_path / "empty"], tmp_path / "page.html")
    begun = write_report([tmp_path / "empty"], tmp_path / "page.html", running=[tmp_path / "empty"])
    held = blocks(begun.path)
    assert begun.scenes == 0 and held["rows"] == held["searched"] == []
    assert held["about"]["running"] == [str(tmp_path / "empty")]
    (tmp_path / "empty" / "traces.jsonl").touch()
    assert write_report([tmp_path / "empty"], tmp_path / "page.html").scenes == 0


def test_what_cannot_be_done_is_refused_with_what_to_do(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", a_trace())
    with pytest.raises(ExportError, match="no folder was given"):
        write_report([], tmp_path / "page.html")
    with pytest.raises(ExportError, match="at least 1"):
        write_report([run], tmp_path / "page.html", limit=0)
    with pytest.raises(ExportError, match="would replace them"):
        write_report([run], run / ".." / "run" / "traces.jsonl")
    with pytest.raises(ExportError, match=r"cannot be written.*--out"):
        write_report([run], run)
    assert len(list(read_traces(run))) == 1


def test_the_command_writes_beside_the_traces_and_says_what(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", a_trace(id="a"), a_trace(id="b"))
    told = command_line(run)
    assert told.exit_code == 0 and "report.html: 2 scenes" in told.output
    assert (run / "report.html").is_file()
    asked = command_line(run, "--limit", "1", "--out", tmp_path / "x.html", "--no-calls", "--json")
    assert json.loads(asked.stdout) == {
        "path": str(tmp_path / "x.html"),
        "scenes": 1,
        "finished": 1,
        "blocked": 0,
        "failed": 0,
        "left_out": 1,
        "bytes": (tmp_path / "x.html").stat().st_size,
        "running": [],
    }
    assert isinstance(command_line(tmp_path / "none").exception, TraceError)
    assert command_line().exit_code == 2


def test_the_command_says_that_a_run_still_writes(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", a_trace())
    holder = (
        "import sys, pathlib; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stdout.readline() == b"held\n"
        told = command_line(run)
        assert process.stdin
        process.stdin.close()
    assert told.exit_code == 0 and "still writes to" in told.output
    assert blocks(run / "report.html")["about"]["running"] == [str(run)]


def test_people_who_were_never_cast_are_no_trouble() -> None:
    trace = a_trace(cast=None, events=[an_event(observers=["Ghost"])], status="failed")
    assert list_row(trace, source=0, block=0, place=0)["people"] == 0
    assert scene_of(trace)["cast"] is None
