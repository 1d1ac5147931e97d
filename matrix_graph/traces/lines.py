"""Appending to a JSON lines file that a killed program or a full disk cannot spoil.

What always holds: a line is appended whole or not at all; what a killed writer left of one is cut off before the next
is appended.
"""

from __future__ import annotations

import json
import os
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from matrix_graph.errors import TraceError


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


def _mend_end(path: Path, file: BinaryIO | FileIO) -> None:
    """Cut off a torn last line, or give a whole one its newline."""
    end = _whole_lines_end(path)
    with path.open("rb") as old:
        old.seek(end)
        tail = old.read()
    if tail.strip() and is_json(tail):
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
