"""What a run's process and its workers say to each other, over the pipes between them.

A message is a JSON array that begins with its kind, and may carry bytes: a trace passes through without being parsed.

    to a worker     begin {...}                     first of all: model, cast, settings, whether the server is away
                    play scene key question draft id line last_chance
                    cancel scene
                    go call                         its turn has come; or it may try again
                    refused call type message
                    server key sockets              the run's own server was started again: its key, by what it is known
                    away yes                        the server is away, clocks stand still; or it is back
    to the run      ready
                    enter scene call                wants a turn
                    leave call [input output]       is over; with its tokens if it was answered
                    lost call reached               has lost the server
                    played scene status seconds calls cut    the bytes are its trace
                    broke scene type message        its trace cannot even be written

What always holds: messages arrive whole and in order; whatever was said within one round of an event loop goes out in
one write; what is no message ends the conversation.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

from matrix_graph.errors import MatrixGraphError

Message = list[Any]
"""`[kind, ...]`, plain JSON."""

_LENGTHS = struct.Struct(">II")
_LONGEST = 1 << 29
"""Bytes of a part, at most. Any text that strays into a pipe would begin a longer one."""

_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_from_json = json.JSONDecoder().decode


class WireError(MatrixGraphError):
    """What came through a pipe is no message."""


def pack(message: Message, body: bytes = b"") -> bytes:
    """A message as it goes over the pipe.

    Raises:
        TypeError, ValueError: something in it has no JSON form.
    """
    header = _to_json(message).encode("ascii")
    return b"".join((_LENGTHS.pack(len(header), len(body)), header, body))


class Unpacker:
    """Messages from a pipe, which gives them in pieces of any size."""

    def __init__(self) -> None:
        """Nothing has come yet."""
        self._rest = bytearray()

    def feed(self, piece: bytes) -> Iterator[tuple[Message, bytes]]:
        """The messages that are whole by now, each with its bytes.

        Args:
            piece: what has come since.

        Raises:
            WireError: it is no message.
        """
        self._rest += piece
        rest, start = self._rest, 0
        try:
            while len(rest) - start >= _LENGTHS.size:
                header_length, body_length = _LENGTHS.unpack_from(rest, start)
                if max(header_length, body_length) > _LONGEST:
                    raise WireError(f"A pipe between run and worker gave {bytes(rest[start : start + 40])!r}.")
                header = start + _LENGTHS.size
                body = header + header_length
                end = body + body_length
                if end > len(rest):
                    break
                start = end
                yield _message(rest[header:body]), bytes(rest[body:end])
        finally:
            del rest[:start]


class Outbox:
    """Messages on their way into a pipe, gathered for one write.

    Args:
        write: takes bytes and never waits, as a transport's `write`.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._parts: list[bytes] = []

    def send(self, message: Message, body: bytes = b"") -> None:
        """Send a message in the event loop's next round."""
        if not self._parts:
            asyncio.get_running_loop().call_soon(self._flush)
        self._parts.append(pack(message, body))

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        self._write(b"".join(parts))


def _message(header: bytearray) -> Message:
    try:
        message = _from_json(header.decode())
    except (ValueError, RecursionError) as error:
        raise WireError(f"A pipe between run and worker gave {bytes(header[:40])!r}, which is no JSON.") from error
    if not isinstance(message, list) or not message or not isinstance(message[0], str):
        raise WireError(f"A pipe between run and worker gave {bytes(header[:40])!r}, which has no kind.")
    return message
