"""Servers that are not a current vLLM: whole scenes and a judge on each, with what it takes found out once."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk

from matrix_graph import ChatVLLM, Rehearsal, Trace
from matrix_graph.errors import ModelRequestError
from matrix_graph.evaluate.carry_out import judge_from
from matrix_graph.evaluate.judge import Judge, Judgement
from matrix_graph.evaluate.records import AnswerRecord
from matrix_graph.models.client import dialect
from tests.integration.model_server import Fault, ModelServer
from tests.integration.strict_servers import IGNORES, KINDS, MORE, REFUSES, Kind, StrictServer

QUESTION = "How do I tell my neighbour that his music is too loud?"
ALL = KINDS | MORE
SCHEMA = {"type": "object", "properties": {"calm": {"type": "boolean"}}, "required": ["calm"]}
REFUSED = {
    "OpenAI, reasoning": 2,  # max_tokens, then temperature
    "llama.cpp before json_schema": 1,
    "guided_json alone": 3,
}
"""How often a server refuses before it is known what it takes; others never do."""


@pytest.fixture(autouse=True)
def unknown() -> Iterator[None]:
    """Ports come again: nothing is known of a server of an earlier test."""
    dialect._servers.clear()
    dialect._dialects.clear()
    yield


def answer(candidate: str, text: str) -> AnswerRecord:
    return AnswerRecord(
        candidate=candidate,
        question_id="q",
        question=QUESTION,
        answer=text,
        calls=1,
        input_tokens=5,
        output_tokens=5,
        seconds=0.1,
        settings={},
    )


def structured(trace: Trace) -> list[Any]:
    return [call for call in trace.calls if "structured_outputs" in call.sampling]


@pytest.mark.parametrize("name", ALL)
async def test_a_whole_scene_and_a_judge(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with StrictServer(ALL[name], seed=3) as server:
        result = await Rehearsal(ChatVLLM(base_url=server.base_url, give_up_after=5)).ainvoke(QUESTION)
        judge = Judge(judge_from(f"{server.base_url}:fake-model", ChatVLLM()))
        verdict = await judge.verdict(Judgement(answer("a", "Ring."), answer("b", "Write."), "first_then_second"))
    trace = result["trace"]
    assert result["status"] in ("finished", "blocked"), result["error"]
    assert len(structured(trace)) > 8
    late = structured(trace)[4:]
    assert all(isinstance(json.loads(call.completion), dict) for call in late)
    assert verdict.winner is not None and verdict.raw in ("A", "B", "tie")
    # Calls to a vLLM, of which it is known what it takes, do not wait for the first one: two begin together here.
    assert len(server.refusals) == REFUSED.get(name, 2 if name == "vLLM that forbids extras" else 0)
    if name in KINDS:
        assert not server.undocumented
        assert len(trace.calls) + 1 == len(server.calls)
    assert "holds replies to no JSON schema" not in caplog.text


@pytest.mark.parametrize("name", [name for name in ALL if name != "vLLM before structured_outputs"])
async def test_choices_and_patterns_come_as_they_were_asked_for(name: str) -> None:
    with StrictServer(ALL[name]) as server:
        model = ChatVLLM(base_url=server.base_url, give_up_after=5)
        assert (await model.ainvoke("?", structured_outputs={"choice": ["yes", "no"]})).text in ("yes", "no")
        whole: AIMessageChunk | None = None
        async for chunk in model.astream("?", structured_outputs={"choice": ["yes", "no"]}):
            whole = chunk if whole is None else whole + chunk
        assert whole is not None and whole.text in ("yes", "no")
        assert bool(whole.usage_metadata) == (name != "guided_json alone")  # that takes no stream_options
        parts = model.with_structured_output(SCHEMA).astream("?")
        assert isinstance([part async for part in parts][-1]["calm"], bool)
    sent = [body.get("structured_outputs") for body in server.bodies if body.get("structured_outputs")]
    assert bool(sent) == (ALL[name].owner == "vllm" or name == "guided_json alone")


@pytest.mark.parametrize("kind", [IGNORES, REFUSES], ids=["ignores", "refuses"])
async def test_a_server_that_holds_to_no_schema_is_warned_of_once(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    with StrictServer(kind, seed=3) as server:
        rehearsal = Rehearsal(ChatVLLM(base_url=server.base_url, give_up_after=5))
        results = [await rehearsal.ainvoke(QUESTION) for _ in range(3)]
        more = ChatVLLM(base_url=server.base_url, model="fake-model").with_structured_output(SCHEMA, include_raw=True)
        await more.ainvoke("?")
    assert [result["status"] for result in results if result["status"] not in ("finished", "blocked")] == []
    told = [record for record in caplog.records if "holds replies to no JSON schema" in record.getMessage()]
    assert len(told) == 1 and told[0].levelno == logging.WARNING and server.base_url in told[0].getMessage()


@pytest.mark.parametrize("name", REFUSED)
async def test_many_calls_at_once_find_out_once(name: str) -> None:
    with StrictServer(ALL[name], delay=0.05) as server:
        model = ChatVLLM(base_url=server.base_url, temperature=0.1, max_tokens=99).with_structured_output(SCHEMA)
        values = await asyncio.gather(*(model.ainvoke(f"{number}?") for number in range(50)))
        assert len(server.refusals) == REFUSED[name]
        again = ChatVLLM(base_url=server.base_url, temperature=0.1, max_tokens=99).with_structured_output(SCHEMA)
        values.append(await asyncio.to_thread(again.invoke, "and in another thread?"))
    assert all(isinstance(value["calm"], bool) for value in values)
    assert len(server.refusals) == REFUSED[name] and len(server.calls) == 51 + REFUSED[name]


async def test_a_first_call_that_takes_long_does_not_hold_up_the_others() -> None:
    with StrictServer(KINDS["Ollama"], delay=lambda body: 30.0 if "slow" in str(body["messages"]) else 0.0) as server:
        model = ChatVLLM(base_url=server.base_url, model="fake-model")
        slow = asyncio.create_task(model.ainvoke("slow"))
        await asyncio.sleep(0.2)
        async with asyncio.timeout(5):
            await asyncio.gather(*(model.ainvoke("quick") for _ in range(20)))
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)


OTHER_CAUSES = [
    "temperature must be between 0 and 2",
    "The model is not loaded.",
    "messages.3: unknown role",
    "This model's maximum context length is 8192 tokens; response_format, max_completion_tokens and more exceed it.",
]


@pytest.mark.parametrize("said", OTHER_CAUSES)
async def test_a_refusal_with_another_cause_teaches_nothing(said: str) -> None:
    with StrictServer(KINDS["SGLang"]) as server:
        server.fail_first(1, Fault(status=400, body=said))
        model = ChatVLLM(base_url=server.base_url, temperature=0.1).with_structured_output(SCHEMA)
        with pytest.raises(ModelRequestError, match=said[:20]):
            await model.ainvoke("?")
        assert len(server.calls) == 1
        await model.ainvoke("?")
    assert server.bodies[-1] == server.bodies[0]


async def test_a_refusal_that_names_the_form_for_another_cause_teaches_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = 'bad request {{"response_format": {{}}, "structured_outputs": {{}}, "guided_json": 1}}: the cat is out'
    with StrictServer(KINDS["SGLang"]) as server:
        server.fail_first(6, Fault(status=400, body=said))
        model = ChatVLLM(base_url=server.base_url).with_structured_output(SCHEMA)
        with pytest.raises(ModelRequestError, match="the cat is out"):
            await model.ainvoke("?")
        server._script.clear()
        await model.ainvoke("?")
    assert server.bodies[-1]["response_format"] == server.bodies[0]["response_format"] and not caplog.records


async def test_openais_strict_rules_for_schemas_are_left_where_they_refuse() -> None:
    said = "Invalid schema for response_format 'reply': 'additionalProperties' is required to be supplied."
    with StrictServer(KINDS["SGLang"]) as server:
        server.fail_first(1, Fault(status=400, body=said))
        model = ChatVLLM(base_url=server.base_url).with_structured_output(SCHEMA)
        await model.ainvoke("?")
        await model.ainvoke("?")
    assert [body["response_format"]["json_schema"]["strict"] for body in server.bodies] == [True, False, False]


async def test_replies_that_fit_prove_a_form_for_good() -> None:
    with StrictServer(KINDS["Ollama"]) as server:
        model = ChatVLLM(base_url=server.base_url).with_structured_output(SCHEMA, include_raw=True)
        await model.ainvoke("?")
        for nonsense in ("no", "", "[1]", "{"):
            server.script(nonsense)
            await model.ainvoke("?")
        await model.ainvoke("?")
    assert all(body["response_format"]["type"] == "json_schema" for body in server.bodies)


async def test_no_form_is_given_up_for_a_reply_that_was_cut_or_thought_aloud() -> None:
    with StrictServer(KINDS["Ollama"]) as server:
        model = ChatVLLM(base_url=server.base_url)
        for text in ('{"calm": tr', '<think>Hm. {x}</think>\n{"calm": true}'):
            server.script(text)
            options = {"structured_outputs": {"json": SCHEMA}, "max_tokens": 1 if text.endswith("tr") else 99}
            await model.ainvoke("?", **options)
        await model.ainvoke("?", structured_outputs={"json": SCHEMA})
    assert all(body["response_format"]["type"] == "json_schema" for body in server.bodies)


async def test_another_server_at_the_same_address_is_found_out_anew() -> None:
    with StrictServer(REFUSES, models=("old",)) as server:
        model = ChatVLLM(base_url=server.base_url, give_up_after=5)
        await model.ainvoke("?", structured_outputs={"json": SCHEMA})
        port = server.port
    with ModelServer(port=port, models=("new",)) as server:
        with pytest.raises(ModelRequestError, match="It serves: new"):
            await model.ainvoke("?", structured_outputs={"json": SCHEMA})
        await model.ainvoke("?", structured_outputs={"json": SCHEMA})
    assert server.bodies[-1]["structured_outputs"] == {"json": SCHEMA}
