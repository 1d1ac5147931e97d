"""Servers whose model thinks, or whose template refuses a system message: replies for the fake model server."""

from __future__ import annotations

from typing import Literal

from tests.integration.model_server import Fault
from tests.integration.random_reply import JSON, Reply, random_reply
from tests.integration.scenes import Replies

Kind = Literal["field", "tags", "closing tag"]
MARK = "qqthoughtqq"
"""Stands in every thought, and nowhere else."""
THOUGHT = f"Let me think, {MARK}. " + f"What of {{neighbours}}? {MARK} " * 30
"""Some 100 tokens: more than a short limit has room for, so that a model that thinks needs more."""


def thinks(replies: Replies, kind: Kind) -> Replies:
    """Replies with a thought before each, unless the chat template is told to do without.

    Args:
        replies: what is said after it.
        kind: where the thought stands: in a field of its own, between tags, or before a closing tag alone.
    """

    def reply(body: JSON) -> str | Reply | Fault | None:
        said = replies(body)
        if (body.get("chat_template_kwargs") or {}).get("enable_thinking") is False or isinstance(said, Fault):
            return said
        whole = random_reply(body) if said is None else Reply(said) if isinstance(said, str) else said
        if kind == "field":
            return Reply(whole.text, whole.finish_reason, whole.tool_calls, whole.usage, THOUGHT)
        opening = "<think>\n" if kind == "tags" else ""
        return Reply(f"{opening}{THOUGHT}\n</think>\n\n{whole.text}", whole.finish_reason)

    return reply


def without_system(replies: Replies, said: str = "System role not supported") -> Replies:
    """Replies of a server whose chat template refuses a system message."""

    def reply(body: JSON) -> str | Reply | Fault | None:
        if any(message["role"] == "system" for message in body["messages"]):
            return Fault(status=400, body=said)
        return replies(body)

    return reply
