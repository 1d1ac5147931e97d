"""The model as it is, and the same under a prompt that asks for good conduct: one call each."""

from __future__ import annotations

from typing import ClassVar

from matrix_graph.evaluate.asking import Asker
from matrix_graph.evaluate.candidates.candidate import Candidate
from matrix_graph.evaluate.prompts import opening
from matrix_graph.evaluate.records import Question


class Plain(Candidate):
    """The model, or an adapter, asked the question and nothing else."""

    method: ClassVar[str] = "base"

    async def answer(self, question: Question, asker: Asker) -> str:
        """One call."""
        return await asker.ask("answer", question.messages)


class SafePrompt(Candidate):
    """The prompt that context distillation would distil: helpful, honest, harmless, with worked examples.

    Askell et al., "A General Language Assistant as a Laboratory for Alignment", arXiv 2112.00861, section 2. The paper
    then trains the model to do without the prompt; here the prompt itself stands, which is what that training aims at.
    """

    method: ClassVar[str] = "safe-prompt"
    prompt: ClassVar[str | None] = "safe_prompt"

    async def answer(self, question: Question, asker: Asker) -> str:
        """One call."""
        return await asker.ask("answer", [*opening("safe_prompt"), *question.messages])
