"""The middleware in a real agent: what it replaces, what it leaves alone, and what it says about either."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from typing import cast as typed

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.store.memory import InMemoryStore
from pydantic import BaseModel

from matrix_graph import Cast, Rehearsal, SceneConfig, Trace, read_traces
from matrix_graph.compose.agent_turn import RehearsalSummary, read_turn
from matrix_graph.compose.keeping import NAMESPACE
from matrix_graph.compose.middleware import SMALLEST_SCENE, RehearsalMiddleware
from matrix_graph.errors import ConfigError, SceneError
from tests.unit.agent_model import AgentModel
from tests.unit.scripted import ScriptedModel

BETTER = "Ask her first, then decide."
SMALL = SceneConfig(roles=1, steps=1)
CAST = Cast.model_validate(
    {
        "ego": "Asker",
        "roles": [{"name": "Asker"}, {"name": "Sister"}],
        "objects": [],
        "plan": ["sells the bike"],
        "stance": "helps",
    }
)


def weather(city: str) -> str:
    """The weather."""
    return f"rain in {city}"


def script(against: bool = True, **replies: Any) -> Callable[[str, str, int, random.Random], Any]:
    """A scene in which everybody is touched and the reflection says what it is told to."""

    def override(purpose: str, role: str, round: int, rng: random.Random) -> Any:
        purpose = "check" if purpose in ("stance", "again", "better") else purpose
        if purpose in replies:
            return replies[purpose]
        if purpose == "judge":
            said = {"plausible": True, "reason": "why not", "observers": [], "seen": None, "changes": []}
            return {**said, "consequence": "she cries", "hurt": ["Sister"] if against else []}
        if purpose == "reflect":
            harmed = [{"name": "Sister", "how": "she cries"}] if against else []
            return {"harmed": harmed, "lesson": "it hurt her", "verdict": "improve" if against else "keep"}
        if purpose == "check":
            return {"again": "no", "better": "B", "stance": "helps"}  # an answer to whichever of them is asked
        return {"revise": BETTER, "when": {"who": "the sister", "touches_others": True}}.get(purpose)

    return override


def player(against: bool = True, **replies: Any) -> ScriptedModel:
    return ScriptedModel(override=script(against, **replies))


def said(text: Any = "Sell it.", **fields: Any) -> AIMessage:
    return AIMessage(text, **fields)


def calling() -> AIMessage:
    return AIMessage("", tool_calls=[{"name": "weather", "args": {"city": "Ulm"}, "id": "call-1"}])


def agent(replies: list[AIMessage], model: ScriptedModel | None = None, saver: Any = None, **options: Any) -> Any:
    own = {key: options.pop(key) for key in ("response_format", "name", "context_schema", "store") if key in options}
    options = {"config": SMALL, "cast": CAST, **options}
    middleware = RehearsalMiddleware(model or player(), **options)
    return create_agent(AgentModel(replies=replies), [weather], middleware=[middleware], checkpointer=saver, **own)


async def play(app: Any, mode: str, chat: Any = "What about the bike?", config: Any = None) -> dict[str, Any]:
    given = {"messages": [HumanMessage(chat)] if isinstance(chat, str) else chat}
    if mode == "async":
        return await app.ainvoke(given, config)
    return await asyncio.to_thread(app.invoke, given, config)


both = pytest.mark.parametrize("mode", ["sync", "async"])


@both
async def test_revision_takes_the_place_of_the_answer_alone(mode: str) -> None:
    usage: Any = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
    told = {"model_name": "m-1", "id": "resp_1", "logprobs": {"content": []}, "finish_reason": "length"}
    draft = said(id="draft", name="shop", response_metadata=told, usage_metadata=usage)
    end = await play(agent([calling(), draft]), mode)
    asked, call, result, answer = end["messages"]
    assert (asked.text, call.tool_calls[0]["name"], result.content) == (
        "What about the bike?",
        "weather",
        "rain in Ulm",
    )
    record = end["last_rehearsal"]
    assert answer.text == BETTER
    assert answer.id == record["answer_id"] != "draft" == record["draft_id"]
    assert (answer.name, answer.usage_metadata) == ("shop", usage)
    about = {"id": record["trace_id"], "draft_id": "draft"}
    assert answer.response_metadata == {"model_name": "m-1", "rehearsal": about}
    trace = Trace.model_validate(record["trace"])
    assert (trace.question, trace.draft, trace.answer) == ("What about the bike?", "Sell it.", BETTER)
    assert (record["status"], record["revised"], record["skipped"], record["error"]) == ("finished", True, None, None)
    assert record["calls"] == len(trace.calls)
    assert record["usage"] == trace.usage.model_dump()
    assert end["rehearsals"] == [{name: record[name] for name in RehearsalSummary.__annotations__}]
    assert (record["question_id"], record["kept"]) == (asked.id, None)


@both
async def test_an_answer_that_nothing_speaks_against_stays_the_very_message(mode: str) -> None:
    draft = said(id="draft", response_metadata={"finish_reason": "stop"})
    end = await play(agent([draft], player(against=False)), mode)
    assert end["messages"][-1].id == "draft"
    assert end["messages"][-1].response_metadata == {"finish_reason": "stop"}
    record = end["last_rehearsal"]
    assert (record["revised"], record["answer_id"], record["status"]) == (False, "draft", "finished")


STREAMS = ["values", "updates", "messages", "custom"]


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_every_stream_shows_the_revision_and_none_the_scene_as_messages(mode: str) -> None:
    app = agent([said("Sell it today.")], when="touches_others")
    given = {"messages": [HumanMessage("What about the bike?")]}
    if mode == "sync":
        seen = await asyncio.to_thread(lambda: list(app.stream(given, stream_mode=STREAMS)))
    else:
        seen = [item async for item in app.astream(given, stream_mode=STREAMS)]
    streamed = [chunk for kind, (chunk, _) in ((k, c) for k, c in seen if k == "messages")]
    assert "".join(chunk.text for chunk in streamed[:-1]) == "Sell it today."
    answer = streamed[-1]
    assert answer.text == BETTER
    assert answer.response_metadata["rehearsal"]["draft_id"] == streamed[0].id
    assert {type(chunk).__name__ for chunk in streamed} == {"AIMessageChunk", "AIMessage"}
    update = [c for k, c in seen if k == "updates"][-1]["RehearsalMiddleware.after_agent"]
    assert [type(message) for message in update["messages"]] == [RemoveMessage, AIMessage]
    assert update["messages"][0].id == streamed[0].id
    assert [c for k, c in seen if k == "values"][-1]["messages"][-1].id == answer.id
    custom = [c["event"] for k, c in seen if k == "custom" and c["type"] == "rehearsal"]
    assert [event["type"] for event in custom] == [
        "question",
        "draft",
        "cast",
        "action",
        "event",
        "reflection",
        "check",
        "result",
    ]
    assert custom[-1]["answer_id"] == answer.id
    assert "trace" not in custom[-1]


async def test_nor_do_clients_that_look_into_subgraphs_see_the_scene_as_messages() -> None:
    app = agent([said("Sell it today.")])
    given = {"messages": [HumanMessage("What about the bike?")]}
    seen = [chunk async for _, (chunk, _) in app.astream(given, stream_mode="messages", subgraphs=True)]
    assert "".join(chunk.text for chunk in seen) == "Sell it today." + BETTER


async def test_events_may_be_kept_from_the_stream_and_traces_from_the_output() -> None:
    app = agent([said()], stream_events=False, keep_trace=False)
    seen = [item async for item in app.astream({"messages": [("user", "Why?")]}, stream_mode=["custom", "values"])]
    assert {mode for mode, _ in seen} == {"values"}
    record = seen[-1][1]["last_rehearsal"]
    assert record["trace"] is None
    assert record["trace_id"]
    assert record["calls"] > 0


@both
async def test_turns_of_one_thread_add_up_and_hold_plain_data(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", "true")
    saver = InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None))
    app = agent([said("One."), calling(), said("Two."), said("Three.")], saver=saver)
    config = {"configurable": {"thread_id": "t"}}
    questions = []
    for question in ("First?", "Second?", "Third?"):
        end = await play(app, mode, question, config)
        questions.append(end["last_rehearsal"]["trace"]["question"])
    assert [m.text for m in end["messages"] if m.type == "ai" and not m.tool_calls] == [BETTER] * 3
    assert len(end["rehearsals"]) == 3
    earlier = f"User: First?\nAssistant: {BETTER}"
    assert questions == [
        "First?",
        f"{earlier}\nUser: Second?",
        f"{earlier}\nUser: Second?\nAssistant: {BETTER}\nUser: Third?",
    ]
    kept = app.get_state(config).values
    assert kept["rehearsals"] == end["rehearsals"]
    asked = [message.id for message in end["messages"] if message.type == "human"]
    assert [summary["question_id"] for summary in kept["rehearsals"]] == asked
    # No trace is checkpointed, neither in a state nor among what a step wrote.
    assert "last_rehearsal" not in kept
    assert not [
        name for entry in saver.list(None) for _, name, _ in entry.pending_writes or [] if name == "last_rehearsal"
    ]
    assert "schema_version" not in str(dict(saver.storage)) + str(dict(saver.writes)) + str(dict(saver.blobs))
    # The scene's own steps stand nowhere in the agent's database.
    assert {entry.config["configurable"]["checkpoint_ns"] for entry in saver.list(None)} == {""}


async def test_the_latest_turns_may_be_all_that_is_asked() -> None:
    chat = [
        SystemMessage("Be brief."),
        HumanMessage("One?"),
        said("1."),
        HumanMessage("Two?"),
        calling(),
        ToolMessage("rain", tool_call_id="call-1"),
        said("2."),
        HumanMessage([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]),
        HumanMessage("Three?"),
    ]
    for last_turns, question in (
        (1, "Three?"),
        (2, "User: Two?\nAssistant: 2.\nUser: Three?"),
        (9, "User: One?\nAssistant: 1.\nUser: Two?\nAssistant: 2.\nUser: Three?"),
    ):
        end = await play(agent([said()], last_turns=last_turns), "async", chat)
        assert end["last_rehearsal"]["trace"]["question"] == question


class Report(BaseModel):
    """A report."""

    city: str


LEFT_ALONE: list[tuple[str, dict[str, Any], list[AnyMessage]]] = [
    ("tool_calls", {}, [HumanMessage("Why?"), AIMessage("I look.", tool_calls=calling().tool_calls, id="a")]),
    ("no_answer", {}, [HumanMessage("Why?"), ToolMessage("rain", tool_call_id="1", id="a")]),
    ("no_answer", {}, []),
    ("no_text", {}, [HumanMessage("Why?"), AIMessage(" \n", id="a")]),
    ("no_text", {}, [HumanMessage("Why?"), AIMessage([{"type": "image", "url": "http://127.0.0.1/x.png"}], id="a")]),
    ("no_question", {}, [SystemMessage("Begin."), AIMessage("So.", id="a")]),
    ("no_question", {}, [HumanMessage("  "), AIMessage("So.", id="a")]),
    (
        "structured_response",
        {"structured_response": Report(city="Ulm")},
        [HumanMessage("Why?"), AIMessage("{}", id="a")],
    ),
]


@pytest.mark.parametrize(("why", "more", "messages"), LEFT_ALONE)
async def test_what_is_no_answer_in_words_is_left_alone(why: str, more: Any, messages: list[AnyMessage]) -> None:
    model = player()
    middleware = RehearsalMiddleware(model, when=lambda _: 1 / 0 > 0, on_failure="raise")  # never asked
    state: Any = {"messages": messages, **more}
    for update in (middleware.after_agent(state, Runtime()), await middleware.aafter_agent(state, Runtime())):
        assert update is not None
        assert set(update) == {"rehearsals", "last_rehearsal"}
        record = update["last_rehearsal"]
        assert (record["status"], record["skipped"], record["revised"], record["trace"]) == (
            "skipped",
            why,
            False,
            None,
        )
        assert record["answer_id"] == record["draft_id"]
    assert not model.log


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
async def test_an_agent_with_a_response_format_keeps_its_data(strategy: Any) -> None:
    replies = {
        ToolStrategy: AIMessage("", tool_calls=[{"name": "Report", "args": {"city": "Ulm"}, "id": "1"}]),
        ProviderStrategy: AIMessage('{"city": "Ulm"}'),
    }
    model = player()
    end = await play(agent([replies[strategy]], model, response_format=strategy(Report)), "async")
    assert end["structured_response"] == Report(city="Ulm")
    assert end["last_rehearsal"]["skipped"] in ("structured_response", "no_answer")
    assert not model.log


async def test_pictures_stay_and_reasoning_about_another_answer_goes() -> None:
    picture = {"type": "image", "base64": "aGk=", "mime_type": "image/png"}
    blocks = [{"type": "reasoning", "reasoning": "sell"}, {"type": "text", "text": "Sell it."}, picture]
    end = await play(agent([said(blocks)]), "async")
    assert end["messages"][-1].content == [picture, {"type": "text", "text": BETTER}]
    assert end["last_rehearsal"]["trace"]["draft"] == "Sell it."
    end = await play(agent([said(blocks[:2])]), "async")
    assert end["messages"][-1].content == BETTER


# ---- when -----------------------------------------------------------------------------------------------------------


async def wanted_later(state: Any) -> bool:
    await asyncio.sleep(0)
    return "bike" in state["messages"][0].text


class Wanted:
    async def __call__(self, state: Any) -> bool:
        return "bike" in state["messages"][0].text


@both
@pytest.mark.parametrize("when", [lambda state: "bike" in state["messages"][0].text, wanted_later, Wanted()])
async def test_a_function_of_the_state_decides(mode: str, when: Any) -> None:
    model = player()
    for question, rehearsed in (("What about the bike?", True), ("What about the car?", False)):
        model.log.clear()
        end = await play(agent([said()], model, when=when), mode, question)
        record = end["last_rehearsal"]
        assert record["when"]["wanted"] is rehearsed
        assert (record["skipped"] is None, bool(model.log), record["revised"]) == (rehearsed,) * 3
        assert record["skipped"] in (None, "not_wanted")


@both
async def test_the_model_decides_and_its_call_is_counted(mode: str) -> None:
    model = player(when={"who": "nobody", "touches_others": False})
    end = await play(agent([said("4.")], model, when="touches_others"), mode, "2 + 2?")
    record = end["last_rehearsal"]
    assert (record["status"], record["skipped"], record["calls"]) == ("skipped", "not_wanted", 1)
    assert [purpose for purpose, *_ in model.log] == ["when"]
    call = record["when"]["calls"][0]
    assert call["messages"][-1] == {"role": "user", "content": "Question: 2 + 2?\n\nAnswer: 4."}
    assert record["usage"] == call["usage"] != {"input_tokens": 0, "output_tokens": 0}
    end = await play(agent([said()], when="touches_others"), mode)
    record = end["last_rehearsal"]
    assert (record["when"]["who"], record["when"]["wanted"], record["revised"]) == ("the sister", True, True)
    assert record["calls"] == 1 + len(record["trace"]["calls"])


async def test_text_of_people_and_models_is_filled_in_once() -> None:
    end = await play(agent([said("$question costs $5 ${draft}")], when="touches_others"), "async", "$draft?")
    asked = end["last_rehearsal"]["when"]["calls"][0]["messages"][-1]["content"]
    assert asked == "Question: $draft?\n\nAnswer: $question costs $5 ${draft}"


def _late(_: Any) -> bool:
    time.sleep(0.3)
    return True


FAILING_WHEN: list[tuple[Any, dict[str, Any], str]] = [
    (lambda state: state["nothing"], {}, "KeyError"),
    (lambda state: None, {}, "returned a NoneType; it must return True or False"),
    (lambda state: "yes", {}, "returned a str"),
    (_late, {"max_seconds": 0.05}, "took longer than max_seconds"),
    ("touches_others", {"when": "I would rather not say."}, "did not say whether"),
    ("touches_others", {"when": ConnectionError("gone")}, "gone"),
]


@both
@pytest.mark.parametrize(("when", "more", "told"), FAILING_WHEN)
async def test_a_failing_when_is_not_silent(mode: str, when: Any, more: dict[str, Any], told: str) -> None:
    model = player(when=more["when"]) if "when" in more else player()
    limits = {"max_seconds": more["max_seconds"]} if "max_seconds" in more else {}
    end = await play(agent([said(id="draft")], model, when=when, **limits), mode)
    record = end["last_rehearsal"]
    assert end["messages"][-1].id == "draft"
    assert (record["status"], record["revised"]) == ("failed", False)
    assert told in f"{record['error']['type']}: {record['error']['message']}"
    with pytest.raises(SceneError, match="could not be rehearsed") as raised:
        await play(agent([said()], model, when=when, on_failure="raise", **limits), mode)
    assert told in str(raised.value)


# ---- limits and failures -----------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("replies", "told"),
    [({"judge": ConnectionError("server gone")}, "server gone"), ({"revise": ""}, "empty"), ({"reflect": "?"}, "JSON")],
)
async def test_a_failed_scene_keeps_the_draft_and_says_why_or_raises(mode: str, replies: Any, told: str) -> None:
    end = await play(agent([said(id="draft")], player(**replies)), mode)
    record = end["last_rehearsal"]
    assert (end["messages"][-1].id, end["messages"][-1].text) == ("draft", "Sell it.")
    assert (record["status"], record["revised"], record["answer_id"]) == ("failed", False, "draft")
    assert told in record["error"]["message"]
    assert record["trace"]["status"] == "failed"
    assert record["calls"] == len(record["trace"]["calls"]) > 0
    with pytest.raises(SceneError, match=told):
        await play(agent([said()], player(**replies), on_failure="raise"), mode)


@both
async def test_a_turn_that_raised_can_be_tried_again(mode: str) -> None:
    model = player(reflect=ConnectionError("server gone"))
    app = agent([said()], model, saver=InMemorySaver(), on_failure="raise")
    config: Any = {"configurable": {"thread_id": "t"}}
    with pytest.raises(SceneError, match="server gone"):
        await play(app, mode, config=config)
    model.override = script()
    end = await (app.ainvoke(None, config) if mode == "async" else asyncio.to_thread(app.invoke, None, config))
    assert end["messages"][-1].text == BETTER
    assert len(end["rehearsals"]) == 1


@both
async def test_calls_stay_within_the_budget_those_of_when_among_them(mode: str) -> None:
    seen = {"plausible": True, "reason": "-", "observers": ["Sister"], "seen": "A shout.", "changes": []}
    seen |= {"consequence": "noise"}
    long = CAST.model_copy(update={"plan": [f"shouts {n} times" for n in range(9)]})
    for max_calls, ended_by in ((20, "max_calls"), (26, "max_calls"), (200, "max_rounds")):
        model = player(judge=seen)
        limits = SceneConfig(roles=1, steps=9, max_rounds=6)
        options = {"config": limits, "cast": long, "when": "touches_others", "max_calls": max_calls}
        end = await play(agent([said()], model, **options), mode)
        record = end["last_rehearsal"]
        assert len(model.log) == record["calls"] <= max_calls
        assert record["trace"]["settings"]["max_calls"] == max_calls - 1
        assert record["trace"]["ended_by"] == ended_by


async def test_seconds_are_limited_whatever_the_model_does() -> None:
    model = ScriptedModel(jitter=30.0, override=script())
    started = time.monotonic()
    end = await play(agent([said(id="draft")], model, when=wanted_later, max_seconds=0.3), "async")
    assert time.monotonic() - started < 5
    record = end["last_rehearsal"]
    assert (record["status"], end["messages"][-1].id) == ("failed", "draft")
    assert record["trace"]["settings"]["max_seconds"] <= 0.3
    assert record["seconds"] < 5


async def test_cancelling_the_agent_cancels_the_scene() -> None:
    model = ScriptedModel(jitter=30.0, override=script())
    task = asyncio.create_task(play(agent([said()], model), "async"))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_many_agents_at_once_do_not_mix() -> None:
    middleware = RehearsalMiddleware(player(), config=SMALL, cast=CAST, when="touches_others")
    agents = [create_agent(AgentModel(replies=[said(f"Draft {n}.")]), [], middleware=[middleware]) for n in range(8)]
    ends = await asyncio.gather(*(play(app, "async", f"Question {n}?") for n, app in enumerate(agents)))
    for n, end in enumerate(ends):
        trace = end["last_rehearsal"]["trace"]
        assert (trace["question"], trace["draft"]) == (f"Question {n}?", f"Draft {n}.")
        assert len(end["rehearsals"]) == 1


# ---- traces that are kept ------------------------------------------------------------------------------------------


@both
async def test_traces_go_to_the_store(mode: str) -> None:
    saver, store = InMemorySaver(), InMemoryStore()
    app = agent([said("One."), said("Two.")], saver=saver, store=store, traces="store", when="touches_others")
    for question in ("First?", "Second?"):
        end = await play(app, mode, question, {"configurable": {"thread_id": "t"}})
        summary = end["rehearsals"][-1]
        assert summary["kept"] == "store"
        item = store.get(NAMESPACE, summary["trace_id"])
        assert item is not None
        assert item.value["trace"] == end["last_rehearsal"]["trace"]
        assert item.value["when_calls"] == end["last_rehearsal"]["when"]["calls"]
    assert len(store.search(NAMESPACE, filter={"thread_id": "t"})) == 2


@both
async def test_traces_go_to_a_folder(mode: str, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "when needed"
    app = agent([said("One."), said("Two.")], saver=InMemorySaver(), traces=folder, keep_trace=False)
    ends = [await play(app, mode, question, {"configurable": {"thread_id": "t"}}) for question in ("First?", "Second?")]
    assert [summary["kept"] for summary in ends[-1]["rehearsals"]] == ["folder", "folder"]
    kept = list(read_traces(folder))
    assert [trace.id for trace in kept] == [summary["trace_id"] for summary in ends[-1]["rehearsals"]]
    assert kept[0].question == "First?"


@both
async def test_without_a_store_the_developer_is_told_before_a_call_is_made(mode: str) -> None:
    model = player()
    with pytest.raises(ConfigError, match=r"store=InMemoryStore\(\)"):
        await play(agent([said()], model, traces="store"), mode)
    assert not model.log


class FullStore(InMemoryStore):
    """Takes nothing."""

    def batch(self, ops: Any) -> Any:
        raise OSError(28, "No space left on device")

    async def abatch(self, ops: Any) -> Any:
        raise OSError(28, "No space left on device")


@both
@pytest.mark.parametrize("where", ["store", "folder"])
async def test_a_trace_that_cannot_be_kept_costs_nobody_the_answer(mode: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").mkdir()  # nothing can be appended to that
    options: Any = {"traces": "store", "store": FullStore()} if where == "store" else {"traces": tmp_path}
    end = await play(agent([said()], **options), mode)
    assert end["messages"][-1].text == BETTER
    summary = end["rehearsals"][0]
    assert (summary["status"], summary["revised"], summary["kept"]) == ("finished", True, None)
    assert summary["error"]["message"].startswith("The trace could not be kept: ")
    with pytest.raises(SceneError, match="The trace could not be kept"):
        await play(agent([said()], on_failure="raise", **options), mode)


async def test_an_error_that_quotes_a_whole_reply_is_cut_in_the_state() -> None:
    end = await play(agent([said()], player(judge=ConnectionError("x" * 9000))), "async")
    assert len(end["rehearsals"][0]["error"]["message"]) == 500
    assert "x" * 9000 in str(end["last_rehearsal"]["trace"]["failures"])


# ---- at the borders ----------------------------------------------------------------------------------------------


async def test_nothing_of_the_agent_reaches_the_scene() -> None:
    heard: list[Any] = []

    class Listening(ScriptedModel):
        def _reply(self, messages: Any, metadata: Any, options: Any) -> Any:
            heard.extend(message.text for message in messages)
            return super()._reply(messages, metadata, options)

        async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
            assert not {"tools", "tool_choice"} & set(kwargs)
            return await super()._agenerate(messages, stop, run_manager, **kwargs)

    class Context(BaseModel):
        classified: str = "context-classified"

    middleware = RehearsalMiddleware(Listening(override=script()), config=SMALL, cast=CAST)
    app = create_agent(
        AgentModel(replies=[calling(), said()]),
        [weather],
        system_prompt="system-classified",
        middleware=[middleware],
        context_schema=Context,
    )
    end = await app.ainvoke({"messages": [HumanMessage("Why?")]}, context=Context())
    assert end["messages"][-1].text == BETTER
    assert heard
    assert not [text for text in heard if "classified" in text or "rain in Ulm" in text]
    assert end["last_rehearsal"]["trace"]["settings"]["roles"] == SMALL.roles


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"when": "sometimes"}, 'None \\(always\\), "touches_others", or a function'),
        ({"on_failure": "ignore"}, '"keep" and "raise"'),
        ({"max_calls": 3}, "max_calls"),
        ({"max_calls": SMALLEST_SCENE + 1, "when": "touches_others"}, f"needs {SMALLEST_SCENE + 2} or more"),
        ({"max_seconds": 0}, "max_seconds"),
        ({"last_turns": 0}, "1 or more"),
        ({"traces": True}, "traces is a bool; allowed are None"),
        ({"traces": ""}, "traces is an empty text"),
        ({"traces": __file__}, "it is not a folder"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_can(options: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        RehearsalMiddleware(player(), **options)


def test_only_a_chat_model_can_play() -> None:
    wrong: Any = RunnableLambda(lambda x: x)
    with pytest.raises(ConfigError, match="takes a chat model, not RunnableLambda"):
        RehearsalMiddleware(wrong)


def test_limits_take_the_place_of_the_configs() -> None:
    middleware: Any = RehearsalMiddleware(player(), config=SceneConfig(max_calls=50, roles=7), max_seconds=9)
    assert middleware._config == SceneConfig(max_calls=50, roles=7, max_seconds=9)


def test_callers_read_the_records_and_do_not_give_them() -> None:
    app = agent([said()])
    assert not {"rehearsals", "last_rehearsal"} & set(app.get_input_jsonschema()["properties"])
    assert {"rehearsals", "last_rehearsal"} <= set(app.get_output_jsonschema()["properties"])


MESSAGES = st.one_of(
    st.text(max_size=9).map(HumanMessage),
    st.text(max_size=9).map(SystemMessage),
    st.text(max_size=9).map(AIMessage),
    st.text(max_size=9).map(lambda text: AIMessage(text, tool_calls=calling().tool_calls)),
    st.text(max_size=9).map(lambda text: ToolMessage(text, tool_call_id="call-1")),
)


@given(st.lists(MESSAGES, min_size=1, max_size=9), st.none() | st.integers(1, 3), st.booleans())
def test_whatever_was_said_only_the_answer_changes(
    messages: list[AnyMessage], last_turns: int | None, revised: bool
) -> None:
    before: Any = add_messages([], typed(Any, messages))
    copies = [message.model_copy() for message in before]
    turn = read_turn({"messages": before}, last_turns)
    if turn.skipped is None:
        asked = [message.text for message in before if isinstance(message, HumanMessage) and message.text.strip()]
        assert [m.text for m in turn.chat if isinstance(m, HumanMessage)] == asked[-(last_turns or 99) :]
        assert turn.chat[-1].text == before[-1].text
        turn.trace = TRACE.model_copy(update={"revised": revised})
    after: Any = add_messages(before, typed(Any, turn.replacement()))
    assert after[:-1] == copies[:-1]
    if turn.skipped is not None or not revised:
        assert after[-1] == copies[-1]
    else:
        assert (after[-1].text, isinstance(after[-1], AIMessage)) == (TRACE.answer, True)
        assert after[-1].id not in {message.id for message in copies}
    record = turn.record(keep_trace=True)
    assert json.loads(json.dumps(record)) == record
    assert record["answer_id"] == (after[-1].id if isinstance(after[-1], AIMessage) else None)


TRACE = Rehearsal(player(), config=SMALL, cast=CAST).invoke({"question": "Why?", "draft": "So."})["trace"]


def test_without_langchain_the_message_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['langchain.agents.middleware'] = None\n"
        "from matrix_graph.errors import PrerequisiteError\n"
        "try:\n    import matrix_graph.compose.middleware\n"
        "except PrerequisiteError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'matrix-graph[langchain]'" in done.stdout
