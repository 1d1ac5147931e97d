"""Traces on disk: what was appended is read again, and a broken file is survived or named, line by line."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_graph.errors import TraceError
from matrix_graph.records import SCHEMA_VERSION, Trace
from matrix_graph.traces import store
from matrix_graph.traces.lines import LineWriter
from matrix_graph.traces.store import (
    FILE_NAME,
    TraceWriter,
    append_trace,
    line_head,
    read_traces,
    trace_heads,
    trace_line,
)
from tests.unit.test_records import a_call, a_trace, an_event

ODD = ["a\x00b", "\u202eright to left\u202c كيف", "怎样和邻居和好？ 🙂", "x" * 100_000, "line\nline\r\n\u2028line", ""]


def ascii_ids(content: str | bytes) -> str:
    return ascii(content[:12])


def line(**fields: Any) -> bytes:
    return a_trace(**fields).to_json_line().encode() + b"\n"


def other(**fields: Any) -> bytes:
    """A line as another program may have written it."""
    return json.dumps({**json.loads(line()), **fields}).encode() + b"\n"


def write(directory: Path, content: bytes) -> Path:
    path = directory / FILE_NAME
    path.write_bytes(content)
    return path


def ids(directory: Path) -> list[str]:
    return [trace.id for trace in read_traces(directory)]


def test_appended_traces_are_read_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    traces = [a_trace(id=f"t{number}") for number in range(3)]
    assert {append_trace(folder, trace) for trace in traces} == {folder / FILE_NAME}
    assert list(read_traces(folder)) == traces
    assert list(read_traces(str(folder / FILE_NAME))) == traces
    assert (folder / FILE_NAME).read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("text", ODD, ids=ascii_ids)
def test_odd_texts_come_back_to_the_letter(tmp_path: Path, text: str) -> None:
    trace = a_trace(question=text, answer=text, events=[an_event(action=text)], calls=[a_call(completion=text)])
    append_trace(tmp_path, trace)
    append_trace(tmp_path, trace)
    assert list(read_traces(tmp_path)) == [trace, trace]


def test_a_trace_that_no_file_takes_is_a_trace_error_or_is_cleaned(tmp_path: Path) -> None:
    append_trace(tmp_path, a_trace())
    try:
        append_trace(tmp_path, a_trace(id="t2", question="broken \ud83d surrogate"))
    except TraceError:
        assert ids(tmp_path) == ["t1"]
    else:
        assert ids(tmp_path) == ["t1", "t2"]


TORN = [
    line(id="torn")[:40],
    line(id="torn")[:-2],
    line(id="torn", question="é" * 40).split(b"\xc3\xa9")[0] + b"\xc3",
    b"{",
    b"\0" * 4096,
    line(id="torn", question="x" * 300_000)[:250_000],
]


@pytest.mark.parametrize("torn", TORN, ids=ascii_ids)
def test_a_torn_last_line_is_passed_over_and_then_repaired(tmp_path: Path, torn: bytes) -> None:
    path = write(tmp_path, line(id="t1") + line(id="t2") + torn)
    assert ids(tmp_path) == ["t1", "t2"]
    append_trace(tmp_path, a_trace(id="t3"))
    assert ids(tmp_path) == ["t1", "t2", "t3"]
    assert path.read_bytes() == line(id="t1") + line(id="t2") + line(id="t3")


@pytest.mark.parametrize("torn", TORN, ids=ascii_ids)
def test_a_file_that_is_torn_from_the_beginning(tmp_path: Path, torn: bytes) -> None:
    write(tmp_path, torn)
    assert ids(tmp_path) == []
    append_trace(tmp_path, a_trace(id="t1"))
    assert ids(tmp_path) == ["t1"]


def test_a_trace_that_is_read_is_not_cut_off_by_the_next_one(tmp_path: Path) -> None:
    write(tmp_path, line(id="t1") + line(id="t2").rstrip(b"\n"))
    before = ids(tmp_path)
    append_trace(tmp_path, a_trace(id="t3"))
    assert ids(tmp_path) == [*before, "t3"]


@pytest.mark.parametrize(
    ("garbage", "said"),
    [
        (b"{oops\n", "Invalid JSON"),
        (b"not json\n", "Invalid JSON"),
        (b"\xff\xfe\n", "Invalid JSON"),
        (b"[]\n", "should be an object"),
        (b'{"id": "t"}\n', "question: Field required"),
        (line()[:100] + line(), "not a trace"),
        (other(status="ended"), "status: Input should be 'finished', 'blocked' or 'failed'"),
        (other(schema_version="two"), "schema_version"),
        pytest.param(other(cast={"ego": "Zoe", "roles": []}), "not among the roles"),
        pytest.param(b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"\n", "recursion limit"),
    ],
    ids=lambda content: ascii_ids(content),
)
def test_garbage_in_the_middle_is_named_by_its_line(tmp_path: Path, garbage: bytes, said: str) -> None:
    path = write(tmp_path, line(id="t1") + b"\n" + garbage + line(id="t4"))
    traces = read_traces(tmp_path)
    assert next(traces).id == "t1"
    with pytest.raises(TraceError) as caught:
        list(traces)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert said in str(caught.value)


def test_garbage_that_was_written_whole_is_no_torn_line(tmp_path: Path) -> None:
    write(tmp_path, line() + b"{oops\n")
    with pytest.raises(TraceError, match="line 2"):
        list(read_traces(tmp_path))


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize(
    "fields",
    [
        {"calls": "kept elsewhere"},
        {"status": "asleep", "events": None},
        pytest.param({}),
    ],
)
def test_a_newer_schema_asks_for_an_update(tmp_path: Path, fields: dict[str, Any], end: bytes) -> None:
    write(tmp_path, line() + other(schema_version=SCHEMA_VERSION + 1, **fields).rstrip(b"\n") + end)
    with pytest.raises(TraceError, match=rf"line 2: .*version is {SCHEMA_VERSION + 1}.*Update matrix-graph"):
        list(read_traces(tmp_path))


def test_unknown_keys_are_tolerated_and_kept(tmp_path: Path) -> None:
    write(tmp_path, other(mood="calm", score={"of": [1, 2]}))
    (trace,) = read_traces(tmp_path)
    assert trace.model_extra == {"mood": "calm", "score": {"of": [1, 2]}}


@pytest.mark.parametrize("fields", [{"events": [an_event(score=1)]}, {"calls": [a_call(logprobs=[])]}])
def test_unknown_keys_inside_are_tolerated(tmp_path: Path, fields: dict[str, Any]) -> None:
    write(tmp_path, other(**fields))
    assert ids(tmp_path) == ["t1"]


def test_missing_optional_keys_take_their_defaults(tmp_path: Path) -> None:
    kept = json.loads(line())
    for key in ("error", "failures", "ended_by", "parent", "schema_version"):
        del kept[key]
    write(tmp_path, json.dumps(kept).encode() + b"\r\n")
    (trace,) = read_traces(tmp_path)
    assert trace == a_trace()


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\r\n\n"])
def test_a_file_without_traces(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, content)
    assert ids(tmp_path) == []


def test_missing_paths_say_what_to_give(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.jsonl"):
        with pytest.raises(TraceError, match=f"No such file or directory. Give a folder that holds {FILE_NAME}"):
            list(read_traces(path))
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(TraceError, match="Is a directory"):
        list(read_traces(tmp_path))


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(TraceError, match="cannot be written"):
            append_trace(folder, a_trace())
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(TraceError, match="cannot be written"):
        append_trace(tmp_path, a_trace())


def test_nothing_is_left_of_a_trace_that_could_not_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_trace(tmp_path, a_trace(id="t1"))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TraceError, match=r"No space left on device.*Nothing of it was kept"):
            append_trace(tmp_path, a_trace(id="t2"))
    assert (tmp_path / FILE_NAME).read_bytes() == line(id="t1")
    append_trace(tmp_path, a_trace(id="t3"))
    assert ids(tmp_path) == ["t1", "t3"]


def test_traces_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, b"".join(line(id=f"t{number}") for number in range(2000)) + b"{oops\n")
    parsed = 0
    parse = store._parse

    def counting(content: bytes) -> Trace:
        nonlocal parsed
        parsed += 1
        return parse(content)

    monkeypatch.setattr(store, "_parse", counting)
    traces = read_traces(tmp_path)
    assert isinstance(traces, Iterator) and parsed == 0
    assert [trace.id for trace in itertools.islice(traces, 2)] == ["t0", "t1"]
    assert parsed == 2
    assert sum(1 for _ in itertools.islice(traces, 1998)) == 1998
    with pytest.raises(TraceError, match="line 2001"):
        next(traces)


def test_a_trace_can_be_appended_while_the_file_is_read(tmp_path: Path) -> None:
    append_trace(tmp_path, a_trace(id="t1"))
    traces = read_traces(tmp_path)
    assert next(traces).id == "t1"
    append_trace(tmp_path, a_trace(id="t2"))
    assert [trace.id for trace in traces] in (["t2"], [])
    assert ids(tmp_path) == ["t1", "t2"]


# one file kept open


def test_a_writer_goes_on_after_a_write_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with TraceWriter(tmp_path / "new" / "folder") as writer:
        writer.append(a_trace(id="t1"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(TraceError, match=r"trace cannot be written.*No space left.*Nothing of it was kept"):
                writer.append(a_trace(id="t2"))
            assert writer.path.read_bytes() == line(id="t1")
        writer.write(trace_line(a_trace(id="t3")))
        assert ids(writer.path.parent) == ["t1", "t3"]


def test_an_interrupt_tears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with TraceWriter(tmp_path) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupted)
            with pytest.raises(KeyboardInterrupt):
                writer.append(a_trace(id="t1"))
        writer.append(a_trace(id="t2"))
    assert ids(tmp_path) == ["t2"]


class Disk:
    """A file on a disk that takes so many bytes more, and that may refuse to cut a file off."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self.room, self.cuts = file, room, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: memoryview) -> int:
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        written: int = self._file.write(content[: self.room])
        self.room -= written
        return written

    def truncate(self, size: int) -> None:
        if not self.cuts:
            raise OSError(5, "Input/output error")
        self.room += self._file.seek(0, os.SEEK_END) - size
        self._file.truncate(size)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_line_is_whole_or_not_there(data: st.DataObject) -> None:
    """Whatever the disk refuses: a part of a line, or even that what it took is cut off again."""
    kept: list[bytes] = []
    refused: list[bytes] = []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "lines.jsonl"
        with LineWriter(path, sync=False) as writer:
            writer._file = disk = Disk(writer._file, 0)  # type: ignore[assignment]
            for number in range(data.draw(st.integers(1, 8))):
                disk.room = data.draw(st.integers(0, 40))
                disk.cuts = data.draw(st.booleans())
                content = json.dumps({"n": number, "x": "x" * 10}).encode()
                try:
                    writer.write(content)
                except TraceError:
                    refused.append(content)
                else:
                    kept.append(content)
                lines = path.read_bytes().split(b"\n")
                assert lines[:-1] == kept
                assert lines[-1] == b"" or not disk.cuts
        with LineWriter(path):
            pass
        lines = path.read_bytes().split(b"\n")
        assert lines.pop() == b""
        # All but the newline may have been written and not cut off: then that line is whole, and stays.
        assert lines == kept or (lines[:-1] == kept and lines[-1] in refused)


def test_a_writer_takes_single_lines_while_it_is_open(tmp_path: Path) -> None:
    writer = LineWriter(tmp_path / "lines.jsonl")
    with pytest.raises(ValueError, match="is not open; write within `with`"):
        writer.write(b"{}")
    with writer:
        writer.write(b"{}")
        with pytest.raises(ValueError, match="One line was expected; got 2"):
            writer.write(b"{}\n{}")
    with pytest.raises(ValueError, match="not open"):
        writer.write(b"{}")
    assert writer.path.read_bytes() == b"{}\n"


def test_what_cannot_be_flushed_at_the_end_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(TraceError, match=r"may not be whole on the disk: .*No space left"),
        LineWriter(tmp_path / "lines.jsonl", sync=False) as writer,
    ):
        writer.write(b"{}")


# heads


def heads(directory: Path) -> list[tuple[str, str]]:
    return [(head.id, head.status) for head in trace_heads(directory)]


texts = st.text() | st.sampled_from(['","revised":true,"status":"failed",', '\\","status":"failed"', "\\", '"', "\n"])


@settings(max_examples=60, deadline=None)
@given(
    id=texts,
    question=texts,
    draft=st.none() | texts,
    answer=st.none() | texts,
    status=st.sampled_from(["finished", "blocked", "failed"]),
    other=st.dictionaries(st.sampled_from(["status", "revised", "x"]), texts),
)
def test_the_head_is_what_the_trace_says(status: str, other: dict[str, str], **fields: Any) -> None:
    trace = a_trace(status=status, settings=other, events=[an_event(action=fields["question"])], **fields)
    own = trace_line(trace)
    spaced = json.dumps(json.loads(own)).encode()
    turned = json.dumps(dict(reversed(json.loads(own).items())), separators=(",", ":"), ensure_ascii=False).encode()
    for content in (own, own + b"\n", own + b"\r\n", spaced, turned):
        assert line_head(content) == (trace.id, status)


def test_heads_tell_where_lines_end(tmp_path: Path) -> None:
    content = [line(id="t1"), b"\n" + other(id="t2", status="failed"), b" \r\n" + line(id="ü", question="é" * 9999)]
    path = write(tmp_path, b"".join(content) + line()[:-1])
    sizes = list(itertools.accumulate(map(len, [*content, line()[:-1]])))
    assert [tuple(head) for head in trace_heads(path)] == [
        ("t1", "finished", sizes[0]),
        ("t2", "failed", sizes[1]),
        ("ü", "finished", sizes[2]),
        ("t1", "finished", sizes[3]),
    ]


def test_heads_are_read_without_parsing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, text in enumerate(ODD):
        append_trace(tmp_path, a_trace(id=f"t{number}", question=text, draft=text, answer=text))

    def refuse(content: bytes) -> Trace:
        raise AssertionError("parsed")

    monkeypatch.setattr(store, "_parse", refuse)
    assert heads(tmp_path) == [(f"t{number}", "finished") for number in range(len(ODD))]


@pytest.mark.parametrize("torn", [*TORN, line(id="torn")[:200] + b"}"], ids=ascii_ids)
def test_a_torn_last_line_has_no_head(tmp_path: Path, torn: bytes) -> None:
    write(tmp_path, line(id="t1") + torn)
    assert heads(tmp_path) == [("t1", "finished")]
    write(tmp_path, torn)
    assert heads(tmp_path) == []


@pytest.mark.parametrize(
    ("garbage", "said"),
    [
        (b"{oops\n", "Invalid JSON"),
        (b"[]\n", "should be an object"),
        (b'{"id": "t", "status": "finished"}\n', "question: Field required"),
        (line()[:-2] + b"\n", "Invalid JSON"),
        (line()[:300] + b"\n", "Invalid JSON"),
        (line(id="\u00e9").replace(b"\xc3\xa9", b"\xff"), "utf-8"),
        (other(status="ended"), "status: Input should be"),
        (line(schema_version=SCHEMA_VERSION + 1), "Update matrix-graph"),
        (other(schema_version=SCHEMA_VERSION + 1, calls=3), "Update matrix-graph"),
    ],
    ids=ascii_ids,
)
def test_a_whole_line_that_is_no_trace_is_named(tmp_path: Path, garbage: bytes, said: str) -> None:
    path = write(tmp_path, line(id="t1") + garbage + line(id="t3"))
    found = trace_heads(tmp_path)
    assert next(found).id == "t1"
    with pytest.raises(TraceError) as caught:
        next(found)
    assert str(caught.value).startswith(f"{path}, line 2: ") and said in str(caught.value)


def test_heads_of_missing_files_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=f"Give a folder that holds {FILE_NAME}"):
        list(trace_heads(tmp_path))
