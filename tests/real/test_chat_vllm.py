"""ChatVLLM on a real vLLM server with the bundled 135M model: what no fake server can prove."""

import asyncio
import json
import re
from typing import TypedDict

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from pydantic import BaseModel, Field

from matrix_graph.errors import ContextLengthError, ModelRequestError
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.client.structured import StructuredReplyError
from matrix_graph.models.server import VLLMServer


class Person(BaseModel):
    """A person in a scene."""

    name: str = Field(max_length=30)
    age: int = Field(ge=0, le=120)
    traits: list[str] = Field(min_length=1, max_length=3)


class Verdict(TypedDict):
    """A judgement."""

    plausible: bool


@pytest.fixture
def model(server: VLLMServer) -> ChatVLLM:
    return ChatVLLM(
        base_url=server.base_url, api_key=server.api_key, model=server.model_name, server=server, temperature=0.7,
        max_tokens=40, timeout=120,
    )  # fmt: skip


async def test_reply_usage_and_token_counts_agree(model: ChatVLLM) -> None:
    messages = [SystemMessage("Be brief."), HumanMessage("Name a colour.")]
    message = await model.ainvoke(messages)
    usage = message.usage_metadata
    assert message.text and usage is not None
    assert usage["input_tokens"] == await model.acount_tokens(messages)
    assert 1 <= usage["output_tokens"] <= 40 and usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert message.response_metadata["finish_reason"] in ("stop", "length")


async def test_stream_equals_whole_reply(model: ChatVLLM) -> None:
    prompt = "Count from one to five."
    whole = await model.ainvoke(prompt, temperature=0.0)
    chunks = [chunk async for chunk in model.astream(prompt, temperature=0.0)]
    joined = chunks[0]
    for chunk in chunks[1:]:
        joined = joined + chunk
    assert isinstance(joined, AIMessageChunk) and joined.chunk_position == "last"
    assert joined.text == whole.text and len(chunks) > 3
    assert joined.usage_metadata is not None and whole.usage_metadata is not None
    assert joined.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
    assert "".join(chunk.text for chunk in model.stream(prompt, temperature=0.0)) == whole.text


async def test_structured_outputs(model: ChatVLLM) -> None:
    chosen, matched, plain = await asyncio.gather(
        model.ainvoke("Is ice cold?", structured_outputs={"choice": ["yes", "no"]}),
        model.ainvoke("A plate number:", structured_outputs={"regex": r"[A-Z]{2}-\d{3}"}),
        model.ainvoke("Describe a person.", structured_outputs={"json": Person.model_json_schema()}, max_tokens=200),
    )
    assert chosen.text in ("yes", "no")
    assert re.fullmatch(r"[A-Z]{2}-\d{3}", matched.text)
    if (
        plain.response_metadata["finish_reason"] == "stop"
    ):  # a small model may ramble inside a string until it is cut off
        Person.model_validate_json(plain.text)


async def test_structured_output_of_a_typed_dict(model: ChatVLLM) -> None:
    verdict = await model.with_structured_output(Verdict).ainvoke("Can a person walk through a wall?")
    assert isinstance(verdict["plausible"], bool)


async def test_truncated_json_is_a_parsing_error(model: ChatVLLM) -> None:
    structured = model.with_structured_output(Person, include_raw=True, max_tokens=3)
    result = await structured.ainvoke("Describe a person.")
    assert result["parsed"] is None and isinstance(result["parsing_error"], StructuredReplyError)
    assert result["raw"].response_metadata["finish_reason"] == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(result["raw"].text)


async def test_too_long_a_prompt(model: ChatVLLM) -> None:
    length = await model.acontext_length()
    assert length is not None and length >= 1024
    with pytest.raises(ContextLengthError) as caught:
        await model.ainvoke("word " * (length + 10))
    assert caught.value.status == 400


async def test_refusals(server: VLLMServer, model: ChatVLLM) -> None:
    with pytest.raises(ModelRequestError, match=re.escape(server.model_name)) as caught:
        await model.ainvoke("hi", model="nobody")
    assert caught.value.status == 404
    with pytest.raises(ModelRequestError) as caught:
        await model.ainvoke("hi", temperature=-3.0)
    assert caught.value.status == 400
    with pytest.raises(ModelRequestError, match="VLLM_API_KEY") as caught:
        await ChatVLLM(base_url=server.base_url, api_key="wrong", model="x").ainvoke("hi")
    assert caught.value.status == 401


@pytest.mark.parametrize("text", ["nul \x00 inside", "lone \ud800 surrogate", "שלום", "👩\u200d👩\u200d👧 🙂", ""])
async def test_odd_prompts(model: ChatVLLM, text: str) -> None:
    assert (await model.ainvoke([HumanMessage(text)], max_tokens=4)).usage_metadata


async def test_prefix_cache_hits_are_reported(model: ChatVLLM) -> None:
    system = SystemMessage("You live in a small town by the river. " * 60)
    for question in ("Who are you?", "Where do you live?"):
        message = await model.ainvoke([system, HumanMessage(question)], max_tokens=4)
    details = (message.usage_metadata or {}).get("input_token_details")
    if details is None:
        pytest.skip("this build of vLLM reports no cached tokens without --enable-prompt-tokens-details")
    assert details["cache_read"] > 0


async def test_many_at_once(model: ChatVLLM) -> None:
    replies = await asyncio.gather(*(model.ainvoke(f"Say {number}.", max_tokens=8) for number in range(32)))
    assert all(reply.usage_metadata for reply in replies)
