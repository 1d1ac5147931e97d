"""An append-only chat of one speaker: a role's, or the modulator's.

A prompt is the last prompt, its completion, and what is new; nothing is ever taken out or changed. That is what keeps
what a role knows to what it was told, lets the server's prefix cache hit, and makes the dialogue a training example.
The one exception is a dialogue that would outgrow the model's context: what the server has counted of it is replaced by
a summary, which is a recorded model call like any other, and the rest stands on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matrix_graph.models.ask import Answer
from matrix_graph.scene.state import Dialogue

Messages = list[dict[str, str]]


def begin(opening: Messages) -> Dialogue:
    """A dialogue that holds its opening only."""
    return {"messages": opening, "counted": 0, "tokens": 0}


def say(dialogue: Dialogue, text: str) -> Dialogue:
    """The dialogue with something said to its speaker.

    What follows on an unanswered message joins it, since chat templates want the two sides to take turns.
    """
    *before, last = dialogue["messages"]
    if last["role"] == "user":
        return {**dialogue, "messages": [*before, {"role": "user", "content": f"{last['content']}\n\n{text}"}]}
    return {**dialogue, "messages": [*before, last, {"role": "user", "content": text}]}


def answered(dialogue: Dialogue, answer: Answer[Any]) -> Dialogue:
    """The dialogue after its speaker's turn; unchanged if the speaker had nothing usable to say."""
    if answer.problem is not None:
        return dialogue
    messages = [*answer.messages, {"role": "assistant", "content": answer.text}]
    return {"messages": messages, "counted": len(messages) if answer.tokens else 0, "tokens": answer.tokens}


def acted(dialogue: Dialogue, text: str) -> Dialogue:
    """The dialogue after a turn that needed no model call."""
    return {**dialogue, "messages": [*dialogue["messages"], {"role": "assistant", "content": text}]}


def outgrows(dialogue: Dialogue, new: Sequence[str], reply_tokens: int, context_length: int) -> bool:
    """Whether the next prompt and its reply might not fit into the context.

    What the server has not counted yet is reckoned at half the bytes a token that its count of the rest shows, and at
    one byte a token in the worst case, which is that of byte-level tokenizers on scripts they were not made for.

    Args:
        dialogue: the chat so far.
        new: texts about to be said.
        reply_tokens: the longest reply, in tokens.
        context_length: of the model, in tokens.
    """
    counted, since = split(dialogue)
    bytes_a_token = max(1.0, _size(counted) / dialogue["tokens"] / 2) if dialogue["tokens"] else 2.0
    unread = _size(since) + sum(len(text.encode("utf-8", "replace")) for text in new)
    return dialogue["tokens"] + unread / bytes_a_token + reply_tokens > context_length


def split(dialogue: Dialogue) -> tuple[Messages, Messages]:
    """The messages that the server has counted, and those since."""
    return dialogue["messages"][: dialogue["counted"]], dialogue["messages"][dialogue["counted"] :]


def resumed(opening: Messages, summary: str, since: Messages) -> Dialogue:
    """A dialogue that begins anew: its opening, a summary in the place of what was counted, and the rest as it was."""
    dialogue = say(begin(opening), summary)
    for message in since:
        turn = say if message["role"] == "user" else acted
        dialogue = turn(dialogue, message["content"])
    return dialogue


def _size(messages: Messages) -> int:
    return sum(len(message["content"].encode("utf-8", "replace")) for message in messages)
