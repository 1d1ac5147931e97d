"""`run_batch` as Python programs use it: real HTTP to a fake model, other chat models, callers that leave early."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import os
import random
import sys
import warnings
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableLambda

from matrix_graph import Cast, ChatVLLM, Rehearsal, Role, SceneConfig, Trace, read_traces, run_batch
from matrix_graph.batch.lock import is_locked
from matrix_graph.errors import ConfigError, ModelUnavailableError, RunLockedError, SettingsChangedError
from tests.integration.model_server import Fault, ModelServer
from tests.integration.scenes import busy, client, drafted, told
from tests.unit import invariants
from tests.unit.scripted import ScriptedModel

SMALL = SceneConfig(roles=1, steps=1)
MIDDLE = SceneConfig(roles=2, steps=2)
CAST = Cast(ego="Ann", roles=[Role(name="Ann"), Role(name="Bob")], plan=["goes"])


@pytest.fixture(scope="module")
def shared() -> Iterator[ModelServer]:
    with ModelServer() as started:
        yield started


@pytest.fixture
def server(shared: ModelServer) -> ModelServer:
    shared.reset()
    shared.delay, shared.reply = 0.01, busy
    return shared


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def asked(count: int, first: int = 0) -> list[str]:
    return [f"What is {number}?" for number in range(first, first + count)]


async def played(*arguments: Any, **options: Any) -> list[Trace]:
    return [trace async for trace in run_batch(*arguments, **options)]


def most_at_once(traces: Iterable[Trace]) -> int:
    """The most scenes that were being played at the same moment."""
    moments: list[tuple[float, int]] = []
    for trace in traces:
        began = trace.created_at.timestamp()
        moments += [(began, 1), (began + trace.seconds, -1)]
    return max(itertools.accumulate(change for _, change in sorted(moments)))


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Inside, nobody warns or complains, and afterwards no task is left."""
    before = asyncio.all_tasks()
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        await until(lambda: asyncio.all_tasks() <= before)
        gc.collect()
        await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before
    assert not complaints


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for it, but not for ever: the test then tells what is still so."""
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)


# ---- what comes out -------------------------------------------------------------------------------------------------


async def test_traces_come_as_they_end_and_are_on_the_disk_by_then(server: ModelServer, tmp_path: Path) -> None:
    slow = asked(1)[0]
    server.delay = lambda body: 0.6 if body["messages"][-1]["content"] == slow else 0.01
    order = []
    async for trace in run_batch(asked(6), client(server), out=tmp_path / "run", config=SMALL, max_requests=8):
        order.append(trace)
        assert [kept.id for kept in read_traces(tmp_path / "run")][: len(order)] == [kept.id for kept in order]
    assert {trace.question for trace in order} == set(asked(6)) and len(order) == 6
    assert order[-1].question == slow, "five quick scenes do not wait for a slow one"
    assert list(read_traces(tmp_path / "run")) == order
    for trace in order:
        invariants.check_all(trace)
    assert not await played(asked(6), client(server), out=tmp_path / "run", config=SMALL)


async def test_a_scene_in_a_batch_is_the_scene_alone(server: ModelServer) -> None:
    model = client(server)
    rows = [{"question": question, "draft": None if n % 2 else f"Draft {n}."} for n, question in enumerate(asked(6))]
    server.delay = 0.002
    batch = {trace.question: trace async for trace in run_batch(rows, model, config=MIDDLE, max_requests=16)}
    for row in rows:
        alone = (await Rehearsal(model, config=MIDDLE).ainvoke(row))["trace"]
        assert told(batch[str(row["question"])]) == told(alone)


async def test_rows_of_every_kind(server: ModelServer, tmp_path: Path) -> None:
    rows: list[Any] = [
        "What is 1?",
        {"question": "What is 2?", "draft": "Two.", "id": "b", "source": "elsewhere"},
        {"question": "What is 3?", "id": 7},
        "What is 1?",
        {"question": " "},
        {"draft": "An answer to nothing."},
        42,
        {"question": "What is 2?"},
    ]
    traces = await played(rows, client(server), out=tmp_path / "run", config=SMALL)
    found = {(trace.question, (trace.model_extra or {}).get("question_id")) for trace in traces}
    assert found == {("What is 1?", None), ("What is 2?", "b"), ("What is 3?", "7"), ("What is 2?", None)}
    assert len(traces) == 4 and len({trace.id for trace in traces}) == 4
    assert {trace.draft for trace in traces if trace.calls[0].purpose != "draft"} == {"Two."}
    rejected = [json.loads(line) for line in (tmp_path / "run/rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == 3 and all(row["reason"] for row in rejected)


async def test_without_a_folder_nothing_is_kept(
    server: ModelServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "matrix_graph"):
        first = await played([*asked(3), {"question": 5}], client(server), config=SMALL)
        again = await played(asked(3), client(server), config=SMALL)
    assert len(first) == len(again) == 3
    assert drafted(server) == dict.fromkeys(asked(3), 2), "what is not kept is played again"
    assert '"question" is a number' in caplog.text
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240


async def test_questions_may_come_from_an_async_generator(server: ModelServer) -> None:
    ended: list[str] = []
    seen_at_the_last: list[int] = []

    async def questions() -> AsyncIterator[str]:
        for question in asked(5):
            if question == asked(5)[4]:
                await until(lambda: len(ended) > 0)
                seen_at_the_last.append(len(ended))
            yield question

    async for trace in run_batch(questions(), client(server), config=SMALL):
        ended.append(trace.question)
    assert sorted(ended) == asked(5)
    assert seen_at_the_last and seen_at_the_last[0] >= 1, "scenes are played while questions still come"


async def test_questions_are_taken_as_there_is_room(server: ModelServer) -> None:
    taken = 0

    def questions() -> Iterator[str]:
        nonlocal taken
        for taken in itertools.count(1):
            yield f"What is {taken}?"

    ended = 0
    async with aclosing(run_batch(questions(), client(server), config=SMALL, max_scenes=4)) as traces:
        async for _ in traces:
            ended += 1
            assert taken <= ended + 4 + 16 + 1, "at most the scenes in flight, the traces that wait, and one"
            if ended == 30:
                break


async def test_a_stream_of_rows_that_are_done_leaves_room_for_the_scenes(server: ModelServer) -> None:
    taken = 0

    def questions() -> Iterator[str]:
        nonlocal taken
        for taken in range(20_000):  # noqa: B007 - read outside
            yield "What is 1?"

    async with aclosing(run_batch(questions(), client(server), config=SMALL)) as traces:
        async for _ in traces:
            break
    assert 0 < taken < 19_999, "the scene ended only after all duplicates had been looked at"


async def test_questions_that_break_off_end_the_run(server: ModelServer, tmp_path: Path) -> None:
    def questions() -> Iterator[str]:
        yield from asked(4)
        raise OSError("the tape tore")

    options: dict[str, Any] = {"out": tmp_path / "run", "config": SMALL, "max_requests": 1}
    async with nothing_left():
        with pytest.raises(OSError, match="the tape tore"):
            await played(questions(), client(server), **options)
    kept = {trace.question for trace in read_traces(tmp_path / "run")}
    rest = await played(asked(5), client(server), **options)
    assert {trace.question for trace in rest} == set(asked(5)) - kept and len(rest) == 5 - len(kept)


# ---- limits ---------------------------------------------------------------------------------------------------------


async def test_requests_in_flight_reach_their_limit_and_never_pass_it(server: ModelServer) -> None:
    server.delay = 0.02
    traces = await played(asked(12), client(server), config=MIDDLE, max_requests=6, max_scenes=100)
    assert len(traces) == 12
    assert server.peak_in_flight == 6


async def test_scenes_in_flight_never_pass_their_limit(server: ModelServer) -> None:
    traces = await played(asked(12), client(server), config=MIDDLE, max_requests=50, max_scenes=3)
    assert len(traces) == 12
    assert most_at_once(traces) == 3


async def test_old_scenes_finish_before_new_ones_start(server: ModelServer) -> None:
    server.delay = lambda body: 0.04 + len(str(body)) % 7 / 300  # the server is the limit, and not this program
    requests = 5
    traces = await played(asked(40), client(server), config=SMALL, max_requests=requests, max_scenes=1000)
    assert len(traces) == 40
    # Scenes between two calls leave room for others; where the processor is busy, that takes a while.
    assert most_at_once(traces) <= 4 * requests, "scenes were begun that had to wait"
    by_start = sorted(traces, key=lambda trace: trace.created_at)
    assert [trace.question for trace in by_start] == asked(40)
    for place, trace in enumerate(by_start):
        began = trace.created_at.timestamp()
        older = [old for old in by_start[:place] if old.created_at.timestamp() + old.seconds > began]
        assert all(place - by_start.index(old) <= 4 * requests for old in older), "an old scene was left waiting"


async def test_limits_are_told_by_the_server(server: ModelServer) -> None:
    page = 'vllm:cache_config_info{block_size="16",engine="0",kv_cache_size_tokens="18432",num_gpu_blocks="1152"} 1.0\n'
    server.delay = 0.02
    with ModelServer(reply=busy, delay=0.02, metrics=page) as tells:
        await played(asked(12), client(tells), config=MIDDLE)
        assert tells.peak_in_flight == 9, "9 times 2,048 tokens fit"
    await played(asked(12), client(server), config=MIDDLE)
    assert server.peak_in_flight > 9


@pytest.mark.parametrize("limit", ["max_scenes", "max_requests"])
async def test_a_limit_of_nothing_is_refused(server: ModelServer, limit: str) -> None:
    with pytest.raises(ConfigError, match=f"{limit} is 0; it must be at least 1"):
        await played(asked(1), client(server), **{limit: 0})
    assert not server.requests


# ---- a caller that leaves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
async def test_leaving_early_ends_everything_and_the_next_run_goes_on(
    server: ModelServer, tmp_path: Path, kept: bool
) -> None:
    out = tmp_path / "run" if kept else None
    options: dict[str, Any] = {"out": out, "config": SMALL, "max_requests": 4}
    first = []
    async with nothing_left():
        async for trace in run_batch(asked(30), client(server), **options):
            first.append(trace)
            if len(first) == 5:
                break
    await until(lambda: server.in_flight == 0)
    assert server.in_flight == 0
    begun = sum(drafted(server).values())
    await asyncio.sleep(0.1)
    assert sum(drafted(server).values()) == begun < 30
    if out is None:
        return
    assert not is_locked(out)
    before = list(read_traces(out))
    rest = await played(asked(30), client(server), **options)
    assert len(rest) == 30 - len(before)
    assert sorted(trace.question for trace in [*before, *rest]) == sorted(asked(30))
    assert list(read_traces(out)) == [*before, *rest]
    assert sum(drafted(server).values()) <= 30 + begun - len(before)


async def test_the_next_run_may_begin_at_once(server: ModelServer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"out": tmp_path / "run", "config": SMALL, "max_requests": 4}
    async with nothing_left():
        for _ in range(3):
            async for _ in run_batch(asked(24), client(server), **options):
                break
        await played(asked(24), client(server), **options)
    assert sorted(trace.question for trace in read_traces(tmp_path / "run")) == sorted(asked(24))


async def test_leaving_while_traces_wait_to_be_taken(server: ModelServer, tmp_path: Path) -> None:
    server.delay = 0.0
    file = tmp_path / "run/traces.jsonl"

    async def leave() -> None:
        async with aclosing(run_batch(asked(40), client(server), out=tmp_path / "run", config=SMALL)) as traces:
            async for _ in traces:
                await until(lambda: file.read_bytes().count(b"\n") == 40, 20)  # nobody takes them meanwhile
                break

    async with nothing_left():
        await asyncio.wait_for(leave(), 25)
    assert sorted(trace.question for trace in read_traces(file)) == sorted(asked(40))
    assert not is_locked(tmp_path / "run")


@pytest.mark.parametrize("kept", [True, False])
async def test_leaving_while_the_server_is_away(tmp_path: Path, kept: bool) -> None:
    server = ModelServer(reply=busy, delay=0.01)
    out = tmp_path / "run" if kept else None
    async with nothing_left():
        with server:
            traces = run_batch(asked(20), client(server), out=out, config=SMALL, max_requests=4)
            await anext(traces)
            await asyncio.to_thread(server.stop)
            taking = asyncio.create_task(_drain(traces))
            await asyncio.sleep(0.4)
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(taking, 5)
            await traces.aclose()


async def _drain(traces: AsyncIterator[Trace]) -> None:
    async for _ in traces:
        pass


async def test_one_run_at_a_time_and_under_the_same_settings(server: ModelServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    async with aclosing(run_batch(asked(8), client(server), out=out, config=SMALL, max_requests=2)) as traces:
        await anext(traces)
        with pytest.raises(RunLockedError, match="pid"):
            await played(asked(8), client(server), out=out, config=SMALL)
    with pytest.raises(SettingsChangedError, match=r"scene\.steps: 1 -> 2"):
        await played(asked(8), client(server), out=out, config=SceneConfig(roles=1, steps=2))
    other = await played(
        asked(2), client(server), out=out, config=SceneConfig(roles=1, steps=2), force_new_settings=True
    )
    assert {trace.question for trace in other} == set(asked(2))


async def test_failed_scenes_are_played_again_only_when_asked_for(server: ModelServer, tmp_path: Path) -> None:
    server.reply = lambda body: Fault(400) if body["messages"][-1]["content"] == asked(1)[0] else busy(body)
    options: dict[str, Any] = {"out": tmp_path / "run", "config": SMALL}
    first = await played(asked(3), client(server), **options)
    assert sorted(trace.status for trace in first) in (["failed", "finished", "finished"],)
    server.reply = busy
    server.reset()
    assert not await played(asked(3), client(server), **options)
    assert not server.calls
    (again,) = await played(asked(3), client(server), retry_failed=True, **options)
    assert again.question == asked(1)[0] and again.status == "finished"
    assert drafted(server) == {asked(1)[0]: 1}
    assert [trace.status for trace in read_traces(tmp_path / "run")] == ["finished"] * 3


async def test_a_server_that_stays_away_ends_the_run(tmp_path: Path) -> None:
    server = ModelServer(reply=busy, delay=0.01)
    options: dict[str, Any] = {"out": tmp_path / "run", "config": SMALL, "max_requests": 4, "give_up_after": 0.6}
    async with nothing_left():
        with server:
            traces = run_batch(asked(20), client(server), **options)
            await anext(traces)
        with pytest.raises(ModelUnavailableError, match=r"away for 0\.6 s .*the same command again"):
            await asyncio.wait_for(_drain(traces), 10)
    kept = list(read_traces(tmp_path / "run"))
    assert 1 <= len(kept) < 20 and all(trace.status != "failed" for trace in kept)
    with server:
        await played(asked(20), client(server), **options)
    assert sorted(trace.question for trace in read_traces(tmp_path / "run")) == sorted(asked(20))


# ---- other models, and those who listen -----------------------------------------------------------------------------


async def test_any_chat_model_will_do(tmp_path: Path) -> None:
    running = peak = 0

    class Counted(ScriptedModel):
        async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> Any:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            try:
                return await super()._agenerate(messages, stop, run_manager, **options)
            finally:
                running -= 1

    model = Counted(seed=3, nonsense=0.05, broken=0.03, jitter=0.03)
    traces = await played(asked(40), model, out=tmp_path / "run", config=MIDDLE, max_requests=7)
    assert sorted(trace.question for trace in traces) == sorted(asked(40))
    assert peak == 7
    assert {trace.status for trace in traces} >= {"finished", "failed"}
    for trace in traces:
        invariants.check_all(trace)
    assert sorted(told(trace)["question"] for trace in read_traces(tmp_path / "run")) == sorted(asked(40))


class Listener(AsyncCallbackHandler):
    """Hears of every model call: how it was asked, and that it ended."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ended = 0

    async def on_chat_model_start(self, serialized: Any, messages: list[list[BaseMessage]], **kwargs: Any) -> None:
        self.asked += ["\n".join(str(message.content) for message in chat) for chat in messages]

    async def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.ended += 1


def prompts(trace: Trace) -> list[str]:
    return sorted("\n".join(message.content for message in call.messages) for call in trace.calls)


async def test_those_who_listen_hear_of_every_call_and_change_nothing(server: ModelServer) -> None:
    question = asked(1)[0]
    silent = (await Rehearsal(client(server), config=MIDDLE).ainvoke(question))["trace"]
    assert len(silent.calls) == len(server.calls) > 8

    async def with_handler(listener: Listener) -> Trace:
        rehearsal = Rehearsal(client(server), config=MIDDLE)
        return (await rehearsal.ainvoke(question, {"callbacks": [listener]}))["trace"]

    async def from_the_model(listener: Listener) -> Trace:
        (trace,) = await played([question], client(server, callbacks=[listener]), config=MIDDLE)
        return trace

    async def in_a_chain(listener: Listener) -> Trace:
        async def step(text: str) -> Trace:
            (trace,) = await played([text], client(server), config=MIDDLE)
            return trace

        return await RunnableLambda(step).ainvoke(question, {"callbacks": [listener]})

    ways: list[Callable[[Listener], Awaitable[Trace]]] = [with_handler, from_the_model, in_a_chain]
    for way in ways:
        server.reset()
        listener = Listener()
        trace = await way(listener)
        assert told(trace) == told(silent), way.__name__
        assert sorted(listener.asked) == prompts(silent), way.__name__
        assert listener.ended == len(server.calls) == len(silent.calls), way.__name__


async def test_events_and_message_streams_hear_of_every_call(server: ModelServer) -> None:
    question = asked(1)[0]
    model: ChatVLLM = client(server)
    rehearsal = Rehearsal(model, config=MIDDLE)
    silent = (await rehearsal.ainvoke(question))["trace"]
    events = [event async for event in rehearsal.graph.astream_events({"question": question}, version="v2")]
    started = [event for event in events if event["event"] == "on_chat_model_start"]
    ended = [event for event in events if event["event"] == "on_chat_model_end"]
    assert len(started) == len(ended) == len(silent.calls)
    texts: dict[str | None, str] = defaultdict(str)  # of calls that are in flight together, the pieces come mixed
    async for message, _ in rehearsal.graph.astream({"question": question}, stream_mode="messages"):
        texts[message.id] += message.text
    assert sorted(texts.values()) == sorted(call.completion for call in silent.calls)


# ---- memory ---------------------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_memory_does_not_grow_with_the_scenes(tmp_path: Path) -> None:
    def quick(purpose: str, role: str, round: int, rng: random.Random) -> Any:
        return {"action": "goes away"} if purpose == "act" else unseen if purpose == "judge" else None

    unseen = {"reason": "why not", "plausible": True, "observers": [], "changes": [], "consequence": None}
    model = ScriptedModel(seed=1, override=quick)
    blocks: list[int] = []
    memory: list[int] = []
    questions = (f"What is {number}?" for number in itertools.count())
    batch = run_batch(questions, model, out=tmp_path / "run", config=SMALL, cast=CAST, max_requests=2, max_scenes=2)
    async with aclosing(batch) as traces:
        async for trace in traces:
            assert trace.status == "finished"
            del trace
            model.log.clear()
            if len(blocks) % 10 == 0:
                gc.collect()
            blocks.append(sys.getallocatedblocks())
            memory.append(resident())
            if len(blocks) == 140:
                break
    # The least of many looks: scenes in flight and what waits to be collected come and go. A trace takes 100 blocks,
    # and pydantic keeps short texts, some 30 a scene, until it has 16,000.
    grown = (min(blocks[100:]) - min(blocks[20:60])) / 80
    assert grown < 60, f"{grown:.0f} blocks of memory a scene stay behind"
    assert min(memory[100:]) - min(memory[20:60]) < 4e6
