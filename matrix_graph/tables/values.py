"""What a cell may hold, the same wherever it stands: ids, blanks, names of columns; and how it is told in messages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from datetime import date, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from matrix_graph.records import clean

_MOST_NAMES, _LONGEST_NAME = 10, 40
_WHOLE = 1e16
"""Whole numbers below it stand in a float to the digit."""


class UnusableError(Exception):
    """Why a row cannot be used."""


def id_text(value: object) -> str | None:
    """An id as text, whatever scalar it was written as.

    A number of a column with gaps is the whole number that it stands for: `1.0` is "1". Null, NaN and a blank text are
    no id.

        >>> id_text(1.0), id_text("a"), id_text(float("nan"))
        ('1', 'a', None)

    Raises:
        UnusableError: it is a list, an object or the like.
    """
    if value is None or (isinstance(value, str) and is_blank(value)):
        return None
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        try:
            return str(value)
        except ValueError:
            raise UnusableError('"id" is a number of thousands of digits; a text is allowed') from None
    if isinstance(value, Decimal):
        return None if value.is_nan() else f"{value.normalize():f}"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < _WHOLE else str(value)
    if isinstance(value, date | time | UUID):
        return str(value)
    raise UnusableError(f'"id" is {kind_of(value)}; a text, a number or null is allowed')


def is_blank(text: str | bytes) -> bool:
    """Whether there is no word in it."""
    return not text or text.isspace()


def is_nothing(value: object) -> bool:
    """Whether a cell says nothing: null, NaN, or no word."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and is_blank(value))
    )


def column_names(header: Iterable[str]) -> list[str]:
    """The names in a header, case and blanks around them ignored."""
    return [name.strip().casefold() for name in header]


_KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def kind_of(value: object) -> str:
    """What a value is, in JSON's words."""
    return _KINDS.get(type(value), f"of the type {type(value).__name__}")


def listed(names: Iterable[object]) -> str:
    """Names that came, few and short enough for a message."""
    texts = (name[:_LONGEST_NAME] for name in names if isinstance(name, str))
    return ", ".join(f'"{clean(text)}"' for text in itertools.islice(texts, _MOST_NAMES)) or "none"


def lenient_text(data: bytes) -> str:
    """Bytes as text, whatever they are."""
    return data.decode("utf-8", "replace")


def cleaned(value: Any) -> Any:
    """A value as JSON gives it, with lone surrogates replaced in all of its texts."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    if isinstance(value, Mapping):
        return {clean(name): cleaned(item) for name, item in value.items()}
    return value
