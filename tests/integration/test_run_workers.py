"""Scenes played by several processes: real processes and signals, a fake model behind real HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from matrix_graph import SceneConfig, Trace, run_batch
from matrix_graph.batch import worker_handle
from matrix_graph.batch import workers as module
from matrix_graph.batch.worker_handle import WorkerError
from matrix_graph.errors import ConfigError
from matrix_graph.models import traffic
from tests.integration.model_server import Fault, ModelServer
from tests.integration.random_reply import JSON
from tests.integration.scenes import busy, client, drafted, purpose, told
from tests.integration.test_batch import asked, nothing_left
from tests.integration.test_cli import ended, read_until
from tests.integration.test_run_command import Run
from tests.integration.test_run_faults import unharmed
from tests.integration.test_server import eventually
from tests.unit.scripted import ScriptedModel

SMALL = SceneConfig(roles=1, steps=1)


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer(reply=busy, delay=0.02) as running:
        yield running


@pytest.fixture
def run(server: ModelServer, tmp_path: Path) -> Iterator[Run]:
    with closing(Run(tmp_path, server.base_url)) as run:
        yield run


def workers_of(pid: int) -> list[int]:
    """The worker processes below a process."""
    return children_of(pid, b"matrix_graph.batch._worker")


def children_of(pid: int, named: bytes) -> list[int]:
    """Its children that run and whose command line holds that."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            line = (entry / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if int(parent) == pid and state != "Z" and named in line:
            found.append(int(entry.name))
    return found


def secrets_of(pids: list[int]) -> bytes:
    """What every user of the machine, or this one, can read of processes without asking them."""
    return b"".join((Path("/proc") / str(pid) / name).read_bytes() for pid in pids for name in ("cmdline", "environ"))


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def played(*arguments: Any, **options: Any) -> list[Trace]:
    return [trace async for trace in run_batch(*arguments, **options)]


# ---- what comes out -------------------------------------------------------------------------------------------------


async def test_one_two_and_three_workers_play_the_same_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    rows = [{"question": question, "draft": None if n % 3 else f"Draft {n}."} for n, question in enumerate(asked(12))]
    config = SceneConfig(roles=2, steps=1, temperature=0.7)
    results: list[dict[str, Any]] = []
    shown = b""
    with ModelServer(reply=busy, delay=0.02, api_key="a-secret-key") as server:
        async with nothing_left():
            for count in (1, 2, 3):
                options: dict[str, Any] = {"out": tmp_path / str(count), "config": config, "max_requests": 5}
                results.append({})
                async for trace in run_batch(rows, client(server, api_key="a-secret-key"), workers=count, **options):
                    assert trace.question not in results[-1]
                    results[-1][trace.question] = (trace.id, told(trace))
                    workers = workers_of(os.getpid())
                    assert len(workers) == (count if count > 1 else 0)
                    shown += secrets_of(workers)
                assert gone(workers)
                assert server.peak_in_flight == 5, "the limit holds across all workers, and is made use of"
                server.reset()
    assert len(results[0]) == 12 and results[0] == results[1] == results[2]
    assert b"_worker" in shown and b"a-secret-key" not in shown


async def test_a_model_that_lives_in_this_process_stays_in_it(run: Run, server: ModelServer) -> None:
    with pytest.raises(ConfigError, match="ScriptedModel, which lives in this process"):
        await played(asked(1), ScriptedModel(), workers=2)
    with pytest.raises(ConfigError, match="workers is 0; it must be at least 1"):
        await played(asked(1), client(server), workers=0)
    assert not server.requests
    run.ask(1)
    refused = await asyncio.to_thread(run.finish, "--workers", 0)
    assert refused.returncode == 2 and "--workers" in refused.stderr


# ---- a server that is away, or dies ---------------------------------------------------------------------------------


async def test_a_server_that_is_away_costs_no_scene_of_any_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "_LONGEST_WAIT", 0.2)
    server = ModelServer(reply=busy, delay=0.02)
    config = SceneConfig(roles=1, steps=1, max_seconds=2.0)
    traces: list[Trace] = []

    async def go_and_come_back() -> None:
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(2.5)
        assert len(traces) < 24
        await asyncio.to_thread(server.__enter__)

    with server:
        async with nothing_left():
            async for trace in run_batch(asked(24), client(server), config=config, max_requests=6, workers=2):
                traces.append(trace)
                if len(traces) == 4:
                    away = asyncio.create_task(go_and_come_back())
            await away
    assert sorted(trace.question for trace in traces) == sorted(asked(24))
    for trace in traces:
        assert trace.status == "finished" and not trace.failures, trace.error
        assert all(call.error is None for call in trace.calls)


async def test_a_question_that_kills_the_server_is_set_aside_by_all_workers_together(tmp_path: Path) -> None:
    server = ModelServer(delay=0.02)
    deaths: list[str] = []

    def die() -> None:
        server.stop()
        time.sleep(0.3)
        server.__enter__()

    def deadly(body: JSON) -> str | Fault | None:
        if purpose(body) != "cast" or "What is 5?" not in str(body["messages"]):
            return busy(body)
        deaths.append(purpose(body))
        Thread(target=die).start()
        return Fault(hang=30)

    server.reply = deadly
    with server:
        async with nothing_left():
            traces = await played(asked(10), client(server), config=SMALL, max_requests=3, workers=2)
    assert len(deaths) == 2
    assert sorted(trace.question for trace in traces) == asked(10)
    (failed,) = [trace for trace in traces if trace.status == "failed"]
    assert failed.question == "What is 5?" and failed.error is not None and failed.answer == failed.draft
    assert failed.error.type == "CrashingQuestionError" and "died 2 times" in failed.error.message


# ---- processes that die, and processes that must not stay -----------------------------------------------------------


def test_two_hundred_scenes_each_once_though_a_worker_is_killed(run: Run, server: ModelServer) -> None:
    questions = run.ask(200)
    server.delay = 0.0
    process = run.start("--max-requests", 12, "--max-scenes", 24, "--workers", 2)
    assert eventually(lambda: run.lines >= 20)
    before = workers_of(process.pid)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    assert eventually(lambda: len(set(workers_of(process.pid)) - set(before)) == 1 or run.lines == 200)
    returned, _, errors = ended(process, 30)
    assert returned == 0, errors
    assert "starting 2 worker processes" in errors and "a worker process was killed by SIGKILL" in errors
    unharmed(run, questions)
    assert drafted(server).keys() == set(questions)
    assert sum(drafted(server).values()) <= 200 + 24, "the scenes of one worker were played again, and no others"
    assert server.peak_in_flight <= 12 + 12, "the server may not have noticed at once that half of its callers are dead"


def test_no_worker_outlives_a_run_that_is_killed(run: Run, server: ModelServer) -> None:
    questions = run.ask(30)
    process = run.start("--max-requests", 4, "--workers", 2)
    assert eventually(lambda: run.lines >= 3)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.kill()
    ended(process)
    assert eventually(lambda: gone(workers), 5)
    assert eventually(lambda: server.in_flight == 0)
    kept = run.questions()
    server.delay = 0.0
    server.reset()
    assert run.finish().returncode == 0, "the lock ended with the run; how many workers there are is no setting"
    unharmed(run, questions)
    assert not set(kept) & set(drafted(server))


def test_a_signal_to_everybody_lets_the_scenes_in_flight_end(run: Run, server: ModelServer) -> None:
    questions = run.ask(30)
    process = run.start("--max-requests", 4, "--workers", 2)
    assert eventually(lambda: run.lines >= 2)
    workers = workers_of(process.pid)
    assert len(workers) == 2 and all(os.getsid(pid) == pid for pid in workers), "Ctrl-C does not reach them"
    for pid in (*workers, process.pid):  # as a service manager ends a group of processes
        os.kill(pid, signal.SIGTERM)
    read_until(process, "SIGTERM: no new scenes begin")
    kept = run.lines
    assert ended(process)[0] == 143
    begun = drafted(server)
    assert len(begun) <= kept + run.summary.limits.scenes < len(questions)
    unharmed(run, list(begun))
    assert gone(workers)
    assert run.summary.this_start.calls == len(server.calls), "every call is counted once, whoever made it"


def test_two_signals_stop_at_once_and_leave_no_worker(run: Run, server: ModelServer) -> None:
    server.delay = 60.0
    run.ask(8)
    process = run.start("--workers", 2)
    assert eventually(lambda: server.in_flight == 8)
    workers = workers_of(process.pid)
    process.send_signal(signal.SIGINT)
    read_until(process, "no new scenes begin")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
    assert time.monotonic() - began < 3
    assert len(workers) == 2 and gone(workers) and run.lines == 0
    assert eventually(lambda: server.in_flight == 0)


async def test_leaving_early_ends_even_workers_that_do_not_listen(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn = """
import time
from matrix_graph.batch import _worker as worker
begin = worker.Worker._begin
def talk_and_begin(self, **task):
    print("what is printed is no message", flush=True)
    begin(self, **task)
worker.Worker._begin = talk_and_begin
worker.Worker.close = lambda _: time.sleep(60)
worker.main()
"""
    monkeypatch.setattr(module, "_COMMAND", (sys.executable, "-P", "-c", stubborn))
    monkeypatch.setattr(worker_handle, "_STOP_SECONDS", 0.3)
    async with nothing_left():
        async for trace in run_batch(asked(20), client(server), config=SMALL, max_requests=4, workers=2):
            assert trace.status == "finished"
            workers = children_of(os.getpid(), b"worker.main()")
            assert len(workers) == 2
            break
    assert gone(workers)
    assert eventually(lambda: server.in_flight == 0)


async def test_workers_that_cannot_start_say_why(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_COMMAND", (sys.executable, "-S", "-c", "raise SystemExit('no room')"))
    async with nothing_left():
        with pytest.raises(WorkerError, match=r"3 worker processes .* ended with code 1(.|\n)*no room"):
            await played(asked(2), client(server), config=SMALL, workers=2)
    assert "no room" in caplog.text
