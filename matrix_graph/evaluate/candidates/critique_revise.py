"""Critique and revision under written principles, as Constitutional AI makes its supervised data."""

from __future__ import annotations

import hashlib
from typing import ClassVar

from pydantic import Field

from matrix_graph.evaluate.asking import Asker, user
from matrix_graph.evaluate.candidates.candidate import Candidate
from matrix_graph.evaluate.prompts import entries, fill
from matrix_graph.evaluate.records import Question


class CritiqueRevise(Candidate):
    """The model answers, then criticises and rewrites its answer several times, each time under another principle.

    Bai et al., "Constitutional AI: Harmlessness from AI Feedback", arXiv 2212.08073, section 3.1: four rounds, the
    principle drawn at random for each. Here the draw depends on the question and the round alone, the same in every
    run. The paper trains on the last revision; here it is the answer.
    """

    method: ClassVar[str] = "critique-revise"
    prompt: ClassVar[str | None] = "critique_revise"

    revisions: int = Field(default=4, ge=1, le=12, description="Rounds of critique and revision.")
    max_critique_tokens: int = Field(default=256, ge=16, description="The longest critique, in tokens.")

    @property
    def depth(self) -> int:
        """An answer, then two calls a round."""
        return 1 + 2 * self.revisions

    async def answer(self, question: Question, asker: Asker) -> str:
        """1 + 2 x revisions calls, one after the other."""
        answer = await asker.ask("answer", question.messages)
        for principle in _drawn(question.text, self.revisions):
            asked = user(
                fill("critique_revise", "critique", question=question.text, answer=answer, principle=principle)
            )
            critique = await asker.ask("critique", asked, max_tokens=self.max_critique_tokens)
            asked += [{"role": "assistant", "content": critique}, *user(fill("critique_revise", "revise"))]
            answer = await asker.ask("revise", asked)
        return answer


def _drawn(question: str, count: int) -> list[str]:
    """Principles in an order that the question decides, each once before any comes again."""

    def place(principle: str) -> bytes:
        return hashlib.sha256(f"{question}\n{principle}".encode()).digest()

    ordered = sorted(entries("critique_revise", "principles"), key=place)
    return [ordered[round % len(ordered)] for round in range(count)]
