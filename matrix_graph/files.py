"""Small files of a run's folder, each replaced as a whole; and who may read what this package writes.

Why: others read them while a run goes on, and a run may be killed at any moment. What always holds: who reads sees the
old file or the new one whole; what a killed program left of a new one has a name of its own, and is overwritten.

Who may read: what a user asks for (traces, answers, reports, exports, adapters, in the folder that they name) obeys
their umask, like any other file of theirs. What the package keeps for itself and may hold a key or a prompt (keys, the
model server's log) is made by the functions below whose names say `private`: only this user can read it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from matrix_graph.errors import ConfigError

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
"""Rights of what only this user may read."""


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


def private_folder(folder: Path) -> None:
    """Make a folder that only this user can look into; one that is there becomes such a one.

    Raises:
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
    if folder.stat().st_mode & 0o777 & ~PRIVATE_FOLDER:
        folder.chmod(PRIVATE_FOLDER)


def open_private(path: Path) -> TextIO:
    """Open a text file for appending; a new one can be read by this user only, one that is there keeps its rights.

    Raises:
        OSError: it cannot be written.
    """
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE_FILE), "a", encoding="utf-8")


def replace_private_file(path: Path, content: bytes) -> None:
    """Put a file in place that only this user can read, whole or not at all.

    Raises:
        OSError: it could not be written; the old file, if any, is still there.
    """
    part = part_of(path)
    part.unlink(missing_ok=True)  # one that was left may have other rights
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE), "wb") as file:
            file.write(content)
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
        for written in _found(out, pattern):
            status = _status(written)
            for path, read in given:
                if status is not None and os.path.samestat(read, status):
                    name = "Standard input" if str(path) == "-" else str(path)
                    which = "" if path == written else f" {written},"
                    raise ConfigError(
                        f"{name} is{which} a file that this command writes itself, and would feed on for ever. "
                        "Copy it elsewhere and give the copy, or name another --out."
                    )


def _found(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(pattern))
    except OSError:  # what cannot be looked into is told of where it is to be written
        return []


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.fstat(sys.stdin.fileno()) if str(path) == "-" else path.stat()
    except (OSError, ValueError, AttributeError):  # it is not there; standard input may be closed, or no real file
        return None


def public_name(model: str) -> str:
    """A model's name as others may read it: of a path its last part, so that no home folder is told; else as it is.

    Args:
        model: a folder, a hub id, or the name by which a server knows a model.
    """
    path_like = model.startswith(("/", "~", "./", "../")) or "\\" in model or model[1:3] == ":/"
    return (re.split(r"[/\\]", model.rstrip("/\\"))[-1] or model) if path_like else model
