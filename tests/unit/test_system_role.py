"""A model that refuses a system message gets its text in the first user turn."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage

from matrix_graph.errors import ContextLengthError, ModelRequestError
from matrix_graph.models.known import Known, known_of_object
from matrix_graph.models.system_role import accepted, folded, may_refuse
from tests.unit.test_ask import ListedModel, asked, question

SYSTEM, USER, REPLY = ({"role": role, "content": role} for role in ("system", "user", "assistant"))
REFUSALS = [
    "System role not supported",
    "Conversation roles must alternate user/assistant/user/assistant/...",
    "Only user and assistant roles are supported!",
    "Developer instruction is not enabled for models/gemma-3",
    "Unexpected role: system",
    "Jinja Exception: System message is not supported by this template",
]


def told(message: dict[str, str], before: str) -> dict[str, str]:
    return {**message, "content": f"{before}\n\n{message['content']}"}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], [USER]),
        ([SYSTEM, USER], [told(USER, "system")]),
        ([SYSTEM, USER, REPLY, USER], [told(USER, "system"), REPLY, USER]),
        ([SYSTEM, SYSTEM, USER], [told(told(USER, "system"), "system")]),
        ([USER, REPLY, SYSTEM, USER], [USER, REPLY, told(USER, "system")]),
        ([SYSTEM], [{"role": "user", "content": "system"}]),
        ([USER, SYSTEM], [{"role": "user", "content": "user\n\nsystem"}]),
        (
            [SYSTEM, {"role": "user", "content": [{"type": "image"}]}],
            [{"role": "user", "content": [{"type": "text", "text": "system"}, {"type": "image"}]}],
        ),
    ],
)
def test_the_text_is_folded(messages: list[Any], expected: list[Any]) -> None:
    assert folded(messages) == expected
    assert folded(expected) == expected


class Server:
    def __init__(self, refusal: Exception, *, always: bool = False) -> None:
        self.refusal, self.always = refusal, always
        self.roles: list[list[str]] = []

    async def send(self, messages: list[Any]) -> str:
        self.roles.append([message["role"] for message in messages])
        if self.always or self.roles[-1][0] == "system":
            raise self.refusal
        return "Yes."


@pytest.mark.parametrize("said", REFUSALS)
@pytest.mark.parametrize("status", [400, 500])
async def test_a_refusal_is_found_out_once(said: str, status: int) -> None:
    server, known = Server(ModelRequestError(said, status=status)), Known()
    assert await accepted(known, [SYSTEM, USER], server.send) == "Yes."
    assert known.folds
    assert await accepted(known, [SYSTEM, USER], server.send) == "Yes."
    assert server.roles == [["system", "user"], ["user"], ["user"]]


async def test_another_refusal_stands() -> None:
    error = ModelRequestError("Conversation roles must alternate", status=400)
    server, known = Server(error, always=True), Known()
    with pytest.raises(ModelRequestError) as raised:
        await accepted(known, [SYSTEM, USER], server.send)
    assert raised.value is error and not known.folds and len(server.roles) == 2
    assert not may_refuse(ModelRequestError("No key", status=401))
    assert not may_refuse(ModelRequestError("temperature must be positive", status=400))
    assert not may_refuse(ContextLengthError("role", status=400))


@pytest.mark.parametrize("said", REFUSALS)
async def test_any_chat_model_is_asked_in_the_form_that_it_takes(said: str) -> None:
    model = ListedModel(replies=[ValueError(said), AIMessage("Yes."), AIMessage("No.")])
    first = await asked(model, question())
    second = await asked(model, question())
    assert (first.value, second.value) == ("Yes.", "No.")
    together = "You are Ann.\n\nWhat now?"
    assert [texts for texts, _ in model.sent] == [["You are Ann.", "What now?"], [together], [together]]
    sent = [{"role": "user", "content": together}]
    assert first.calls[0]["messages"] == second.calls[0]["messages"] == sent
    assert first.messages == question().messages  # a dialogue goes on from what was made
    assert known_of_object(model).folds
