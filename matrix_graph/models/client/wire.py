"""What goes over the wire and comes back: JSON in UTF-8, server-sent events, error bodies, waiting times.

What always holds: what is sent is valid UTF-8, whatever a prompt contains; what comes back is read without trust.
"""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

JSON = dict[str, Any]

_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

_QUOTED = 500
"""How many characters of a server's answer an error message quotes."""


def encode(payload: JSON) -> bytes:
    """`payload` as JSON in UTF-8.

    Lone surrogates (half a character, as broken model output or file names bring them) have no UTF-8 form: they go out
    as U+FFFD, pairs as the character they mean. NUL and other control characters are escaped, as JSON wants them.

    Raises:
        TypeError: something in it has no JSON form.
        ValueError: a number in it is NaN or infinite.
    """
    text = _to_json(payload)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def decode(raw: bytes) -> JSON:
    """The JSON object in `raw`.

    Raises:
        ValueError: it is none; the message quotes it.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ValueError(f"not a JSON object: {quoted(raw)}")
    return body


async def lines(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of a body that arrives in blocks, without their ends. A last line that has no end counts as well.

    Not `StreamReader.readline`: that fails on lines longer than its buffer.
    """
    parts: list[bytes] = []
    async for block in blocks:
        *whole, rest = block.split(b"\n")
        for line in whole:
            parts.append(line)
            yield b"".join(parts).rstrip(b"\r")
            parts.clear()
        parts.append(rest)
    if any(parts):
        yield b"".join(parts).rstrip(b"\r")


def message_in(raw: bytes) -> str:
    """What an error body says, in any usual shape: `{"error": {"message"}}`, `{"error"}`, `{"detail"}` or text."""
    try:
        body: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return quoted(raw)
    for key in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(key):
            body = body[key]
    return quoted(body if isinstance(body, str) else json.dumps(body, ensure_ascii=False))


def quoted(text: str | bytes) -> str:
    """`text` as an error message may quote it: at most 500 characters, on one line."""
    if isinstance(text, bytes):
        text = text[: 4 * _QUOTED].decode(errors="replace")
    text = " ".join(text.split())
    return (text if len(text) <= _QUOTED else text[:_QUOTED] + " [...]") or "(nothing)"


def seconds(retry_after: str | None) -> float | None:
    """A Retry-After header (RFC 9110, 10.2.3: seconds or a date) in seconds from now; None if absent or odd."""
    if not retry_after:
        return None
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max((when - datetime.now(UTC)).total_seconds(), 0.0)
