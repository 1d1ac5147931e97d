"""Standard output and error that may be closed, full, or gone, while the work goes on.

Why: a scene takes minutes and is kept on the disk; whoever read along may have left (`| head -1`), the terminal may
have hung up, the disk behind `>` may be full. What always holds: no write to standard output or error raises; what can
no longer be written is dropped; whether something was lost that somebody wanted is known at the end.
"""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import sys
from contextlib import suppress
from io import FileIO
from typing import TextIO, cast

_DESCRIPTORS = 3


class Outputs:
    """Standard output and error of this process, from `take_outputs` on.

    Attributes:
        failure: why standard output could not be written; None: all was written, or nobody was left to read it.
    """

    def __init__(self, out: _Patient | None, closed: _Closed | None) -> None:
        self._out, self._closed = out, closed

    @property
    def failure(self) -> OSError | None:
        """Why standard output could not be written."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        if self._closed is not None and self._closed.asked:
            return OSError(errno.EBADF, "it is closed")
        return self._out.failure if self._out is not None else None


def take_outputs() -> Outputs:
    """Make standard output and error of this process ones that never raise.

    Streams that something else stands in for already, such as a test's, stay as they are.
    """
    _fill_descriptors()
    out = closed = None
    if sys.stdout is None:
        closed = _Closed()
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(closed), encoding="utf-8", errors="backslashreplace")
    elif sys.stdout is sys.__stdout__:
        sys.stdout, out = _patient(sys.stdout)
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(_Closed()), encoding="utf-8", errors="backslashreplace")
    elif sys.stderr is sys.__stderr__:
        sys.stderr, _ = _patient(sys.stderr)
    return Outputs(out, closed)


class _Patient(FileIO):
    """A descriptor to write to, which drops everything once that has failed."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.failure: OSError | None = None
        self._dropping = False
        # Not `isatty`, which says no of a terminal that has hung up already.
        self._device = stat.S_ISCHR(os.fstat(descriptor).st_mode)

    def write(self, content: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        if self._dropping:
            return len(content)
        try:
            while (written := super().write(content)) is None:  # the reader is slow, and somebody made it non-blocking
                select.select([], [self.fileno()], [])
        except OSError as error:
            self._dropping = True
            # Nobody is left to read: the pipe was closed, or the terminal is gone. That is no fault of ours.
            if error.errno != errno.EPIPE and not (self._device and error.errno in (errno.EIO, errno.ENXIO)):
                self.failure = error
            return len(content)
        return written


class _Closed(io.RawIOBase):
    """An output that was closed before the program began."""

    asked = False

    def writable(self) -> bool:
        return True

    def write(self, content: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        self.asked = self.asked or len(content) > 0
        return len(content)


def _patient(stream: TextIO | None) -> tuple[TextIO, _Patient | None]:
    if not isinstance(stream, io.TextIOWrapper):
        return cast(TextIO, stream), None
    try:
        raw = _Patient(stream.fileno())
    except (OSError, ValueError):
        return stream, None
    # What a terminal cannot show, or a name that is not UTF-8, must not end a scene.
    wrapped = io.TextIOWrapper(
        io.BufferedWriter(cast(io.RawIOBase, raw)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    return wrapped, raw


def _fill_descriptors() -> None:
    """Keep closed descriptors from being given to the next file that is opened, into which output would then go."""
    while True:
        try:
            descriptor = os.open(os.devnull, os.O_RDWR)
        except OSError:
            return
        if descriptor >= _DESCRIPTORS:
            os.close(descriptor)
            return
