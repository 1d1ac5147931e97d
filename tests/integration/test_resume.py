"""Stopped scenes go on: after every superstep, after every call, in a new process; SQLite and strict msgpack.

LangGraph reads LANGGRAPH_STRICT_MSGPACK when it is imported, so that each test runs this file as a program of its own,
with the variable set, and looks at what it says.
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
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from matrix_graph import Cast, Role, SceneConfig, SocialObject
from matrix_graph.scene.graph import create_scene, recursion_limit
from matrix_graph.scene.state import to_trace
from tests.unit import invariants
from tests.unit.scripted import ScriptedModel

ROOT = Path(__file__).parents[2]
CONFIG = SceneConfig(roles=3, steps=3)
QUESTION = "Wie öffne ich die Tür? 门 🙂"
CAST = Cast(
    ego="Ann",
    roles=[
        Role(name="Bob", goal="quiet"),
        Role(name="Ann", traits="loud"),
        Role(name="cast"),
        Role(name="Dr. No: 1|2"),
    ],
    objects=[SocialObject(name="door", state="closed")],
)
CASTS = {"generated": None, "given": CAST}
CHANCES: dict[str, Any] = {"plausible": 0.8, "nonsense": 0.12, "harmless": 0.3}


class Mortal(ScriptedModel):
    """The scripted model, whose process dies at call number `dies_at` (from 1)."""

    dies_at: int = 0

    def _reply(self, messages: Any, metadata: dict[str, Any], options: Any) -> Any:
        if len(self.log) + 1 == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._reply(messages, metadata, options)


def model(kind: str, **options: Any) -> Mortal:
    """A scene with rejections, silence and a revision, so that there is something to lose."""
    return Mortal(**{"seed": eventful_seed(kind), **CHANCES, **options})


@cache
def eventful_seed(kind: str) -> int:
    """The first seed whose scene is long and has all that can be lost; the prompts decide which that is."""

    def eventful(seed: int) -> bool:
        player = Mortal(seed=seed, **CHANCES)
        state = scene(kind, None, player).invoke({"question": QUESTION}, {"recursion_limit": 99})
        rejected = any(not event["plausible"] for event in state["events"])
        lost = state["failures"] or state["revised"]
        return bool(len(state["calls"]) >= 19 and state["round"] >= 4 and rejected and lost)

    return next(seed for seed in range(500) if eventful(seed))


def scene(kind: str, saver: Any, model: ScriptedModel) -> Any:
    return create_scene(model, cast=CASTS[kind], config=CONFIG).compile(checkpointer=saver)


def thread(name: object) -> RunnableConfig:
    return {"configurable": {"thread_id": str(name)}, "recursion_limit": recursion_limit(CONFIG)}


def kept(state: dict[str, Any]) -> dict[str, Any]:
    """The final state, and the trace made of it, without what differs between two runs of one scene."""
    invariants.check_all(to_trace(state))
    same = {key: value for key, value in state.items() if key not in ("id", "created_at", "clock")}
    same["calls"] = [{key: value for key, value in call.items() if key != "seconds"} for call in state["calls"]]
    return same


def expected(kind: str) -> dict[str, Any]:
    """The final state of a run that nothing stopped and nobody saved."""
    return kept(scene(kind, None, model(kind)).invoke({"question": QUESTION}, {"recursion_limit": 99}))


# ---- the programs ---------------------------------------------------------------------------------------------------


def steps(kind: str, folder: Path) -> int:
    """Stop after superstep 1, 2, ... in turn, and once after each of them; the synchronous saver."""
    wanted = expected(kind)
    count = 0
    with SqliteSaver.from_conn_string(str(folder / "steps.sqlite")) as saver:
        app = scene(kind, saver, model(kind))
        app.invoke({"question": QUESTION}, thread("all"), interrupt_after="*")
        while app.get_state(thread("all")).next:
            app.invoke(None, thread("all"), interrupt_after="*")
            count += 1
        assert kept(app.get_state(thread("all")).values) == wanted
        for stop in range(1, count + 1):
            for _ in app.stream({"question": QUESTION}, thread(stop), interrupt_after="*"):
                pass
            for _ in range(stop - 1):
                app.invoke(None, thread(stop), interrupt_after="*")
            assert app.get_state(thread(stop)).next
            assert kept(app.invoke(None, thread(stop))) == wanted
            assert not app.get_state(thread(stop)).next
    return count


async def asteps(kind: str, folder: Path) -> int:
    """The same with the asynchronous saver; the stream is simply left."""
    wanted = await asyncio.to_thread(expected, kind)
    stop = 0
    async with AsyncSqliteSaver.from_conn_string(str(folder / "asteps.sqlite")) as saver:
        while True:
            stop += 1
            seen = 0
            app = scene(kind, saver, model(kind))
            stream = app.astream({"question": QUESTION}, thread(stop), stream_mode="values", durability="sync")
            async for _ in stream:
                seen += 1
                if seen == stop + 1:  # the first is the input
                    break
            await stream.aclose()
            if not (await app.aget_state(thread(stop))).next:
                assert kept((await app.aget_state(thread(stop))).values) == wanted
                return stop - 1
            app = scene(kind, saver, model(kind))
            assert kept(await app.ainvoke(None, thread(stop))) == wanted


def died(play: Callable[[], object]) -> bool:
    """Whether a child process that plays a scene was killed in it."""
    child = os.fork()
    if child == 0:
        play()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def kills(kind: str, folder: Path) -> int:
    """A process that dies at call 1, 2, ...; what had been finished by then is not asked for again."""
    file = str(folder / "kills.sqlite")

    def play(dies_at: int) -> None:
        with SqliteSaver.from_conn_string(file) as saver:
            app = scene(kind, saver, model(kind, dies_at=dies_at))
            app.invoke({"question": QUESTION}, thread(dies_at), durability="sync")

    wanted = expected(kind)
    calls = 0
    while died(partial(play, calls + 1)):
        calls += 1
    with SqliteSaver.from_conn_string(file) as saver:
        for dies_at in range(1, calls + 1):
            living = model(kind)
            app = scene(kind, saver, living)
            state = app.get_state(thread(dies_at))
            assert state.next
            assert kept(app.invoke(None, thread(dies_at))) == wanted
            assert len(living.log) <= calls - len(state.values.get("calls", []))
    return calls


def akills(kind: str, folder: Path) -> int:
    """As `kills`, with the asynchronous saver."""
    file = str(folder / "akills.sqlite")

    async def aplay(dies_at: int) -> None:
        async with AsyncSqliteSaver.from_conn_string(file) as saver:
            app = scene(kind, saver, model(kind, dies_at=dies_at))
            await app.ainvoke({"question": QUESTION}, thread(dies_at), durability="sync")

    def play(dies_at: int) -> None:
        asyncio.run(aplay(dies_at))

    wanted = expected(kind)
    calls = 0
    while died(partial(play, calls + 1)):
        calls += 1

    async def go_on() -> None:
        async with AsyncSqliteSaver.from_conn_string(file) as saver:
            for dies_at in range(1, calls + 1):
                assert kept(await scene(kind, saver, model(kind)).ainvoke(None, thread(dies_at))) == wanted

    asyncio.run(go_on())
    return calls


def begin(kind: str, folder: Path) -> int:
    """Begin one scene for each superstep to stop after, then die of SIGKILL."""
    with SqliteSaver.from_conn_string(str(folder / "processes.sqlite")) as saver:
        app = scene(kind, saver, model(kind))
        stop = 0
        while True:
            stop += 1
            app.invoke({"question": QUESTION}, thread(stop), interrupt_after="*", durability="sync")
            for _ in range(stop - 1):
                app.invoke(None, thread(stop), interrupt_after="*", durability="sync")
            if not app.get_state(thread(stop)).next:
                break
        print(stop - 1, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return stop


async def finish(kind: str, folder: Path) -> int:
    """Finish, in a new process and with the other saver, what `begin` left."""
    wanted = await asyncio.to_thread(expected, kind)
    async with AsyncSqliteSaver.from_conn_string(str(folder / "processes.sqlite")) as saver:
        app = scene(kind, saver, model(kind))
        stop = 1
        while (await app.aget_state(thread(stop))).next:
            assert kept(await app.ainvoke(None, thread(stop))) == wanted
            stop += 1
    return stop - 1


def settings(kind: str, folder: Path) -> int:
    """Settings of the run itself, given as its context, hold again when they are given again."""
    other = CONFIG.model_copy(update={"max_rounds": 2})
    with SqliteSaver.from_conn_string(str(folder / "settings.sqlite")) as saver:
        app = scene(kind, saver, model(kind))
        app.invoke({"question": QUESTION}, thread("c"), context=other, interrupt_after=["cast"])
        assert app.get_state(thread("c")).next
        trace = to_trace(app.invoke(None, thread("c"), context=other))
        assert trace.ended_by == "max_rounds" and max(call.round or 0 for call in trace.calls) == 2
        assert trace.settings["max_rounds"] == 2
    return 1


PROGRAMS: dict[str, Callable[[str, Path], Any]] = {
    program.__name__: program for program in (steps, asteps, kills, akills, begin, finish, settings)
}


def main() -> None:
    """Run one program: its name, the kind of cast, a folder."""
    name, kind, folder = sys.argv[1:]
    from langgraph.checkpoint.serde import _msgpack

    assert _msgpack.STRICT_MSGPACK_ENABLED
    warnings.simplefilter("error")
    logging.basicConfig(level=logging.WARNING)
    count = PROGRAMS[name](kind, Path(folder))
    if asyncio.iscoroutine(count):
        count = asyncio.run(count)
    print(count)


# ---- the tests ------------------------------------------------------------------------------------------------------


def run(name: str, kind: str, folder: Path, status: int = 0) -> int:
    """Run a program under strict msgpack; it must have nothing to complain of. Returns the number that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.test_resume", name, kind, str(folder)],
        cwd=ROOT,
        env={**os.environ, "LANGGRAPH_STRICT_MSGPACK": "true"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stderr[-3000:]
    assert done.stderr == "", "no warning about types that were not registered or were blocked"
    return int(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("kind", CASTS)
@pytest.mark.parametrize("name", ["steps", "asteps", "kills", "akills", "settings"])
def test_a_stopped_scene_goes_on_as_if_nothing_had_happened(name: str, kind: str, tmp_path: Path) -> None:
    least = {"steps": 11, "asteps": 11, "kills": 19, "akills": 19, "settings": 1}[name]
    assert run(name, kind, tmp_path) >= least


@pytest.mark.parametrize("kind", CASTS)
def test_a_new_process_finishes_what_a_killed_one_began(kind: str, tmp_path: Path) -> None:
    begun = run("begin", kind, tmp_path, status=-signal.SIGKILL)
    assert begun >= 11
    assert run("finish", kind, tmp_path) == begun


if __name__ == "__main__":
    main()
