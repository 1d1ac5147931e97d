"""Traces on disk: JSON lines, one whole line a scene, appended and flushed; a torn last line is survived.

What always holds: a line is appended whole or not at all; what a killed writer left of one is cut off before the next
is appended, and passed over by those who read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self, TypeVar
from typing import cast as typed

from pydantic import ValidationError

from matrix_graph.errors import MatrixGraphError, TraceError
from matrix_graph.records import SCHEMA_VERSION, Status, Trace

FILE_NAME = "traces.jsonl"

_READ_AHEAD = 1 << 18
"""Bytes. Lines are long, so that the default of 8 kB would halve the speed."""
# The beginning of a line as `Trace.to_json_line` writes it, matched from its first byte, value by value: what looks
# like a status inside a text cannot be taken for it, since quotes are escaped there, nor can one deeper in the record.
# "++" and "*+" never give back what they took, so that a long text costs one pass, whether or not the rest fits.
_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_HEAD = re.compile(
    rb'\{"schema_version":(?P<version>\d{1,9}),"id":"(?P<id>[^"\\]*+)","question":'
    + _TEXT
    + rb',"draft":(?:null|'
    + _TEXT
    + rb'),"answer":(?:null|'
    + _TEXT
    + rb'),"revised":(?:true|false),"status":"(?P<status>finished|blocked|failed)",',
    re.DOTALL,
)
_Entry = TypeVar("_Entry")


class Head(NamedTuple):
    """What tells a scene from others, and where its line ends."""

    id: str
    status: Status
    end: int
    """Bytes from the beginning of the file to the end of the line, its newline included."""


class LineWriter:
    """A JSON lines file that is kept open and appended to, each line whole or not at all; a context manager.

    What a killed writer left of a last line is cut off at opening. Calls must not overlap.

    Args:
        path: the file; it and its folder are made if need be.
        sync: wait after each line until it is on the disk, else only at closing: then a power failure, though not a
            killed process, may cost the last lines.

    Raises:
        TraceError: at opening, the file cannot be written.
    """

    _noun = "line"

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self.path = path
        self._sync = sync
        self._file: FileIO | None = None
        self._cut_at: int | None = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that it is known of each line whether it was written; "a", so that it goes to the end
            # even if somebody else wrote there too.
            self._file = self.path.open("a+b", buffering=0)
            _mend_end(self.path, self._file)
        except OSError as error:
            self._close()
            raise self._refusal(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._file is not None and not self._sync:
                os.fsync(self._file.fileno())
        except OSError as failure:
            raise TraceError(f"{self.path} may not be whole on the disk: {failure}.") from failure
        finally:
            self._close()

    def write(self, line: bytes) -> None:
        """Append one line.

        Args:
            line: its content, without the newline.

        Raises:
            TraceError: it could not be written, and nothing of it was kept; once there is room, the next one can be.
            ValueError: there is a newline within, or the file is not open.
        """
        if b"\n" in line:
            raise ValueError(f"One line was expected; got {line.count(10) + 1} of them.")
        if self._file is None:
            raise ValueError(f"{self.path} is not open; write within `with`.")
        try:
            if self._cut_at is not None:
                self._file.truncate(self._cut_at)
                self._cut_at = None
            end = self._file.seek(0, os.SEEK_END)
            try:
                _write_all(self._file, line + b"\n")
                if self._sync:
                    os.fsync(self._file.fileno())
            except BaseException:  # an interrupt tears a line as a full disk does
                self._cut_at = end
                self._file.truncate(end)
                self._cut_at = None
                raise
        except OSError as error:
            raise self._refusal(error) from error

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _refusal(self, error: OSError) -> TraceError:
        # A torn end that could not be cut off is nothing either: who reads passes over it, who writes cuts it off.
        return TraceError(
            f"The {self._noun} cannot be written to {self.path}: {error}. Nothing of it was kept there. Make room or "
            "grant access, then give the same command again."
        )


class TraceWriter(LineWriter):
    """Appends traces to `directory/traces.jsonl`, each whole or not at all, each on the disk when `append` returns.

    Args:
        directory: created if it does not exist.

    Raises:
        TraceError: at opening, the file cannot be written.
    """

    _noun = "trace"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / FILE_NAME)

    def append(self, trace: Trace) -> None:
        """Append one trace.

        Raises:
            TraceError: it is no JSON or could not be written, and nothing of it was kept.
        """
        self.write(trace_line(trace))


def trace_line(trace: Trace) -> bytes:
    """The line of a trace, without its newline.

    Raises:
        TraceError: something in it cannot be written as JSON.
    """
    try:
        return trace.to_json_line().encode()
    except ValueError as error:
        raise TraceError(f"The trace {trace.id} cannot be written as JSON: {error}") from error


def append_trace(directory: Path, trace: Trace) -> Path:
    """Append one trace to `directory/traces.jsonl`, whole or not at all, and flush it to disk.

    A torn last line, left by a writer that was killed, is cut off first: its scene was never finished.

    Args:
        directory: created if it does not exist.
        trace: the trace.

    Returns:
        The file.

    Raises:
        TraceError: the file cannot be written.
    """
    with TraceWriter(directory) as writer:
        writer.append(trace)
    return writer.path


def read_traces(path: str | Path) -> Iterator[Trace]:
    """Read traces one by one, in the order in which they were written.

    A last line without its newline that does not parse is what a killed writer leaves; it is passed over.

    Args:
        path: a JSON lines file, or a folder that holds `traces.jsonl`.

    Yields:
        One trace a line; empty lines are passed over.

    Raises:
        TraceError: no such file, a line that is no trace (with its number), or a newer schema than this version reads.
    """
    for _, trace in _entries(path, _parse):
        yield trace


def trace_heads(path: str | Path) -> Iterator[Head]:
    """Read which scenes a file holds, about as fast as the disk gives it.

    Of a line that this package wrote only the beginning is looked at; one that another program has rewritten is parsed,
    and must be a trace as `read_traces` has it.

    Args:
        path: a JSON lines file, or a folder that holds `traces.jsonl`.

    Yields:
        One head a line, in order; empty lines and a torn last one are passed over.

    Raises:
        TraceError: as `read_traces`.
    """
    for end, (id, status) in _entries(path, line_head):
        yield Head(id, status, end)


def line_head(line: bytes) -> tuple[str, Status]:
    """The id and the status of the trace in one whole line.

    Raises:
        ValueError: the line is no trace.
        TraceError: its schema is newer than this version reads.
    """
    match = _HEAD.match(line)
    # A line of ours that does not end as one was overwritten: parsing tells what is wrong with it.
    if match is None or not line.endswith((b"}\n", b"}")):
        trace = _parse(line)
        return trace.id, trace.status
    _refuse_newer(int(match["version"]))
    return match["id"].decode(), typed(Status, match["status"].decode())


def _entries(path: str | Path, parse: Callable[[bytes], _Entry]) -> Iterator[tuple[int, _Entry]]:
    """What the lines hold, each after the offset in bytes at which its line ends."""
    file_path = Path(path)
    if file_path.is_dir():
        file_path = file_path / FILE_NAME
    end = 0
    try:
        with file_path.open("rb", buffering=_READ_AHEAD) as file:
            for number, line in enumerate(file, 1):
                end += len(line)
                if line.isspace():
                    continue
                if not line.endswith(b"\n") and not _is_json(line):
                    return
                try:
                    yield end, parse(line)
                except (ValueError, RecursionError, MatrixGraphError) as error:
                    raise TraceError(f"{file_path}, line {number}: {_short(error)}") from error
    except OSError as error:
        raise TraceError(
            f"No traces can be read from {file_path}: {error.strerror or error}. "
            f"Give a folder that holds {FILE_NAME}, or such a file."
        ) from error


def _parse(line: bytes) -> Trace:
    try:
        trace = Trace.model_validate_json(line)
    except ValidationError:
        # A newer schema is the likelier reason for a misfit than a broken file, and asks for another remedy.
        _refuse_newer(_version(line))
        raise
    _refuse_newer(trace.schema_version)
    return trace


def _refuse_newer(version: object) -> None:
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise TraceError(
            f"its schema version is {version}; this release reads up to {SCHEMA_VERSION}. Update matrix-graph."
        )


def _version(line: bytes) -> object:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content.get("schema_version") if isinstance(content, dict) else None


def _is_json(line: bytes) -> bool:
    """Whether the line is whole: a torn one never is, since a trace's last character closes it."""
    try:
        json.loads(line)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        item = error.errors(include_url=False, include_input=False)[0]
        return f"not a trace ({'.'.join(str(part) for part in item['loc']) or 'line'}: {item['msg']})"
    return str(error)


def _write_all(file: FileIO, content: bytes) -> None:
    # A disk that fills up takes a part and tells why only when it is asked again.
    left = memoryview(content)
    while left:
        written = file.write(left)
        if not written:
            raise OSError(f"only {len(content) - len(left)} of {len(content)} bytes were written")
        left = left[written:]


def _mend_end(path: Path, file: BinaryIO | FileIO) -> None:
    """Cut off a torn last line, or give a whole one its newline."""
    end = _whole_lines_end(path)
    with path.open("rb") as old:
        old.seek(end)
        tail = old.read()
    if tail.strip() and _is_json(tail):
        file.write(b"\n")
    else:
        file.truncate(end)


def _whole_lines_end(path: Path) -> int:
    """Where the last whole line ends, in bytes."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
