"""What goes over the wire and comes back: JSON in UTF-8, server-sent events, error bodies.

What always holds: what is sent is valid UTF-8, whatever a prompt contains; what comes back is read without trust:
bodies and lines have limits, which count after decompression, and the strings of a reply are cleaned where they enter.
"""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

from matrix_graph.models.client.redact import Redactor
from matrix_graph.models.client.strings import MOST_DEEP, check_depth, cleaned

JSON = dict[str, Any]

MOST_BODY = 32 * 1024 * 1024
"""Bytes of a reply. Log-probabilities of a long prompt, or many embeddings, have some 10 MB."""
MOST_ERROR = 64 * 1024
"""Bytes of an error's body that are read; a message quotes 500 characters."""
MOST_LINE = 8 * 1024 * 1024
"""Bytes of one server-sent event."""
MOST_STREAM = 256 * 1024 * 1024
"""Bytes of a whole stream. A long reply with many log-probabilities a token has some 100 MB."""

_NO_SECRETS = Redactor()
_MOST_BRACKETS = 2_000_000
"""Lists and objects in a body: an empty one takes 20 times the memory of its brackets."""
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_NEEDS_CLEANING = re.compile(rb"\\u[dD][89a-fA-F]")
"""In valid UTF-8, surrogates can only come from an escape."""


class TooLongError(ValueError):
    """A body or line is longer than any reply should be."""


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


def decode(raw: bytes, redact: Redactor = _NO_SECRETS) -> JSON:
    """The JSON object in `raw`, its strings cleaned.

    Args:
        raw: a body, or the data of an event.
        redact: blots out what must not be shown, should the server repeat it.

    Raises:
        ValueError: it is none, or nested too deep; the message quotes it.
    """
    brackets = raw.count(b"[") + raw.count(b"{")
    try:
        body = json.loads(raw.decode("utf-8-sig")) if brackets <= _MOST_BRACKETS else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ValueError(f"not a JSON object: {redact.quote(raw)}")
    if brackets > MOST_DEEP:
        check_depth(body)
    if _NEEDS_CLEANING.search(raw):
        body = cleaned(body)
    if redact.spoken(raw):
        body = redact.strings(body)
    return body


async def read_body(blocks: AsyncIterator[bytes], most: int = MOST_BODY) -> bytes:
    """A body that arrives in blocks, as a whole.

    Raises:
        TooLongError: there is more of it than `most` bytes.
    """
    body = bytearray()
    async for block in blocks:
        body += block
        if len(body) > most:
            raise TooLongError(f"it is longer than {most:,} bytes")
    return bytes(body)


async def read_beginning(blocks: AsyncIterator[bytes], most: int = MOST_ERROR) -> bytes:
    """The first `most` bytes of a body that arrives in blocks, at least; the rest stays unread."""
    body = bytearray()
    async for block in blocks:
        body += block
        if len(body) >= most:
            break
    return bytes(body)


async def lines(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of a body that arrives in blocks, without their ends. A last line that has no end counts as well.

    Not `StreamReader.readline`: that fails on lines longer than its buffer.

    Raises:
        TooLongError: a line is longer than `MOST_LINE`, or all of them than `MOST_STREAM`.
    """
    parts: list[bytes] = []
    length = total = 0
    async for block in blocks:
        total += len(block)
        if total > MOST_STREAM:
            raise TooLongError(f"the stream is longer than {MOST_STREAM:,} bytes")
        *whole, rest = block.split(b"\n")
        for line in whole:
            parts.append(line)
            yield b"".join(parts).rstrip(b"\r")
            parts.clear()
            length = 0
        parts.append(rest)
        length += len(rest)
        if length > MOST_LINE:
            raise TooLongError(f"a line of the stream is longer than {MOST_LINE:,} bytes")
    if any(parts):
        yield b"".join(parts).rstrip(b"\r")


def message_in(raw: bytes, redact: Redactor = _NO_SECRETS) -> str:
    """What an error body says, in any usual shape: `{"error": {"message"}}`, `{"error"}`, `{"detail"}` or text.

    It comes without secrets, on one line, and cut to a length that a message can quote.
    """
    try:
        body: Any = json.loads(raw)
        for key in ("error", "message", "detail"):
            if isinstance(body, dict) and body.get(key):
                body = body[key]
        return redact.quote(body if isinstance(body, str) else json.dumps(body, ensure_ascii=False))
    except (ValueError, RecursionError):
        return redact.quote(raw)
