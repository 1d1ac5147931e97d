"""What a model thinks aloud, told from what it says: the one place that knows what a thought looks like.

Servers send thoughts in a field of their own (`reasoning`, `reasoning_content`), or leave them in the text: between
`<think>` and `</think>`, or before a `</think>` alone where the chat template writes the opening tag. What always
holds: no thought is taken for the answer; a reply that ends inside a thought has no answer; a tag that is quoted, as in
an explanation of tags, is text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator

from matrix_graph.errors import UnfinishedThoughtError

OPEN, CLOSE = "<think>", "</think>"
FIELDS = ("reasoning_content", "reasoning")
"""Fields of a reply that hold thoughts, as vLLM, SGLang, llama.cpp, DeepSeek and OpenRouter name them."""
KWARGS = "chat_template_kwargs"
ENABLE = "enable_thinking"
"""The chat template's switch, as Qwen3 and its kin name it."""


def _named(value: Any) -> Any:
    # YAML reads `on` and `off` as true and false.
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Thinking = Annotated[Literal["auto", "on", "off"], BeforeValidator(_named)]

_CLOSES = re.compile(r"(?<![`'\"])</think>")
_PAIR = re.compile(r"^[ \t]*<think>(.*?)</think>[ \t]*\n?", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Parted:
    """A reply in its two parts.

    Attributes:
        text: what it says, without any thought; to the letter where there was none.
        thought: what was thought before; None if nothing was.
        unopened: whether the thought had no opening tag, since the chat template writes it.
    """

    text: str
    thought: str | None = None
    unopened: bool = False


def parted(text: str, *, unopened: bool = False, cut: bool = False) -> Parted:
    """A reply's text and the thoughts in it.

    Args:
        text: as received.
        unopened: whether this model's thoughts are known to begin without a tag.
        cut: whether the reply ended at its limit of tokens.
    """
    if not unopened and "think>" not in text:
        return Parted(text)
    thoughts: list[str] = []
    rest = text.lstrip()
    while rest.startswith(OPEN):
        thought, _, rest = rest[len(OPEN) :].partition(CLOSE)
        thoughts.append(thought)
        rest = rest.lstrip()
    if not thoughts:
        rest = text
    found = _PAIR.search(rest)
    while found is not None:
        thoughts.append(found[1])
        rest = rest[: found.start()] + rest[found.end() :]
        found = _PAIR.search(rest)
    alone = _closing(rest, unopened)
    if alone is not None:
        thoughts.append(rest[: alone.start()])
        rest = rest[alone.end() :].lstrip()
    elif unopened and cut and not thoughts:
        return Parted("", text.strip(), True)
    return Parted(rest, _joined(thoughts), alone is not None and len(thoughts) == 1)


def spoken(text: str) -> str:
    """The text without thoughts; "" if it ends inside one."""
    return parted(text).text


def field_of(message: Mapping[str, Any]) -> str:
    """The thought in a field of its own of a reply's message, or of a stream's delta; "" if there is none."""
    return next((value for name in FIELDS if isinstance(value := message.get(name), str) and value), "")


def joined(*thoughts: str | None) -> str | None:
    """Thoughts from several places as one; None if there are none."""
    return _joined([thought for thought in thoughts if thought])


def _joined(thoughts: list[str]) -> str | None:
    kept = [thought.strip() for thought in thoughts if thought.strip()]
    return "\n\n".join(dict.fromkeys(kept)) or None


def spoken_tokens(call: Mapping[str, Any]) -> int:
    """The generated tokens of a recorded call that were not thought: servers count both together.

    Args:
        call: with `usage`, `completion` and `reasoning`, as `records.Call` has them; shared out by characters.
    """
    tokens = int(call["usage"]["output_tokens"])
    thought = len(call.get("reasoning") or "")
    said = len(call["completion"])
    return tokens if not thought else round(tokens * said / (said + thought))


def switched(thinking: Thinking, fields: Mapping[str, Any]) -> Thinking:
    """Whether a request has the model think: by its own template arguments, else by the setting.

    Args:
        thinking: the setting.
        fields: of the request.
    """
    own = (fields.get(KWARGS) or {}).get(ENABLE)
    return thinking if own is None else "on" if own else "off"


def template_kwargs(thinking: Thinking, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a request hands to the chat template: its own arguments, and the switch where the setting says so."""
    own = dict(fields.get(KWARGS) or {})
    return own if thinking == "auto" else {ENABLE: thinking == "on", **own}


def fixed_request(thinking: Thinking, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of every request to a model: those that were set, and the switch of its thinking."""
    kwargs = template_kwargs(thinking, fields)
    return {**fields, **({KWARGS: kwargs} if kwargs else {})}


def require_spoken(text: str, thought: str | None, tokens: int, advice: str) -> None:
    """See that a reply does not consist of thought alone.

    Args:
        text: without thoughts.
        thought: what was thought.
        tokens: of the reply.
        advice: what to do about it.

    Raises:
        UnfinishedThoughtError: there is a thought, and nothing after it.
    """
    if thought is not None and not text.strip():
        raise UnfinishedThoughtError(
            f"The reply went into the model's reasoning ({tokens} tokens), and there is no answer after it. {advice}"
        )


class Piece(NamedTuple):
    """What a piece of a stream brings: text to show, and thought; both may be empty."""

    text: str
    thought: str


class ThoughtStream:
    """Tells thoughts from text while a reply streams in, wherever the pieces are cut.

    Where an opening tag may be absent, nothing can be shown before the closing tag; so this is waited for only of
    models that are known to do so (`unopened`). Of another model the text passes with its closing tag in it, by which
    `parted` tells them apart in the end.

    Attributes:
        unopened: whether a thought without opening tag was met.
        thought: whether a thought was met.
    """

    def __init__(self, *, unopened: bool = False) -> None:
        """Args: whether the reply is expected to begin inside a thought."""
        self.unopened = False
        self.thought = False
        self._expected = unopened
        self._state: Literal["start", "unknown", "thought", "gap", "text"] = "start"
        self._held = ""

    def feed(self, piece: str) -> Piece:
        """Take in a piece of the reply's text."""
        self._held += piece
        text = thought = ""
        while self._held:
            if self._state == "text":
                text += self._held
                self._held = ""
            elif self._state == "thought":
                before, closing, after = self._held.partition(CLOSE)
                kept = "" if closing else _beginning_of(CLOSE, before)
                thought += before[: len(before) - len(kept)]
                self._held = after if closing else kept
                if not closing:
                    break
                self._state = "gap"
            elif self._state == "unknown":
                closing_tag = _CLOSES.search(self._held)
                if closing_tag is None:
                    break
                thought += self._held[: closing_tag.start()].strip()
                self._held = self._held[closing_tag.end() :]
                self.unopened, self._state = True, "gap"
            else:
                rest = self._held.lstrip()
                if rest.startswith(OPEN):
                    self._state, self._held = "thought", rest[len(OPEN) :].lstrip("\n")
                    self.thought = True
                elif OPEN.startswith(rest):
                    break
                elif self._state == "gap":
                    self._state, self._held = "text", rest
                elif self._expected or _closing(self._held, False):
                    self._state = "unknown"
                else:
                    self._state = "text"
        self.thought = self.thought or bool(thought)
        return Piece(text, thought)

    def end(self, *, cut: bool) -> Piece:
        """What was held back when the reply ended.

        Args:
            cut: whether it ended at its limit of tokens.
        """
        held, self._held = self._held, ""
        if self._state == "thought" or (self._state == "unknown" and cut):
            self.thought = True
            return Piece("", held)
        return Piece(held.lstrip() if self._state == "gap" else held, "")


def _closing(text: str, unopened: bool) -> re.Match[str] | None:
    """A closing tag without an opening one before it; where thoughts have no opening tag, any."""
    found = _CLOSES.search(text)
    return None if found is None or (not unopened and OPEN in text[: found.start()]) else found


def _beginning_of(tag: str, text: str) -> str:
    """The end of a text that may be the beginning of a tag."""
    for size in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:size]):
            return tag[:size]
    return ""
