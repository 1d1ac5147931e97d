"""One run at a time in a folder: who writes there, and whether anybody does.

Why apart: `matrix-graph status` asks without a run. What always holds: the lock is the system's, on a file, and ends
with the process that holds it, however it ends; no question whether a run writes keeps a run from starting; what is
written about the holder serves messages alone, except where one may not try the lock.
"""

from __future__ import annotations

import json
import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from matrix_graph.errors import RunLockedError
from matrix_graph.files import read_object, replace_file

_LOCK_NAME = ".lock"
_OWNER_NAME = ".lock-owner"
_LOCK_SECONDS = 0.2
"""How long a run waits for its lock. `is_locked` takes it for an instant, which must keep no run from starting."""
_LOOK_SECONDS = 0.05
_POLL_SECONDS = 0.01


class RunLock:
    """The right to write to a run's folder; a context manager.

    Args:
        directory: the run's folder, which exists.

    Raises:
        RunLockedError: when entered: another run writes there; its process, machine and beginning are named, if known.
        OSError: when entered: the folder cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # The run may be left by another thread than it was entered by.
        self._lock = FileLock(
            directory / _LOCK_NAME, thread_local=False, timeout=_LOCK_SECONDS, poll_interval=_POLL_SECONDS
        )

    def __enter__(self) -> Self:
        owner = self._directory / _OWNER_NAME
        try:
            self._lock.acquire()
        except Timeout as error:
            raise RunLockedError(
                f"Another run{_described(owner)} writes to {self._directory}. "
                "Wait for it, stop it, or name another --out."
            ) from error
        since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        with suppress(OSError):  # it serves a message alone
            replace_file(
                owner,
                json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since}).encode(),
                sync=False,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            (self._directory / _OWNER_NAME).unlink()
        self._lock.release()


def is_locked(directory: Path) -> bool:
    """Whether a run writes to the folder now; neither the run nor the folder is disturbed by the question.

    Takes at most a twentieth of a second.
    """
    path = directory / _LOCK_NAME
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=_LOOK_SECONDS, poll_interval=_POLL_SECONDS):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that one may read but not write: a run that ended in order took its name away
        return (directory / _OWNER_NAME).exists()


def _described(owner: Path) -> str:
    content = read_object(owner) or {}
    if not {"pid", "host", "since"} <= content.keys():
        return ""
    return f" (pid {content['pid']} on {content['host']}, since {content['since']})"
