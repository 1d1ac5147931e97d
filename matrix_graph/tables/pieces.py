"""The pieces of a text file that are a row each: lines, or the elements of a JSON array.

What always holds: one piece is held at a time, of at most `LONGEST` bytes; of a longer one the beginning is kept and
the rest passed over. Only `\\n` and `\\r\\n` end a line.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator
from typing import NamedTuple

from matrix_graph.records import clean
from matrix_graph.tables.source import Source
from matrix_graph.tables.values import UnusableError, is_blank, lenient_text

LONGEST = 16 * 1024 * 1024
"""The longest row, in bytes, its line ends included; a longer one cannot be used."""
EXCERPT_LENGTH = 200
"""The longest excerpt of a row that cannot be used, in characters."""
_BEGINNING = 4 * EXCERPT_LENGTH
_CHUNK = 1024 * 1024

_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')


class Piece(NamedTuple):
    """A row as it came."""

    number: int
    """Of the line, or of the element, from 1."""
    data: bytes
    whole: bool = True
    """Whether `data` is all of it; otherwise it is the beginning of one that is too long."""
    problem: str | None = None
    """Why it cannot be used, if that is known already."""


def too_long() -> UnusableError:
    """Why a row of more than `LONGEST` bytes cannot be used."""
    return UnusableError(f"longer than {LONGEST:,} bytes, the most that a row may have")


def not_utf8(error: UnicodeDecodeError, place: str) -> str:
    """Why a row with such bytes cannot be used.

    Args:
        error: of decoding a line, or an element of an array, by itself.
        place: which of them, such as "line 3".
    """
    return (
        f"not UTF-8: the byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of {place}; "
        "save the file as UTF-8"
    )


def excerpt(data: bytes) -> str:
    """How a row begins, as any UTF-8 file takes it."""
    return lenient_text(data[:_BEGINNING]).strip()[:EXCERPT_LENGTH]


def shown(item: object) -> str:
    """How a value begins that no bytes are known of, as any UTF-8 file takes it."""
    if isinstance(item, str):
        return clean(item[:EXCERPT_LENGTH])
    try:
        return clean(reprlib.repr(item)[:EXCERPT_LENGTH])
    except ValueError:  # a number of thousands of digits
        return type(item).__name__


def split_lines(source: Source) -> Iterator[Piece]:
    """All lines that are left, with their ends."""
    while True:
        number = source.line
        data = source.readline(LONGEST + 1)
        if not data:
            return
        whole = len(data) <= LONGEST
        if not whole:
            ended, data = data.endswith(b"\n"), data[:_BEGINNING]
            while not ended:
                rest = source.readline(_CHUNK)
                ended = not rest or rest.endswith(b"\n")
        yield Piece(number, data, whole)


def split_array(source: Source) -> Iterator[Piece]:
    """The elements of a JSON array, as text; what is in them is not looked at.

    An element that is not JSON is a piece as well, up to the comma where it ends: brackets and quotes tell that.
    """
    splitter = _Splitter()
    while chunk := source.read(_CHUNK):
        yield from splitter.feed(chunk)
    yield from splitter.end()


class _Splitter:
    """Cuts a JSON array at its own commas."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = self._closed = False
        self._held = bytearray()
        self._size = 0
        self._number = 1

    def feed(self, chunk: bytes) -> Iterator[Piece]:
        at = begin = 0
        while at < len(chunk):
            if self._escaped:
                self._escaped, at = False, at + 1
                continue
            found = (_INSIDE if self._quoted else _OUTSIDE).search(chunk, at)
            if found is None:
                break
            sign, at = found[0], found.end()
            if sign == b"\\":
                self._escaped = True
            elif sign == b'"':
                self._quoted = not self._quoted
            elif self._closed:
                continue
            elif sign in b"[{":
                self._depth += 1
                if self._depth == 1:
                    begin = at  # the array's own bracket, with what is before it
            elif sign in b"]}":
                self._depth -= 1
                if self._depth == 0:
                    self._hold(chunk[begin : at - 1])
                    begin, self._closed = at, True
                    if self._number > 1 or not is_blank(bytes(self._held)):
                        yield self._piece()
            elif self._depth == 1:
                self._hold(chunk[begin : at - 1])
                begin = at
                yield self._piece()
        self._hold(chunk[begin:])

    def end(self) -> Iterator[Piece]:
        rest = bytes(self._held)
        if not self._closed:
            yield self._piece("the file ends within its JSON array: a closing ] is missing")
        elif not is_blank(rest):
            yield self._piece("text stands after the end of the JSON array")

    def _hold(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= LONGEST:
            self._held += data
        else:
            self._held += data[:_BEGINNING]
            del self._held[_BEGINNING:]

    def _piece(self, problem: str | None = None) -> Piece:
        whole = self._size <= LONGEST
        data = bytes(self._held)
        if problem is None and whole and is_blank(data):
            problem = "nothing stands there; a comma of the JSON array is too much"
        piece = Piece(self._number, data, whole, problem)
        self._number += 1
        self._size = 0
        self._held.clear()
        return piece
