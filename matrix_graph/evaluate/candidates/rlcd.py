"""Two answers under opposite prompts, of which one is preferred: the data of RLCD."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from matrix_graph.evaluate.asking import Asker, together
from matrix_graph.evaluate.candidates.candidate import Candidate
from matrix_graph.evaluate.prompts import fill
from matrix_graph.evaluate.records import Question
from matrix_graph.models.ask import ChatMessage


class ContrastPair(Candidate):
    """The question is asked with a hint towards good conduct and with one away from it; the first reply is preferred.

    Yang et al., "RLCD: Reinforcement Learning from Contrastive Distillation for Language Model Alignment",
    arXiv 2307.12950, section 3. It is made to train on (`training.training_rows`); the answer is the preferred one.
    """

    method: ClassVar[str] = "rlcd"
    prompt: ClassVar[str | None] = "rlcd"
    own_temperature: ClassVar[bool] = True

    temperature: float = Field(default=0.7, ge=0, le=2, description="Sampling temperature of both answers.")

    async def answer(self, question: Question, asker: Asker) -> str:
        """Two calls, side by side."""
        preferred, _ = await together([asker.ask(step, _hinted(question, step)) for step in ("positive", "negative")])
        return preferred


def _hinted(question: Question, step: str) -> list[ChatMessage]:
    *before, last = question.messages
    return [*before, {**last, "content": f"{last['content']}\n\n{fill('rlcd', step)}"}]
