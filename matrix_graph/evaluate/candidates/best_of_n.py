"""Several answers, of which the model itself picks the best."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field

from matrix_graph.evaluate.asking import Asker, together, user
from matrix_graph.evaluate.candidates.budget import Budgeted
from matrix_graph.evaluate.prompts import fill
from matrix_graph.evaluate.records import Question
from matrix_graph.models.ask import parse_json

_RATING: dict[str, Any] = {
    "type": "object",
    "properties": {"rating": {"type": "integer", "enum": list(range(1, 11))}},
    "required": ["rating"],
    "additionalProperties": False,
}


class _Rating(BaseModel):
    rating: int = Field(ge=1, le=10)


class BestOfN(Budgeted):
    """N answers are sampled, each is rated, and the best rated is given; of equal ones the first.

    Best-of-n sampling as in Stiennon et al., "Learning to summarize from human feedback", arXiv 2009.01325, and Nakano
    et al., arXiv 2112.09332. Their rater is a reward model trained on people's choices; all candidates here share one
    model, so that it rates its own answers, as in Yuan et al., "Self-Rewarding Language Models", arXiv 2401.10020.
    With `tokens`, answers are sampled and rated one after the other until that many tokens are generated.
    """

    method: ClassVar[str] = "best-of-n"
    prompt: ClassVar[str | None] = "best_of_n"
    own_temperature: ClassVar[bool] = True
    repeats: ClassVar[str] = "n"

    temperature: float = Field(default=0.7, ge=0, le=2, description="Sampling temperature of the answers.")
    n: int = Field(default=4, ge=2, le=64, description="How many answers are sampled.")

    @property
    def depth(self) -> int:
        """An answer and its rating; one after the other within a budget."""
        return 2 * max(1, self.tokens // self.max_answer_tokens) if isinstance(self.tokens, int) else 2

    async def answer(self, question: Question, asker: Asker) -> str:
        """2 x n calls, two deep; within a budget, two for each answer that has room."""
        if self.tokens is not None:
            return await self._within_budget(question, asker)
        answers = await together([asker.ask("answer", question.messages) for _ in range(self.n)])
        ratings = await together([self._rate(question, answer, asker) for answer in answers])
        return _best(answers, ratings)

    async def _within_budget(self, question: Question, asker: Asker) -> str:
        answers: list[str] = []
        ratings: list[int] = []
        while self.goes_on(asker, len(answers)):
            answers.append(await asker.ask("answer", question.messages))
            ratings.append(await self._rate(question, answers[-1], asker))
        return _best(answers, ratings)

    async def _rate(self, question: Question, answer: str, asker: Asker) -> int:
        reply = await asker.ask_for(
            "rate",
            user(fill("best_of_n", "rate", question=question.text, answer=answer)),
            parse_json(_Rating),
            schema=_RATING,
            max_tokens=32,
            temperature=0.0,
        )
        return reply.rating


def _best(answers: list[str], ratings: list[int]) -> str:
    return answers[max(range(len(answers)), key=lambda place: (ratings[place], -place))]
