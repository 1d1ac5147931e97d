"""Methods that can spend a given number of generated tokens, so that they are compared at the cost of a rehearsal.

Why: a rehearsal takes many calls; the question is what the same tokens buy otherwise. What always holds: a method goes
on as long as half of its next step fits, so that it spends neither more nor less than its budget on average; no answer
is cut short for it; how often it may go on depends on finished calls alone, so that the same replies lead to the same
answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from matrix_graph.errors import ConfigError, ModelError
from matrix_graph.evaluate.asking import Asker
from matrix_graph.evaluate.candidates.candidate import Candidate
from matrix_graph.evaluate.candidates.rehearsal import RehearsalCandidate

MATCHED = "matched"


class Budgeted(Candidate):
    """A method that repeats a step, either so many times or until its budget is used."""

    repeats: ClassVar[str]
    """The setting that says how many times; a budget stands in its place."""

    tokens: Annotated[int, Field(ge=1)] | Literal["matched"] | None = Field(
        default=None,
        description="Generated tokens to spend on a question, about; `matched` takes what the first rehearsal among "
        "the candidates generated for the same question; null repeats a fixed number of times.",
    )

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.tokens is not None and self.repeats in self.model_fields_set:
            raise ValueError(f"give {self.repeats} or tokens, not both")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """As any candidate's, of budget and number of repeats only the one that holds."""
        unused = "tokens" if self.tokens is None else self.repeats
        return {name: value for name, value in super().settings.items() if name != unused}

    def within(self, tokens: int) -> Self:
        """The same candidate with a budget of at least one token."""
        return self.model_copy(update={"tokens": max(1, tokens)})

    def goes_on(self, asker: Asker, steps: int, *, before: int = 0) -> bool:
        """Whether there is room for one more step, as long as the steps so far on average.

        Args:
            asker: knows what is spent.
            steps: how many are done.
            before: tokens that were spent before the first step; a first step is taken to need as many.

        Raises:
            ConfigError: the budget is still to be matched.
            ModelError: the model does not tell what it spends.
        """
        if not isinstance(self.tokens, int):
            raise ConfigError("tokens=matched stands for a number that an evaluation finds; give a number here.")
        if not steps and not before:
            return True
        if not asker.output_tokens:
            raise ModelError(
                "The model does not tell how many tokens it generates, so that no budget can be kept. "
                f"Give {self.repeats}=NUMBER instead of tokens."
            )
        step = (asker.output_tokens - before) / steps if steps else before
        return asker.output_tokens + step / 2 <= self.tokens


def is_matched(candidate: Candidate) -> bool:
    """Whether its budget is what a rehearsal generates, which is not known yet."""
    return isinstance(candidate, Budgeted) and candidate.tokens == MATCHED


def matched_to(candidates: Mapping[str, Candidate]) -> str | None:
    """The name of the rehearsal that others take their budget from; None if none does.

    Raises:
        ConfigError: one does, and there is no rehearsal.
    """
    matched = [name for name, candidate in candidates.items() if is_matched(candidate)]
    if not matched:
        return None
    for name, candidate in candidates.items():
        if isinstance(candidate, RehearsalCandidate):
            return name
    raise ConfigError(
        f"The candidate {matched[0]!r} is to spend what a rehearsal does, and there is none among the candidates. "
        "Add rehearsal to them, or give a number, such as tokens=1800."
    )
