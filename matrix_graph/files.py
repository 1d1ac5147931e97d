"""Small files of a run's folder, each replaced as a whole.

Why: others read them while a run goes on, and a run may be killed at any moment. What always holds: who reads sees the
old file or the new one whole; what a killed program left of a new one has a name of its own, and is overwritten.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any


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


def public_name(model: str) -> str:
    """A model's name as others may read it: of a path its last part, so that no home folder is told; else as it is.

    Args:
        model: a folder, a hub id, or the name by which a server knows a model.
    """
    path_like = model.startswith(("/", "~", "./", "../")) or "\\" in model or model[1:3] == ":/"
    return (re.split(r"[/\\]", model.rstrip("/\\"))[-1] or model) if path_like else model
