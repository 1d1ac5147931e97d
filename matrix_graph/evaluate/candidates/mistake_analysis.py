"""A careless answer and what is wrong with it: the data of mistake analysis."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from matrix_graph.evaluate.asking import Asker, user
from matrix_graph.evaluate.candidates.candidate import Candidate
from matrix_graph.evaluate.prompts import fill
from matrix_graph.evaluate.records import Question


class MistakeAnalysis(Candidate):
    """The model is led to a careless answer, then told that it is one, and explains what is wrong.

    Chen et al., "Gaining Wisdom from Setbacks: Aligning Large Language Models via Mistake Analysis", arXiv 2310.10477:
    guided answers, guided analyses, and training on the analysis without the guidance. It is made to train
    on (`training.training_rows`); what it gives is the analysis, no answer for people.
    """

    method: ClassVar[str] = "mistake-analysis"
    prompt: ClassVar[str | None] = "mistake_analysis"

    max_careless_tokens: int = Field(default=160, ge=16, description="The longest careless answer, in tokens.")

    @property
    def depth(self) -> int:
        """The answer, then its analysis."""
        return 2

    async def answer(self, question: Question, asker: Asker) -> str:
        """Two calls, one after the other."""
        careless = await asker.ask(
            "careless",
            user(fill("mistake_analysis", "careless", question=question.text)),
            max_tokens=self.max_careless_tokens,
        )
        return await asker.ask(
            "analyse", user(fill("mistake_analysis", "analyse", question=question.text, answer=careless))
        )
