"""Strings and JSON data that come from outside, made fit for files, sockets, databases and screens where they enter.

What always holds: lone surrogates become U+FFFD, in names NUL does too, and everything else stays to the letter; data
nested deeper than `MOST_DEEP` is refused, so that no recursion further on meets its limit.
"""

import json
import math
from collections.abc import Callable
from typing import Any

from matrix_graph.records import clean

MOST_DEEP = 100
"""Lists and objects in each other."""
_LARGEST = 2**63


def clean_name(text: str) -> str:
    """A name, or a text that is quoted: lone surrogates and NUL replaced by U+FFFD.

    No UTF-8 file takes the former, no database and no command line the latter.
    """
    return clean(text).replace("\0", "\ufffd")


def name_in(value: Any) -> str | None:
    """A name, identifier or the like that a server gives; None if it is no text."""
    return clean_name(value) if isinstance(value, str) else None


def cleaned(value: Any, clean: Callable[[str], str] = clean) -> Any:
    """JSON data with all its strings, and the names in its objects, cleaned; numbers and the like stay.

    Args:
        value: not deeper than `MOST_DEEP` (see `check_depth`).
        clean: of one string.
    """
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [cleaned(item, clean) for item in value]
    if isinstance(value, dict):
        return {clean(name): cleaned(item, clean) for name, item in value.items()}
    return value


def check_depth(value: Any) -> None:
    """See that JSON data is not nested too deep.

    Raises:
        ValueError: it is.
    """
    level = [value]
    for _ in range(MOST_DEEP + 1):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {MOST_DEEP} deep")


def strict_json(text: str) -> Any:
    """The value of a JSON text that a model wrote, cleaned.

    Raises:
        ValueError: it is none, is nested too deep, or holds NaN, an infinity or an integer of more than 64 bits.
    """
    try:
        value = json.loads(text, strict=False, parse_int=_integer, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError(f"it is nested more than {MOST_DEEP} deep") from None
    check_depth(value)
    return cleaned(value)


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) < 40 else _LARGEST
    if not -_LARGEST <= value < _LARGEST:
        raise ValueError(f"{digits[:40]} is too large a number")
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is not a finite number")
    return value
