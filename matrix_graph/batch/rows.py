"""A row of the input: the question that it is, or why it cannot be used.

Why apart: files and Python programs give rows in many ways, and what is allowed in one is the same in all. What always
holds: a row that cannot be used becomes a `Rejected`, which says what came and what is allowed; what is given of either
can be written as UTF-8.
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from matrix_graph.records import clean

LONGEST = 16 * 1024 * 1024
"""The longest row, in bytes, its line ends included; a longer one is rejected."""
EXCERPT_LENGTH = 200
"""The longest excerpt of a rejected row, in characters."""
ALLOWED = 'an object with "question" is allowed, or a text that is the question'
"""What a row may be, for messages."""

_MOST_NAMES, _LONGEST_NAME = 10, 40


@dataclass(frozen=True, slots=True)
class Row:
    """One question to rehearse.

    Args:
        question: to the letter; not blank.
        draft: the answer to rehearse; None has the model write one.
        id: the name that its sender knows it by.
        line: where the row begins in its file, from 1; 0 where there are no lines.
    """

    question: str
    draft: str | None = None
    id: str | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used.

    Args:
        line: where the row begins in its file, from 1; 0 where there are no lines.
        reason: what came, and what is allowed.
        excerpt: the beginning of what came, at most `EXCERPT_LENGTH` characters, that any UTF-8 file takes.
    """

    line: int
    reason: str
    excerpt: str


class Line(NamedTuple):
    """A line of the input as it came."""

    number: int
    data: bytes
    whole: bool
    """Whether `data` is all of the line; otherwise it is the beginning of one that is too long."""


class UnusableError(Exception):
    """Why a row cannot be used."""


def to_row(item: object, line: int = 0) -> Row | Rejected:
    """One question as Python programs give it.

    Args:
        item: a `Row`; the question; or a mapping with "question", and "draft" and "id" if there are any.
        line: where the row begins in its file, from 1; 0 where there are no lines, and keeps that of a `Row`.
    """
    if isinstance(item, Row):
        line = line or item.line
        item = {"question": item.question, "draft": item.draft, "id": item.id}
    try:
        return usable_row(item, line)
    except UnusableError as error:
        return Rejected(line, str(error), _shown(item))


def usable_row(item: object, line: int) -> Row:
    """The question that a string or a mapping is.

    Raises:
        UnusableError: it is none, or something in it is not allowed.
    """
    if isinstance(item, str):
        return usable_row({"question": item}, line)
    if not isinstance(item, Mapping):
        raise UnusableError(f"the row is {_kind(item)}; {ALLOWED}")
    if "question" not in item:
        raise UnusableError(f'"question" is missing, the keys found are {listed(item)}; {ALLOWED}')
    question, draft, id = item["question"], item.get("draft"), item.get("id")
    if not isinstance(question, str):
        raise UnusableError(f'"question" is {_kind(question)}; a text is allowed')
    if is_blank(question):
        raise UnusableError('"question" is empty; a text with words is allowed')
    if draft is not None and not isinstance(draft, str):
        raise UnusableError(f'"draft" is {_kind(draft)}; a text or null is allowed')
    if draft is not None and is_blank(draft):
        raise UnusableError('"draft" is empty; leave it out to have the model write one')
    return Row(clean(question), None if draft is None else clean(draft), _id(id), line)


def _id(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return str(value)
        except ValueError:
            raise UnusableError('"id" is a number of thousands of digits; a text is allowed') from None
    if value is not None and not isinstance(value, str):
        raise UnusableError(f'"id" is {_kind(value)}; a text, a whole number or null is allowed')
    return None if value is None or is_blank(value) else clean(value)


_KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), f"of the type {type(value).__name__}")


def listed(names: Iterable[object]) -> str:
    """Names that came, few and short enough for a message."""
    texts = (name[:_LONGEST_NAME] for name in names if isinstance(name, str))
    return ", ".join(f'"{clean(text)}"' for text in itertools.islice(texts, _MOST_NAMES)) or "none"


def is_blank(text: str | bytes) -> bool:
    """Whether there is no word in it."""
    return not text or text.isspace()


def too_long() -> UnusableError:
    """Why a row of more than `LONGEST` bytes cannot be used."""
    return UnusableError(f"longer than {LONGEST:,} bytes, the most that a row may have")


def not_utf8(error: UnicodeDecodeError) -> str:
    """Why a row with such bytes cannot be used."""
    return f"not UTF-8: the byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of a line"


def lenient_text(data: bytes) -> str:
    """Bytes as text, whatever they are."""
    return data.decode("utf-8", "replace")


def excerpt(data: bytes) -> str:
    """How a row begins, for `Rejected`."""
    return lenient_text(data[: 4 * EXCERPT_LENGTH]).strip()[:EXCERPT_LENGTH]


def _shown(item: object) -> str:
    if isinstance(item, str):
        return clean(item[:EXCERPT_LENGTH])
    try:
        return clean(reprlib.repr(item)[:EXCERPT_LENGTH])
    except ValueError:
        return type(item).__name__
