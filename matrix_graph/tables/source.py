"""The bytes of a table: opened, unpacked if they are packed, and looked at before they are read.

What always holds: nothing is read before it is asked for, and no more is waited for than what is asked for, so that a
pipe gives its rows as they come; a byte order mark is passed over.
"""

from __future__ import annotations

import codecs
import gzip
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from matrix_graph.errors import TableError
from matrix_graph.tables.formats import GZIP, refuse_foreign
from matrix_graph.tables.values import is_blank

STANDARD_INPUT = Path("-")


@contextmanager
def open_table(path: Path | None, noun: str = "questions") -> Iterator[BinaryIO]:
    """Open a file, or standard input, which stays open afterwards.

    Args:
        path: None or `-` is standard input.
        noun: what it should hold, for messages.

    Yields:
        The file, for `read_table`.

    Raises:
        TableError: it cannot be opened.
    """
    if path is None or path == STANDARD_INPUT:
        yield _standard_input(noun)
        return
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise TableError(f"{path} does not exist. Name a file of {noun}, or - for standard input.") from None
    except IsADirectoryError:
        raise TableError(f"{path} is a folder. Name a file of {noun}, such as one in it.") from None
    except PermissionError:
        raise TableError(f"{path} may not be read by you. Allow it (chmod +r), or name another file.") from None
    except (OSError, ValueError) as error:
        raise TableError(
            f"{path} cannot be opened: {error}. Name a file of {noun}, or - for standard input."
        ) from error
    with file:
        yield file


class Source:
    """A file that is read from its beginning, once.

    Args:
        file: opened for reading bytes; a packed one is unpacked while it is read.
        name: the file's, for messages.

    Attributes:
        line: the number of the line that is read next, from 1.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.line = 1
        self._file = file
        self._ahead = b""

    def begin(self, longest: int) -> bytes:
        """Unpack the file if need be, and look at its first line that is not blank, which is still to be read.

        Args:
            longest: bytes of a line that are looked at.

        Raises:
            TableError: it cannot be read, or is no UTF-8 text.
        """
        head = self._take_line(longest)
        if head.startswith(GZIP):
            self._file = cast(BinaryIO, gzip.GzipFile(fileobj=cast(BinaryIO, _Rewound(head, self._file))))
            head = self._take_line(longest)
            if head.startswith(GZIP):
                raise TableError(f"{self.name} is packed twice. Unpack it once.")
        refuse_foreign(head, self.name)
        head = head.removeprefix(codecs.BOM_UTF8)
        while head and is_blank(head):
            self.line += head.endswith(b"\n")
            head = self._take_line(longest)
        self._ahead = head
        return head

    def readline(self, size: int) -> bytes:
        """The next line, with its end; no more than `size` bytes of it."""
        ahead, end = self._ahead, self._ahead.find(b"\n") + 1
        if end or len(ahead) >= size:
            line = ahead[: min(end or size, size)]
            self._ahead = ahead[len(line) :]
        else:
            self._ahead = b""
            line = ahead + self._take_line(size - len(ahead))
        self.line += line.endswith(b"\n")
        return line

    def read(self, size: int) -> bytes:
        """What comes next: at least a byte, unless the file has ended."""
        data, self._ahead = self._ahead, b""
        if not data:
            with self._told():
                data = _read_some(self._file, size)
        self.line += data.count(b"\n")
        return data

    @contextmanager
    def seekable(self) -> Iterator[BinaryIO]:
        """All of it, as a file that can be read at any place; what is none is copied to a temporary one."""
        if not isinstance(self._file, gzip.GzipFile) and self._file.seekable():
            self._file.seek(0)
            yield self._file
            return
        with tempfile.TemporaryFile() as copy:
            with self._told():
                copy.write(self._ahead)
                shutil.copyfileobj(self._file, copy)
            copy.seek(0)
            yield cast(BinaryIO, copy)

    def _take_line(self, size: int) -> bytes:
        with self._told():
            return self._file.readline(size)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, zlib.error) as error:
            raise TableError(
                f"{self.name} cannot be read on at line {self.line}: {error}. Mend that and start again."
            ) from error


class _Rewound:
    """A file that begins with what was read of it already."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head = head
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if self._head:
            data, self._head = (self._head, b"") if size < 0 else (self._head[:size], self._head[size:])
            return data
        return _read_some(self._file, size)


def _read_some(file: BinaryIO, size: int) -> bytes:
    read = getattr(file, "read1", file.read)  # of a pipe, what is there, without waiting for the rest
    data: bytes = read(size)
    return data


def _standard_input(noun: str) -> BinaryIO:
    if sys.stdin is None:
        raise TableError(f"Standard input is closed. Name a file of {noun} in place of -.")
    try:
        number = sys.stdin.fileno()
    except (OSError, ValueError):  # it is no file of the system's
        return sys.stdin.buffer
    # Python takes "nothing there yet" for the end of a file that does not block, and rows would be lost unnoticed.
    with suppress(OSError):
        os.set_blocking(number, True)
    # A reader of its own: at exit Python closes its standard input, which fails while a thread waits for a row there.
    return open(number, "rb", closefd=False)
