"""The consequences of an answer without a scene: one call foresees them, one revises."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel, Field

from matrix_graph.evaluate.asking import Asker, user
from matrix_graph.evaluate.candidates.candidate import Candidate
from matrix_graph.evaluate.prompts import fill
from matrix_graph.evaluate.records import Question
from matrix_graph.models.ask import parse_json

Outcome = Literal["helped", "harmed", "left without help", "none"]

WORDS = {"person": 6, "to_asker": 10, "happens": 20, "lesson": 30}
"""The most words of each text, as the prompt says."""
_CHARACTERS_A_WORD = 6
_ROOM = 3
"""How many times longer than the prompt says a text may be: a cut reply is worse than a long one."""


class _Person(BaseModel):
    person: str
    to_asker: str
    happens: str
    outcome: Outcome


class _Foresight(BaseModel):
    people: list[_Person]
    lesson: str
    revise: bool


class Foresee(Candidate):
    """The model drafts, names the people concerned and what happens to each, and revises if that speaks against it.

    It asks for the consequences that a rehearsal plays. What a rehearsal gains over this is what playing them is worth.
    No harm is presupposed: if nothing speaks against the draft, the answer is the draft to the letter.
    """

    method: ClassVar[str] = "foresee"
    prompt: ClassVar[str | None] = "foresee"

    people: int = Field(default=4, ge=1, le=20, description="The most people that are thought of, the asker included.")

    @property
    def depth(self) -> int:
        """A draft, its consequences, a revision."""
        return 3

    async def answer(self, question: Question, asker: Asker) -> str:
        """2 or 3 calls, one after the other."""
        draft = await asker.ask("answer", question.messages)
        seen = await self._foresee(question, draft, asker)
        if not seen.revise:
            return draft
        people = "\n".join(fill("foresee", "person", **person.model_dump()) for person in seen.people[: self.people])
        prompt = fill(
            "foresee", "revise", question=question.text, answer=draft, people=people, lesson=seen.lesson.strip()
        )
        return await asker.ask("revise", user(prompt))

    async def _foresee(self, question: Question, draft: str, asker: Asker) -> _Foresight:
        return await asker.ask_for(
            "foresee",
            user(fill("foresee", "foresee", question=question.text, answer=draft, people=self.people)),
            parse_json(_Foresight),
            schema=self.schema_of_people,
            max_tokens=256 + 192 * self.people,
        )

    @property
    def schema_of_people(self) -> dict[str, Any]:
        """The JSON schema of what is foreseen."""
        person = {name: _text(name) for name in ("person", "to_asker", "happens")}
        people = _object({**person, "outcome": {"type": "string", "enum": list(get_args(Outcome))}})
        return _object(
            {
                "people": {"type": "array", "items": people, "minItems": 1, "maxItems": self.people},
                "lesson": _text("lesson"),
                "revise": {"type": "boolean"},
            }
        )


def _text(name: str) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": _ROOM * _CHARACTERS_A_WORD * WORDS[name]}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
