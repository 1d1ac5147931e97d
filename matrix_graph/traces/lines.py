"""Appending to a JSON lines file that a killed program, a full disk or a second writer cannot spoil.

What always holds: a line is appended whole or not at all; what a killed writer left of one is cut off before the next
is appended; whoever appends or cuts off holds the file's lock, so that no writer cuts off what another one wrote.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from matrix_graph.errors import TraceError
from matrix_graph.traces.file_lock import has_name, locked


class LineWriter:
    """A JSON lines file that is kept open and appended to, each line whole or not at all; a context manager.

    Any number of programs may append to one file; each holds its lock for a line at a time. What a killed writer left
    of a last line is cut off at opening and before each line. Calls on one writer must not overlap.

    Args:
        path: the file; it and its folder are made if need be.
        sync: wait after each line until it is on the disk, else only at closing: then a power failure, though not a
            killed process, may cost the last lines.

    Raises:
        TraceError: at opening, the file cannot be written or locked.
    """

    _noun = "line"

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self.path = path
        self._sync = sync
        self._file: FileIO | None = None
        self._uncut: tuple[int, int] | None = None
        """Where a line began that could not be cut off again, and where the file ended then."""

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
            with self._alone():
                pass
        except OSError as error:
            self._close()
            raise self._refusal(error) from error
        except BaseException:
            self._close()
            raise
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
            with self._alone() as file:
                end = file.seek(0, os.SEEK_END)
                try:
                    _write_all(file, line + b"\n")
                    if self._sync:
                        os.fsync(file.fileno())
                except BaseException:  # an interrupt tears a line as a full disk does
                    self._uncut = (end, file.seek(0, os.SEEK_END))
                    file.truncate(end)
                    self._uncut = None
                    raise
        except OSError as error:
            raise self._refusal(error) from error

    @contextmanager
    def _alone(self) -> Iterator[FileIO]:
        """Hold the lock of the file that has the name now; its last line is whole."""
        while True:
            file = self._file or self._open()
            with locked(file, self.path):
                if has_name(file, self.path):
                    self._cut_off(file)
                    mend_end(file)
                    yield file
                    return
            self._close()  # it was replaced, by a repair for instance

    def _open(self) -> FileIO:
        # Unbuffered, so that it is known of each line whether it was written; "a", so that it goes to the end.
        self._file = self.path.open("a+b", buffering=0)
        self._uncut = None
        return self._file

    def _cut_off(self, file: FileIO) -> None:
        """Cut off what a write that failed has left, unless somebody wrote after it."""
        if self._uncut is not None:
            begin, end = self._uncut
            if file.seek(0, os.SEEK_END) == end:
                file.truncate(begin)
            self._uncut = None

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


def repair_advice(path: Path) -> str:
    """What to do about a file with a broken line."""
    return f"`matrix-graph repair {shlex.quote(str(path))}` sets broken lines aside and keeps all others."


def is_json(line: bytes) -> bool:
    """Whether the line is whole: a torn one never is, since the last character of an object closes it."""
    try:
        json.loads(line)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def _write_all(file: FileIO, content: bytes) -> None:
    # A disk that fills up takes a part and tells why only when it is asked again.
    left = memoryview(content)
    while left:
        written = file.write(left)
        if not written:
            raise OSError(f"only {len(content) - len(left)} of {len(content)} bytes were written")
        left = left[written:]


def mend_end(file: FileIO) -> None:
    """Cut off a torn last line, or give a whole one its newline.

    Args:
        file: open for reading and appending, its lock held: what another writer is writing looks torn, too.
    """
    size = file.seek(0, os.SEEK_END)
    end = _whole_lines_end(file, size)
    if end == size:
        return
    file.seek(end)
    tail = _read_all(file, size - end)
    if tail.strip() and is_json(tail):
        _write_all(file, b"\n")
    else:
        file.truncate(end)


def _whole_lines_end(file: FileIO, size: int) -> int:
    """Where the last whole line ends, in bytes."""
    length = 1  # most often the last byte is a newline
    while size > 0:
        start = max(0, size - length)
        file.seek(start)
        newline = _read_all(file, size - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size, length = start, 65536
    return 0


def _read_all(file: FileIO, count: int) -> bytes:
    """So many bytes from here, or up to the end."""
    pieces = []
    while count > 0 and (piece := file.read(count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)
