"""A run that everything goes wrong in: it is killed, its server dies or is away, a question kills the engine, the disk
is full. Real processes and real signals; the large forms of these cases are scripts under `benchmarks/`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.integration.engine import DEADLY
from tests.integration.model_server import Fault
from tests.integration.scenes import Stories, busy, drafted
from tests.integration.test_cli import COMMAND, ended, read_until
from tests.integration.test_run_command import FILE, Run, on_server, watched
from tests.integration.test_server import eventually

ENGINE = Path(__file__).with_name("engine.py")
SERVER = Path(__file__).with_name("model_server.py")
STORIES = Stories()


@pytest.fixture(scope="module")
def played(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    with STORIES.played(request, tmp_path_factory) as futures:
        yield futures


@pytest.mark.parametrize("story", STORIES)
def test_run(story: str, played: dict[str, Future[None]]) -> None:
    played[story].result()


def unharmed(run: Run, questions: list[str], *, all_checked: bool = True) -> None:
    """Every question was played once, to its end, and nothing of what went wrong around it is to be seen.

    Args:
        run: that has ended.
        questions: all of them.
        all_checked: whether every revision was checked; one that could not be, since its server refused, is not taken.
    """
    assert run.questions() == sorted(questions)
    for trace in run.traces():
        assert trace.status in ("finished", "blocked"), trace.error
        failed = {call.purpose for call in trace.calls if call.error is not None}
        assert not trace.failures and failed <= (set() if all_checked else {"check"})
        assert not failed or (trace.check is not None and not trace.check.passed and trace.answer == trace.draft)


# ---- a server of our own dies ---------------------------------------------------------------------------------------


class OwnServer:
    """A run whose server is the fake engine, started and watched by the run itself.

    Args:
        folder: of the run, and of what the engine tells of its life.
        poisons: what the engine dies of, one question each; see `engine.py`.
        innocent: how many other questions there are, before and after those.
    """

    def __init__(self, folder: Path, poisons: Sequence[str], innocent: int) -> None:
        self.folder = folder
        command = [sys.executable, str(ENGINE), "--engine-folder", str(folder)]
        supervision = {"health_interval": 0.1, "restart_backoff": 0.05, "stop_timeout": 4}
        settings = {"model": "own/model", "server": {"command": command, **supervision}}
        (folder / "own.yaml").write_text(yaml.safe_dump(settings))
        self.run = Run(folder, None)
        self.innocent = self.run.ask(innocent // 3)
        self.poisons = [f"What is {DEADLY[purpose]}?" for purpose in poisons]
        with (folder / FILE).open("a") as file:
            file.writelines(json.dumps({"question": question}) + "\n" for question in self.poisons)
        self.innocent += self.run.ask(innocent - len(self.innocent), first=len(self.innocent))

    def lines(self, name: str) -> int:
        path = self.folder / name
        return path.read_text().count("\n") if path.exists() else 0

    def play(self, *kills: tuple[int, int]) -> tuple[int, str]:
        """Run to the end; returns exit code and standard error.

        Args:
            kills: when to kill the engine, as the system does when memory is short: after so many starts of the engine
                and so many traces.
        """
        with closing(self.run):
            process = self.run.start("--config", "own.yaml", "--max-requests", 3)
            for starts, traces in kills:
                assert eventually(partial(self._has_come_to, starts, traces), 40)
                os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)
            returned, _, errors = ended(process, 45)
        return returned, errors

    def _has_come_to(self, starts: int, traces: int) -> bool:
        return self.lines("starts") == starts and self.run.lines >= traces


@STORIES.add
def an_engine_that_is_killed_costs_no_scene(folder: Path) -> None:
    own = OwnServer(folder, (), 24)
    returned, errors = own.play((1, 5), (2, 10), (3, 15))
    assert returned == 0, errors
    unharmed(own.run, own.innocent)
    assert own.lines("starts") == 4 and own.lines("deaths") == 0
    summary = own.run.summary
    assert (summary.this_start.restarts, summary.questions.set_aside) == (3, 0)
    assert summary.this_start.scenes == 24


def set_aside(folder: Path, purpose: str) -> None:
    own = OwnServer(folder, [purpose], 9)
    returned, errors = own.play()
    assert returned == 1, errors
    assert own.lines("deaths") == 2 and own.lines("starts") == 3
    assert own.run.questions() == sorted([*own.innocent, *own.poisons])
    for trace in own.run.traces():
        if trace.question in own.innocent:
            assert trace.status == "finished" and not trace.failures
            continue
        assert trace.status == "failed" and trace.error is not None and trace.answer == trace.draft
        assert trace.error.type == "CrashingQuestionError" and "died 2 times" in trace.error.message
    assert "set aside" in errors
    counted = own.run.summary.questions
    assert (counted.failed, counted.finished, counted.set_aside, counted.left) == (1, 9, 0, 0)


for _purpose in ("draft", "judge"):
    _name = f"a_question_is_set_aside_after_two_tries_that_kills_the_engine_by_its_{_purpose}"
    STORIES[_name] = partial(set_aside, purpose=_purpose)


def only_the_guilty_fail(own: OwnServer, *kills: tuple[int, int]) -> None:
    returned, errors = own.play(*kills)
    assert returned == 1, errors
    statuses = {trace.question: trace.status for trace in own.run.traces()}
    assert statuses == {**dict.fromkeys(own.innocent, "finished"), **dict.fromkeys(own.poisons, "failed")}
    assert own.run.questions() == sorted([*own.innocent, *own.poisons])
    assert own.lines("deaths") <= 3 * len(own.poisons)


@STORIES.add
def two_questions_that_kill_the_engine_are_told_from_the_others(folder: Path) -> None:
    only_the_guilty_fail(OwnServer(folder, ["act", "judge"], 12))


@STORIES.add
def a_question_that_kills_the_engine_is_told_from_one_that_saw_it_killed(folder: Path) -> None:
    only_the_guilty_fail(OwnServer(folder, ["judge"], 14), (3, 6))


# ---- a server elsewhere is away -------------------------------------------------------------------------------------


@STORIES.add
def a_server_that_is_away_sick_or_out_of_humour_costs_no_scene(folder: Path) -> None:
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    with on_server(folder, delay=0.03) as (run, server):
        questions = run.ask(24)
        process = run.start("--max-requests", 4)
        assert eventually(lambda: run.lines >= 3)
        server.stop()
        time.sleep(1.2)
        kept = run.lines
        with server:
            assert eventually(lambda: run.lines >= kept + 5)
            server.reply = lambda body: Fault(503, "warming up")
            time.sleep(1.0)
            server.reply = lambda body: Fault(429, "too many requests")
            time.sleep(1.0)
            server.reply = lambda body: Fault(500) if chance.random() < 0.1 else busy(body)
            returned, _, errors = ended(process, 45)
    assert returned == 0, (seed, errors)
    unharmed(run, questions)
    assert drafted(server).keys() == set(questions)
    assert "is away" in errors and "is back" in errors
    assert run.summary.this_start.seconds_away > 1


@STORIES.add
def a_server_that_is_suspended_costs_no_scene(folder: Path) -> None:
    command = [sys.executable, str(SERVER), "--delay", "0.03"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as elsewhere:
        assert elsewhere.stdout is not None
        try:
            with closing(Run(folder, elsewhere.stdout.readline().strip())) as run:
                questions = run.ask(12)
                process = run.start("--max-requests", 4)
                assert eventually(lambda: run.lines >= 2)
                elsewhere.send_signal(signal.SIGSTOP)
                time.sleep(0.3)
                kept = run.lines
                time.sleep(0.8)
                assert run.lines == kept < 12 and process.poll() is None
                elsewhere.send_signal(signal.SIGCONT)
                assert ended(process, 30)[0] == 0
        finally:
            elsewhere.kill()
    unharmed(run, questions)


@STORIES.add
def a_server_that_never_comes_back_ends_the_run_and_fails_no_scene(folder: Path) -> None:
    with on_server(folder, delay=0.03) as (run, server):
        questions = run.ask(20)
        process = run.start("--max-requests", 4, "--give-up-after", 1.5)
        assert eventually(lambda: run.lines >= 3)
        server.stop()
        began = time.monotonic()
        returned, _, errors = ended(process, 15)
        assert 1.4 < time.monotonic() - began < 8
        assert returned == 1
        assert "--give-up-after" in errors and "same command again" in errors
        assert run.summary.state == "failed" and run.summary.questions.in_flight == 0
        kept = run.questions()
        assert 3 <= len(kept) < 20
        unharmed(run, kept)
        server.reset()
        with server:
            assert run.finish().returncode == 0
            unharmed(run, questions)
            assert drafted(server) == dict.fromkeys(set(questions) - set(kept), 1)


@STORIES.add
def no_clock_of_a_scene_runs_while_the_server_is_away(folder: Path) -> None:
    with on_server(folder, delay=0.05) as (run, server):
        questions = run.ask(3)
        process = run.start(MATRIX_GRAPH_SCENE__MAX_SECONDS="3")
        assert eventually(lambda: server.in_flight == 3)
        server.stop()
        began = time.monotonic()
        assert eventually(lambda: run.summary.state == "waiting", 5)
        assert run.status().stdout.splitlines()[0].split()[1] == "waiting"
        time.sleep(max(0.0, began + 4 - time.monotonic()))
        assert not run.lines
        with server:
            returned, _, errors = ended(process, 30)
    assert returned == 0, errors
    unharmed(run, questions)
    assert {trace.settings["max_seconds"] for trace in run.traces()} == {3.0}
    assert run.summary.this_start.seconds_away > 3.5


@STORIES.add
def a_server_that_comes_back_with_another_model_does_not_use_up_the_questions(folder: Path) -> None:
    with on_server(folder, delay=0.03) as (run, server):
        questions = run.ask(60)
        process = run.start("--max-requests", 4)
        assert eventually(lambda: run.lines >= 3)
        server.models[:] = ["another-model"]
        returned, _, errors = ended(process, 30)
        assert returned == 1
        assert "fake-model" in errors and "another-model" in errors
        assert len([trace for trace in run.traces() if trace.status == "failed"]) <= 8, "all were tried, and failed"
        assert run.lines < 60
        server.models[:] = ["fake-model"]
        assert run.finish("--retry-failed").returncode == 0
    unharmed(run, questions, all_checked=False)


# ---- the program is killed or told to stop --------------------------------------------------------------------------


@STORIES.add
def killed_again_and_again_it_loses_nothing_and_repeats_only_what_was_in_flight(folder: Path) -> None:
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    begun_before: Counter[str] = Counter()
    in_flight = 0
    with on_server(folder, delay=0.03) as (run, server), watched(run):
        questions = run.ask(40)
        allowed = Counter(questions)
        for _ in range(4):
            process = run.start("--max-requests", 4)
            calls = len(server.calls) + moments.randint(1, 60)
            assert eventually(lambda calls=calls: len(server.calls) >= calls), seed
            time.sleep(moments.uniform(0, 0.06))
            process.send_signal(signal.SIGKILL)
            assert ended(process)[0] == -signal.SIGKILL, seed
            assert eventually(lambda: server.in_flight == 0)
            begun = drafted(server)
            kept = run.questions() if run.lines else []
            lost = [question for question in begun - begun_before if question not in kept]
            begun_before = begun
            in_flight += len(lost)
            allowed.update(lost)
        assert run.finish().returncode == 0, seed
    unharmed(run, questions)
    assert in_flight > 0, f"no kill hit a scene; seed {seed}"
    assert drafted(server) <= allowed, f"a scene was repeated that was not in flight; seed {seed}"
    assert sum(drafted(server).values()) <= 40 + in_flight, seed


@STORIES.add
def a_signal_lets_the_scenes_in_flight_end(folder: Path) -> None:
    with on_server(folder, delay=0.03) as (run, server):
        questions = run.ask(30)
        process = run.start("--max-requests", 4)
        assert eventually(lambda: run.lines >= 2)
        process.send_signal(signal.SIGINT)
        read_until(process, "SIGINT: no new scenes begin")
        kept = run.lines
        returned, out, errors = ended(process)
        assert returned == 130 and out == ""
        assert "goes on" in errors
        begun = drafted(server)
        assert len(begun) <= kept + run.summary.limits.scenes < len(questions)
        unharmed(run, list(begun))
        assert run.summary.state == "stopped" and run.summary.questions.in_flight == 0
        server.delay = 0.0
        assert run.finish().returncode == 0
    unharmed(run, questions)
    assert drafted(server) == dict.fromkeys(questions, 1), "nothing was played twice"


@STORIES.add
def two_signals_stop_at_once(folder: Path) -> None:
    with on_server(folder) as (run, server):
        questions = run.ask(8)
        slow = questions[3:]
        server.delay = lambda body: 60.0 if body["messages"][-1]["content"] in slow else 0.01
        process = run.start()
        assert eventually(lambda: run.lines == 3 and server.in_flight == 5)
        process.send_signal(signal.SIGINT)
        read_until(process, "no new scenes begin")
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        returned, _, errors = ended(process)
        assert time.monotonic() - began < 3
        assert returned == 130 and "stopping at once" in errors
        assert run.questions() == questions[:3]
        assert run.summary.state == "stopped" and run.summary.questions.in_flight == 0
        assert eventually(lambda: server.in_flight == 0)


@STORIES.add
def a_signal_when_everything_is_begun_is_no_reason_to_complain(folder: Path) -> None:
    with on_server(folder, delay=0.06) as (run, server):
        questions = run.ask(3)
        process = run.start()
        assert eventually(lambda: len(drafted(server)) == 3 and len(server.calls) > 3)
        process.send_signal(signal.SIGINT)
        assert ended(process)[0] == 0
        unharmed(run, questions)
        assert run.summary.state == "done"


# ---- the machine has too little ------------------------------------------------------------------------------------


def limited(run: Run, limit: str, *options: object) -> subprocess.CompletedProcess[str]:
    """Run to the end under one of the shell's limits."""
    command = [*COMMAND, *map(str, run.arguments(*options))]
    done = subprocess.run(
        ["bash", "-c", f'ulimit {limit} && exec "$@"', "-", *command],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=run.shell.folder,
        env=run.shell.environment,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@STORIES.add
def too_few_open_files_fail_no_scene(folder: Path) -> None:
    with on_server(folder, delay=0.2) as (run, _):
        questions = run.ask(150)
        done = limited(run, "-n 64", "--max-requests", 150)
    if done.returncode == 2:
        assert "ulimit" in done.stderr or "--max-requests" in done.stderr, done.stderr
        assert not run.lines
    else:
        assert done.returncode == 0, done.stderr
        unharmed(run, questions)


@STORIES.add
def a_full_disk_stops_the_run_cleanly_and_it_goes_on_when_there_is_room(folder: Path) -> None:
    kilobytes = 500
    with on_server(folder) as (run, _):
        questions = run.ask(16, draft="A long answer. " * 1500)
        done = limited(run, f"-f {kilobytes}")
        assert done.returncode == 1, done.stderr
        assert "traces.jsonl" in done.stderr and "File too large" in done.stderr
        assert "room" in done.stderr and "again" in done.stderr, "what to do is not said"
        kept = run.questions()
        assert 1 <= len(kept) < 16 and (run.out / "traces.jsonl").stat().st_size <= kilobytes * 1024
        assert run.summary.state == "failed" and run.summary.questions.in_flight == 0
        assert run.finish().returncode == 0
    unharmed(run, questions)
