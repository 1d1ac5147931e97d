"""Roles that somebody else than the model plays: Runnables and humans, well-behaved and not."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypedDict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.tools import tool
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_store
from langgraph.graph import START, StateGraph
from langgraph.runtime import get_runtime
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from matrix_graph import Cast, Rehearsal, Role, SceneConfig, SocialObject, Trace, create_scene
from matrix_graph.errors import CastError, SceneError
from matrix_graph.scene.players import Player, human
from matrix_graph.scene.state import to_trace
from tests.unit import invariants
from tests.unit.scripted import ScriptedModel, everybody_sees, words

CAST = Cast(
    ego="Robber",
    roles=[
        Role(name="Teller", traits="tok000000000001", goal="tok000000000002"),
        Role(name="Robber", traits="tok000000000003", goal="tok000000000004"),
        Role(name="Officer", traits="tok000000000005", goal="tok000000000006"),
    ],
    objects=[SocialObject(name="money", state="in the vault")],
    plan=["walks in tok000000000007", "takes the money tok000000000008"],
)
CONFIG = SceneConfig(max_rounds=3)


def open_stage() -> ScriptedModel:
    return ScriptedModel(override=everybody_sees("Teller", "Robber", "Officer"))


def play(**players: Any) -> Trace:
    return Rehearsal(open_stage(), cast=CAST, config=CONFIG, players=players).invoke("Why?")["trace"]


def actions(trace: Trace, role: str) -> list[str]:
    return [event.action for event in trace.events if event.role == role]


class Reply(BaseModel):
    action: str


@pytest.mark.parametrize(
    ("result", "action"),
    [
        ("presses  the\nbutton", "presses the button"),
        (AIMessage("presses the button"), "presses the button"),
        ({"action": "presses the button"}, "presses the button"),
        ({"messages": [HumanMessage("x"), AIMessage("presses the button")]}, "presses the button"),
        ('{"action": "presses the button"}', "presses the button"),
        ('```json\n{"action": "presses the button"}\n```', "presses the button"),
        (AIMessage('I think: {"action": "presses the button"}'), "presses the button"),
        ({"messages": [AIMessage("-")], "structured_response": Reply(action="presses it")}, "presses it"),
        ("broken \ud83d", "broken \ufffd"),
    ],
)
def test_what_a_runnable_may_return(result: Any, action: str) -> None:
    trace = play(Teller=lambda given: result)
    invariants.check_all(trace)
    assert actions(trace, "Teller") == [action, action] and not trace.failures
    calls = [call for call in trace.calls if call.role == "Teller" and call.purpose == "act"]
    assert {(call.author, call.model, json.dumps(call.sampling)) for call in calls} == {("runnable", "<lambda>", "{}")}
    assert trace.settings["players"] == {"Teller": "<lambda>"}
    assert json.loads(trace.to_json_line())["calls"]


class Boom(Exception):
    pass


def raises(given: Any) -> Any:
    raise Boom("no")


def stops(given: Any) -> Any:
    raise StopIteration


async def cancels(given: Any) -> Any:
    task = asyncio.get_running_loop().create_task(asyncio.sleep(9))
    task.cancel()
    await task


@pytest.mark.parametrize(
    ("player", "why"),
    [
        (raises, "Boom: no"),
        (stops, "RuntimeError"),
        (cancels, "CancelledError"),
        (lambda given: None, "ReplyError: The player returned a NoneType"),
        (lambda given: "", "empty"),
        (lambda given: "x" * 5000, "at most 4000"),
        (lambda given: {"action": 5}, "int"),
        (lambda given: '{"wrong": 1}', "does not fit"),
        (lambda given: {"answer": "x"}, '"answer"'),
        (lambda given: {"messages": given["messages"]}, "must be the player's own"),
        (lambda given: {"messages": []}, '"messages"'),
    ],
)
@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_player_that_fails_is_silent_once_a_round_and_on_record(player: Any, why: str, way: str) -> None:
    asked = []

    def counted(given: Any) -> Any:
        asked.append(1)
        return player(given)

    async def acounted(given: Any) -> Any:
        asked.append(1)
        return await player(given)

    one: Any = acounted if asyncio.iscoroutinefunction(player) else counted
    rehearsal = Rehearsal(open_stage(), cast=CAST, config=CONFIG, players={"Teller": one})
    trace = (rehearsal.invoke("Why?") if way == "sync" else asyncio.run(rehearsal.ainvoke("Why?")))["trace"]
    invariants.check_all(trace)
    assert trace.status == "finished" and actions(trace, "Teller") == []
    assert [(f.purpose, f.role, f.round) for f in trace.failures] == [("act", "Teller", 2), ("act", "Teller", 3)]
    assert all(why in f"{f.error.type}: {f.error.message}" for f in trace.failures)
    assert len(asked) == 2, "what a player does besides is not done twice"


def hangs(given: Any) -> Any:
    threading.Event().wait(30)


async def ahangs(given: Any) -> Any:
    await asyncio.sleep(30)


@pytest.mark.parametrize("player", [hangs, ahangs, RunnableLambda(hangs).with_config(tags=["x"])])
def test_a_player_that_hangs_is_silent_and_lets_the_process_end(player: Any) -> None:
    config = SceneConfig(max_rounds=2, max_player_seconds=0.05)
    rehearsal = Rehearsal(open_stage(), cast=CAST, config=config, players={"Teller": player})
    started = time.monotonic()
    if isinstance(player, Runnable):  # its hanging thread belongs to LangChain's pool
        trace = rehearsal.invoke("Why?")["trace"]
    else:
        trace = asyncio.run(rehearsal.ainvoke("Why?"))["trace"]
    assert time.monotonic() - started < 5
    assert [f.role for f in trace.failures] == ["Teller"] and "0.05 s" in trace.failures[0].error.message
    assert trace.status == "finished"


async def test_blocking_players_do_not_stop_the_loop() -> None:
    ticks = []

    async def tick() -> None:
        while True:
            ticks.append(1)
            await asyncio.sleep(0.005)

    def slow(given: Any) -> str:
        time.sleep(0.2)
        return "waits"

    ticking = asyncio.create_task(tick())
    rehearsal = Rehearsal(open_stage(), cast=CAST, config=SceneConfig(max_rounds=2), players={"Teller": slow})
    await rehearsal.ainvoke("Why?")
    ticking.cancel()
    assert len(ticks) > 8


def test_a_player_hears_its_own_dialogue_and_nothing_else() -> None:
    heard: list[list[BaseMessage]] = []

    def player(given: Any, config: RunnableConfig) -> str:
        assert set(given) == {"messages"}
        heard.append(given["messages"])
        assert config["metadata"]["matrix_graph_role"] == "Teller"
        return f"reacts {len(heard)}"

    trace = play(Teller=player)
    first, second = heard
    assert [message.type for message in first] == ["system", "human"]
    assert [message.text for message in second[:2]] == [message.text for message in first]
    assert second[2].text == "reacts 1" and second[3].type == "human"
    assert "- Robber moves in round 1" in first[-1].text and "tok000000000003" not in "".join(m.text for m in second)
    recorded = [call for call in trace.calls if call.role == "Teller" and call.purpose == "act"]
    assert [[m.content for m in call.messages] for call in recorded] == [[m.text for m in said] for said in heard]


def test_an_ego_that_somebody_plays_is_asked_about_each_step() -> None:
    said: list[str] = []

    def ego(given: Any) -> str:
        said.append(given["messages"][-1].text)
        return f"does {len(said)}"

    trace = play(Robber=ego)
    invariants.check_all(trace)
    assert actions(trace, "Robber") == ["does 1", "does 2", "does 3"]
    assert "walks in" in said[0] and "takes the money" in said[1]


class Chat(TypedDict):
    messages: list[Any]


def agent(node: Callable[[Any], Any], **compiled: Any) -> Any:
    graph = StateGraph(Chat)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    return graph.compile(name="agent", **compiled)


@pytest.mark.parametrize("inner", [None, InMemorySaver(), True])
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("way", ["sync", "async"])
async def test_an_agent_finds_the_store_and_no_context_of_the_scene(inner: Any, saved: bool, way: str) -> None:
    def remember(state: Chat) -> Any:
        assert get_runtime().context is None
        store = get_store()
        known = len(store.search(("teller",)))
        store.put(("teller",), str(known), {"seen": state["messages"][-1].text})
        usage: Any = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
        return {"messages": [*state["messages"], AIMessage(f"remembers {known}", usage_metadata=usage)]}

    player = agent(remember, checkpointer=inner)
    scene = create_scene(open_stage(), cast=CAST, config=CONFIG, players={"Teller": player, "Officer": player})
    app: Any = scene.compile(checkpointer=InMemorySaver() if saved else None, store=InMemoryStore())
    texts = []
    for thread in ("one", "two"):
        config: Any = {"configurable": {"thread_id": thread}, "recursion_limit": 50}
        given, context = {"question": "Why?"}, CONFIG
        if way == "sync":
            state = await asyncio.to_thread(app.invoke, given, config, context=context)
        else:
            state = await app.ainvoke(given, config, context=context)
        trace = to_trace(state)
        invariants.check_all(trace)
        assert not trace.failures
        texts += actions(trace, "Teller") + actions(trace, "Officer")
        assert {call.model for call in trace.calls if call.author == "runnable"} == {"agent"}
        assert all(call.usage.input_tokens == 3 for call in trace.calls if call.author == "runnable")
    assert len(texts) == 8 and max(int(text.split()[1]) for text in texts) >= 4, "earlier scenes are remembered"


class ToolUser(ScriptedModel):
    """Calls its tool once a turn, then says what the tool told."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _reply(self, messages: list[BaseMessage], metadata: dict[str, Any], options: dict[str, Any]) -> Any:
        last = messages[-1]
        if last.type == "tool":
            return {"action": f"says: {last.text}"}
        call: Any = {"name": "recall", "args": {"what": last.text.splitlines()[1]}, "id": str(len(messages))}
        return AIMessage("", tool_calls=[call])


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_an_agent_with_tools_remembers_earlier_scenes(way: str) -> None:
    @tool
    def recall(what: str) -> str:
        """Recall what was seen before, and remember this too."""
        store = get_store()
        known = [item.value["what"] for item in store.search(("teller",))]
        store.put(("teller",), str(len(known)), {"what": what})
        return f"I have seen {len(known)} things"

    teller = create_agent(ToolUser(), [recall], system_prompt="You never forget.")
    scene = create_scene(open_stage(), cast=CAST, config=SceneConfig(max_rounds=2), players={"Teller": teller})
    app: Any = scene.compile(store=InMemoryStore(), checkpointer=InMemorySaver())
    said = []
    for thread in ("one", "two"):
        config: Any = {"configurable": {"thread_id": thread}, "recursion_limit": 50}
        given = {"question": "Why?"}
        state = await (asyncio.to_thread(app.invoke, given, config) if way == "sync" else app.ainvoke(given, config))
        trace = to_trace(state)
        invariants.check_all(trace)
        said += actions(trace, "Teller")
    assert said == ["says: I have seen 0 things", "says: I have seen 1 things"]


def test_an_agent_has_its_own_limit_of_steps() -> None:
    graph = StateGraph(Chat)
    names = [f"step {number}" for number in range(40)]
    for name in names:
        graph.add_node(name, lambda state: {"messages": [AIMessage("walks")]})
    graph.add_edge(START, names[0])
    for one, other in pairwise(names):
        graph.add_edge(one, other)
    trace = play(Teller=graph.compile())
    assert not trace.failures and actions(trace, "Teller") == ["walks", "walks"]


def test_an_agent_may_interrupt_too() -> None:
    def asks(state: Chat) -> Any:
        return {"messages": [AIMessage(f"acts as {interrupt('may I?')} says")]}

    rehearsal = Rehearsal(
        open_stage(),
        cast=CAST,
        config=SceneConfig(max_rounds=2),
        checkpointer=InMemorySaver(),
        players={"Teller": agent(asks), "Officer": human()},
    )
    result: Any = rehearsal.invoke("Why?", {"configurable": {"thread_id": "t"}})
    values = [item["value"] for item in result["interrupts"]]
    assert len(values) == 2 and "may I?" in values
    resume = {item["id"]: "Ann" for item in result["interrupts"]}
    trace = rehearsal.invoke(Command(resume=resume), {"configurable": {"thread_id": "t"}})["trace"]
    assert actions(trace, "Teller") == ["acts as Ann says"] and actions(trace, "Officer") == ["Ann"]


# ---- humans ---------------------------------------------------------------------------------------------------------


def waiting(**players: Player) -> tuple[Rehearsal, RunnableConfig, ScriptedModel]:
    model = open_stage()
    rehearsal = Rehearsal(model, cast=CAST, config=CONFIG, checkpointer=InMemorySaver(), players=players)
    return rehearsal, {"configurable": {"thread_id": "t"}}, model


def test_a_human_is_shown_what_the_role_may_know_and_nobody_is_asked_twice() -> None:
    rehearsal, thread, model = waiting(Teller=human())
    result: Any = rehearsal.invoke("Why?", thread)
    assert (result["status"], result["thread_id"], result["answer"], result["trace"]) == ("waiting", "t", None, None)
    (item,) = result["interrupts"]
    assert item["value"] == {
        "type": "action_wanted",
        "role": "Teller",
        "round": 2,
        "you": {"name": "Teller", "who": "", "traits": "tok000000000001", "goal": "tok000000000002"},
        "people": {"Teller": "", "Robber": "", "Officer": ""},
        "before": [],
        "seen": ["Robber moves in round 1"],
        "failed": None,
        "step": None,
        "problem": None,
    }
    assert [entry for entry in model.log if entry[2] == 2] == [("act", "Officer", 2)]
    time.sleep(0.3)
    result = rehearsal.invoke(Command(resume="hides"), thread)
    assert model.log.count(("act", "Officer", 2)) == 1
    assert result["interrupts"][0]["value"]["before"][-1] == {"role": "assistant", "content": "hides"}
    trace = rehearsal.invoke(Command(resume={"action": "phones"}), thread)["trace"]
    invariants.check_all(trace)
    assert actions(trace, "Teller") == ["hides", "phones"]
    assert trace.seconds < 0.3, "time spent waiting is not the scene's"
    calls = [call for call in trace.calls if call.author == "human"]
    assert [(c.model, c.completion, c.sampling, c.usage.output_tokens) for c in calls] == [
        ("human", "hides", {}, 0),
        ("human", "phones", {}, 0),
    ]
    assert trace.settings["players"] == {"Teller": "human"} and len(model.log) == len(trace.calls) - 2


@pytest.mark.parametrize("silence", ["", "  ", None, {"action": ""}, {"action": None}])
def test_silence_is_no_failure(silence: Any) -> None:
    rehearsal, thread, _ = waiting(Teller=human())
    rehearsal.invoke("Why?", thread)
    rehearsal.invoke(Command(resume=silence), thread)
    trace = rehearsal.invoke(Command(resume="at last"), thread)["trace"]
    invariants.check_all(trace)
    assert actions(trace, "Teller") == ["at last"] and not trace.failures
    told = [call for call in trace.calls if call.role == "Teller" and call.purpose == "act"]
    assert told[0].completion == "" and [message.role for message in told[1].messages] == ["system", "user"]


@pytest.mark.parametrize("nonsense", [5, ["x"], {"act": "x"}, "y" * 4500, {"action": 7}, '{"wrong": 1}'])
def test_nonsense_is_asked_for_again(nonsense: Any) -> None:
    rehearsal, thread, model = waiting(Teller=human())
    rehearsal.invoke("Why?", thread)
    before = len(model.log)
    again: Any = rehearsal.invoke(Command(resume=nonsense), thread)
    value = again["interrupts"][0]["value"]
    assert again["status"] == "waiting" and value["round"] == 2 and value["problem"]
    assert len(model.log) == before
    assert rehearsal.invoke(Command(resume="hides"), thread)["interrupts"][0]["value"]["round"] == 3


async def test_several_humans_are_asked_at_once_and_answer_one_by_one() -> None:
    rehearsal, thread, model = waiting(Teller=human(), Officer=human())
    events = [event async for event in rehearsal.astream("Why?", thread)]
    assert events[-1]["type"] == "interrupt" and events[-1]["status"] == "waiting"
    second, first = sorted(events[-1]["interrupts"], key=lambda item: item["value"]["role"])
    assert (first["value"]["role"], second["value"]["role"]) == ("Teller", "Officer")
    calls = len(model.log)
    result: Any = await rehearsal.ainvoke(Command(resume={second["id"]: "whistles"}), thread)
    assert [item["value"]["role"] for item in result["interrupts"]] == ["Teller"] and len(model.log) == calls
    result = await rehearsal.ainvoke(Command(resume={first["id"]: "hides"}), thread)
    while result["status"] == "waiting":
        result = await rehearsal.ainvoke(Command(resume={i["id"]: "" for i in result["interrupts"]}), thread)
    trace = result["trace"]
    invariants.check_all(trace)
    assert (actions(trace, "Teller"), actions(trace, "Officer")) == (["hides"], ["whistles"])


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("way", ["sync", "async"])
async def test_an_interrupt_reaches_the_graph_around(own: bool, way: str) -> None:
    rehearsal = Rehearsal(
        open_stage(),
        cast=CAST,
        config=CONFIG,
        players={"Teller": human()},
        checkpointer=InMemorySaver() if own else None,
    )

    def node(state: Chat) -> Any:
        return {"messages": [rehearsal.invoke(state["messages"][0])["trace"].events[-1].action]}

    async def anode(state: Chat) -> Any:
        return {"messages": [(await rehearsal.ainvoke(state["messages"][0]))["trace"].events[-1].action]}

    app = agent(node if way == "sync" else anode, checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "outer"}}
    state: Any = await app.ainvoke({"messages": ["Why?"]}, config)
    rounds = []
    while "__interrupt__" in state:
        rounds.append(state["__interrupt__"][0].value["round"])
        state = await app.ainvoke(Command(resume="hides"), config)
    assert rounds == [2, 3] and len(state["messages"]) == 1


def test_a_human_needs_a_checkpointer() -> None:
    with pytest.raises(SceneError, match=r"Teller is played by a human.*checkpointer"):
        Rehearsal(open_stage(), cast=CAST, players={"Teller": human()}).invoke("Why?")
    app: Any = create_scene(open_stage(), cast=CAST, players={"Teller": human()}).compile()
    with pytest.raises(SceneError, match="checkpointer"):
        app.invoke({"question": "Why?"}, {"recursion_limit": 99})
    with pytest.raises(SceneError, match="no thread"):
        waiting(Teller=human())[0].invoke(Command(resume="x"), {"configurable": {"thread_id": "unknown"}})
    with pytest.raises(SceneError, match="Give its thread_id"):
        waiting(Teller=human())[0].invoke(Command(resume="x"))
    with pytest.raises(SceneError, match="keeps no scenes"):
        Rehearsal(open_stage(), cast=CAST).invoke(Command(resume="x"))


def test_a_resumed_scene_keeps_its_settings() -> None:
    rehearsal, thread, _ = waiting(Teller=human())
    rehearsal.invoke("Why?", thread, context=SceneConfig(max_rounds=2))
    trace = rehearsal.invoke(Command(resume="hides"), thread)["trace"]
    assert trace.settings["max_rounds"] == 2 and max(event.round for event in trace.events) == 2


@pytest.mark.parametrize(
    ("cast", "players", "help"),
    [
        (None, {"Teller": human()}, "needs cast="),
        (CAST, {"teller": human()}, "'teller', who is not in the cast"),
        (CAST, {"Teller": 5}, "is a int; give a Runnable"),
    ],
)
def test_who_cannot_play(cast: Any, players: Any, help: str) -> None:
    with pytest.raises(CastError, match=help):
        Rehearsal(open_stage(), cast=cast, players=players)


# ---- rule 3 and all the others, whoever plays -----------------------------------------------------------------------


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 2**32),
    st.dictionaries(
        st.sampled_from(["Teller", "Robber", "Officer"]), st.sampled_from(["runnable", "human"]), min_size=1
    ),
    st.sampled_from([0.3, 0.9, 1.0]),
    st.sampled_from([0.0, 0.2]),
)
def test_rules_hold_whoever_plays(seed: int, who: dict[str, str], plausible: float, nonsense: float) -> None:
    import random

    rng = random.Random(seed)

    def runnable(given: Any) -> Any:
        if rng.random() < nonsense * 2:
            raise Boom("no")
        return rng.choice([words(rng), {"action": words(rng)}, AIMessage(words(rng)), "", None])

    players: dict[str, Any] = {name: human() if kind == "human" else runnable for name, kind in who.items()}
    model = ScriptedModel(seed=seed, plausible=plausible, nonsense=nonsense)
    rehearsal = Rehearsal(model, cast=CAST, config=CONFIG, checkpointer=InMemorySaver(), players=players)
    result: Any = rehearsal.invoke("Why?")
    thread: Any = {"configurable": {"thread_id": result["thread_id"]}}
    shown = []
    while result["status"] == "waiting":
        shown += [item["value"] for item in result["interrupts"]]
        replies = {item["id"]: rng.choice([words(rng), "", 5]) for item in result["interrupts"]}
        result = rehearsal.invoke(Command(resume=replies), thread)
    invariants.check_all(result["trace"])
    assert len(model.log) == sum(call.author == "model" for call in result["trace"].calls)
    for value in shown:
        call = next(c for c in result["trace"].calls if (c.role, c.round) == (value["role"], value["round"]))
        told = "".join(message.content for message in call.messages)
        assert set(invariants.TOKEN.findall(json.dumps(value))) <= set(invariants.TOKEN.findall(told))
