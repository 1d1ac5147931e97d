"""Small files of a run's folder, each replaced as a whole.

Why: others read them while a run goes on, and a run may be killed at any moment. What always holds: who reads sees the
old file or the new one whole; what a killed program left of a new one has a name of its own, and is overwritten.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from matrix_graph.errors import ConfigError


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; `None` if there is none that can be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def replace_file(path: Path, content: bytes, *, sync: bool) -> None:
    """Put a file in place, whole or not at all.

    Args:
        path: the file; its folder exists.
        content: all that it is to hold.
        sync: wait until the content is on the disk.

    Raises:
        OSError: it could not be written; the old file, if any, is still there.
    """
    part = part_of(path)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def part_of(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(f".{path.name}.part")


def refuse_own_files(inputs: Iterable[Path], out: Path, own: Iterable[str]) -> None:
    """See that nothing is read that is written meanwhile: such a run would feed on itself and never end.

    Files are told by what they are, not by their names: a link to one, or another spelling of its path, is it too.

    Args:
        inputs: files that are to be read; `-` is standard input. Those that are not there are passed over.
        out: the folder that is written to.
        own: what is written there, as patterns relative to it.

    Raises:
        ConfigError: one of the inputs is one of these files.
    """
    given = [(path, status) for path in inputs if (status := _status(path)) is not None]
    for pattern in own if given else ():
        for written in out.glob(pattern):
            status = _status(written)
            for path, read in given:
                if status is not None and os.path.samestat(read, status):
                    name = "Standard input" if str(path) == "-" else str(path)
                    which = "" if path == written else f" {written},"
                    raise ConfigError(
                        f"{name} is{which} a file that this command writes itself, and would feed on for ever. "
                        "Copy it elsewhere and give the copy, or name another --out."
                    )


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.fstat(sys.stdin.fileno()) if str(path) == "-" else path.stat()
    except (OSError, ValueError, AttributeError):  # it is not there; standard input may be closed, or no real file
        return None
