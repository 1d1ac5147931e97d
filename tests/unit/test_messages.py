"""LangChain messages to OpenAI chat JSON and back."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from matrix_graph.models.client.messages import EventReader, decode_reply, encode_messages

texts = st.text(st.characters(exclude_categories=()))  # surrogates and NUL too


def body(message: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi", **(message or {})}, "finish_reason": "stop"}
    return {"id": "chatcmpl-1", "model": "m", "choices": [choice], **more}


def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


@given(st.lists(st.tuples(st.sampled_from([SystemMessage, HumanMessage, AIMessage]), texts)))
def test_plain_text_goes_out_to_the_letter(parts: list[tuple[type[BaseMessage], str]]) -> None:
    sent = encode_messages([kind(content=text) for kind, text in parts])
    roles = {SystemMessage: "system", HumanMessage: "user", AIMessage: "assistant"}
    assert sent == [{"role": roles[kind], "content": text} for kind, text in parts]


@given(texts.filter(lambda text: "think>" not in text))  # thoughts stand apart
def test_text_comes_back_to_the_letter(text: str) -> None:
    assert decode_reply(body({"content": text})).generations[0].message.content == text


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (HumanMessage("hi", name="Ann"), {"role": "user", "name": "Ann", "content": "hi"}),
        (ChatMessage("hi", role="developer"), {"role": "developer", "content": "hi"}),
        (
            SystemMessage("hi", additional_kwargs={"__openai_role__": "developer"}),
            {"role": "developer", "content": "hi"},
        ),
        (ToolMessage("42", tool_call_id="c1"), {"role": "tool", "tool_call_id": "c1", "content": "42"}),
        (
            HumanMessage(
                [{"type": "text", "text": "see"}, {"type": "image", "base64": "QUJD", "mime_type": "image/png"}]
            ),
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "see"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
                ],
            },
        ),
        (
            HumanMessage([{"type": "audio", "base64": "QUJD", "mime_type": "audio/wav"}]),
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}}]},
        ),
        (
            AIMessage([{"type": "reasoning", "reasoning": "hmm"}, {"type": "text", "text": "Yes."}]),
            {"role": "assistant", "content": "Yes."},
        ),
    ],
)  # fmt: skip
def test_other_messages(message: BaseMessage, expected: dict[str, Any]) -> None:
    assert encode_messages([message]) == [expected]


def test_tool_calls_go_out_with_arguments_as_json() -> None:
    call = {"name": "look", "args": {"where": "灯"}, "id": "c1", "type": "tool_call"}
    blocks = [{"type": "text", "text": "I look."}, call]
    for message in (AIMessage("I look.", tool_calls=[call]), AIMessage(blocks, tool_calls=[call])):
        (sent,) = encode_messages([message])
        assert sent["content"] == "I look."
        function = {"name": "look", "arguments": '{"where": "灯"}'}
        assert sent["tool_calls"] == [{"type": "function", "id": "c1", "function": function}]


def test_the_message_itself_is_left_alone() -> None:
    message = AIMessage([{"type": "reasoning", "reasoning": "hmm"}, {"type": "text", "text": "Yes."}])
    encode_messages([message])
    assert len(message.content) == 2


# ---- replies --------------------------------------------------------------------------------------------------------


def test_usage_is_exact() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    message = decode_reply(body(usage=usage)).generations[0].message
    assert isinstance(message, AIMessage)
    assert message.usage_metadata == {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
    details = {**usage, "prompt_tokens_details": {"cached_tokens": 4}}
    message = decode_reply(body(usage=details)).generations[0].message
    assert isinstance(message, AIMessage) and message.usage_metadata is not None
    assert message.usage_metadata["input_token_details"] == {"cache_read": 4}
    message = decode_reply(body(usage={**usage, "prompt_tokens_details": None})).generations[0].message
    assert isinstance(message, AIMessage) and message.usage_metadata is not None
    assert "input_token_details" not in message.usage_metadata


def test_several_choices_count_usage_once() -> None:
    reply = body(usage={"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12})
    reply["choices"] *= 3
    messages = [generation.message for generation in decode_reply(reply).generations]
    assert len(messages) == 3
    assert [message.usage_metadata is not None for message in messages if isinstance(message, AIMessage)] == [
        True, False, False,
    ]  # fmt: skip


def test_no_content_is_empty_text_and_reasoning_stands_apart() -> None:
    message = (
        decode_reply(body({"content": None, "reasoning": "hmm", "reasoning_content": "hmm"})).generations[0].message
    )
    assert message.content == "" and message.additional_kwargs == {"reasoning_content": "hmm"}
    assert message.content_blocks == [{"type": "reasoning", "reasoning": "hmm"}]


def test_a_null_argument_list_is_an_empty_one() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]
    message = decode_reply(body({"content": None, "tool_calls": calls})).generations[0].message
    assert isinstance(message, AIMessage) and message.tool_calls[0]["args"] == {}


def test_log_probabilities_are_kept() -> None:
    reply = body()
    reply["choices"][0]["logprobs"] = {"content": []}
    assert decode_reply(reply).generations[0].message.response_metadata["logprobs"] == {"content": []}


@pytest.mark.parametrize(
    "garbage",
    [{}, {"choices": []}, {"choices": None}, {"choices": {"0": 1}}, {"choices": [None]}, {"choices": [{}]},
     {"choices": [{"message": None}]}, {"choices": [{"message": {"content": 1}}]},
     {"choices": [{"message": {"content": ["x"]}}]}, body(usage={"tokens": 1}),
     body({"tool_calls": [{"function": {}}]})],
)  # fmt: skip
def test_garbage_raises_what_the_client_takes_for_garbage(garbage: dict[str, Any]) -> None:
    with pytest.raises((LookupError, TypeError, ValueError, AttributeError)):
        decode_reply(garbage)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "usage", "tool_calls", "delta", "function", "id"]), inner
    ),
)  # fmt: skip


@given(json_values)
def test_no_body_raises_anything_else(value: Any) -> None:
    for decode in (decode_reply, EventReader().read):
        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
            decode(value if isinstance(value, dict) else {"choices": value})


# ---- streams --------------------------------------------------------------------------------------------------------


def test_chunks_add_up_to_the_message() -> None:
    events = [
        event({"role": "assistant", "content": ""}),
        event({"content": "Yes"}),
        event({"content": ", it is"}),
        event({"content": ""}, "stop"),
        {
            "id": "c",
            "model": "m",
            "choices": [],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        },
    ]
    read = EventReader().read
    chunks = [chunk.message for part in events if (chunk := read(part)) is not None]
    assert len(chunks) == 4  # the first event holds nothing
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk  # type: ignore[assignment]
    assert isinstance(whole, AIMessageChunk)
    assert whole.content == "Yes, it is" and whole.id == "c" and whole.chunk_position == "last"
    assert whole.response_metadata == {"finish_reason": "stop", "model_name": "m", "model_provider": "vllm"}
    assert whole.usage_metadata == {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=9), max_size=3), st.integers(1, 9))
def test_tool_call_arguments_add_up(arguments: dict[str, str], size: int) -> None:
    text = json.dumps(arguments)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    deltas = [first, *({"index": 0, "function": {"arguments": piece}} for piece in pieces)]
    read = EventReader().read
    chunks = [read(event({"tool_calls": [delta]})) for delta in deltas]
    last = read({"id": "c", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    assert last is not None and chunks[0] is not None
    whole = chunks[0].message
    for chunk in (*chunks[1:], last):
        assert chunk is not None
        whole = whole + chunk.message  # type: ignore[assignment]
    assert isinstance(whole, AIMessageChunk)
    assert whole.tool_calls == [{"name": "f", "args": arguments, "id": "c1", "type": "tool_call"}]
