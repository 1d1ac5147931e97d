"""Models whose chat template refuses a system message: its text goes to the front of the first user turn.

What always holds: nothing of the system text is lost; messages without a system role come back as they are; a refusal
is believed only if the folded messages are then accepted, and is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from matrix_graph.errors import ContextLengthError, MatrixGraphError
from matrix_graph.models.known import Known

T = TypeVar("T")
M = TypeVar("M", bound=Mapping[str, Any])

_STATUSES = frozenset({400, 422, 500})
"""By which servers say that a template refuses; llama.cpp says it with 500."""
_ABOUT_ROLES = re.compile(r"\bsystem\b|\brole\b|\broles\b|\balternat|developer instruction", re.IGNORECASE)
_REFUSES = re.compile(
    r"system (role|message|prompt|instruction)s?\b.{0,40}\b(not|un)|\b(not|un)\w*.{0,40}\bsystem (role|message|prompt)"
    r"|roles must alternate|only user.{0,40}roles|developer instruction is not|(unexpected|unknown|invalid) role",
    re.IGNORECASE | re.DOTALL,
)
"""What says so by itself, without a status."""


def folded(messages: Sequence[M]) -> list[Any]:
    """Messages without a system role: its text stands in front of the next user turn's.

    Args:
        messages: `{"role", "content"}` each; content is text, or a list of content blocks.
    """
    kept: list[Any] = []
    waiting: list[Any] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif message["role"] == "user" and waiting:
            kept.append({**message, "content": _together([*waiting, message["content"]])})
            waiting = []
        else:
            kept.append(message)
    if waiting and kept and kept[-1]["role"] == "user":
        kept[-1] = {**kept[-1], "content": _together([kept[-1]["content"], *waiting])}
    elif waiting:
        kept.append({"role": "user", "content": _together(waiting)})
    return kept


def has_system(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any of the messages is the system's."""
    return any(message["role"] == "system" for message in messages)


def says_refused(said: str) -> bool:
    """Whether a text says, by itself, that a template refuses a system role."""
    return _REFUSES.search(said) is not None


def may_refuse(error: Exception) -> bool:
    """Whether an error may be a template's refusal of a system message, which the folded messages would tell."""
    if isinstance(error, ContextLengthError):
        return False
    status = getattr(error, "status", None) or getattr(error, "status_code", None)
    if isinstance(status, int):
        return status in _STATUSES and _ABOUT_ROLES.search(str(error)) is not None
    return not isinstance(error, MatrixGraphError) and says_refused(str(error))


async def accepted(known: Known, messages: Sequence[M], send: Callable[[list[Any]], Awaitable[T]]) -> T:
    """Send messages in the form that the model takes.

    Args:
        known: what is known of the model; learns that it refuses a system role.
        messages: as they were made.
        send: sends messages, once.

    Raises:
        Exception: whatever `send` raises; the first refusal, where folding does not help.
    """
    if known.folds or not has_system(messages):
        return await send(folded(messages) if known.folds else list(messages))
    try:
        return await send(list(messages))
    except Exception as refusal:
        if not may_refuse(refusal):
            raise
        try:
            reply = await send(folded(messages))
        except Exception as other:
            if may_refuse(other) or getattr(other, "status", None) is not None:
                raise refusal from None
            raise
        known.folds = True
        return reply


def _together(contents: Sequence[Any]) -> Any:
    """Contents as one: text, or content blocks where one of them has blocks."""
    if all(isinstance(content, str) for content in contents):
        return "\n\n".join(contents)
    blocks: list[Any] = []
    for content in contents:
        blocks += [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return blocks
