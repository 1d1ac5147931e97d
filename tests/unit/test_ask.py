"""One question to the model: what is sent, what is asked again, what is recorded, and that nothing raises."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda
from langgraph.errors import GraphInterrupt
from pydantic import BaseModel, Field

from matrix_graph.errors import ContextLengthError, ReplyError
from matrix_graph.models.ask import Answer, Question, ask, clean, cut_at_limits, describe, parse_json, parse_text
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.complete import completion_text
from matrix_graph.records import Call

SCHEMA = {"type": "object", "properties": {"action": {"type": "string"}}, "required": ["action"]}


class Reply(BaseModel):
    action: str = Field(max_length=20)
    loud: bool = False


class ListedModel(BaseChatModel):
    """Gives its replies one after the other; an exception is raised, a number waited for in seconds."""

    replies: list[Any]
    temperature: float = 0.3
    model_name: str = "listed"
    sent: list[tuple[list[str], dict[str, Any]]] = Field(default=[], exclude=True)

    @property
    def _llm_type(self) -> str:
        return "listed"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self.sent.append(([message.text for message in messages], kwargs))
        reply = self.replies.pop(0)
        if isinstance(reply, float):
            await asyncio.sleep(reply)
        if isinstance(reply, BaseException):
            raise reply
        message = reply if isinstance(reply, AIMessage) else AIMessage(str(reply))
        return ChatResult(generations=[ChatGeneration(message=message)])


class StructuredModel(ListedModel):
    """A model with structured output of its own; `raw` takes the place of its message."""

    raw: Any = None

    def with_structured_output(self, schema: Any, *, include_raw: bool = False, **kwargs: Any) -> Runnable[Any, Any]:
        assert include_raw and schema["title"] == "act" and schema["description"]
        return self.bind(schema=schema) | RunnableLambda(lambda raw: {"raw": self.raw or raw, "parsed": None})


class LocalVLLM(ChatVLLM):
    """`ChatVLLM` without a server."""

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(json.dumps({"action": str(sorted(kwargs))})))])


def question(parse: Callable[[str], Any] = parse_text, **fields: Any) -> Question[Any]:
    messages = [{"role": "system", "content": "You are Ann."}, {"role": "user", "content": "What now?"}]
    return Question(**{"purpose": "act", "max_tokens": 9, "temperature": 0.5, **fields}, messages=messages, parse=parse)


async def asked(model: BaseChatModel, asking: Question[Any]) -> Answer[Any]:
    answer = await ask(model, asking)
    assert [Call.model_validate(call) for call in answer.calls], "every call is a record"
    return answer


@pytest.mark.parametrize(
    "text",
    [
        '{"action": "go"}',
        ' \n{"action": "go"}\n',
        'Sure! Here it is:\n```json\n{"action": "go"}\n```\nAnything else?',
        '```\n{"action": "go", "loud": false}\n```',
        '[{"action": "go"}]',
        '\ufeff{"action":\r\n"go"}',
        '{"action": "go", "mood": "calm"}',
        pytest.param('I think {so}: {"action": "go"}'),
        pytest.param('{"action": "go"} :}'),
        pytest.param('<think>{"action": 1}</think>{"action": "go"}'),
    ],
)
def test_json_is_found_in_other_text(text: str) -> None:
    assert parse_json(Reply)(text) == Reply(action="go")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "The reply is empty"),
        (" \n", "The reply is empty"),
        ("I would rather not.", "holds no JSON object"),
        ("} {", "holds no JSON object"),
        ('{"action": "g', "holds no JSON object"),
        ("{action: go}", "JSON: Invalid JSON"),
        ('{"act": "go"}', "action: Field required"),
        ('{"action": 3}', "action: Input should be a valid string"),
        ('{"action": "go", "loud": "perhaps"}', "loud: Input should be a valid boolean"),
        ('{"action": "' + "x" * 99 + '"}', "action: String should have at most 20 characters"),
        ('{"action": "\\ud800"}', "Invalid JSON"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "recursion limit"),
        ("{" * 100_000 + "}", "Invalid JSON"),
    ],
    ids=range(13),
)
def test_replies_that_cannot_be_used_say_why(text: str, said: str) -> None:
    with pytest.raises(ReplyError) as caught:
        parse_json(Reply)(text)
    assert said.removeprefix("JSON: ") in str(caught.value) or "unable to parse raw data" in str(caught.value)
    assert len(str(caught.value)) < 400, "the reply itself stays out of the message"


@given(st.text())
def test_a_parser_gives_a_value_or_a_reply_error(text: str) -> None:
    for parse in (parse_json(Reply), parse_text):
        try:
            parse(text)
        except ReplyError as error:
            assert str(error)


def test_text_is_kept_to_the_letter() -> None:
    assert parse_text("  a\r\n\t") == "  a\r\n\t"
    with pytest.raises(ReplyError, match="empty"):
        parse_text("\u3000\n")


def test_surrogates_are_replaced_and_nothing_else() -> None:
    assert clean("a\ud83d\x00好🙂\u202e") == "a\ufffd\x00好🙂\u202e"
    assert describe(ValueError("\ud800")) == {"type": "ValueError", "message": "\ufffd"}
    assert describe(KeyError()) == {"type": "KeyError", "message": "KeyError"}


def test_the_arguments_of_a_tool_call_are_its_text() -> None:
    call = {"name": "act", "args": {"action": "geht für 3 €"}, "id": "1"}
    assert completion_text(AIMessage("", tool_calls=[call])) == '{"action": "geht für 3 €"}'
    assert completion_text(AIMessage("said", tool_calls=[call])) == "said"
    assert completion_text(AIMessage([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])) == "ab"


# --- asking


async def test_a_usable_reply_is_recorded_as_it_came() -> None:
    message = AIMessage(
        " go ",
        response_metadata={"finish_reason": "stop", "model_name": "served"},
        usage_metadata={"input_tokens": 7, "output_tokens": 2, "total_tokens": 9},
    )
    answer = await asked(ListedModel(replies=[message]), question(role="Ann", round=2))
    assert (answer.value, answer.text, answer.tokens, answer.problem) == (" go ", " go ", 9, None)
    (call,) = answer.calls
    assert call["messages"] == answer.messages == question().messages
    assert (call["purpose"], call["role"], call["round"]) == ("act", "Ann", 2)
    assert (call["completion"], call["finish_reason"], call["model"]) == (" go ", "stop", "served")
    assert call["usage"] == {"input_tokens": 7, "output_tokens": 2} and call["error"] is None
    assert call["sampling"] == {"temperature": 0.3}, "of a foreign model, its own settings"


async def test_an_unusable_reply_is_asked_for_once_more_and_stays_out_of_the_prompt() -> None:
    model = ListedModel(replies=["SECRET nonsense", '{"action": "go"}'])
    answer = await asked(model, question(parse_json(Reply), schema=SCHEMA))
    assert answer.value == Reply(action="go") and answer.problem is None
    first, second = answer.calls
    assert first["error"] == {"type": "ReplyError", "message": "The reply holds no JSON object."}
    assert first["completion"] == "SECRET nonsense" and second["error"] is None
    *before, last = second["messages"]
    assert before == first["messages"][:-1] and last["content"].startswith("What now?\n\n(Your last reply")
    assert "holds no JSON object" in last["content"] and json.dumps(SCHEMA) in last["content"]
    assert "SECRET" not in str(second["messages"])
    assert [texts[-1] for texts, _ in model.sent] == [first["messages"][-1]["content"], last["content"]]
    assert answer.messages == second["messages"]


async def test_it_is_asked_twice_and_no_more() -> None:
    model = ListedModel(replies=["", " ", "good"])
    answer = await asked(model, question())
    assert answer.value is None and answer.problem == {"type": "ReplyError", "message": "The reply is empty."}
    assert len(answer.calls) == 2 and all(call["error"] for call in answer.calls) and model.replies == ["good"]
    assert "JSON" not in answer.calls[1]["messages"][-1]["content"], "free text needs no schema"


async def test_a_reply_that_was_cut_off_says_so() -> None:
    cut = AIMessage('{"action": "g', response_metadata={"finish_reason": "length"})
    answer = await asked(ListedModel(replies=[cut, cut]), question(parse_json(Reply)))
    assert (answer.problem or {})["message"].startswith("Cut off after 9 tokens. ")


@pytest.mark.parametrize("error", [ConnectionError("gone"), ValueError(""), RuntimeError("\ud800"), TimeoutError()])
async def test_what_a_model_raises_is_recorded_and_not_asked_again(error: Exception) -> None:
    model = ListedModel(replies=[error, "good"])
    answer = await asked(model, question())
    assert answer.value is None and answer.problem == describe(error) and not answer.too_long
    assert len(answer.calls) == 1 and answer.calls[0]["error"] == answer.problem
    assert answer.calls[0]["completion"] == "" and answer.calls[0]["finish_reason"] is None


async def test_an_error_after_a_retry_keeps_both_records() -> None:
    answer = await asked(ListedModel(replies=["", ContextLengthError("too long", status=400)]), question())
    assert [call["error"]["type"] for call in answer.calls] == ["ReplyError", "ContextLengthError"]
    assert answer.too_long


async def test_langgraph_and_cancellation_pass_through() -> None:
    with pytest.raises(GraphInterrupt):
        await ask(ListedModel(replies=[GraphInterrupt()]), question())
    task = asyncio.create_task(ask(ListedModel(replies=[9.0]), question()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("replies", [[9.0], ["", 9.0]])
async def test_all_tries_together_end_in_time(replies: list[Any]) -> None:
    count = len(replies)
    answer = await asyncio.wait_for(ask(ListedModel(replies=replies), question(seconds=0.05)), 5)
    assert answer.value is None and len(answer.calls) == count
    assert (answer.problem or {}) == {
        "type": "ReplyError",
        "message": "No reply within the 0 s that the scene had left.",
    }
    assert sum(call["seconds"] for call in answer.calls) < 2


# --- models of every kind


async def test_a_model_without_structured_output_is_asked_in_plain_words() -> None:
    model = ListedModel(replies=['Well: {"action": "go"}'])
    answer = await asked(model, question(parse_json(Reply), schema=SCHEMA))
    assert answer.value == Reply(action="go") and model.sent[0][1] == {}


async def test_structured_output_of_the_models_own_is_used() -> None:
    model = StructuredModel(replies=['{"action": "go"}'])
    answer = await asked(model, question(parse_json(Reply), schema=SCHEMA))
    assert answer.value == Reply(action="go")
    assert model.sent[0][1]["schema"]["properties"] == SCHEMA["properties"]
    model = StructuredModel(replies=["go"])
    assert (await asked(model, question())).value == "go" and model.sent[0][1] == {}, "free text needs none"


async def test_a_tool_call_is_a_reply() -> None:
    call = AIMessage("", tool_calls=[{"name": "act", "args": {"action": "go"}, "id": "1"}])
    answer = await asked(StructuredModel(replies=[call]), question(parse_json(Reply), schema=SCHEMA))
    assert answer.value == Reply(action="go") and answer.text == '{"action": "go"}'


async def test_structured_output_that_is_no_message_is_recorded() -> None:
    answer = await asked(StructuredModel(replies=["x"], raw="text"), question(parse_json(Reply), schema=SCHEMA))
    assert (answer.problem or {})["message"] == "StructuredModel returned a str; an AIMessage is needed."


async def test_chat_vllm_gets_sampling_and_schema_with_the_call() -> None:
    model = LocalVLLM(model="m", base_url="http://127.0.0.1:9/v1", api_key="k")
    answer = await asked(model, question(schema=SCHEMA))
    assert answer.text == json.dumps({"action": "['max_tokens', 'structured_outputs', 'temperature']"})
    assert answer.calls[0]["sampling"] == {"temperature": 0.5, "max_tokens": 9, "structured_outputs": {"json": SCHEMA}}
    assert answer.calls[0]["model"] == "m"


async def test_a_model_without_a_name_goes_by_its_type() -> None:
    answer = await asked(ListedModel(replies=["go"], model_name=""), question())
    assert answer.calls[0]["model"] == "ListedModel"


async def test_surrogates_in_a_reply_are_replaced() -> None:
    answer = await asked(ListedModel(replies=["go \ud83d"]), question())
    assert answer.value == answer.calls[0]["completion"] == "go \ufffd"


LIMITED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "short": {"type": "string", "maxLength": 3},
        "free": {"type": "string"},
        "maybe": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
        "list": {"type": "array", "items": {"type": "string", "maxLength": 3}},
        "inner": {"type": "object", "properties": {"deep": {"type": "string", "maxLength": 3}}},
    },
}


@pytest.mark.parametrize(
    ("text", "finish_reason", "schema", "cut"),
    [
        ("so", "stop", None, []),
        ("so", "length", None, ["reply"]),
        ("so", None, None, []),
        ('{"short": "ab"}', "stop", LIMITED, []),
        ('{"short": "abc", "free": "abcdef"}', "stop", LIMITED, ["short"]),
        ('{"maybe": "abc"}', "stop", LIMITED, ["maybe"]),
        ('{"maybe": null}', "stop", LIMITED, []),
        ('{"list": ["a", "abc", "b", "abcd"]}', "stop", LIMITED, ["list[1]", "list[3]"]),
        ('{"inner": {"deep": "abc"}, "short": "abc"}', "length", LIMITED, ["reply", "inner.deep", "short"]),
        ('{"unknown": "abc", "short": 5}', "stop", LIMITED, []),
        ('{"short": "ab', "length", LIMITED, ["reply"]),
        ("", "stop", LIMITED, []),
        ('{"a":' * 5000 + "1" + "}" * 5000, "stop", LIMITED, []),
    ],
)
def test_what_ended_at_a_limit_is_named(text: str, finish_reason: str | None, schema: Any, cut: list[str]) -> None:
    assert cut_at_limits(text, finish_reason, schema) == cut
