"""A row of the input: the question that it is, or why it cannot be used.

Why apart: files and Python programs give rows in many ways, and what is allowed in one is the same in all. What always
holds: a row that cannot be used becomes a `Rejected`, which says what came and what is allowed; what is given of either
can be written as UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from matrix_graph.records import clean
from matrix_graph.tables.pieces import shown
from matrix_graph.tables.values import UnusableError, id_text, is_blank, kind_of, listed

ALLOWED = 'an object with "question" is allowed, or a text that is the question'
"""What a row may be, for messages."""


@dataclass(frozen=True, slots=True)
class Row:
    """One question to rehearse.

    Args:
        question: to the letter; not blank.
        draft: the answer to rehearse; None has the model write one.
        id: the name that its sender knows it by.
        line: where the row begins in its file, from 1; its number where a file has no lines, 0 where there is no file.
    """

    question: str
    draft: str | None = None
    id: str | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used.

    Args:
        line: as of a `Row`.
        reason: what came, and what is allowed.
        excerpt: the beginning of what came, of a few words, that any UTF-8 file takes.
    """

    line: int
    reason: str
    excerpt: str


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
        return Rejected(line, str(error), shown(item))


def usable_row(item: object, line: int) -> Row:
    """The question that a string or a mapping is.

    Raises:
        UnusableError: it is none, or something in it is not allowed.
    """
    if isinstance(item, str):
        return usable_row({"question": item}, line)
    if not isinstance(item, Mapping):
        raise UnusableError(f"the row is {kind_of(item)}; {ALLOWED}")
    if "question" not in item:
        raise UnusableError(f'"question" is missing, the keys found are {listed(item)}; {ALLOWED}')
    question, draft, id = item["question"], item.get("draft"), item.get("id")
    if not isinstance(question, str):
        raise UnusableError(f'"question" is {kind_of(question)}; a text is allowed')
    if is_blank(question):
        raise UnusableError('"question" is empty; a text with words is allowed')
    if draft is not None and not isinstance(draft, str):
        raise UnusableError(f'"draft" is {kind_of(draft)}; a text or null is allowed')
    if draft is not None and is_blank(draft):
        raise UnusableError('"draft" is empty; leave it out to have the model write one')
    return Row(clean(question), None if draft is None else clean(draft), id_text(id), line)
