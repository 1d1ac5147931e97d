"""A scene with a human goes on in another process: SQLite and strict msgpack.

As in `test_resume`, each step is a program of its own, since LangGraph reads LANGGRAPH_STRICT_MSGPACK when imported.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

from matrix_graph import Cast, Rehearsal, Role, SceneConfig
from matrix_graph.scene.players import human
from tests.unit import invariants
from tests.unit.scripted import ScriptedModel, everybody_sees

ROOT = Path(__file__).parents[2]
THREAD: RunnableConfig = {"configurable": {"thread_id": "t"}}
CAST = Cast(
    ego="Ann", roles=[Role(name="Ann"), Role(name="Bob"), Role(name="Dr. No: 1|2")], plan=["knocks", "waits", "leaves"]
)


class Chat(TypedDict):
    messages: list[Any]


def agent() -> Any:
    def asks(state: Chat) -> Any:
        return {"messages": [AIMessage(f"nods as {interrupt({'type': 'permission'})} says")]}

    graph = StateGraph(Chat)
    graph.add_node("asks", asks)
    graph.add_edge(START, "asks")
    return graph.compile(name="agent")


def rehearsal(saver: Any, model: ScriptedModel) -> Rehearsal:
    players: Any = {"Bob": human(), "Dr. No: 1|2": agent()}
    return Rehearsal(model, cast=CAST, config=SceneConfig(max_rounds=3), checkpointer=saver, players=players)


def answers(result: Any) -> dict[str, Any]:
    values = {item["id"]: item["value"] for item in result["interrupts"]}
    return {id: "Bob" if value["type"] == "permission" else f"waves {value['round']}" for id, value in values.items()}


def told(result: Any, calls: int) -> None:
    """Print what the next process, or the test, has to know."""
    trace = result["trace"]
    if trace is not None:
        invariants.check_all(trace)
    said = [(event.round, event.role, event.action) for event in trace.events] if trace else []
    print(json.dumps({"status": result["status"], "calls": calls, "said": said}))


def sync(file: str, begin: bool) -> None:
    """Begin, or answer everybody who is waited for; the synchronous saver."""
    model = ScriptedModel(override=everybody_sees(*(role.name for role in CAST.roles)))
    with SqliteSaver.from_conn_string(file) as saver:
        scene = rehearsal(saver, model)
        if begin:
            result: Any = scene.invoke("Why?", THREAD)
        else:
            waiting = scene.graph.get_state(THREAD).interrupts
            resume = answers({"interrupts": [{"id": item.id, "value": item.value} for item in waiting]})
            result = scene.invoke(Command(resume=resume), THREAD)
    told(result, len(model.log))


async def asynchronous(file: str, begin: bool) -> None:
    """The same with the asynchronous saver, as a stream."""
    model = ScriptedModel(override=everybody_sees(*(role.name for role in CAST.roles)))
    async with AsyncSqliteSaver.from_conn_string(file) as saver:
        scene = rehearsal(saver, model)
        given: Any = "Why?"
        if not begin:
            waiting = (await scene.graph.aget_state(THREAD)).interrupts
            given = Command(resume=answers({"interrupts": [{"id": i.id, "value": i.value} for i in waiting]}))
        events = [event async for event in scene.astream(given, THREAD)]
    told(events[-1], len(model.log))


def main() -> None:
    """One step: sync or async, the database, and whether to begin."""
    from langgraph.checkpoint.serde import _msgpack

    assert _msgpack.STRICT_MSGPACK_ENABLED
    warnings.simplefilter("error")
    way, file, begin = sys.argv[1], sys.argv[2], sys.argv[3] == "begin"
    if way == "sync":
        sync(file, begin)
    else:
        asyncio.run(asynchronous(file, begin))


def step(way: str, file: Path, what: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.test_human_resume", way, str(file), what],
        cwd=ROOT,
        env={**os.environ, "LANGGRAPH_STRICT_MSGPACK": "true"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == "", "no warning about types that were not registered or were blocked"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("ways", [("sync", "async", "sync"), ("async", "sync", "async")])
def test_a_human_answers_in_another_process(ways: tuple[str, str, str], tmp_path: Path) -> None:
    file = tmp_path / "scene.sqlite"
    begun = step(ways[0], file, "begin")
    assert begun["status"] == "waiting" and begun["calls"] == 3, (
        "the draft, its stance, and the judgement of the first step"
    )
    second = step(ways[1], file, "answer")
    assert second["status"] == "waiting"
    assert second["calls"] == 3 + 1, "three judgements and Ann's third round, and nothing again"
    last = step(ways[2], file, "answer")
    assert last["status"] == "finished"
    assert [(round, role, action) for round, role, action in last["said"] if role != "Ann"][:3] == [
        (2, "Bob", "waves 2"),
        (2, "Dr. No: 1|2", "nods as Bob says"),
        (3, "Bob", "waves 3"),
    ]


if __name__ == "__main__":
    main()
