"""`Rehearsal` where LangChain developers put it: chains, batches, listeners, bindings."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel

from matrix_graph import Cast, Rehearsal, Role, SceneConfig
from tests.unit.scripted import ScriptedModel

CAST = Cast(ego="Ann", roles=[Role(name="Ann"), Role(name="Bob")], plan=[f"step {number}" for number in range(12)])
LONG = SceneConfig(steps=12)
SHORT = SceneConfig(max_rounds=2)


def rehearsal(config: SceneConfig = SHORT, **options: Any) -> Rehearsal:
    return Rehearsal(ScriptedModel(seed=3, plausible=1), cast=CAST, config=config, **options)


def test_schemas_say_what_goes_in_and_out() -> None:
    taken, given = rehearsal().get_input_jsonschema(), rehearsal().get_output_jsonschema()
    kinds = [kind.get("type") or kind["$ref"].rsplit("/", 1)[-1] for kind in taken["anyOf"]]
    assert kinds == ["string", "RehearsalQuestion", "array"]
    question = taken["$defs"]["RehearsalQuestion"]
    assert question["required"] == ["question"] and all("description" in v for v in question["properties"].values())
    definition = given["$defs"]["RehearsalResult"] if "$ref" in given else given
    assert {"answer", "revised", "status", "error", "trace"} == set(definition["required"])
    model = rehearsal().get_output_schema()
    result = rehearsal().invoke("Why?")
    assert model.model_validate(result).model_dump()["answer"] == result["answer"]
    rehearsal().get_input_schema().model_validate({"question": "Why?"})


async def test_listeners_hear_one_run_and_every_event() -> None:
    seen = []
    stream = rehearsal().astream_events("Why?", version="v2", config={"tags": ["mine"], "metadata": {"k": 1}})
    async for event in stream:
        seen.append(event)
    roots = [event for event in seen if not event["parent_ids"] and event["event"] == "on_chain_start"]
    assert [event["name"] for event in roots] == ["rehearsal"] and roots[0]["data"]["input"] == "Why?"
    assert seen[-1]["event"] == "on_chain_end" and seen[-1]["name"] == "rehearsal"
    trace = seen[-1]["data"]["output"]["trace"]
    custom = [event["data"] for event in seen if event["event"] == "on_custom_event"]
    chunks = [e["data"]["chunk"] for e in seen if e["event"] == "on_chain_stream" and e["name"] == "rehearsal"]
    assert [event["type"] for event in custom] == [chunk["type"] for chunk in chunks[:-1]]
    assert Counter(event["type"] for event in custom)["event"] == len(trace.events) > 0
    calls = [event for event in seen if event["event"] == "on_chat_model_start"]
    assert len(calls) == len(trace.calls)
    assert all("mine" in call["tags"] and call["metadata"]["k"] == 1 for call in calls)
    assert all(call["parent_ids"][0] == roots[0]["run_id"] for call in calls)


class Listener(BaseCallbackHandler):
    def __init__(self) -> None:
        self.roots: list[str] = []
        self.ends: list[Any] = []
        self.events: list[Any] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        if kwargs["parent_run_id"] is None:
            self.roots.append(kwargs["name"])

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        if kwargs["parent_run_id"] is None:
            self.ends.append(outputs)

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.events.append((name, data["type"]))


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
@pytest.mark.parametrize("name", [None, "mine"])
async def test_callbacks_hear_of_one_root_run(way: str, name: str | None) -> None:
    listener = Listener()
    config: Any = {"callbacks": [listener], **({"run_name": name} if name else {})}
    one = rehearsal()
    if way == "invoke":
        result: Any = one.invoke("Why?", config)
    elif way == "ainvoke":
        result = await one.ainvoke("Why?", config)
    elif way == "stream":
        result = list(one.stream("Why?", config))[-1]
    elif way == "astream":
        result = [event async for event in one.astream("Why?", config)][-1]
    else:
        (result,) = one.batch(["Why?"], config) if way == "batch" else await one.abatch(["Why?"], config)
    assert listener.roots == [name or "rehearsal"]
    assert [end["answer"] for end in listener.ends] == [result["answer"]]
    assert ("rehearsal", "event") in listener.events and listener.events[0] == ("rehearsal", "question")


async def test_long_scenes_in_the_middle_of_a_chain() -> None:
    chain: Any = (
        ChatPromptTemplate([("user", "Why {what}?")])
        | rehearsal(LONG)
        | (lambda result: f"{result['trace'].question} {result['trace'].ended_by}")
        | StrOutputParser()
    )
    rows = [{"what": str(number)} for number in range(3)]
    questions = [f"Why {number}?" for number in range(3)]
    ends = {question: rehearsal(LONG).invoke(question)["trace"].ended_by for question in questions}
    assert set(ends.values()) <= {"quiet", "max_rounds"}
    expected = [f"{question} {end}" for question, end in ends.items()]
    assert chain.batch(rows) == await chain.abatch(rows) == expected
    assert "".join(chain.stream(rows[0])) == expected[0]
    assert "".join([chunk async for chunk in chain.astream(rows[0])]) == expected[0]
    parallel = RunnableParallel(one=rehearsal(), other=rehearsal().pick("answer"))
    both = parallel.invoke("Why?")
    assert both["one"]["answer"] == both["other"]
    assert len(list((RunnableLambda(str) | rehearsal()).stream("Why?"))) > 3, "events come through at a chain's end"


async def test_prompt_values_and_bindings() -> None:
    one = rehearsal(LONG)
    assert one.bind(context=SHORT).invoke("Why?")["trace"].settings["max_rounds"] == 2
    assert (await one.bind(context=SHORT).ainvoke("Why?"))["trace"].ended_by == "max_rounds"
    assert list(one.bind(context=SHORT).stream("Why?"))[-1]["trace"].ended_by == "max_rounds"
    assert one.with_config(run_name="x", recursion_limit=3).invoke("Why?")["trace"].ended_by == "quiet"
    assert one.with_retry(stop_after_attempt=2).invoke("Why?")["status"] == "finished"
    odd = one.with_fallbacks([RunnableLambda(lambda given: {"answer": "fallback"})])  # type: ignore[list-item]
    assert odd.invoke(5) == {"answer": "fallback"}  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="does not take stop; it takes input, config and context"):
        one.bind(stop=["x"]).invoke("Why?")
    with pytest.raises(TypeError, match="does not take stop"):
        [event async for event in one.bind(stop=["x"]).astream("Why?")]


async def test_whoever_leaves_a_stream_stops_the_scene() -> None:
    one = rehearsal(LONG)
    model: Any = one.model
    for event in one.stream("Why?"):
        if event["type"] == "event":
            break
    seen = len(model.log)
    assert 0 < seen < 6
    stream = one.astream("Why?")
    async for event in stream:
        if event["type"] == "event":
            break
    await stream.aclose()
    assert len(model.log) < 12
