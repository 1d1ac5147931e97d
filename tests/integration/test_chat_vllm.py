"""ChatVLLM over real HTTP to a fake server: replies, structured output, tools, streams, usage."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel, Field
from pydantic.v1 import BaseModel as BaseModelV1

from matrix_graph.errors import ConfigError, ReplyError
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.client.structured import StructuredReplyError
from tests.integration.model_server import ModelServer
from tests.integration.random_reply import Reply


class Verdict(BaseModel):
    """A judgement."""

    plausible: bool
    reason: str = Field(max_length=200)
    observers: list[str]


class VerdictDict(TypedDict):
    """A judgement."""

    plausible: Annotated[bool, ..., "whether it can happen"]
    reason: Annotated[str, ..., "why"]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as started:
        yield started


@pytest.fixture
def model(server: ModelServer) -> ChatVLLM:
    return ChatVLLM(base_url=server.base_url, give_up_after=5)


async def joined(model: Any, prompt: Any, **options: Any) -> AIMessageChunk:
    whole: AIMessageChunk | None = None
    async for chunk in model.astream(prompt, **options):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return whole


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in the server's thread."""
    for _ in range(250):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen in 5 s")


# ---- plain calls ----------------------------------------------------------------------------------------------------


async def test_reply_usage_and_metadata(server: ModelServer, model: ChatVLLM) -> None:
    server.script(Reply("Yes, it is.", usage={"prompt_tokens_details": {"cached_tokens": 3}}))
    message = await model.ainvoke([SystemMessage("Be brief."), HumanMessage("Is it cold?")])
    assert message.text == "Yes, it is."
    assert message.usage_metadata == {
        "input_tokens": 13, "output_tokens": 3, "total_tokens": 16, "input_token_details": {"cache_read": 3},
    }  # fmt: skip
    assert message.response_metadata == {"finish_reason": "stop", "model_name": "fake-model", "model_provider": "vllm"}
    assert message.id is not None and message.id.startswith("chatcmpl-")


async def test_sync_async_and_stream_agree(model: ChatVLLM) -> None:
    whole = await model.ainvoke("same question")
    assert model.invoke("same question").text == whole.text
    streamed = await joined(model, "same question")
    assert (streamed.text, streamed.usage_metadata) == (whole.text, whole.usage_metadata)
    assert streamed.response_metadata == whole.response_metadata
    assert "".join(chunk.text for chunk in model.stream("same question")) == whole.text


async def test_only_what_was_set_is_sent(server: ModelServer, model: ChatVLLM) -> None:
    await model.ainvoke("hi")
    assert server.bodies[-1] == {"model": "fake-model", "messages": [{"role": "user", "content": "hi"}]}


async def test_options_go_before_fields_and_extra_bodies_merge(server: ModelServer) -> None:
    model = ChatVLLM(
        base_url=server.base_url, model="fake-model", temperature=0.7, top_p=0.9, max_tokens=99, stop=["END"],
        extra_body={"top_k": 20, "min_p": 0.1},
    )  # fmt: skip
    await model.ainvoke(
        "hi", temperature=0.0, stop=["STOP"], extra_body={"min_p": 0.2, "chat_template_kwargs": {"a": 1}}
    )
    sent = dict(server.bodies[-1])
    sent.pop("messages")
    assert sent == {
        "model": "fake-model", "temperature": 0.0, "top_p": 0.9, "max_tokens": 99, "stop": ["STOP"], "top_k": 20,
        "min_p": 0.2, "chat_template_kwargs": {"a": 1},
    }  # fmt: skip
    await model.ainvoke("hi", temperature=None, seed=7)
    assert "temperature" not in server.bodies[-1] and server.bodies[-1]["seed"] == 7
    assert server.bodies[-1]["top_k"] == 20 and "seed" not in server.bodies[0]
    assert model.extra_body == {"top_k": 20, "min_p": 0.1}


async def test_adapter_by_model_name(server: ModelServer, model: ChatVLLM) -> None:
    server.adapters["rehearsed"] = "/adapters/rehearsed"
    message = await model.ainvoke("hi", model="rehearsed")
    assert message.response_metadata["model_name"] == "rehearsed"
    assert (await model.bind(model="rehearsed").ainvoke("hi")).response_metadata["model_name"] == "rehearsed"
    assert (await model.ainvoke("hi")).response_metadata["model_name"] == "fake-model"
    named = ChatVLLM(base_url=server.base_url, model="rehearsed")
    assert (await named.ainvoke("hi")).response_metadata["model_name"] == "rehearsed"
    assert await named.acontext_length() == 8192


async def test_first_served_model_is_asked_for_once(server: ModelServer) -> None:
    model = ChatVLLM(base_url=server.base_url, model="")
    for _ in range(3):
        await model.ainvoke("hi")
    assert server.requests.count(("GET", "/v1/models")) == 1
    assert model._get_ls_params()["ls_model_name"] == "fake-model"


def test_context_length_and_token_counts(model: ChatVLLM) -> None:
    assert model.context_length() == 8192
    assert model.get_num_tokens("three short words") == 3
    assert model.get_num_tokens_from_messages([HumanMessage("three short words")]) == 7


ODD_TEXTS = [
    "nul \x00 inside",
    "שלום עולם \u200f RTL",
    "👩‍👩‍👧‍👦 and 🏳️‍🌈",
    "tab\tline\nreturn\r",
    "\u2028 and \u2029",
    '"quotes" and \\',
    "𝒳 astral",
    "x" * 100_000,
]


@pytest.mark.parametrize("text", ODD_TEXTS)
async def test_text_passes_to_the_letter(server: ModelServer, model: ChatVLLM, text: str) -> None:
    server.script(text, text)
    assert (await model.ainvoke(text)).text == text
    assert server.bodies[-1]["messages"][0]["content"] == text
    assert (await joined(model, text)).text == text


async def test_lone_surrogates_go_out_as_replacement_characters(server: ModelServer, model: ChatVLLM) -> None:
    await model.ainvoke([HumanMessage("a\ud800b \ud83d\ude00 \udfff")])
    assert server.bodies[-1]["messages"][0]["content"] == "a\ufffdb 😀 \ufffd"


async def test_conversation_with_tools_goes_out_in_openai_form(server: ModelServer, model: ChatVLLM) -> None:
    call = {"name": "look", "args": {"where": "vault"}, "id": "call-1", "type": "tool_call"}
    await model.ainvoke(
        [HumanMessage("look"), AIMessage("", tool_calls=[call]), ToolMessage("empty", tool_call_id="call-1")]
    )
    _, assistant, tool = server.bodies[-1]["messages"]
    assert assistant["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"where": "vault"}'}
    assert tool == {"role": "tool", "tool_call_id": "call-1", "content": "empty"}


async def test_guided_options_that_vllm_ignores_are_refused(model: ChatVLLM) -> None:
    with pytest.raises(ConfigError, match=r"structured_outputs=.'json'"):
        await model.ainvoke("hi", extra_body={"guided_json": {}})


async def test_streaming_field_streams_whole_replies(server: ModelServer) -> None:
    model = ChatVLLM(base_url=server.base_url, streaming=True)
    message = await model.ainvoke("hi")
    assert server.bodies[-1]["stream"] is True and server.bodies[-1]["stream_options"] == {"include_usage": True}
    assert message.usage_metadata is not None and message.usage_metadata["output_tokens"] == len(message.text.split())


# ---- structured output ----------------------------------------------------------------------------------------------


async def test_choice_regex_and_json(server: ModelServer, model: ChatVLLM) -> None:
    assert (await model.ainvoke("?", structured_outputs={"choice": ["yes", "no"]})).text in ("yes", "no")
    reply = await model.ainvoke("?", structured_outputs={"regex": r"[A-Z]{2}-\d{3}"})
    assert len(reply.text) == 6 and reply.text[2] == "-"
    reply = await model.ainvoke("?", structured_outputs={"json": Verdict.model_json_schema()})
    Verdict.model_validate_json(reply.text)
    assert server.bodies[-1]["structured_outputs"] == {"json": Verdict.model_json_schema()}


async def test_structured_output_by_kind_of_schema(server: ModelServer, model: ChatVLLM) -> None:
    assert isinstance(await model.with_structured_output(Verdict).ainvoke("?"), Verdict)
    assert server.bodies[-1]["structured_outputs"]["json"] == Verdict.model_json_schema()
    as_dict = await model.with_structured_output(VerdictDict).ainvoke("?")
    assert set(as_dict) == {"plausible", "reason"}
    bare = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
    }  # no title: legal JSON schema
    assert isinstance((await model.with_structured_output(bare).ainvoke("?"))["n"], int)
    function = {"name": "judge", "description": "Judges.", "parameters": bare}
    assert isinstance((await model.with_structured_output(function).ainvoke("?"))["n"], int)
    listed = await model.with_structured_output({"type": "array", "items": {"type": "boolean"}, "minItems": 2}).ainvoke(
        "?"
    )
    assert len(listed) >= 2

    class Old(BaseModelV1):
        name: str

    assert isinstance(await model.with_structured_output(Old).ainvoke("?"), Old)


def test_structured_output_strict_forbids_other_properties(server: ModelServer, model: ChatVLLM) -> None:
    model.with_structured_output(Verdict, strict=True).invoke("?")
    assert server.bodies[-1]["structured_outputs"]["json"]["additionalProperties"] is False


def test_structured_output_by_function_calling(server: ModelServer, model: ChatVLLM) -> None:
    assert isinstance(model.with_structured_output(Verdict, method="function_calling").invoke("?"), Verdict)
    assert server.bodies[-1]["tool_choice"] == "required"


def test_structured_output_unknown_method(model: ChatVLLM) -> None:
    with pytest.raises(ConfigError, match="json_schema, json_mode or function_calling"):
        model.with_structured_output(Verdict, method="guess")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="No JSON schema"):
        model.with_structured_output({"parameters": {}})


@pytest.mark.parametrize("schema", [Verdict, VerdictDict, {"title": "V", **Verdict.model_json_schema()}])
@pytest.mark.parametrize(
    ("reply", "match"),
    [
        (Reply('{"plausible": true, "reason": "be', "length"), "cut off"),
        (Reply('{"plausible": true, "reason": "be'), "no JSON"),
        (Reply(""), "no JSON"),
        (Reply("[" * 100_000), "no JSON"),
        (Reply("x" * 100_000), "no JSON"),
    ],
)
async def test_unusable_structured_reply(
    server: ModelServer, model: ChatVLLM, schema: Any, reply: Reply, match: str
) -> None:
    server.script(reply, reply, reply)
    with pytest.raises(StructuredReplyError, match=match) as caught:
        await model.with_structured_output(schema).ainvoke("?")
    assert isinstance(caught.value, ReplyError) and caught.value.llm_output == reply.text
    assert len(str(caught.value)) < 1000
    result = await model.with_structured_output(schema, include_raw=True).ainvoke("?")
    assert result["raw"].text == reply.text
    assert result["parsed"] is None and isinstance(result["parsing_error"], ReplyError)
    with pytest.raises(StructuredReplyError, match=match):
        async for _ in model.with_structured_output(schema).astream("?"):
            pass


async def test_json_that_does_not_validate(server: ModelServer, model: ChatVLLM) -> None:
    server.script('{"plausible": "perhaps"}')
    with pytest.raises(StructuredReplyError, match="plausible"):
        await model.with_structured_output(Verdict).ainvoke("?")


async def test_structured_output_with_raw(model: ChatVLLM) -> None:
    result = await model.with_structured_output(Verdict, include_raw=True).ainvoke("?")
    assert isinstance(result["parsed"], Verdict) and result["parsing_error"] is None
    assert json.loads(result["raw"].text) == result["parsed"].model_dump()


async def test_structured_output_streams_growing_dicts(server: ModelServer, model: ChatVLLM) -> None:
    server.script('{"plausible": true, "reason": "because it can happen"}')
    seen = [part async for part in model.with_structured_output(VerdictDict).astream("?")]
    assert len(seen) > 2 and seen[-1] == {"plausible": True, "reason": "because it can happen"}


# ---- tools ----------------------------------------------------------------------------------------------------------


def look(where: str) -> str:
    """Look somewhere."""
    return where


async def test_tool_calls_whole_and_streamed(server: ModelServer, model: ChatVLLM) -> None:
    bound = model.bind_tools([look, Verdict], tool_choice="look")
    message = await bound.ainvoke("?")
    assert [call["name"] for call in message.tool_calls] == ["look"]
    assert message.response_metadata["finish_reason"] == "tool_calls"
    assert server.bodies[-1]["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    streamed = await joined(bound, "?")
    assert streamed.tool_calls == message.tool_calls and not streamed.invalid_tool_calls


async def test_several_tool_calls_stream_apart(server: ModelServer, model: ChatVLLM) -> None:
    reply = Reply("", "tool_calls", (("look", '{"where": "vault"}'), ("look", '{"where": "door"}')))
    server.script(reply, reply)
    bound = model.bind_tools([look])
    whole, streamed = await bound.ainvoke("?"), await joined(bound, "?")
    assert [call["args"]["where"] for call in whole.tool_calls] == ["vault", "door"]
    assert streamed.tool_calls == whole.tool_calls


@pytest.mark.parametrize("arguments", ['{"where": ', "[1, 2]", "not json"])
async def test_bad_tool_arguments_are_invalid_calls(server: ModelServer, model: ChatVLLM, arguments: str) -> None:
    server.script(Reply("", "tool_calls", (("look", arguments),)))
    message = await model.bind_tools([look]).ainvoke("?")
    assert not message.tool_calls
    assert message.invalid_tool_calls[0]["args"] == arguments
    await model.ainvoke(
        [HumanMessage("?"), message, ToolMessage("?", tool_call_id=message.invalid_tool_calls[0]["id"])]
    )
    assert server.bodies[-1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == arguments


def test_tool_choice_must_name_a_tool(model: ChatVLLM) -> None:
    with pytest.raises(ConfigError, match="look"):
        model.bind_tools([look], tool_choice="jump")


def test_no_tools_at_all_sends_no_empty_list(server: ModelServer, model: ChatVLLM) -> None:
    model.bind_tools([]).invoke("?")
    assert "tools" not in server.bodies[-1]


# ---- loops, threads, many at once -----------------------------------------------------------------------------------


async def test_64_in_flight_share_one_pool(server: ModelServer, model: ChatVLLM) -> None:
    server.delay = 0.3
    replies = await asyncio.gather(*(model.ainvoke(f"question {number}") for number in range(64)))
    assert server.peak_in_flight == 64
    assert len({reply.text for reply in replies}) == 64


def test_repeated_asyncio_run(model: ChatVLLM) -> None:
    texts = {asyncio.run(model.ainvoke("hi")).text for _ in range(5)}
    assert len(texts) == 1


async def test_sync_call_inside_a_running_loop(model: ChatVLLM) -> None:
    assert model.invoke("hi").text == (await model.ainvoke("hi")).text


async def test_sync_stream_inside_a_running_loop(model: ChatVLLM) -> None:
    assert "".join(chunk.text for chunk in model.stream("hi")) == (await model.ainvoke("hi")).text


def test_many_threads(server: ModelServer, model: ChatVLLM) -> None:
    server.delay = 0.2
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda number: model.invoke(f"q {number}").text, range(16)))
    assert len(set(texts)) == 16 and server.peak_in_flight == 16
    loops = [thread for thread in threading.enumerate() if thread.name == "matrix-graph-loop"]
    assert len(loops) == 1


def test_batch_and_chains(server: ModelServer, model: ChatVLLM) -> None:
    chain = ChatPromptTemplate.from_messages([("human", "Tell {who}.")]) | model
    assert len({message.text for message in chain.batch([{"who": "A"}, {"who": "B"}])}) == 2


# ---- cancellation ---------------------------------------------------------------------------------------------------


async def test_cancellation_reaches_the_server(server: ModelServer, model: ChatVLLM) -> None:
    await model.ainvoke("warm up")
    server.delay = 30
    task = asyncio.create_task(model.ainvoke("hi"))
    await until(lambda: server.in_flight == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 1)
    await until(lambda: server.calls[-1].cancelled and server.in_flight == 0)
    server.delay = 0
    assert (await model.ainvoke("hi")).text


async def test_a_stream_left_early_is_closed(server: ModelServer, model: ChatVLLM) -> None:
    server.script("word " * 200_000)
    stream = model.astream("hi")
    async for _ in stream:
        break
    await stream.aclose()
    await until(lambda: server.in_flight == 0)


def test_a_sync_stream_left_early_is_closed(server: ModelServer, model: ChatVLLM) -> None:
    server.script("word " * 200_000)
    for _ in model.stream("hi"):
        break
    threading.Event().wait(0.5)
    assert server.in_flight == 0
