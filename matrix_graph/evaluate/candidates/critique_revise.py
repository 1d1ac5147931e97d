"""Critique and revision under written principles, as Constitutional AI makes its supervised data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import cycle
from typing import ClassVar

from pydantic import Field

from matrix_graph.evaluate.asking import Asker, user
from matrix_graph.evaluate.candidates.budget import Budgeted
from matrix_graph.evaluate.prompts import entries, fill
from matrix_graph.evaluate.records import Question


class CritiqueRevise(Budgeted):
    """The model answers, then criticises and rewrites its answer several times, each time under another principle.

    Bai et al., "Constitutional AI: Harmlessness from AI Feedback", arXiv 2212.08073, section 3.1: four rounds, the
    principle drawn at random for each. Here the draw depends on the question and the round alone, the same in every
    run. The paper trains on the last revision; here it is the answer. With `tokens`, rounds go on until that many
    tokens are generated.
    """

    method: ClassVar[str] = "critique-revise"
    prompt: ClassVar[str | None] = "critique_revise"
    repeats: ClassVar[str] = "revisions"

    revisions: int = Field(default=4, ge=1, le=12, description="Rounds of critique and revision.")
    max_critique_tokens: int = Field(default=256, ge=16, description="The longest critique, in tokens.")

    @property
    def depth(self) -> int:
        """An answer, then two calls a round."""
        rounds = max(1, self.tokens // self.max_answer_tokens) if isinstance(self.tokens, int) else self.revisions
        return 1 + 2 * rounds

    async def answer(self, question: Question, asker: Asker) -> str:
        """1 + 2 x revisions calls, one after the other; within a budget, two for each round that has room."""
        answer = await asker.ask("answer", question.messages)
        drafted = asker.output_tokens
        for done, principle in enumerate(_drawn(question.text)):
            if not (done < self.revisions if self.tokens is None else self.goes_on(asker, done, before=drafted)):
                break
            asked = user(
                fill("critique_revise", "critique", question=question.text, answer=answer, principle=principle)
            )
            critique = await asker.ask("critique", asked, max_tokens=self.max_critique_tokens)
            asked += [{"role": "assistant", "content": critique}, *user(fill("critique_revise", "revise"))]
            answer = await asker.ask("revise", asked)
        return answer


def _drawn(question: str) -> Iterator[str]:
    """Principles without end, in an order that the question decides, each once before any comes again."""

    def place(principle: str) -> bytes:
        return hashlib.sha256(f"{question}\n{principle}".encode()).digest()

    return cycle(sorted(entries("critique_revise", "principles"), key=place))
