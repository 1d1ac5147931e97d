"""An append-only chat of one speaker: a role's, or the modulator's.

A prompt is the last prompt, its completion, and what is new; nothing is ever taken out or changed. That is what keeps
what a role knows to what it was told, lets the server's prefix cache hit, and makes the dialogue a training example.
The one exception is a dialogue that would outgrow the model's context: it starts anew from a summary of itself, which
is a recorded model call like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matrix_graph.models.ask import Answer
from matrix_graph.scene.state import Dialogue

BYTES_PER_TOKEN = 2
"""A cautious guess for text that the server has not counted yet; English has about 4 bytes a token, Chinese 2 or 3."""

Messages = list[dict[str, str]]


def begin(opening: Messages) -> Dialogue:
    """A dialogue that holds its opening only."""
    return {"messages": opening, "tokens": 0, "unread": sum(_size(message["content"]) for message in opening)}


def say(dialogue: Dialogue, text: str) -> Dialogue:
    """The dialogue with something said to its speaker.

    What follows on an unanswered message joins it, since chat templates want the two sides to take turns.
    """
    *before, last = dialogue["messages"]
    messages: Messages
    if last["role"] == "user":
        messages = [*before, {"role": "user", "content": f"{last['content']}\n\n{text}"}]
    else:
        messages = [*before, last, {"role": "user", "content": text}]
    return {"messages": messages, "tokens": dialogue["tokens"], "unread": dialogue["unread"] + _size(text)}


def answered(dialogue: Dialogue, answer: Answer[Any]) -> Dialogue:
    """The dialogue after its speaker's turn; unchanged if the speaker had nothing usable to say."""
    if answer.problem is not None:
        return dialogue
    messages = [*answer.messages, {"role": "assistant", "content": answer.text}]
    return {"messages": messages, "tokens": answer.tokens, "unread": 0 if answer.tokens else _total(messages)}


def acted(dialogue: Dialogue, text: str) -> Dialogue:
    """The dialogue after a turn that needed no model call."""
    messages = [*dialogue["messages"], {"role": "assistant", "content": text}]
    return {"messages": messages, "tokens": dialogue["tokens"], "unread": dialogue["unread"] + _size(text)}


def outgrows(dialogue: Dialogue, new: Sequence[str], reply_tokens: int, context_length: int) -> bool:
    """Whether the next prompt and its reply might not fit into the context.

    Args:
        dialogue: the chat so far.
        new: texts about to be said.
        reply_tokens: the longest reply, in tokens.
        context_length: of the model, in tokens.
    """
    unread = dialogue["unread"] + sum(_size(text) for text in new)
    return dialogue["tokens"] + unread // BYTES_PER_TOKEN + reply_tokens > context_length


def _total(messages: Messages) -> int:
    return sum(_size(message["content"]) for message in messages)


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace")) + 8
