"""Traces on disk: JSON lines, one whole line a scene, appended and flushed; a torn last line is survived.

What always holds: each trace is appended as `lines` appends, whole or not at all; what a killed writer left of one is
passed over by those who read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar
from typing import cast as typed

from pydantic import ValidationError

from matrix_graph.errors import MatrixGraphError, TraceError
from matrix_graph.records import SCHEMA_VERSION, Status, Trace
from matrix_graph.traces.lines import LineWriter, is_json, repair_advice

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


class NewerSchemaError(TraceError):
    """A trace of a newer release, which is whole but cannot be read by this one."""


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
        TraceError: no such file, a line that is not a trace (with its number), or a newer schema than this version
            reads.
    """
    for _, trace in line_entries(path, _parse):
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
    for end, (id, status) in line_entries(path, line_head):
        yield Head(id, status, end)


def line_head(line: bytes) -> tuple[str, Status]:
    """The id and the status of the trace in one whole line.

    Raises:
        ValueError: the line is not a trace.
        TraceError: its schema is newer than this version reads.
    """
    match = _HEAD.match(line)
    # A line of ours that does not end as one was overwritten: parsing tells what is wrong with it.
    if match is None or not line.endswith((b"}\n", b"}")):
        trace = _parse(line)
        return trace.id, trace.status
    refuse_newer(int(match["version"]))
    return match["id"].decode(), typed(Status, match["status"].decode())


def line_entries(path: str | Path, parse: Callable[[bytes], _Entry]) -> Iterator[tuple[int, _Entry]]:
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
                if not line.endswith(b"\n") and not is_json(line):
                    return
                try:
                    yield end, parse(line)
                except NewerSchemaError as error:
                    raise TraceError(f"{file_path}, line {number}: {error}") from error
                except (ValueError, RecursionError, MatrixGraphError) as error:
                    raise TraceError(
                        f"{file_path}, line {number}: {_short(error).rstrip('.')}. {repair_advice(file_path)}"
                    ) from error
    except OSError as error:
        raise TraceError(
            f"No traces can be read from {file_path}: {error.strerror or error}. "
            f"Give a folder that holds {FILE_NAME}, or such a file."
        ) from error


def check_trace(line: bytes) -> None:
    """See whether a line is a trace that all readers take.

    Raises:
        ValueError, RecursionError: it is no trace.
        NewerSchemaError: it is one of a newer release.
    """
    _parse(line)


def _parse(line: bytes) -> Trace:
    try:
        trace = Trace.model_validate_json(line)
    except ValidationError:
        # A newer schema is the likelier reason for a misfit than a broken file, and asks for another remedy.
        refuse_newer(version_of(line))
        raise
    refuse_newer(trace.schema_version)
    return trace


def refuse_newer(version: object) -> None:
    """Refuses a trace of a newer release.

    Raises:
        NewerSchemaError: the schema version is newer than this release reads.
    """
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"its schema version is {version}; this release reads up to {SCHEMA_VERSION}. Update matrix-graph."
        )


def version_of(line: bytes) -> object:
    """The schema version that a line states, unchecked; None if it states none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content.get("schema_version") if isinstance(content, dict) else None


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        item = error.errors(include_url=False, include_input=False)[0]
        return f"not a trace ({'.'.join(str(part) for part in item['loc']) or 'line'}: {item['msg']})"
    return str(error)
