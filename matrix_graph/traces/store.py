"""Traces on disk: JSON lines, one whole line a scene, appended and flushed; a torn last line is survived."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from matrix_graph.errors import MatrixGraphError, TraceError
from matrix_graph.records import SCHEMA_VERSION, Trace

FILE_NAME = "traces.jsonl"


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
    path = directory / FILE_NAME
    try:
        line = f"{trace.to_json_line()}\n".encode()
    except ValueError as error:
        raise TraceError(f"The trace {trace.id} cannot be written as JSON: {error}") from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            end = _mended_end(path, file)
            try:
                written = file.write(line)
                if written != len(line):
                    raise OSError(f"only {written} of {len(line)} bytes were written")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise TraceError(f"The trace cannot be written to {path}: {error}. Nothing of it was kept there.") from error
    return path


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
    file_path = Path(path)
    if file_path.is_dir():
        file_path = file_path / FILE_NAME
    try:
        with file_path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    yield _parse(line)
                except (ValueError, RecursionError, MatrixGraphError) as error:
                    if not line.endswith(b"\n") and not _is_json(line):
                        return
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


def _mended_end(path: Path, file: BinaryIO) -> int:
    """Where the next line begins, in bytes, after a torn last line was cut off or a whole one got its newline."""
    end = _whole_lines_end(path)
    with path.open("rb") as old:
        old.seek(end)
        tail = old.read()
    if tail.strip() and _is_json(tail):
        file.write(b"\n")
        return end + len(tail) + 1
    file.truncate(end)
    return end


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
