"""Answering under sixteen principles with thoughts before the answer, as Self-Align does."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field

from matrix_graph.errors import ReplyError
from matrix_graph.evaluate.asking import Asker
from matrix_graph.evaluate.candidates.candidate import Candidate
from matrix_graph.evaluate.prompts import opening
from matrix_graph.evaluate.records import Question
from matrix_graph.models.ask import parse_text

_ANSWER = re.compile(r"^\W*answer\W*?:[*_]*", re.IGNORECASE | re.MULTILINE)
_THOUGHTS = re.compile(r"\W*thoughts\b", re.IGNORECASE)


class SelfAlign(Candidate):
    """The model is given sixteen principles and worked examples, thinks about which apply, and answers.

    Sun et al., "Principle-Driven Self-Alignment of Language Models from Scratch with Minimal Human Supervision",
    arXiv 2305.03047, section 3.2: the thoughts are internal, and only what follows them is the answer. The paper then
    trains the model on such answers without principles; here they are given as they are.
    """

    method: ClassVar[str] = "self-align"
    prompt: ClassVar[str | None] = "self_align"

    max_thought_tokens: int = Field(default=192, ge=16, description="Room for the thoughts, in tokens.")

    async def answer(self, question: Question, asker: Asker) -> str:
        """One call."""
        return await asker.ask_for(
            "answer",
            [*opening("self_align"), *question.messages],
            answer_in,
            max_tokens=self.max_answer_tokens + self.max_thought_tokens,
        )


def answer_in(reply: str) -> str:
    """The answer in a reply of thoughts and an answer; a reply with neither heading is the answer itself.

    Raises:
        ReplyError: there are thoughts but no answer, or nothing at all.
    """
    heading = _ANSWER.search(reply)
    if heading is not None:
        return parse_text(reply[heading.end() :].strip())
    if _THOUGHTS.match(reply):
        raise ReplyError('The reply holds thoughts but no line that begins with "Answer:".')
    return parse_text(reply)
