"""Several answerers who read one another's answers and answer again."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from pydantic import Field

from matrix_graph.evaluate.asking import Asker, together
from matrix_graph.evaluate.candidates.candidate import Candidate
from matrix_graph.evaluate.prompts import fill
from matrix_graph.evaluate.records import Question


class Debate(Candidate):
    """Agents answer side by side, then each reads the others' answers and answers again, for some rounds.

    Du et al., "Improving Factuality and Reasoning in Language Models through Multiagent Debate", arXiv 2305.14325,
    section 2: three agents, two rounds, one model. The paper takes the majority's answer; of free texts, which hardly
    ever agree to the letter, it is here the one that shares most words with the others (equal answers share all, so
    that a majority wins). Agents differ by sampling alone, therefore the higher temperature.
    """

    method: ClassVar[str] = "debate"
    prompt: ClassVar[str | None] = "debate"
    own_temperature: ClassVar[bool] = True

    temperature: float = Field(default=0.7, ge=0, le=2, description="Sampling temperature of every call.")
    agents: int = Field(default=3, ge=2, le=16, description="How many answer.")
    rounds: int = Field(default=2, ge=1, le=8, description="How often each answers, the first time included.")

    @property
    def depth(self) -> int:
        """One call a round."""
        return self.rounds

    async def answer(self, question: Question, asker: Asker) -> str:
        """Agents x rounds calls, those of a round side by side."""
        dialogues = [question.messages for _ in range(self.agents)]
        answers = await together([asker.ask("answer", dialogue) for dialogue in dialogues])
        for _ in range(self.rounds - 1):
            dialogues = [
                [
                    *dialogue,
                    {"role": "assistant", "content": own},
                    {"role": "user", "content": _others(answers, agent)},
                ]
                for agent, (dialogue, own) in enumerate(zip(dialogues, answers, strict=True))
            ]
            answers = await together([asker.ask("debate", dialogue) for dialogue in dialogues])
        return most_agreed(answers)


def most_agreed(answers: list[str]) -> str:
    """The answer that shares most words with the others, by the mean F1 of their words; the first of equal ones."""
    bags = [Counter(answer.casefold().split()) for answer in answers]

    def agreement(place: int) -> float:
        return sum(_overlap(bags[place], other) for at, other in enumerate(bags) if at != place)

    return answers[max(range(len(answers)), key=lambda place: (agreement(place), -place))]


def _overlap(one: Counter[str], other: Counter[str]) -> float:
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 1.0


def _others(answers: list[str], agent: int) -> str:
    quoted = [fill("debate", "other", answer=answer) for place, answer in enumerate(answers) if place != agent]
    return fill("debate", "others", answers="\n\n".join(quoted))
