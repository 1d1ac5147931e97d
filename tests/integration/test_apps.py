"""Apps as outsiders write them run on real HTTP, and do what their authors expect."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.store.memory import InMemoryStore

from matrix_graph import ChatVLLM, Trace
from matrix_graph.compose.keeping import NAMESPACE
from tests.integration.apps import advice_chain, family_desk, shop_agent
from tests.integration.model_server import Fault, ModelServer
from tests.integration.random_reply import JSON, Reply
from tests.integration.scenes import busy, purpose

QUESTIONS = 50


def tools_of(body: JSON) -> set[str]:
    return {tool["function"]["name"] for tool in body.get("tools", [])}


def schema_of(body: JSON) -> JSON:
    found: JSON = (body.get("structured_outputs") or {}).get("json", {}).get("properties", {})
    return found


def last(body: JSON) -> JSON:
    found: JSON = body["messages"][-1]
    return found


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture
def model(server: ModelServer) -> ChatVLLM:
    return ChatVLLM(base_url=server.base_url, model="fake-model")


# ---- an LCEL chain, in batch ----------------------------------------------------------------------------------------


def advice(body: JSON) -> str | Fault | None:
    """Scenes of odd questions speak against the draft; what is said names the question's number."""
    kind, said = purpose(body), " ".join(message["content"] for message in body["messages"])
    numbers = re.findall(r"bike number (\d+)", said)
    if kind == "draft":
        return f"Sell bike number {numbers[-1]}."
    if kind == "reflect":
        reflection, odd = json.loads(busy(body) or ""), int(numbers[-1]) % 2
        unhelped = reflection["left without help"] if odd else []
        return json.dumps({**reflection, "left without help": unhelped, "verdict": "improve" if odd else "keep"})
    if kind == "revise":
        return f"Keep bike number {numbers[-1]}."
    return busy(body)


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_chain_around_the_rehearsal_on_50_inputs_at_once(
    server: ModelServer, model: ChatVLLM, mode: str
) -> None:
    server.reply, server.delay = advice, 0.02
    chain = advice_chain.build(model)
    inputs = [{"name": "Ada", "question": f"What of bike number {number}?"} for number in range(QUESTIONS)]
    if mode == "async":
        answers = await chain.abatch(inputs)
    else:
        answers = await asyncio.to_thread(chain.batch, inputs, {"max_concurrency": 10})
    assert answers == [f"{'Keep' if n % 2 else 'Sell'} bike number {n}." for n in range(QUESTIONS)]
    drafted = [body["messages"][-1]["content"] for body in server.bodies if purpose(body) == "draft"]
    assert sorted(drafted) == sorted(f"Ada asks: What of bike number {n}?" for n in range(QUESTIONS))
    assert server.peak_in_flight >= 5


# ---- an agent with the middleware, streaming to a client ------------------------------------------------------------


def shop(body: JSON) -> str | Reply | Fault | None:
    if "find_order" in tools_of(body):
        if last(body)["role"] == "tool":
            return "Buy it again, it is your loss."
        return Reply("", "tool_calls", (("find_order", '{"number": 7}'),))
    if "touches_others" in schema_of(body):
        return '{"who": "the customer\'s daughter", "touches_others": true}'
    return "We send it again at once." if purpose(body) == "revise" else busy(body)


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_client_sees_the_draft_go_and_the_revision_come(
    server: ModelServer, model: ChatVLLM, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", "true")
    server.reply = shop
    app, client = shop_agent.build(model, InMemorySaver()), shop_agent.Client()
    asked: Any = {"messages": [HumanMessage("Where is the present for my daughter, order 7?")]}
    config: Any = {"configurable": {"thread_id": "1"}}
    if mode == "async":
        await client.aread(app.astream(asked, config, stream_mode=shop_agent.MODES))
    else:
        await asyncio.to_thread(client.read, app.stream(asked, config, stream_mode=shop_agent.MODES))
    assert client.replaced == ["Buy it again, it is your loss."]
    assert [text for text in client.bubbles.values() if text] == ["We send it again at once."]
    assert client.nodes == ["model", "tools", "model", "RehearsalMiddleware.after_agent"]
    assert client.progress[:3] == ["question", "draft", "cast"]
    assert client.progress[-1] == "result"
    asked_for, call, found, answer = client.state["messages"]
    assert (call.tool_calls[0]["args"], found.content) == ({"number": 7}, "Order 7: paid, lost by the carrier.")
    assert answer.id in client.bubbles
    record = client.state["last_rehearsal"]
    assert record["draft_id"] not in client.bubbles
    trace = Trace.model_validate(record["trace"])
    assert (trace.question, trace.draft) == (asked_for.text, client.replaced[0])
    # The scene's calls carry none of the agent's tools, nor what the agent alone knows.
    played = [body for body in server.bodies if not tools_of(body)]
    assert len(played) == record["calls"]
    assert not [body for body in played if "lost by the carrier" in json.dumps(body) or "shop's" in json.dumps(body)]
    state = (await app.aget_state(config)).values if mode == "async" else app.get_state(config).values
    assert state["messages"][-1].text == "We send it again at once."


async def test_subgraph_streams_show_no_role_play_among_the_messages(server: ModelServer, model: ChatVLLM) -> None:
    server.reply = shop
    app = shop_agent.build(model)
    asked: Any = {"messages": [HumanMessage("Where is order 7?")]}
    seen = [item async for item in app.astream(asked, stream_mode="messages", subgraphs=True)]
    said = "".join(message.text for _, (message, _) in seen if isinstance(message, AIMessage))
    assert said == "Buy it again, it is your loss.We send it again at once."
    assert {namespace for namespace, _ in seen} == {()}


async def test_a_server_that_fails_the_scene_leaves_the_answer(server: ModelServer, model: ChatVLLM) -> None:
    def failing(body: JSON) -> str | Reply | Fault | None:
        return Fault(status=400, body="refused") if not tools_of(body) else shop(body)

    server.reply = failing
    app, client = shop_agent.build(model), shop_agent.Client()
    asked: Any = {"messages": [HumanMessage("Where is order 7?")]}
    await client.aread(app.astream(asked, stream_mode=shop_agent.MODES))
    assert [text for text in client.bubbles.values() if text] == ["Buy it again, it is your loss."]
    record = client.state["last_rehearsal"]
    assert (record["status"], client.replaced) == ("failed", [])
    assert "refused" in record["error"]["message"]


def test_turns_of_a_thread_on_disk(server: ModelServer, model: ChatVLLM, tmp_path: Any) -> None:
    server.reply = shop
    config: Any = {"configurable": {"thread_id": "1"}}
    for turn in (1, 2):  # each in an app of its own, as after a restart
        with SqliteSaver.from_conn_string(str(tmp_path / "threads.sqlite")) as saver:
            app = shop_agent.build(model, saver)
            end = app.invoke({"messages": [HumanMessage(f"Where is order 7? ({turn})")]}, config)
            assert len(end["rehearsals"]) == turn
            answers = [m.text for m in end["messages"] if isinstance(m, AIMessage) and not m.tool_calls]
            assert answers == ["We send it again at once."] * turn
            names = {entry.config["configurable"]["checkpoint_ns"] for entry in saver.list(None)}
            assert names == {""}


# ---- a supervisor, one of whose agents has the tool -----------------------------------------------------------------


def desk(body: JSON) -> str | Reply | Fault | None:
    tools, spoken = tools_of(body), json.dumps(body["messages"])
    if "transfer_to_adviser" in tools:
        if "Talk to her first" in spoken:
            return "Our adviser says: talk to her first."
        return Reply("", "tool_calls", (("transfer_to_adviser", "{}"),))
    if "rehearse" in tools:
        if "Better:\nAsk her before you sell." in last(body)["content"]:
            return "Talk to her first."
        plan = {"situation": "My sister lent me her bike.", "plan": "Sell it."}
        return Reply("", "tool_calls", (("rehearse", json.dumps(plan)),))
    return "Ask her before you sell." if purpose(body) == "revise" else busy(body)


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_an_agent_of_a_supervisor_looks_ahead(
    server: ModelServer, model: ChatVLLM, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", "true")
    server.reply = desk
    store = InMemoryStore()
    app = family_desk.build(model, InMemorySaver(), store)
    asked: Any = {"messages": [HumanMessage("May I sell my sister's bike?")]}
    config: Any = {"configurable": {"thread_id": "1"}}
    end = await app.ainvoke(asked, config) if mode == "async" else await asyncio.to_thread(app.invoke, asked, config)
    assert end["messages"][-1].text == "Our adviser says: talk to her first."
    result = next(m for m in end["messages"] if isinstance(m, ToolMessage) and m.name == "rehearse")
    assert result.text.startswith("The scene speaks against the plan. Better:\nAsk her before you sell.")
    kept = store.get(NAMESPACE, result.artifact["trace_id"])
    assert kept is not None
    trace = Trace.model_validate(kept.value["trace"])
    assert (trace.draft, trace.answer) == ("Sell it.", "Ask her before you sell.")
    # What the agents read is the summary, never the trace.
    assert not [body for body in server.bodies if tools_of(body) and "schema_version" in json.dumps(body)]
