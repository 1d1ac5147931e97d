"""What a good answer must fulfil is listed, checked item by item, and mended."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field

from matrix_graph.evaluate.asking import Asker, together, user
from matrix_graph.evaluate.candidates.candidate import Candidate
from matrix_graph.evaluate.prompts import fill
from matrix_graph.evaluate.records import Question
from matrix_graph.models.ask import parse_json

_CONSTRAINT_LENGTH, _REASON_LENGTH = 200, 300

_CRITIQUE: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string", "maxLength": _REASON_LENGTH}, "fulfilled": {"type": "boolean"}},
    "required": ["reason", "fulfilled"],
    "additionalProperties": False,
}


class _Constraints(BaseModel):
    constraints: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)


class _Critique(BaseModel):
    reason: str
    fulfilled: bool


class DecomposeCritiqueRefine(Candidate):
    """The request is decomposed into constraints; the answer is criticised by each, and refined until all hold.

    Ferraz et al., "LLM Self-Correction with DeCRIM: Decompose, Critique, and Refine for Enhanced Following of
    Instructions with Multiple Constraints", arXiv 2410.06458, with the model itself as decomposer and
    critic.
    """

    method: ClassVar[str] = "decrim"
    prompt: ClassVar[str | None] = "decrim"

    constraints: int = Field(default=5, ge=1, le=20, description="The most constraints of a request.")
    iterations: int = Field(default=2, ge=1, le=10, description="The most rounds of critique and refinement.")

    @property
    def depth(self) -> int:
        """The answer beside the constraints, then critique and refinement."""
        return 1 + 2 * self.iterations

    async def answer(self, question: Question, asker: Asker) -> str:
        """2 + iterations x (constraints + 1) calls at most; critiques stand side by side."""
        constraints: list[str] = []

        async def decompose() -> str:
            constraints.extend(await self._decompose(question, asker))
            return ""

        answer, _ = await together([asker.ask("answer", question.messages), decompose()])
        for _ in range(self.iterations):
            given = answer
            critiques = await together(
                [self._criticise(question, given, constraint, asker) for constraint in constraints]
            )
            failures = [
                f"- {constraint} ({critique.reason})" if critique.reason.strip() else f"- {constraint}"
                for constraint, critique in zip(constraints, critiques, strict=True)
                if not critique.fulfilled
            ]
            if not failures:
                break
            prompt = fill("decrim", "refine", question=question.text, answer=answer, failures="\n".join(failures))
            answer = await asker.ask("refine", user(prompt))
        return answer

    async def _decompose(self, question: Question, asker: Asker) -> list[str]:
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {
                "constraints": {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": _CONSTRAINT_LENGTH},
                    "minItems": 1,
                    "maxItems": self.constraints,
                }
            },
            "required": ["constraints"],
            "additionalProperties": False,
        }
        reply = await asker.ask_for(
            "decompose",
            user(fill("decrim", "decompose", question=question.text)),
            parse_json(_Constraints),
            schema=schema,
            max_tokens=64 + 80 * self.constraints,
        )
        return reply.constraints[: self.constraints]

    async def _criticise(self, question: Question, answer: str, constraint: str, asker: Asker) -> _Critique:
        return await asker.ask_for(
            "critique",
            user(fill("decrim", "critique", question=question.text, answer=answer, constraint=constraint)),
            parse_json(_Critique),
            schema=_CRITIQUE,
            max_tokens=160,
        )
