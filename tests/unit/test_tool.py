"""The tool in and out of an agent: what the agent reads, what stands beside it, and how it fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, ToolException
from langchain_tests.unit_tests import ToolsUnitTests
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore

from matrix_graph import Cast, Rehearsal, SceneConfig, Trace, read_traces
from matrix_graph.compose.keeping import NAMESPACE
from matrix_graph.compose.tool import rehearsal_tool, summary
from matrix_graph.errors import ConfigError
from tests.unit.agent_model import AgentModel
from tests.unit.scripted import ScriptedModel
from tests.unit.test_middleware import BETTER, CAST, SMALL, player

ASKED = {"situation": "My sister lent me her bike, and I need money.", "plan": "Sell the bike."}
both = pytest.mark.parametrize("mode", ["sync", "async"])


class TestStandardUnit(ToolsUnitTests):
    @property
    def tool_constructor(self) -> BaseTool:
        return rehearsal_tool(player(), config=SMALL, cast=CAST)

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return ASKED


def call(number: int = 1, **arguments: str) -> Any:
    return {"type": "tool_call", "name": "rehearse", "args": arguments or ASKED, "id": f"call-{number}"}


async def use(tool: BaseTool, mode: str, given: Any) -> ToolMessage:
    message = await tool.ainvoke(given) if mode == "async" else await asyncio.to_thread(tool.invoke, given)
    assert isinstance(message, ToolMessage)
    return message


def test_the_model_is_told_what_it_is_for() -> None:
    tool = rehearsal_tool(player(), name="what_if", description="Looks ahead.")
    assert (tool.name, tool.description) == ("what_if", "Looks ahead.")
    assert set(tool.args) == {"situation", "plan"}
    assert all(argument["description"] for argument in tool.args.values())
    assert "what would happen" in rehearsal_tool(player()).description


@both
async def test_what_would_happen(mode: str) -> None:
    tool = rehearsal_tool(player(), config=SMALL, cast=CAST, trace_in_artifact=True)
    message = await use(tool, mode, call())
    trace = Trace.model_validate(message.artifact.pop("trace"))
    told = {"status": "finished", "revised": True, "trace_id": trace.id, "kept": None, "error": None}
    assert message.artifact == told
    assert (trace.question, trace.draft, trace.answer) == (ASKED["situation"], ASKED["plan"], BETTER)
    assert message.status == "success"
    assert message.content == (
        f"The scene speaks against the plan. Better:\n{BETTER}\n\n"
        "What became of the people:\n- Sister: harmed. she cries\n\n"
        f"What happened in the scene:\n- Asker: {trace.events[0].action} This led to: she cries It hurt Sister."
    )


@both
async def test_a_plan_that_hurts_and_for_which_nothing_better_was_found(mode: str) -> None:
    refused = player(check={"again": "yes", "better": "B", "stance": "helps"})
    message = await use(rehearsal_tool(refused, config=SMALL, cast=CAST), mode, call())
    assert message.text.startswith(
        "The scene speaks against the plan (it hurt her), but no better one was found: The revision still helps"
    )
    assert BETTER not in message.text


@both
async def test_a_plan_that_nothing_speaks_against(mode: str) -> None:
    message = await use(rehearsal_tool(player(against=False), config=SMALL, cast=CAST), mode, call())
    assert message.text.startswith("Nothing in the scene speaks against the plan.\n\nWhat happened")
    assert "Better" not in message.text


@both
async def test_a_blocked_plan_and_objects_that_change(mode: str) -> None:
    cast = Cast.model_validate(
        {**CAST.model_dump(), "plan": ["opens it", "flies"], "objects": [{"name": "lock", "state": "shut"}]}
    )

    def judge(purpose: str, role: str, round: int, rng: Any) -> Any:
        if purpose != "judge":
            return None
        change = {"object": "lock", "to": "open", "state": "open", "after": "open"}
        ok = {"plausible": True, "reason": "-", "observers": ["Sister"], "seen": "It opens.", "consequence": None}
        return {**ok, "changes": [change]} if round == 1 else {**ok, "plausible": False, "changes": [], "observers": []}

    tool = rehearsal_tool(
        ScriptedModel(override=judge), config=SceneConfig(max_rounds=5), cast=cast, trace_in_artifact=True
    )
    message = await use(tool, mode, call())
    trace = Trace.model_validate(message.artifact["trace"])
    assert trace.status == "blocked"
    assert trace.object_states == {"lock": "open"}
    assert message.text.startswith("The plan could not be carried out to its end. ")
    assert "What changed:\n- lock: shut -> open" in message.text
    assert "(seen by Sister)" in message.text
    assert " tried: " in message.text
    assert "(could not happen: It cannot happen like that here.)" in message.text


@both
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "nothing is known of its effects (SceneError: No action of the scene"),
        ({"situation": " ", "plan": "Go."}, "situation is"),
    ],
)
async def test_a_failure_is_told_the_agent(mode: str, arguments: Any, told: str) -> None:
    tool = rehearsal_tool(player(judge=ConnectionError("server gone")), config=SMALL, cast=CAST)
    message = await use(tool, mode, call(**arguments))
    assert message.status == "error"
    assert told in message.text
    tool.handle_tool_error = False
    with pytest.raises(ToolException):
        await use(tool, mode, call(**arguments))


@both
async def test_an_agent_that_asks_twice_at_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", "true")
    other = {"situation": "Who was first?", "plan": "Say it was me."}
    model = AgentModel(replies=[AIMessage("", tool_calls=[call(1), call(2, **other)]), AIMessage("I ask her.")])
    saver, store = InMemorySaver(), InMemoryStore()
    tool = rehearsal_tool(player(), config=SMALL, cast=CAST, traces="store")
    app = create_agent(model, [tool], checkpointer=saver, store=store)
    config: Any = {"configurable": {"thread_id": "t"}}
    asked: Any = {"messages": [HumanMessage("May I sell the bike?")]}
    streamed = []
    if mode == "async":
        streamed = [item async for item in app.astream(asked, config, stream_mode="messages")]
    else:
        streamed = await asyncio.to_thread(lambda: list(app.stream(asked, config, stream_mode="messages")))
    values = app.get_state(config).values
    results = [message for message in values["messages"] if isinstance(message, ToolMessage)]
    assert [result.artifact["kept"] for result in results] == ["store", "store"]
    items = [store.get(NAMESPACE, result.artifact["trace_id"]) for result in results]
    assert [item and item.value["trace"]["question"] for item in items] == [ASKED["situation"], other["situation"]]
    assert [item and item.value["thread_id"] for item in items] == ["t", "t"]
    # A trace in the state would be written again at every step of every later turn.
    assert "schema_version" not in str(dict(saver.storage)) + str(dict(saver.writes)) + str(dict(saver.blobs))
    assert set(values) == {"messages"}
    known = {message.id for message in values["messages"]}
    assert {message.id for message, _ in streamed} <= known  # nothing of the role play
    assert {entry.config["configurable"]["checkpoint_ns"] for entry in saver.list(None)} == {""}
    # What the agent reads is the summary alone.
    assert "artifact" not in str(model.heard[-1][-1].content)


@both
async def test_traces_go_to_a_folder(mode: str, tmp_path: Path) -> None:
    message = await use(rehearsal_tool(player(), config=SMALL, cast=CAST, traces=tmp_path), mode, call())
    assert message.artifact["kept"] == "folder"
    assert [trace.id for trace in read_traces(tmp_path)] == [message.artifact["trace_id"]]


@both
async def test_a_trace_that_cannot_be_kept_is_told_beside_the_reply(mode: str, tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").mkdir()  # nothing can be appended to that
    message = await use(rehearsal_tool(player(), config=SMALL, cast=CAST, traces=tmp_path), mode, call())
    assert message.text.startswith("The scene speaks against the plan.")
    assert message.artifact["kept"] is None
    assert message.artifact["error"]["message"].startswith("The trace could not be kept: ")


@both
async def test_without_a_store_the_developer_is_told(mode: str) -> None:
    model = player()
    with pytest.raises(ConfigError, match='traces="store", and this graph has no store'):
        await use(rehearsal_tool(model, config=SMALL, cast=CAST, traces="store"), mode, call())
    assert not model.log


def _trace(seed: int) -> Trace:
    model = ScriptedModel(seed=seed, harmless=0.2)
    config = SceneConfig(roles=2, steps=3)
    return Rehearsal(model, config=config).invoke({"question": "Why?", "draft": "So. " * 99})["trace"]


TRACES = [trace for trace in map(_trace, range(4)) if trace.status != "failed"]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(TRACES),
    st.integers(200, 5000),
    st.text(max_size=3000),
    st.text(max_size=200),
)
def test_summaries_are_bounded_whatever_models_say(trace: Trace, length: int, answer: str, action: str) -> None:
    events = [event.model_copy(update={"action": action}) for event in trace.events]
    trace = trace.model_copy(update={"answer": answer, "revised": True, "events": events})
    text = summary(trace, length)
    assert len(text) <= length
    assert text.startswith(("The scene speaks against", "The plan could not"))
    assert text.endswith(" [...]") or all(event.reason in text for event in events if not event.plausible)


def test_what_cannot_be_used_is_refused_with_what_can() -> None:
    wrong: Any = "gpt"
    with pytest.raises(ConfigError, match="takes a chat model, not str"):
        rehearsal_tool(wrong)
    with pytest.raises(ConfigError, match="give 200 characters or more"):
        rehearsal_tool(player(), max_length=10)
