"""Several writers of one file: whoever appends holds its lock, and nothing that was kept is lost or torn."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from matrix_graph.batch.folder import RunFolder
from matrix_graph.errors import TraceError
from matrix_graph.traces import file_lock
from matrix_graph.traces.file_lock import locked_file, require_locks
from matrix_graph.traces.lines import LineWriter
from matrix_graph.traces.store import FILE_NAME, append_trace, read_traces
from tests.unit.test_records import a_trace

ROOT = Path(__file__).parents[2]
WRITERS, LINES = 8, 60

# Every other writer keeps the file open, as a run does; the others open it for each line, as `rehearse` does.
APPENDER = """
import json, sys
from pathlib import Path
from matrix_graph.traces.lines import LineWriter
path, name, lines = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
contents = [json.dumps({"id": f"{name}-{number}", "long": "x" * 20_000}).encode() for number in range(lines)]
print("ready", flush=True)
sys.stdin.readline()
if int(name) % 2:
    with LineWriter(path) as writer:
        for content in contents:
            writer.write(content)
else:
    for content in contents:
        with LineWriter(path) as writer:
            writer.write(content)
"""

HOLDER = """
import sys
from pathlib import Path
from matrix_graph.traces.file_lock import locked_file
with locked_file(Path(sys.argv[1])) as file:
    file.write(b'{"id": "to')
    print("locked", flush=True)
    sys.stdin.readline()
    file.write(b'rn"}\\n')
"""


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A program that has said its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None and process.stdout.readline()
    return process


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_bytes().splitlines()]


def test_many_programs_lose_and_tear_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    writers = [python(APPENDER, path, number, LINES) for number in range(WRITERS)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait(60) for writer in writers] == [0] * WRITERS
    found = ids(path)
    assert sorted(found) == sorted(f"{name}-{number}" for name in range(WRITERS) for number in range(LINES))
    for name in range(WRITERS):  # each one's own in its order
        assert [id for id in found if id.startswith(f"{name}-")] == [f"{name}-{number}" for number in range(LINES)]


def test_half_a_line_of_a_writer_that_lives_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines.jsonl"
    holder = python(HOLDER, path)
    monkeypatch.setattr(file_lock, "LOCK_SECONDS", 0.05)
    with pytest.raises(TraceError, match=rf"Another program has kept {path} locked .*`fuser {path}`"), LineWriter(path):
        pass
    assert path.read_bytes() == b'{"id": "to'
    monkeypatch.setattr(file_lock, "LOCK_SECONDS", 30)
    holder.communicate("go\n", timeout=30)
    with LineWriter(path) as writer:
        writer.write(b'{"id": "second"}')
    assert ids(path) == ["torn", "second"]


def test_half_a_line_of_a_writer_that_was_killed_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    holder = python(HOLDER, path)
    holder.kill()
    holder.wait(30)
    with LineWriter(path) as writer:
        writer.write(b'{"id": "second"}')
    assert ids(path) == ["second"]


def test_a_writer_mends_what_another_one_left_before_each_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with LineWriter(path) as writer:
        writer.write(b'{"id": "first"}')
        with path.open("ab") as other:
            other.write(b'{"id": "whole, but for its newline"}')
        writer.write(b'{"id": "second"}')
        with path.open("ab") as other:
            other.write(b'{"id": "torn')
        writer.write(b'{"id": "third"}')
    assert ids(path) == ["first", "whole, but for its newline", "second", "third"]


def test_a_writer_follows_a_file_that_is_replaced_or_deleted(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with LineWriter(path) as writer:
        writer.write(b'{"id": "old"}')
        (tmp_path / "new").write_bytes(b'{"id": "new"}\n')
        (tmp_path / "new").replace(path)
        writer.write(b'{"id": "after"}')
        assert ids(path) == ["new", "after"]
        path.unlink()
        writer.write(b'{"id": "again"}')
    assert ids(path) == ["again"]


def test_what_waits_for_the_lock_gets_the_file_that_took_the_place(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"old")
    holder = python(HOLDER, path)
    waiting = python("print('x', flush=True)\n" + HOLDER, path)
    time.sleep(0.1)
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "new").replace(path)
    holder.communicate("go\n", timeout=30)
    waiting.communicate("go\n", timeout=30)
    assert path.read_bytes() == b'new{"id": "torn"}\n'


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_nothing_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    before = a_trace(id="t1").to_json_line().encode() + b'\n{"torn'
    (tmp_path / FILE_NAME).write_bytes(before)

    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    for attempt in (lambda: append_trace(tmp_path, a_trace(id="t2")), lambda: require_locks(tmp_path)):
        with pytest.raises(TraceError, match=r"cannot lock files .*Name a folder on a local disk"):
            attempt()
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_lock_that_fails_otherwise_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(TraceError, match=r"cannot be written.*Input/output error"):
        append_trace(tmp_path, a_trace())


def test_scenes_that_are_set_aside_cost_no_scene_of_another_writer(tmp_path: Path) -> None:
    append_trace(tmp_path, a_trace(id="0" * 32, status="failed"))
    append_trace(tmp_path, a_trace(id="1" * 32))
    with RunFolder(tmp_path, {}, retry_failed=True) as folder, LineWriter(tmp_path / FILE_NAME) as other:
        other.write(a_trace(id="other").to_json_line().encode())
        folder.keep(a_trace(id="2" * 32))
    assert [trace.id for trace in read_traces(tmp_path)] == ["1" * 32, "other", "2" * 32]
    assert [trace.id for trace in read_traces(tmp_path / "failed.jsonl")] == ["0" * 32]


def test_setting_aside_waits_for_who_appends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_trace(tmp_path, a_trace(id="0" * 32, status="failed"))
    monkeypatch.setattr(file_lock, "LOCK_SECONDS", 0.05)
    with (
        locked_file(tmp_path / FILE_NAME),
        pytest.raises(TraceError, match=r"has kept .* locked"),
        RunFolder(tmp_path, {}, retry_failed=True),
    ):
        pass
    assert [trace.id for trace in read_traces(tmp_path)] == ["0" * 32]
