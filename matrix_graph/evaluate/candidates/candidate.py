"""What every candidate is: something that answers a question by asking a model.

What always holds: a candidate's fields are all that decides how it answers, and are recorded with each answer; it asks
through its `Asker` alone, so that costs are counted alike for all; it raises what goes wrong, and the runner records
it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from matrix_graph.config import LONGEST_ANSWER
from matrix_graph.evaluate.asking import Asker
from matrix_graph.evaluate.prompts import digest
from matrix_graph.evaluate.records import Question


class Candidate(BaseModel, ABC):
    """A way to answer questions with one model. Its settings are checked when it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: ClassVar[str]
    """By which people name it."""
    prompt: ClassVar[str | None] = None
    """Its file in `evaluate/prompts`; None: it sends the question as it is."""
    own_temperature: ClassVar[bool] = False
    """Whether its answers must differ from each other, so that the common temperature is not for it."""

    model: str | None = Field(default=None, description="A served adapter that answers; null: the base model.")
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="Sampling temperature of every call; null: the server's default."
    )
    max_answer_tokens: int = Field(default=LONGEST_ANSWER, ge=1, description="The longest answer, in tokens.")

    @property
    def depth(self) -> int:
        """About how many calls follow one another; deep ones begin first, so that no server waits at the end."""
        return 1

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides how it answers, as plain JSON."""
        prompts = {"prompts": digest(self.prompt)} if self.prompt else {}
        return {"method": self.method, **self.model_dump(mode="json"), **prompts}

    @abstractmethod
    async def answer(self, question: Question, asker: Asker) -> str:
        """Answer a question.

        Args:
            question: of which only the conversation may be looked at, never the known answers.
            asker: the way to the model.

        Raises:
            ReplyError: the model gave nothing usable.
            Exception: whatever the model raises.
        """
