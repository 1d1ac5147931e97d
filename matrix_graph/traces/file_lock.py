"""One writer at a time for a file that several programs append to.

Why on the file itself: whoever appends has it open, whatever name or link it was opened by, and nothing is left behind
beside it. What always holds: the lock is the system's and ends with the process that holds it; it is held for one
append or one replacement, never longer; the file that is locked is the one that has the name.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from matrix_graph.errors import TraceError

LOCK_SECONDS = 60.0
"""How long a writer waits for another one. An append takes milliseconds, the repair of a large file seconds."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.005
_BUSY = frozenset({errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK})
_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF})


@contextmanager
def locked_file(path: Path, mode: str = "a+") -> Iterator[FileIO]:
    """Open a file and keep every other writer out of it.

        with locked_file(folder / "traces.jsonl") as file:
            file.write(line)

    Args:
        path: the file. If another one takes its place while this waits, that one is opened.
        mode: as for `FileIO`.

    Raises:
        OSError: it cannot be opened.
        TraceError: as `locked`.
    """
    while True:
        with FileIO(path, mode) as file, locked(file, path):
            if has_name(file, path):
                yield file
                return


@contextmanager
def locked(file: FileIO, path: Path) -> Iterator[None]:
    """Keep every other writer out of an open file.

    Args:
        file: open for writing.
        path: its name, for messages.

    Raises:
        TraceError: another program kept it locked for `LOCK_SECONDS`, or its file system has no locks.
    """
    _acquire(file, path)
    try:
        yield
    finally:
        _unlock(file.fileno())


def has_name(file: FileIO, path: Path) -> bool:
    """Whether an open file is still the one with that name, rather than replaced or deleted."""
    try:
        named, own = path.stat(), os.fstat(file.fileno())
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)


def require_locks(folder: Path) -> None:
    """Check that files in a folder can be locked, before anything is spent on what is to be kept there.

    Raises:
        TraceError: its file system has no locks.
        OSError: no file can be made there.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-", buffering=0) as file:
        _try_lock(file.fileno(), folder)


def _acquire(file: FileIO, path: Path) -> None:
    deadline, pause = time.monotonic() + LOCK_SECONDS, _FIRST_PAUSE
    while not _try_lock(file.fileno(), path):
        if time.monotonic() > deadline:
            raise TraceError(
                f"Another program has kept {path} locked for {LOCK_SECONDS:.0f} seconds, so that nothing was written "
                f"there. End that program if it hangs (`fuser {path}` tells which it is), then give the same command "
                "again."
            )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _try_lock(descriptor: int, path: Path) -> bool:
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno not in _UNSUPPORTED:
            raise
        raise TraceError(
            f"The file system of {path} cannot lock files ({error.strerror}), and without locks two programs that "
            "write there would destroy each other's lines. Name a folder on a local disk, or have the file system "
            "mounted with locks (NFS with its lock service, Lustre with `-o flock`)."
        ) from error
    return True


if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 62  # readers are kept out of a locked byte there, so that it is one that no file has

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        # Not `lockf`, whose lock is lost as soon as the process closes the file under any other descriptor.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
