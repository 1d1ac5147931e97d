"""Numbers that come from a server: how long to wait, how many tokens, which status.

What always holds: whatever a server sends, a wait is between 0 and `LONGEST_WAIT` seconds, a count is a natural number
that every file and database can hold, and nothing here raises.
"""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

LONGEST_WAIT = 60.0
"""Cap on what a server asks to wait, in seconds."""
_MOST = 2**53
"""The largest count that is believed: from there on, floating point numbers skip some."""

_SECONDS = re.compile(r"-?\d+(?:\.\d*)?", re.ASCII)


def seconds(retry_after: str | None) -> float | None:
    """A Retry-After header (RFC 9110, 10.2.3: seconds or a date) in seconds from now; None if absent or odd."""
    text = (retry_after or "").strip()
    if _SECONDS.fullmatch(text):
        return min(max(float(text), 0.0), LONGEST_WAIT)
    try:
        when = parsedate_to_datetime(text)
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        left = (when - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, LookupError, ArithmeticError):  # OverflowError for years that no clock has
        return None
    return min(max(left, 0.0), LONGEST_WAIT)


def count(value: Any) -> int | None:
    """A number of tokens or the like; None if it is none: negative, not whole, beyond belief, or no number at all."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= _MOST else None


def error_status(value: Any) -> int:
    """The HTTP status that an error in a stream stands for; 500 where it names none."""
    return value if type(value) is int and 400 <= value <= 599 else 500
