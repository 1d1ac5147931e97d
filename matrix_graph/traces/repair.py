"""Mending a JSON lines file: broken lines are set aside, all others stay byte for byte.

Why: readers stop at a broken line, since a file that somebody overwrote must not be taken for a whole one; yet a power
failure or another program may leave one line that nobody can use among thousands that are good. What always holds:
nothing is thrown away; what is set aside is on the disk before the mended file takes the old one's place, which it does
in one step, while nobody else can write to it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from matrix_graph.errors import MatrixGraphError, TraceError
from matrix_graph.files import part_of
from matrix_graph.traces.file_lock import locked_file
from matrix_graph.traces.lines import LineWriter, is_json
from matrix_graph.traces.store import NewerSchemaError, check_trace

ASIDE_NAME = "broken.jsonl"
"""Where broken lines are kept, beside the file that they were in."""

Check = Callable[[bytes], object]
"""Raises ValueError, RecursionError or an error of ours if a line is not what the file holds."""

_READ_AHEAD = 1 << 18
_TRACE_KEYS = frozenset({"id", "question", "events", "calls", "status"})


class Broken(NamedTuple):
    """A line that cannot be read."""

    line: int
    """From 1."""
    reason: str


class Repaired(NamedTuple):
    """What was found in a file."""

    path: Path
    kept: int
    """Lines that are not blank."""
    newer: int
    """Lines among them that a newer release has written."""
    broken: list[Broken]


def repair_file(path: Path, check: Check | None = None, *, dry_run: bool = False) -> Repaired:
    """Set the broken lines of a file aside, into `broken.jsonl` beside it.

        repair_file(Path("runs/first/traces.jsonl"))

    Args:
        path: the file. A torn last line counts as broken, too.
        check: tells what is broken; None: whatever is no JSON object, and of a file with traces what is no trace.
        dry_run: look alone.

    Returns:
        What was found, and mended unless `dry_run`.

    Raises:
        TraceError: the file cannot be read or written, or another program keeps it locked; it is as it was.
    """
    real = path.resolve()  # a link to another disk stays one
    try:
        if dry_run:
            return _look(path, real, check)
        with locked_file(real, "r+"):
            found = _look(path, real, check)
            if found.broken:
                _set_aside(real, {broken.line: broken.reason for broken in found.broken})
            return found
    except OSError as error:
        raise TraceError(
            f"{path} cannot be repaired: {error.strerror or error}. It is as it was. Grant access, or make room for a "
            "copy of the file."
        ) from error


def _look(path: Path, real: Path, check: Check | None) -> Repaired:
    check = check or (check_trace if _holds_traces(real) else check_object)
    kept = newer = 0
    broken: list[Broken] = []
    for number, line in _lines(real):
        if line.isspace():
            continue
        try:
            if not line.endswith(b"\n") and not is_json(line):
                raise ValueError("torn: its end is missing")
            check(line)
        except NewerSchemaError:
            newer += 1
        except (ValueError, RecursionError, MatrixGraphError) as error:
            broken.append(Broken(number, reason(error)))
            continue
        kept += 1
    return Repaired(path, kept, newer, broken)


def _set_aside(real: Path, reasons: dict[int, str]) -> None:
    part, aside = part_of(real), real.with_name(ASIDE_NAME)
    new = not aside.exists()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with part.open("wb") as kept, LineWriter(aside, sync=False) as writer:
            if new:
                shutil.copymode(real, aside)  # it may quote prompts, as the file does
            for number, line in _lines(real):
                if number not in reasons:
                    kept.write(line)
                    continue
                # Bytes that are not UTF-8 become lone surrogates, escaped: `text.encode("utf-8", "surrogateescape")`
                # gives them back.
                row = {"file": os.fsencode(real.name).decode("utf-8", "backslashreplace"), "line": number}
                text = line.removesuffix(b"\n").decode("utf-8", "surrogateescape")
                writer.write(json.dumps({**row, "reason": reasons[number], "set_aside_at": now, "text": text}).encode())
            kept.flush()
            os.fsync(kept.fileno())
        _copy_owner(real, part)
        part.replace(real)
    finally:
        part.unlink(missing_ok=True)


def _copy_owner(real: Path, part: Path) -> None:
    shutil.copymode(real, part)
    owner = real.stat()
    if hasattr(os, "chown"):
        with suppress(OSError):  # only root gives files away
            os.chown(part, owner.st_uid, owner.st_gid)


def check_object(line: bytes) -> None:
    """See whether a line is a JSON object.

    Raises:
        ValueError, RecursionError: it is none.
    """
    if not isinstance(json.loads(line), dict):
        raise ValueError("not a JSON object")


def reason(error: Exception) -> str:
    """Why a line cannot be read, on one line."""
    if isinstance(error, ValidationError):
        item = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in item['loc']) or 'line'}: {item['msg']}"
    return " ".join(str(error).split())


def _holds_traces(path: Path) -> bool:
    for _, line in _lines(path):
        with suppress(ValueError, RecursionError):
            content = json.loads(line)
            if isinstance(content, dict):
                return content.keys() >= _TRACE_KEYS
    return False


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb", buffering=_READ_AHEAD) as file:
        yield from enumerate(file, 1)
