"""The scene over real HTTP: its rules whatever the model says, its depth, its limits, and its place in other graphs."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypedDict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from matrix_graph import Cast, Rehearsal, Role, SceneConfig, Trace
from matrix_graph.scene.cast import introduced
from matrix_graph.scene.prompts import opening
from matrix_graph.scene.role import spoken
from tests.integration.model_server import Fault, ModelServer
from tests.integration.random_reply import JSON, Reply, digest
from tests.integration.scenes import busy, client, depth, full_cast, purpose, received, sent, told
from tests.unit import invariants

TOKEN = re.compile(r"tok\d{9}")


@pytest.fixture(scope="module")
def shared() -> Iterator[ModelServer]:
    with ModelServer() as started:
        yield started


@pytest.fixture
def server(shared: ModelServer) -> ModelServer:
    shared.reset()
    shared.delay, shared.reply, shared.seed, shared.true = 0.0, None, 0, 0.5
    return shared


configs = st.builds(
    SceneConfig,
    roles=st.integers(1, 5),
    steps=st.integers(1, 5),
    max_rounds=st.none() | st.integers(1, 7),
    context_length=st.sampled_from([None, None, 1100]),
)
moderate = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@moderate
@given(
    seed=st.integers(0, 2**32), true=st.sampled_from([0.2, 0.5, 0.8, 1.0]), config=configs, in_async_code=st.booleans()
)
def test_rules_hold_over_http(
    server: ModelServer, seed: int, true: float, config: SceneConfig, in_async_code: bool
) -> None:
    server.reset()
    server.seed, server.true = seed, true
    rehearsal = Rehearsal(client(server), config=config)
    trace = (asyncio.run(rehearsal.ainvoke("Why?")) if in_async_code else rehearsal.invoke("Why?"))["trace"]
    assert trace.status in ("finished", "blocked")
    invariants.check_all(trace)
    assert sent(trace) == received(server), "the trace holds exactly what was sent"
    said = {json.dumps(call.body["messages"]): call.reply for call in server.calls}
    for call in trace.calls:
        assert call.completion == said[json.dumps([message.model_dump() for message in call.messages])]
    _nobody_was_told_more(server.bodies, trace)


def _nobody_was_told_more(bodies: list[JSON], trace: Trace) -> None:
    """Rule 3 from the server's side: go through the trace in time, note what each role got to know, compare."""
    assert trace.cast is not None
    people = {
        opening(
            "role",
            people=introduced({person.name: person.who for person in trace.cast.roles}),
            name=role.name,
            traits=role.traits or "-",
            goal=role.goal or "-",
        )[0]["content"]: role.name
        for role in trace.cast.roles
    }
    seen_by_server: dict[str, list[set[str]]] = defaultdict(list)
    for body in bodies:
        if body["messages"][0]["content"] in people:
            tokens = set(TOKEN.findall(json.dumps([message["content"] for message in body["messages"]])))
            seen_by_server[people[body["messages"][0]["content"]]].append(tokens)
    asked = [call for call in trace.calls if call.purpose == "act" or (call.purpose == "recap" and call.role)]
    assert sum(len(requests) for requests in seen_by_server.values()) == len(asked)

    public = " ".join(f"{role.name} {role.who}" for role in trace.cast.roles)
    known = {role.name: set(TOKEN.findall(f"{public} {role.traits} {role.goal}")) for role in trace.cast.roles}
    known[trace.cast.ego].update(TOKEN.findall(" ".join(trace.cast.plan)))
    for round in range(1, max((call.round or 0 for call in trace.calls), default=0) + 1):
        for call in asked:
            if call.round == round and call.role is not None:
                request = seen_by_server[call.role].pop(0)
                assert request <= known[call.role], f"{call.role} was told {request - known[call.role]}"
                known[call.role].update(TOKEN.findall(call.completion))
        for event in trace.events:
            if event.round != round:
                continue
            for name in event.observers:
                known[name].update(TOKEN.findall(event.told))
            if not event.plausible:
                known[event.role].update(TOKEN.findall(event.reason))


# ---- depth ----------------------------------------------------------------------------------------------------------

DELAY = 0.2


async def _timed(server: ModelServer, config: SceneConfig) -> tuple[Trace, float]:
    started = time.monotonic()
    trace = (await Rehearsal(client(server), config=config).ainvoke("Why?"))["trace"]
    return trace, time.monotonic() - started


@pytest.mark.parametrize("kind", ["busy", "plausible", "random"])
async def test_a_scene_of_four_people_and_four_steps_is_16_calls_deep(server: ModelServer, kind: str) -> None:
    server.delay, server.seed = DELAY, 3
    server.true = 1.0 if kind == "plausible" else 0.5
    server.reply = full_cast if kind == "busy" else None
    for _ in range(3):  # a busy machine may spoil one measurement, not three
        server.peak_in_flight = 0
        trace, took = await _timed(server, SceneConfig(roles=3, steps=4))
        if took <= 1.25 * depth(trace) * DELAY:
            break
    chain = depth(trace)
    print(f"{kind}: {len(trace.calls)} calls, {chain} deep, {took:.2f} s, {server.peak_in_flight} at once")
    assert chain <= 16 and (kind != "busy" or chain == 16)
    assert took <= 1.25 * chain * DELAY
    if kind == "busy":
        assert server.peak_in_flight > 3 and len(trace.calls) == 8 + 1 + 7 + 4 * 8


async def test_depth_grows_with_steps_not_with_people_nor_scenes(server: ModelServer) -> None:
    server.delay, server.reply = DELAY, full_cast
    configs = [SceneConfig(roles=roles, steps=steps) for steps in range(1, 7) for roles in (1, 5)]
    started = time.monotonic()
    traces = [trace for trace, _ in await asyncio.gather(*(_timed(server, config) for config in configs))]
    took = time.monotonic() - started
    for trace, config in zip(traces, configs, strict=True):
        assert trace.status == "finished"
        assert depth(trace) == 2 * config.steps + 8
    calls = sum(len(trace.calls) for trace in traces)
    print(f"{len(traces)} scenes at once: {calls} calls in {took:.2f} s, {server.peak_in_flight} at once")
    assert took <= 2 * (2 * 6 + 8) * DELAY, "scenes wait for each other"
    assert server.peak_in_flight > 12


# ---- dialogues ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("true", [0.5, 0.8, 1.0])
def test_each_prompt_begins_with_the_one_before_it(server: ModelServer, true: float) -> None:
    checked = 0
    for seed in range(4):
        server.seed, server.true = seed, true
        trace = Rehearsal(client(server), config=SceneConfig(roles=4, steps=5)).invoke("Why?")["trace"]
        assert trace.cast is not None and not any(call.purpose == "recap" for call in trace.calls)
        chains = [
            [call for call in trace.calls if (call.purpose, call.role) == ("act", role.name)]
            for role in trace.cast.roles
        ]
        judged = [call for call in trace.calls if call.purpose == "judge"]
        chains.append([a for a, b in zip(judged, [None, *judged], strict=False) if b is None or a.round != b.round])
        for before, after in (pair for chain in chains for pair in pairwise(chain)):
            size = len(before.messages)
            assert after.messages[:size] == before.messages
            assert (after.messages[size].role, after.messages[size].content) == ("assistant", before.completion)
            checked += 1
    assert checked > 5


async def test_same_replies_same_scene_whatever_the_delays(server: ModelServer) -> None:
    server.true = 0.8
    for seed in range(4):
        server.seed, server.delay = seed, 0.0
        rehearsal = Rehearsal(client(server), config=SceneConfig(roles=4, steps=3))
        first = told((await rehearsal.ainvoke("Why?"))["trace"])
        server.delay = lambda body: random.random() * 0.02
        slow = await asyncio.gather(*(rehearsal.ainvoke("Why?") for _ in range(3)))
        assert [told(result["trace"]) for result in slow] == [first] * 3
        assert told((await asyncio.to_thread(rehearsal.invoke, "Why?"))["trace"]) == first


# ---- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0.1, 0.5, 0.9, 1.3, 1.9])
async def test_a_slow_server_does_not_outlast_max_seconds(server: ModelServer, most: float) -> None:
    server.delay, server.reply = 0.25, full_cast
    trace, took = await _timed(server, SceneConfig(max_seconds=most))
    invariants.check_all(trace)
    assert took < most + 0.75
    assert trace.status == "failed" or trace.ended_by == "max_seconds"
    assert trace.seconds <= most + 0.75
    if trace.error is not None:
        assert "s that the scene had left" in trace.error.message


@pytest.mark.parametrize("what", ["draft", "cast", "act", "judge", "reflect", "revise", "check"])
async def test_a_server_that_hangs_does_not_hang_the_scene(server: ModelServer, what: str) -> None:
    server.reply = lambda body: Fault(hang=60) if purpose(body) == what else full_cast(body)
    trace, took = await _timed(server, SceneConfig(max_seconds=1, steps=2))
    invariants.check_all(trace)
    assert took < 2
    assert trace.status == "failed" or (trace.ended_by == "max_seconds" and trace.failures)


@pytest.mark.parametrize("most", [6, 10, 25, 39])
def test_no_scene_has_more_calls_than_max_calls(server: ModelServer, most: int) -> None:
    server.reply = full_cast
    trace = Rehearsal(client(server), config=SceneConfig(max_calls=most)).invoke("Why?")["trace"]
    invariants.check_all(trace)
    assert len(server.calls) == len(trace.calls) <= most
    assert trace.ended_by == "max_calls"
    assert (trace.status == "failed") == (not trace.events)


@pytest.mark.parametrize("most", [256, 1000, 3000])
def test_no_scene_generates_more_than_max_output_tokens(server: ModelServer, most: int) -> None:
    server.reply = lambda body: "so " * 2000 if purpose(body) in ("draft", "revise") else full_cast(body)
    trace = Rehearsal(client(server), config=SceneConfig(max_output_tokens=most)).invoke("Why?")["trace"]
    assert trace.status == "failed" or trace.ended_by == "max_output_tokens"
    assert trace.usage.output_tokens <= most


@pytest.mark.parametrize("context", [6500, 8000])
def test_dialogues_fit_the_context_even_if_each_byte_is_a_token(server: ModelServer, context: int) -> None:
    """As for Chinese or Arabic with the tokenizer of a small model."""

    def counted(body: JSON) -> Reply:
        text = full_cast(body) or spoken(f"{digest(body)}，{'问他为什么把门关上了，' * 5}")
        read = sum(len(message["content"].encode()) for message in body["messages"])
        return Reply(text, usage={"prompt_tokens": read, "completion_tokens": len(text.encode())})

    server.reply = counted
    config = SceneConfig(roles=3, steps=6, context_length=context)
    trace = Rehearsal(client(server), config=config).invoke({"question": "Why?", "draft": "So."})["trace"]
    invariants.check_all(trace)
    assert any(call.purpose == "recap" for call in trace.calls)
    played = [call for call in trace.calls if call.purpose in ("act", "judge", "recap")]
    over = [(c.purpose, c.role, c.round) for c in played if c.usage.input_tokens + c.sampling["max_tokens"] > context]
    assert not over, f"{len(over)} of {len(played)} calls had no room for their reply"


# ---- in other chains and graphs -------------------------------------------------------------------------------------

LONG = SceneConfig(roles=1, steps=12)
"""A scene of 34 supersteps: more than LangGraph's limit of 25 inside chains and batches."""


async def test_in_a_chain_and_in_batches(server: ModelServer) -> None:
    server.reply = full_cast
    chain: Any = (
        RunnableLambda(lambda row: f"Question {row['n']}?")
        | Rehearsal(client(server), config=LONG)
        | RunnableLambda(lambda result: (result["trace"].question, result["status"], len(result["trace"].events)))
    )
    rows = [{"n": n} for n in range(8)]
    expected = [(f"Question {n}?", "finished", 1 + 13 * 2) for n in range(8)]
    assert await asyncio.to_thread(chain.batch, rows) == expected
    assert await chain.abatch(rows) == expected
    assert await asyncio.to_thread(chain.invoke, rows[0]) == expected[0]
    assert await chain.ainvoke(rows[0], {"recursion_limit": 25}) == expected[0]


class Outer(TypedDict, total=False):
    questions: list[str]
    answers: list[str | None]


class OuterContext(TypedDict):
    roles: int


@pytest.mark.parametrize("way", ["loop", "batch", "abatch"])
@pytest.mark.parametrize("saved", [False, True])
async def test_inside_another_graphs_node(server: ModelServer, way: str, saved: bool) -> None:
    server.reply = full_cast
    rehearsal = Rehearsal(client(server), config=LONG)

    def answer(state: Outer) -> Outer:
        if way == "batch":
            results = rehearsal.batch(state["questions"])
        else:
            results = [rehearsal.invoke(question) for question in state["questions"]]
        assert all(result["trace"].settings["roles"] == 1 for result in results)
        return {"answers": [result["trace"].question for result in results]}

    async def aanswer(state: Outer) -> Outer:
        results = await rehearsal.abatch(state["questions"])
        return {"answers": [result["trace"].question for result in results]}

    graph = StateGraph(Outer, context_schema=OuterContext)
    graph.add_node("answer", aanswer if way == "abatch" else answer)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    app: Any = graph.compile(checkpointer=InMemorySaver() if saved else None)
    config: Any = {"configurable": {"thread_id": "outer"}, "recursion_limit": 5}
    for questions in (["One?", "Two?"], ["Three?"]):
        context: OuterContext = {"roles": 7}
        if way == "abatch":
            state = await app.ainvoke({"questions": questions}, config, context=context)
        else:
            state = await asyncio.to_thread(app.invoke, {"questions": questions}, config, context=context)
        assert state["answers"] == questions


ODD_NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60)
CAST_NAMES = st.lists(
    st.sampled_from(
        ["draft", "cast", "role", "answer", "events", "question", "Ann  B", " Ann", "a:b|c", "__end__", "1"]
    )
    | ODD_NAMES,
    min_size=2,
    max_size=4,
    unique_by=lambda name: " ".join(name.split()).casefold(),
).filter(lambda names: all(name.strip() and name.strip().casefold() != "modulator" for name in names))


@moderate
@given(names=CAST_NAMES)
def test_a_given_cast_plays_whatever_its_people_are_called(server: ModelServer, names: list[str]) -> None:
    server.reply = busy
    cast = Cast(ego=names[0], roles=[Role(name=name) for name in names], plan=["goes", "comes"])
    result = Rehearsal(client(server), cast=cast).invoke({"question": "Why?", "draft": "So."})
    trace = result["trace"]
    assert trace.status == "finished" and not trace.failures
    invariants.check_all(trace)
    assert all(len(event.observers) == len(names) - 1 for event in trace.events)
