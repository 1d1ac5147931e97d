"""A scene as a subgraph of somebody's own graph, under real checkpointers: stopped, resumed elsewhere, forked.

Memory, SQLite and PostgreSQL; one process begins with the synchronous saver and dies of SIGKILL, another goes on with
the asynchronous one. LangGraph reads LANGGRAPH_STRICT_MSGPACK when it is imported, so that each is a program of its own
with the variable set, which must have nothing to complain of.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, interrupt

from matrix_graph import Cast, Role, SceneConfig, SocialObject
from matrix_graph.scene.graph import create_scene, recursion_limit
from matrix_graph.scene.state import to_trace
from tests.unit import invariants
from tests.unit.scripted import ScriptedModel

if TYPE_CHECKING:
    from tests.integration.postgres import PostgresServer

pytest_plugins = ["tests.integration.postgres"]

ROOT = Path(__file__).parents[2]
CONFIG = SceneConfig(roles=2, steps=2)
QUESTION = "Wie öffne ich die Tür? 门 🙂"
OTHER_QUESTION = "And how do I close it?"
CAST = Cast(
    ego="Ann",
    roles=[Role(name="Ann", traits="loud"), Role(name="Bob: 1|2", goal="quiet")],
    objects=[SocialObject(name="door", state="closed")],
    plan=["knock", "open the door"],
)
App = CompiledStateGraph[Any, Any, Any, Any]


class Desk(TypedDict, total=False):
    """An outer graph's own state; question, draft, answer, revised, status and events are shared with the scene."""

    question: str
    draft: str | None
    answer: str | None
    revised: bool
    status: str | None
    events: list[dict[str, Any]]
    cast: dict[str, Any] | None
    signed: str


def desk(saver: BaseCheckpointSaver[Any] | None, model: ScriptedModel, *, stop_inside: bool = False) -> App:
    """A desk that has each answer rehearsed, and signed by a person before it goes out.

    Args:
        saver: of the outer graph; the scene takes it over.
        model: plays the scene.
        stop_inside: whether the scene waits before each judgement.
    """

    def sign(state: Desk) -> Desk:
        return {"signed": interrupt({"please sign": state["answer"]})}

    scene = create_scene(model, cast=CAST, config=CONFIG).compile(
        interrupt_before=["modulator"] if stop_inside else None, name="scene"
    )
    graph = StateGraph(Desk)
    graph.add_node("scene", scene)
    graph.add_node("sign", sign)
    graph.add_edge(START, "scene")
    graph.add_edge("scene", "sign")
    return graph.compile(checkpointer=saver)


def player() -> ScriptedModel:
    """Everybody sees something of what the others do, and something comes of it."""
    return ScriptedModel(seed=2, plausible=0.9, harmless=0.3)


def thread(name: str) -> RunnableConfig:
    return {"configurable": {"thread_id": name}, "recursion_limit": recursion_limit(CONFIG)}


def expected(question: str = QUESTION) -> dict[str, Any]:
    """What the scene comes to where nothing stops it and nobody saves it."""
    state = (
        create_scene(player(), cast=CAST, config=CONFIG).compile().invoke({"question": question}, thread("nobody's"))
    )
    trace = to_trace(state)
    invariants.check_all(trace)
    assert len(trace.events) >= 3
    return {key: state[key] for key in Desk.__annotations__ if key in state}


# ---- the programs ---------------------------------------------------------------------------------------------------


def begin(saver: BaseCheckpointSaver[Any]) -> None:
    """Bring threads to their stops: after the scene, in its first round, and in its second."""
    wanted = expected()
    done = desk(saver, player()).invoke({"question": QUESTION}, thread("signature"))
    assert [stop.value for stop in done["__interrupt__"]] == [{"please sign": wanted["answer"]}]
    for name, rounds in (("round 1", 1), ("round 2", 2), ("door", 1)):
        app = desk(saver, player(), stop_inside=True)
        app.invoke({"question": QUESTION}, thread(name))
        for _ in range(rounds - 1):
            app.invoke(None, thread(name))
        inside = app.get_state(thread(name), subgraphs=True).tasks[0].state
        assert inside.next == ("modulator",) and inside.values["round"] == rounds - 1


async def finish(saver: BaseCheckpointSaver[Any]) -> None:
    """Go on where `begin` stopped, look back, and fork."""
    wanted = expected()
    await _sign(saver, wanted)
    for name in ("round 1", "round 2"):
        await _play_on(saver, name, wanted)
    await _another_question(saver, wanted)
    await _another_door(saver, wanted)


async def _sign(saver: BaseCheckpointSaver[Any], wanted: dict[str, Any]) -> None:
    model = player()
    done = await desk(saver, model).ainvoke(Command(resume="Zoë ✓"), thread("signature"))
    assert done == {**wanted, "signed": "Zoë ✓"}
    assert model.log == [], "the scene had ended, and is not played again"


async def _play_on(saver: BaseCheckpointSaver[Any], name: str, wanted: dict[str, Any]) -> None:
    model = player()
    app = desk(saver, model, stop_inside=True)
    stops = 0
    while (await app.aget_state(thread(name))).next == ("scene",):
        done = await app.ainvoke(None, thread(name))
        stops += 1
    assert {key: done[key] for key in wanted} == wanted
    assert stops >= 2 and "draft" not in {purpose for purpose, _, _ in model.log}
    said = [entry for entry in model.log if entry[0] == "act"]
    assert min(round for _, _, round in said) > int(name[-1]), "actions before the stop were kept"


async def _another_question(saver: BaseCheckpointSaver[Any], wanted: dict[str, Any]) -> None:
    app = desk(saver, player())
    history = [state async for state in app.aget_state_history(thread("signature"))]
    assert [state.next for state in history] == [(), ("sign",), ("scene",), ("__start__",)]
    before = history[2]
    forked = await app.aupdate_state(before.config, {"question": OTHER_QUESTION})
    done = await app.ainvoke(None, forked)
    other = expected(OTHER_QUESTION)
    assert {key: done[key] for key in other} == other and done["draft"] != wanted["draft"]
    # The branch that was left is still there, to the letter.
    assert (await app.aget_state(history[0].config)).values == {**wanted, "signed": "Zoë ✓"}
    branches = [state async for state in app.aget_state_history(thread("signature"))]
    assert len(branches) == len(history) + 2 and branches[0].next == ("sign",)


async def _another_door(saver: BaseCheckpointSaver[Any], wanted: dict[str, Any]) -> None:
    app = desk(saver, player(), stop_inside=True)
    inside = (await app.aget_state(thread("door"), subgraphs=True)).tasks[0].state
    assert inside.values["objects"] == {"door": "closed"}
    await app.aupdate_state(inside.config, {"objects": {"door": "bricked up"}})
    while (await app.aget_state(thread("door"))).next == ("scene",):
        inside = (await app.aget_state(thread("door"), subgraphs=True)).tasks[0].state
        done = await app.ainvoke(None, thread("door"))
    asked = [call["messages"][-1]["content"] for call in inside.values["calls"] if call["purpose"] == "judge"]
    assert asked and "bricked up" in asked[0]
    assert done["events"] != wanted["events"]


def sync_saver(uri: str) -> AbstractContextManager[Any]:
    """The synchronous saver of a PostgreSQL address or an SQLite file."""
    return (PostgresSaver if uri.startswith("postgresql:") else SqliteSaver).from_conn_string(uri)


def async_saver(uri: str) -> AbstractAsyncContextManager[Any]:
    """The asynchronous one."""
    return (AsyncPostgresSaver if uri.startswith("postgresql:") else AsyncSqliteSaver).from_conn_string(uri)


async def finish_at(uri: str) -> None:
    async with async_saver(uri) as saver:
        await finish(saver)


def main() -> None:
    """Run one program: its name, and where the checkpoints are."""
    from langgraph.checkpoint.serde import _msgpack

    assert _msgpack.STRICT_MSGPACK_ENABLED
    warnings.simplefilter("error")
    logging.basicConfig(level=logging.WARNING)
    name, uri = sys.argv[1:]
    if name == "memory":
        saver = InMemorySaver()
        begin(saver)
        asyncio.run(finish(saver))
    elif name == "begin":
        with sync_saver(uri) as saver:
            saver.setup()
            begin(saver)
            print(json.dumps("begun"), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        asyncio.run(finish_at(uri))
    print(json.dumps("finished"))


# ---- the tests ------------------------------------------------------------------------------------------------------


def run(name: str, uri: str, status: int = 0) -> str:
    """Run a program under strict msgpack, which must have nothing to complain of; returns its last words."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.test_checkpointers", name, uri],
        cwd=ROOT,
        env={**os.environ, "LANGGRAPH_STRICT_MSGPACK": "true"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stderr[-3000:]
    assert done.stderr == "", "no warning about types that were not registered or were blocked"
    return str(json.loads(done.stdout.splitlines()[-1]))


def test_memory() -> None:
    assert run("memory", "-") == "finished"


def test_sqlite_in_two_processes(tmp_path: Path) -> None:
    file = str(tmp_path / "checkpoints.sqlite")
    assert run("begin", file, -signal.SIGKILL) == "begun"
    assert run("finish", file) == "finished"


def test_postgresql_in_two_processes(postgres: PostgresServer) -> None:
    uri = postgres.database()
    assert run("begin", uri, -signal.SIGKILL) == "begun"
    assert run("finish", uri) == "finished"


if __name__ == "__main__":
    main()
