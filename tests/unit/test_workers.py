"""Messages between run and workers, and both ends of them over fake pipes, with workers that die on command."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers import ConsoleCallbackHandler
from pydantic import SecretStr

from matrix_graph import ChatVLLM, SceneConfig
from matrix_graph.batch import _worker as child
from matrix_graph.batch import worker_handle
from matrix_graph.batch import workers as parent
from matrix_graph.batch.player import Played
from matrix_graph.batch.rows import Row
from matrix_graph.batch.wire import Outbox, Unpacker, WireError, pack
from matrix_graph.batch.worker_handle import WorkerError
from matrix_graph.batch.workers import WorkerPlayer, check_portable
from matrix_graph.errors import ConfigError, CrashingQuestionError, ModelUnavailableError
from matrix_graph.models import traffic as traffic_module
from matrix_graph.models.traffic import Traffic
from matrix_graph.models.turn import Turn, Visitor, clock, current_call
from matrix_graph.records import Cast, Role
from tests.unit.scripted import ScriptedModel
from tests.unit.test_traffic import Dead, Server

# ---- messages -------------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
messages = st.tuples(
    st.builds(lambda kind, rest: [kind, *rest], st.text(min_size=1), st.lists(plain, max_size=4)), st.binary()
)


@given(sent=st.lists(messages, max_size=6), cuts=st.lists(st.integers(0, 2000), max_size=12))
def test_messages_arrive_whole_and_in_order_however_the_pipe_cuts_them(
    sent: list[tuple[list[Any], bytes]], cuts: list[int]
) -> None:
    stream = b"".join(pack(message, body) for message, body in sent)
    ends = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    unpacker = Unpacker()
    received = [item for start, end in itertools.pairwise(ends) for item in unpacker.feed(stream[start:end])]
    assert received == sent


@pytest.mark.parametrize(
    "stream",
    [
        b"Traceback (most recent call last):",
        b"\0\0\0\2\0\0\0\0{}",
        b"\0\0\0\2\0\0\0\0[]",
        b"\0\0\0\3\0\0\0\0[1]",
        b"\0\0\0\1\0\0\0\0[",
        b"\0\0\0\2\0\0\0\0\xff\xff",
        pack(["ready"])[:-1] + b"\xff",
    ],
)
def test_what_is_no_message_is_refused(stream: bytes) -> None:
    with pytest.raises(WireError, match="pipe"):
        list(Unpacker().feed(stream))


def test_what_no_json_can_hold_is_not_sent() -> None:
    with pytest.raises(ValueError):
        pack(["play", float("nan")])
    with pytest.raises(TypeError):
        pack(["play", object()])


async def test_what_is_said_at_once_goes_out_in_one_write() -> None:
    writes: list[bytes] = []
    outbox = Outbox(writes.append)
    for number in range(100):
        outbox.send(["enter", number, number])
    assert not writes
    await asyncio.sleep(0)
    assert len(writes) == 1 and len(list(Unpacker().feed(writes[0]))) == 100
    await asyncio.sleep(0)
    assert len(writes) == 1


# ---- the way to the run's traffic -----------------------------------------------------------------------------------


def visitor_of(gate: child.RemoteGate, number: int = 7) -> Visitor:
    return Visitor(gate, number)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_call_enters_when_it_is_told_to_and_leaves_with_its_tokens() -> None:
    sent: list[list[Any]] = []
    gate = child.RemoteGate(sent.append)

    async def call() -> None:
        with visitor_of(gate).here():
            turn = Turn(5)
            async with turn:
                turn.count(12, 34)

    task = asyncio.create_task(call())
    await settled()
    assert sent == [["enter", 7, 1]]
    gate.go(1)
    await task
    assert sent == [["enter", 7, 1], ["leave", 1, 12, 34]]
    gate.go(1)  # nobody waits any more
    gate.refuse(1, "ModelUnavailableError", "late")


async def test_a_call_that_is_cancelled_leaves_even_if_its_turn_is_on_its_way() -> None:
    for answer in (False, True):
        sent: list[list[Any]] = []
        gate = child.RemoteGate(sent.append)
        task = asyncio.create_task(gate.enter(visitor_of(gate)))
        await settled()
        if answer:
            gate.go(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.go(1)
        assert sent == [["enter", 7, 1], ["leave", 1]]


async def test_refusals_keep_their_types_and_condemn_the_scene() -> None:
    gate = child.RemoteGate(lambda message: None)
    visitor = visitor_of(gate)
    for number, kind in enumerate((ModelUnavailableError, CrashingQuestionError), start=1):
        task = asyncio.create_task(gate.enter(visitor))
        await settled()
        gate.refuse(number, kind.__name__, "because")
        with pytest.raises(kind, match="because"):
            await task
        assert (visitor.condemned is not None) == (kind is CrashingQuestionError)


async def test_a_lost_call_asks_whether_it_may_try_again() -> None:
    sent: list[list[Any]] = []
    gate = child.RemoteGate(sent.append)
    await gate.lost(reached=True)  # outside of a call it is nobody's business
    assert not sent
    call = asyncio.create_task(gate.enter(visitor_of(gate)))
    await settled()
    gate.go(1)
    current_call.set(await call)
    lost = asyncio.create_task(gate.lost(reached=False))
    await settled()
    assert sent[-1] == ["lost", 1, False] and not lost.done()
    gate.go(1)
    await lost


# ---- both ends, without processes -----------------------------------------------------------------------------------


class Pipe(asyncio.WriteTransport):
    """Delivers in the loop's next round, until its reader is gone."""

    def __init__(self, deliver: Callable[[bytes], object], on_close: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._deliver = deliver
        self._on_close = on_close
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        asyncio.get_running_loop().call_soon(self._arrive, bytes(data))

    def _arrive(self, data: bytes) -> None:
        if not self.closed:
            self._deliver(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        assert self._on_close is not None
        self._on_close()


class Process(asyncio.SubprocessTransport):
    """A worker in this process: the real ends of both sides, and a death that neither of them expects."""

    def __init__(self, run: asyncio.SubprocessProtocol, *, deaf: bool) -> None:
        super().__init__()
        self.run = run
        self.code: int | None = None
        self.incoming = Pipe(self._told, lambda: self.die(0))
        self.outgoing = Pipe(lambda data: run.pipe_data_received(1, data))
        self.worker = child.Worker(Outbox(self._say))
        self.deaf = deaf

    def _told(self, data: bytes) -> None:
        if not self.deaf:
            self.worker.data_received(data)

    def _say(self, data: bytes) -> None:
        if self.code is None:
            self.outgoing.write(data)

    def die(self, code: int = -9) -> None:
        if self.code is None:
            self.code = code
            self.incoming.closed = self.outgoing.closed = True
            self._end = asyncio.create_task(self.worker.close())
            self.run.pipe_connection_lost(1, None)
            asyncio.get_running_loop().call_soon(self.run.connection_lost, None)

    def get_pid(self) -> int:
        return id(self)

    def get_returncode(self) -> int | None:
        return self.code

    def get_pipe_transport(self, fd: int) -> asyncio.BaseTransport | None:
        return self.incoming

    def kill(self) -> None:
        self.die()

    def close(self) -> None:
        pass


class ScriptedPlayer:
    """Plays as the scenes of `test_traffic` do: a question is the calls that it makes, separated by spaces."""

    server: Server
    machine: Machine

    def __init__(self, model: ChatVLLM, *, name: str, lifeline: Any, cast: Cast | None, config: SceneConfig) -> None:
        self.gate = lifeline
        self.known = (model, name, cast, config)

    async def play(self, row: Row, key: str, visitor: Visitor) -> Played:
        status: Any = "finished"
        with visitor.here():
            try:
                for name in row.question.split():
                    await self.call(name)
            except (CrashingQuestionError, ModelUnavailableError) as error:
                assert isinstance(error, CrashingQuestionError) == (visitor.condemned is not None)
                status = "failed"
        return Played(key, status, 0.5, 3, row.question.encode())

    async def call(self, name: str) -> None:
        turn = Turn(None)
        async with turn:
            if name == "deadly":
                self.machine.of(self.gate).die()
            while True:
                try:
                    await self.server.request(name)
                    break
                except Dead as death:
                    await self.gate.lost(reached=death.reached)
            turn.count(2, 3)


class Machine:
    """All the processes of a test."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self.deaf: set[int] = set()
        self.stillborn: set[int] = set()

    async def spawn(self, run: asyncio.SubprocessProtocol) -> None:
        number = len(self.processes)
        process = Process(run, deaf=number in self.deaf | self.stillborn)
        self.processes.append(process)
        run.connection_made(process)
        if number in self.stillborn:
            run.pipe_data_received(2, b"No module named matrix_graph")
            process.die(1)
        await asyncio.sleep(0)

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.processes if process.code is None]

    def of(self, gate: child.RemoteGate) -> Process:
        return next(process for process in self.processes if process.worker._gate is gate)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine()
    monkeypatch.setattr(traffic_module, "_FIRST_WAIT", 0.002)
    monkeypatch.setattr(traffic_module, "_LONGEST_WAIT", 0.004)
    monkeypatch.setattr(child, "ScenePlayer", ScriptedPlayer)
    monkeypatch.setattr(parent, "_spawn", lambda run: made.spawn(run))
    ScriptedPlayer.machine = made
    yield made


class Run:
    """A few questions, played by a few workers."""

    def __init__(self, machine: Machine, workers: int, most: int = 4, **options: Any) -> None:
        machine.processes.clear()
        self.machine = machine
        self.server = ScriptedPlayer.server = Server()
        self.said: list[str] = []
        self.tokens: Counter[str] = Counter()
        self.traffic = Traffic(
            most, probe=self.server.probe, on_absence=self._absent, on_call=self._count, give_up_after=5.0
        )
        model = ChatVLLM(base_url="http://127.0.0.1:1/v1", api_key=SecretStr("secret"), temperature=0.5)
        defaults: dict[str, Any] = {"name": "m", "cast": None, "config": SceneConfig(), "on_status": self.said.append}
        self.player = WorkerPlayer(model, count=workers, traffic=self.traffic, **defaults | options)

    def _absent(self, away: bool) -> None:
        self.player.absent(away)

    def _count(self, input_tokens: int, output_tokens: int) -> None:
        self.tokens.update(calls=1, input=input_tokens, output=output_tokens)

    async def play(self, question: str, rank: int) -> Played:
        visitor = self.traffic.visitor(rank)
        try:
            return await self.player.play(Row(question), f"key {rank}", visitor)
        finally:
            self.traffic.left(visitor)

    async def all(self, questions: list[str]) -> list[Played]:
        try:
            await self.player.start()
            return await asyncio.gather(*(self.play(question, rank) for rank, question in enumerate(questions)))
        finally:
            await self.player.close()
            await settled()
            assert not self.machine.alive
            assert self.traffic._in_flight == 0 and self.traffic._expected == 0


def numbered(count: int, calls: int = 3) -> list[str]:
    return [" ".join(f"{scene}-{call}" for call in range(calls)) for scene in range(count)]


async def test_scenes_are_spread_and_their_traces_pass_unchanged(machine: Machine) -> None:
    run = Run(machine, 3)
    questions = numbered(12)
    played = await run.all(questions)
    assert [(one.key, one.line.decode(), one.status) for one in played] == [
        (f"key {rank}", question, "finished") for rank, question in enumerate(questions)
    ]
    assert sorted(run.server.served) == sorted(" ".join(questions).split())
    assert run.server.peak == 4
    assert run.tokens == {"calls": 36, "input": 72, "output": 108}
    assert not run.said


async def test_workers_know_what_the_run_was_told(machine: Machine) -> None:
    cast = Cast(ego="A", roles=[Role(name="A", traits="calm", goal="peace"), Role(name="B", traits="", goal="")])
    config = SceneConfig(roles=2, temperature=0.7)
    run = Run(machine, 2, cast=cast, config=config)
    await run.player.start()
    for process in machine.processes:
        player = process.worker._player
        assert isinstance(player, ScriptedPlayer)
        model, name, known_cast, known_config = player.known
        assert (name, known_cast, known_config) == ("m", cast, config)
        assert model.base_url == "http://127.0.0.1:1/v1" and model.temperature == 0.5
        assert model.api_key is not None and model.api_key.get_secret_value() == "secret"
        assert model.server is None
        assert not {"timeout", "give_up_after", "top_p"} & model.model_fields_set, "what was not set is not set there"
    await run.player.close()


async def test_calls_of_older_scenes_go_first_whatever_worker_plays_them(machine: Machine) -> None:
    run = Run(machine, 3, most=1)
    await run.player.start()
    run.server.seconds = 0.2
    first = asyncio.create_task(run.play("first", 0))
    await until(lambda: run.server.in_flight == 1)
    run.server.seconds = 0.002
    rest = [asyncio.create_task(run.play(str(rank), rank)) for rank in (5, 2, 4, 1, 3)]
    await until(lambda: len(run.traffic._queue) == 5)
    await asyncio.gather(first, *rest)
    await run.player.close()
    assert run.server.served == ["first", "1", "2", "3", "4", "5"]


@settings(max_examples=12, deadline=None)
@given(
    scenes=st.integers(1, 10),
    poisons=st.sets(st.integers(0, 9), max_size=2),
    workers=st.integers(1, 3),
    most=st.integers(1, 6),
)
def test_a_poison_is_set_aside_whatever_worker_plays_it(
    scenes: int, poisons: set[int], workers: int, most: int
) -> None:
    async def play() -> None:
        with pytest.MonkeyPatch.context() as patch:
            machine = Machine()
            patch.setattr(traffic_module, "_FIRST_WAIT", 0.002)
            patch.setattr(traffic_module, "_LONGEST_WAIT", 0.004)
            patch.setattr(child, "ScenePlayer", ScriptedPlayer)
            patch.setattr(parent, "_spawn", machine.spawn)
            ScriptedPlayer.machine = machine
            run = Run(machine, workers, most)
            questions = numbered(scenes)
            for scene in poisons & set(range(scenes)):
                questions[scene] = f"{scene}-0 poison{scene} {scene}-2"
            played = await run.all(questions)
            condemned = poisons & set(range(scenes))
            assert [one.status == "failed" for one in played] == [rank in condemned for rank in range(scenes)]
            assert len(condemned) <= run.server.deaths <= 2 * len(condemned)
            assert run.traffic.condemned == len(condemned) and run.server.peak <= most
            served = [
                name for rank, text in enumerate(questions) for name in text.split()[: 1 + 2 * (rank not in condemned)]
            ]
            assert sorted(run.server.served) == sorted(served), "each call is answered once"

    asyncio.run(play())


async def test_clocks_stand_still_in_all_workers_while_the_server_is_away(machine: Machine) -> None:
    run = Run(machine, 2, most=8)
    run.server.downtime = 0.2
    seen: list[float] = []

    async def look() -> None:
        await asyncio.sleep(0.1)
        for process in machine.alive:
            gate = process.worker._gate
            with visitor_of(gate).here():
                before = clock()
                await asyncio.sleep(0.01)
                seen.append(clock() - before)

    asyncio.get_running_loop().call_later(0.001, run.server.die)
    _, played = await asyncio.gather(look(), run.all(numbered(4)))
    assert seen == [0.0, 0.0]
    assert {one.status for one in played} == {"finished"}
    assert run.traffic.absences == 1


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 999), workers=st.integers(1, 3), kills=st.integers(1, 3))
def test_workers_that_are_killed_cost_no_scene(seed: int, workers: int, kills: int) -> None:
    async def play() -> None:
        with pytest.MonkeyPatch.context() as patch:
            machine = Machine()
            patch.setattr(child, "ScenePlayer", ScriptedPlayer)
            patch.setattr(parent, "_spawn", machine.spawn)
            patch.setattr(parent, "_MOST_DEATHS", 100)
            run = Run(machine, workers)
            chance = random.Random(seed)
            questions = numbered(10)
            playing = asyncio.create_task(run.all(questions))
            for _ in range(kills):
                await asyncio.sleep(chance.uniform(0, 0.01))
                if machine.alive and not playing.done():
                    chance.choice(machine.alive).die()
            played = await playing
            assert [(one.line.decode(), one.status) for one in played] == [(text, "finished") for text in questions]
            assert set(run.server.served) >= set(" ".join(questions).split())

    asyncio.run(play())


async def test_a_worker_that_dies_while_nothing_is_played_is_replaced(machine: Machine) -> None:
    run = Run(machine, 2)
    await run.player.start()
    machine.alive[0].die()
    await settled()
    assert len(machine.alive) == 2 and len(machine.processes) == 3
    assert run.said == ["a worker process was killed by SIGKILL"]
    await run.player.close()


async def test_workers_that_die_again_and_again_end_the_run(machine: Machine) -> None:
    run = Run(machine, 2)
    machine.stillborn = set(range(2, 99))
    await run.player.start()
    run.server.seconds = 60
    playing = [asyncio.create_task(run.play("slow", rank)) for rank in range(4)]
    await until(lambda: run.server.in_flight == 4)
    for process in machine.alive:
        process.die()
    for task in playing:
        with pytest.raises(WorkerError, match=r"ended with code 1.*fewer --workers(.|\n)*No module named"):
            await task
    assert len(machine.processes) <= 5
    assert "its 2 scenes are played again" in run.said[0]
    await run.player.close()


async def test_workers_that_do_not_start_are_told_of_at_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.stillborn = set(range(99))
    run = Run(machine, 2)
    with pytest.raises(WorkerError, match="No module named matrix_graph"):
        await run.all(["never"])

    async def refused(_: object) -> None:
        raise OSError("Resource temporarily unavailable")

    monkeypatch.setattr(parent, "_spawn", refused)
    with pytest.raises(WorkerError, match=r"could not be started .Resource temporarily unavailable"):
        await Run(machine, 2).all(["never"])


async def test_a_worker_that_is_never_ready_is_ended(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_handle, "_START_SECONDS", 0.02)
    machine.deaf = {0}
    run = Run(machine, 1)
    played = await run.all(["a"])
    assert played[0].status == "finished" and run.said == ["a worker process was not ready in time"]


async def test_leaving_while_workers_start_ends_them(machine: Machine) -> None:
    machine.deaf = {0, 2}
    run = Run(machine, 3)
    starting = asyncio.create_task(run.player.start())
    await until(lambda: len(machine.alive) == 3 and any(worker.ready for worker in run.player._workers))
    assert not starting.done()
    starting.cancel()
    await run.player.close()
    assert not machine.alive and [process.code for process in machine.processes] == [-9, 0, -9]
    assert not run.said


async def test_a_question_that_kills_every_process_fails_alone(machine: Machine) -> None:
    run = Run(machine, 2)
    played = await run.all([*numbered(4), "a deadly", *numbered(3, 9)])
    assert [one.status for one in played] == ["finished"] * 4 + ["failed"] + ["finished"] * 3
    trace = json.loads(played[4].line)
    assert trace["id"] == "key 4" and trace["error"]["type"] == "WorkerError"
    assert "4 times, 2 of them with nothing else to do" in trace["error"]["message"]
    assert len(machine.processes) >= 6, "two died in company and were replaced, two died alone"
    assert len([line for line in run.said if "was killed" in line]) == 2


async def test_a_cancelled_scene_is_cancelled_in_its_worker(machine: Machine) -> None:
    run = Run(machine, 1, most=1)
    run.server.seconds = 60
    await run.player.start()
    scenes = [asyncio.create_task(run.play("slow", rank)) for rank in range(3)]
    worker = machine.alive[0].worker
    await until(lambda: len(worker._scenes) == 3 and run.server.in_flight == 1)
    for scene in scenes:
        scene.cancel()
    await asyncio.gather(*scenes, return_exceptions=True)
    await until(lambda: not worker._scenes and run.server.in_flight == 0 and run.traffic._in_flight == 0)
    await asyncio.wait_for(run.traffic.room(), 1)
    await run.player.close()


async def test_a_worker_that_talks_nonsense_is_ended(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(machine, 1)
    await run.player.start()
    machine.alive[0].outgoing.write(b"Segmentation fault, surely")
    await settled()
    assert len(machine.alive) == 1 and len(machine.processes) == 2
    assert "said something that is no message" in run.said[0]
    machine.alive[0].outgoing.write(pack(["hello"]))
    await settled()
    assert len(machine.processes) == 3 and "'hello'" in caplog.text
    await run.player.close()


async def test_a_scene_that_cannot_be_told_ends_the_run(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> Played:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(ScriptedPlayer, "play", broken)
    with pytest.raises(WorkerError, match="ZeroDivisionError: by zero"):
        await Run(machine, 1).all(["a"])


async def test_a_run_that_talks_nonsense_ends_the_worker() -> None:
    for stream in (b"Segmentation fault, surely", pack(["hello"])):
        worker = child.Worker(Outbox(lambda data: None))
        worker.data_received(stream)
        assert worker.over.is_set()
        with pytest.raises(WireError):
            await worker.close()


# ---- models that cannot be shared -----------------------------------------------------------------------------------


class OwnChatVLLM(ChatVLLM):
    """Its code is known here alone."""


def test_only_what_other_processes_can_know_is_portable() -> None:
    url = "http://127.0.0.1:1/v1"
    check_portable(ChatVLLM(base_url=url))
    for model in (ScriptedModel(), OwnChatVLLM(base_url=url)):
        with pytest.raises(ConfigError, match=type(model).__name__):
            check_portable(model)
    with pytest.raises(ConfigError, match="callbacks"):
        check_portable(ChatVLLM(base_url=url, callbacks=[ConsoleCallbackHandler()]))
    with pytest.raises(ConfigError, match="cache"):
        check_portable(ChatVLLM(base_url=url, cache=InMemoryCache()))
    set_llm_cache(InMemoryCache())
    try:
        with pytest.raises(ConfigError, match="LangChain's cache"):
            check_portable(ChatVLLM(base_url=url))
    finally:
        set_llm_cache(None)


async def test_those_who_listen_from_outside_are_not_left_in_the_dark() -> None:
    async def step(_: str) -> str:
        with suppress(ConfigError):
            check_portable(ChatVLLM(base_url="http://127.0.0.1:1/v1"))
            return "portable"
        return "refused"

    chain = RunnableLambda(step)
    assert await chain.ainvoke("") == "portable"

    class Silent(ConsoleCallbackHandler):
        def _persist_run(self, run: Any) -> None:
            pass

    assert await chain.ainvoke("", {"callbacks": [Silent()]}) == "refused"
