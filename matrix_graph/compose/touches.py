"""One cheap question to the model, before a rehearsal: would this answer touch other people?

Why: a scene takes dozens of calls, and the answer to "what is 12 times 12?" needs none. What always holds: one short
constrained reply, asked for once more if it cannot be used; every call is recorded; nothing that the model does raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from typing import cast as typed

from langchain_core.language_models import BaseChatModel
from pydantic import BaseModel

from matrix_graph.models.ask import Question, ask, parse_json
from matrix_graph.scene.prompts import fill, opening

MAX_TOKENS = 192
"""Room for the reply, in tokens, in any script."""
PURPOSE = "when"
"""What the call is for, as its record says. It stands before the scene, so that no trace holds it."""

_WHO = 60
_SCHEMA = {
    "type": "object",
    "properties": {
        "who": {"type": "string", "minLength": 1, "maxLength": _WHO},
        "touches_others": {"type": "boolean"},
    },
    "required": ["who", "touches_others"],
    "additionalProperties": False,
}


class _Reply(BaseModel):
    who: str
    touches_others: bool


@dataclass(frozen=True, slots=True)
class Touch:
    """What the model said.

    Attributes:
        others: whether the answer would touch other people; None if there was no usable reply.
        who: those people, in the model's words.
        calls: a plain record of every call, with the fields of `records.Call` and the purpose "when".
        problem: `{"type", "message"}` if there was no usable reply.
    """

    others: bool | None
    who: str
    calls: list[dict[str, Any]]
    problem: dict[str, str] | None


async def touches_others(model: BaseChatModel, question: str, draft: str, seconds: float) -> Touch:
    """Ask whether an answer would touch other people than the one who gets it.

    Args:
        model: any LangChain chat model.
        question: what was asked.
        draft: the answer about to be given.
        seconds: how long the question may take, repeats included.
    """
    answer = await ask(
        model,
        Question(
            purpose=typed(Any, PURPOSE),
            messages=[
                *opening("touches"),
                {"role": "user", "content": fill("touches", "ask", question=question, draft=draft)},
            ],
            parse=parse_json(_Reply),
            max_tokens=MAX_TOKENS,
            temperature=0.0,
            schema=_SCHEMA,
            seconds=seconds,
        ),
    )
    if answer.value is None:
        return Touch(None, "", answer.calls, answer.problem)
    return Touch(answer.value.touches_others, " ".join(answer.value.who.split())[:_WHO], answer.calls, None)
