"""Which tokens of a chat are learnt: those that a server would have to generate, for any chat template.

Why not `{% generation %}` marks or TRL's own: few templates have the marks, and a guess teaches the model to speak for
the user. Here the template itself is asked. For each turn of the assistant that is to be learnt, the chat before it is
rendered as a server renders it when it asks for a reply; what the rendered whole has after that is the reply.

What always holds: the tokens that are learnt, decoded, are the assistant's text and the token that ends its turn (white
space that the template puts around the text is the model's to generate too), and the tokens before them are the very
tokens that a server sends to the model. Where one example cannot have all that (a template drops thoughts once the chat
goes on; a reply's first token melts with the prompt's last), each turn becomes an example of its own. A chat for which
none of this can be had is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matrix_graph.models.system_role import folded, has_system
from matrix_graph.train.errors import TrainingError
from matrix_graph.train.rows import Chat, Message, Pair

_LONGEST_REASON = 160


class RowRefusedError(Exception):
    """Why nothing can be learnt from this row with this template."""


@dataclass(frozen=True)
class Example:
    """What the trainer sees.

    Attributes:
        ids: all tokens.
        spans: from where to where they are learnt: start, end (exclusive), ascending.
    """

    ids: list[int]
    spans: list[tuple[int, int]]

    @property
    def labels(self) -> list[int]:
        """The tokens that are learnt, and -100 in place of all others."""
        labels = [-100] * len(self.ids)
        for start, end in self.spans:
            labels[start:end] = self.ids[start:end]
        return labels

    @property
    def taught(self) -> int:
        """How many tokens are learnt."""
        return sum(end - start for start, end in self.spans)


@dataclass(frozen=True)
class PairExample:
    """What the DPO trainer sees: tokens of the prompt, and of each answer with the end of its turn."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class Masker:
    """Makes examples of rows, by one tokenizer and its chat template.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template_kwargs: handed to the template.

    Raises:
        TrainingError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, template_kwargs: dict[str, Any] | None = None) -> None:
        if not tokenizer.chat_template:
            raise TrainingError(
                "The model's tokenizer has no chat template, so that nobody knows how it tells question from answer. "
                "Base models often have none: take the model's instruction-tuned kin, or put the right template into "
                "the model folder as chat_template.jinja."
            )
        self._tokenizer = tokenizer
        self._kwargs = dict(template_kwargs or {})
        self._folds: bool | None = None  # whether the template refuses a system message; None: not asked yet
        marks = {*tokenizer.all_special_tokens, tokenizer.eos_token} - {None, ""}
        marks |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._marks = sorted(marks, key=len, reverse=True)

    def chat(self, chat: Chat) -> list[Example]:
        """The examples of one chat: one, or one a turn where the template cannot hold them together.

        Raises:
            RowRefusedError: nothing can be learnt from it.
        """
        self._require_plain(chat.messages)
        chat = self._taken(chat)
        replies = [self._reply(chat.messages[: place + 1]) for place in chat.taught]
        text = replies[-1].text
        if all(text.startswith(reply.text[: reply.end]) for reply in replies):
            together = self._together(text[: replies[-1].end], [(reply.start, reply.end) for reply in replies])
            if together is not None:
                return [together]
        return [self._alone(reply) for reply in replies]

    def pair(self, pair: Pair) -> PairExample:
        """The tokens of a preference.

        Raises:
            RowRefusedError: nothing can be learnt from it.
        """
        if pair.chosen.strip() == pair.rejected.strip():
            raise RowRefusedError("both answers are the same")
        sides = []
        for answer in (pair.chosen, pair.rejected):
            (example,) = self.chat(Chat([*pair.prompt, {"role": "assistant", "content": answer}], (len(pair.prompt),)))
            ((start, end),) = example.spans
            sides.append((example.ids[:start], example.ids[start:end]))
        (prompt, chosen), (other, rejected) = sides
        if prompt != other:
            raise RowRefusedError("the template renders the prompt in another way before each answer")
        return PairExample(prompt, chosen, rejected)

    def _taken(self, chat: Chat) -> Chat:
        """The chat as the template takes it: where it refuses a system message, that goes into the first user turn."""
        if not has_system(chat.messages) or not self._refuses_system():
            return chat
        before = [sum(message["role"] == "system" for message in chat.messages[:place]) for place in chat.taught]
        places = tuple(place - gone for place, gone in zip(chat.taught, before, strict=True))
        return Chat(folded(chat.messages), places)

    def _refuses_system(self) -> bool:
        if self._folds is None:
            asked = [{"role": "user", "content": "Hello"}]
            try:
                self._rendered([{"role": "system", "content": "Be kind."}, *asked], generate=True)
                self._folds = False
            except RowRefusedError:
                try:
                    self._rendered(asked, generate=True)
                    self._folds = True
                except RowRefusedError:
                    self._folds = False
        return self._folds

    def _require_plain(self, messages: Sequence[Message]) -> None:
        for message in messages:
            for mark in self._marks:
                if mark in message["content"]:
                    # Tokenized, it would begin or end a turn: the row could put words into anybody's mouth.
                    raise RowRefusedError(f"its text holds the control token {mark}")

    def _reply(self, messages: list[Message]) -> _Reply:
        """Where, in the rendered chat, the last message stands, which the assistant says."""
        content = messages[-1]["content"]
        if not content.strip():
            raise RowRefusedError("the assistant's text is empty")
        asked = self._rendered(messages[:-1], generate=True)
        text = self._rendered(messages, generate=False)
        if not text.startswith(asked):
            raise RowRefusedError(
                "the template renders the chat before the reply in another way once the reply is there"
            )
        said = len(asked)
        if not text.startswith(content, said):
            content = content.strip()  # as many templates do
            said = len(text) - len(text[said:].lstrip())
            if not text.startswith(content, said):
                inserted = text[len(asked) :].partition(content)[0][:40]
                raise RowRefusedError(
                    f"the template puts {inserted!r} between the prompt that a server sends and the assistant's text "
                    "(for templates of thinking models, set chat_template_kwargs in the recipe)"
                )
        after = said + len(content)
        stop = len(text) - len(text[after:].lstrip())
        for mark in self._marks:
            if text.startswith(mark, stop):
                return _Reply(text, len(asked), stop + len(mark))
        raise RowRefusedError("the template ends the assistant's turn with no special token: it would never stop")

    def _rendered(self, messages: list[Message], *, generate: bool) -> str:
        from jinja2.exceptions import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate, **self._kwargs
            )
        except TemplateError as error:
            raise RowRefusedError(f"the template refuses it: {str(error)[:_LONGEST_REASON]}") from error
        return str(text)

    def _together(self, text: str, spans: list[tuple[int, int]]) -> Example | None:
        """One example of all replies; None if some reply melts with what stands before it."""
        whole = self._tokens(text)
        places = []
        for start, end in spans:
            before, through = self._tokens(text[:start]), self._tokens(text[:end])
            if whole[: len(before)] != before or whole[: len(through)] != through:
                return None
            places.append((len(before), len(through)))
        return Example(whole, places)

    def _alone(self, reply: _Reply) -> Example:
        """A reply that begins with a line break, say, may melt with the prompt into one token: a model never does."""
        text = reply.text[: reply.end]
        if (together := self._together(text, [(reply.start, reply.end)])) is not None:
            return together
        before = self._tokens(text[: reply.start])
        ids = before + self._tokens(text[reply.start :])
        if self._text(ids) != self._text(self._tokens(text)):
            raise RowRefusedError("prompt and reply melt into one token, and the tokenizer cannot part them")
        return Example(ids, [(len(before), len(ids))])

    def _tokens(self, text: str) -> list[int]:
        # The template writes the special tokens itself, the first one of the text too.
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@dataclass(frozen=True)
class _Reply:
    """The rendered chat up to a reply, and where in it the reply begins and its turn has ended, in characters."""

    text: str
    start: int
    end: int
