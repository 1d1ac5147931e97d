"""`matrix-graph run` and `status` as people use them: real processes, a fake model behind real HTTP."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from matrix_graph import Trace, read_traces
from matrix_graph.batch.summary import Summary
from matrix_graph.models.bundled import MODEL_NAME
from tests.integration.model_server import Fault, ModelServer
from tests.integration.scenes import Stories, busy, drafted
from tests.integration.test_cli import COMMAND, Done, Shell, ended
from tests.integration.test_server import eventually
from tests.unit import invariants

SMALL = ("--roles", 1, "--steps", 1)
FILE = "questions.jsonl"


class Run:
    """The command `run` on one folder of one server, and what it leaves there; to be closed."""

    def __init__(self, folder: Path, base_url: str | None) -> None:
        self.shell = Shell(folder)
        # A minute of processor time over all these starts, where somebody has set it.
        self.shell.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.base_url = base_url
        self.out = folder / "run"
        self._started: list[subprocess.Popen[str]] = []

    def close(self) -> None:
        """Kill what a failed test has left."""
        for process in self._started:
            process.kill()
            process.communicate()

    def ask(self, count: int, first: int = 0, name: str = FILE, **more: Any) -> list[str]:
        """Append questions to the file; returns them."""
        questions = [f"What is {number}?" for number in range(first, first + count)]
        with (self.shell.folder / name).open("a") as file:
            file.writelines(json.dumps({"question": question, **more}) + "\n" for question in questions)
        return questions

    def arguments(self, *options: object, questions: object = FILE) -> list[object]:
        server = [] if self.base_url is None else ["--base-url", self.base_url]
        return ["run", questions, "--out", "run", *server, *SMALL, *options]

    def start(self, *options: object, questions: object = FILE, **environment: str) -> subprocess.Popen[str]:
        self._started.append(self.shell.start(*self.arguments(*options, questions=questions), **environment))
        return self._started[-1]

    def finish(self, *options: object, questions: object = FILE, **more: Any) -> Done:
        return self.shell.run(*self.arguments(*options, questions=questions), **more)

    def status(self, *options: object) -> Done:
        return self.shell.run("status", "run", *options)

    @property
    def lines(self) -> int:
        """How many traces there are by now."""
        with suppress(FileNotFoundError):
            return (self.out / "traces.jsonl").read_bytes().count(b"\n")
        return 0

    @property
    def summary(self) -> Summary:
        return Summary.model_validate_json((self.out / "summary.json").read_bytes())

    def traces(self) -> list[Trace]:
        """All traces, each of them a whole line and a scene by the rules."""
        content = (self.out / "traces.jsonl").read_bytes()
        assert content.endswith(b"\n")
        assert all(isinstance(json.loads(line), dict) for line in content.splitlines())
        traces = list(read_traces(self.out))
        for trace in traces:
            invariants.check_all(trace)
        return traces

    def questions(self) -> list[str]:
        """The questions of all traces, in alphabetical order."""
        return sorted(trace.question for trace in self.traces())


@contextmanager
def watched(run: Run) -> Iterator[list[Summary]]:
    """Reads `summary.json` again and again; it must be whole each time, once it is there."""
    seen: list[Summary] = []
    broken: list[Exception] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            try:
                summary = run.summary
            except FileNotFoundError as error:
                if seen:
                    broken.append(error)
            except Exception as error:  # noqa: BLE001 - told below
                broken.append(error)
            else:
                if not seen or seen[-1].updated_at != summary.updated_at:
                    seen.append(summary)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
    assert not broken, broken[0]


def rejected(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.out / "rejected.jsonl").read_text().splitlines()]


def timeless(summary: Summary) -> dict[str, Any]:
    """The summary without the moment at which it was taken."""
    return summary.model_dump(exclude={"updated_at"})


def only_looked(server: ModelServer) -> bool:
    """Whether nothing was asked of the server but what it serves and how it stands."""
    return {path for _, path in server.requests} <= {"/v1/models", "/metrics", "/health"}


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


@contextmanager
def on_server(folder: Path, **options: Any) -> Iterator[tuple[Run, ModelServer]]:
    """A run on a fake model server that makes busy scenes."""
    with (
        ModelServer(**{"reply": busy, "delay": 0.0, **options}) as server,
        closing(Run(folder, server.base_url)) as run,
    ):
        yield run, server


# ---- again ----------------------------------------------------------------------------------------------------------


@STORIES.add
def the_same_command_does_what_is_missing(folder: Path) -> None:
    with on_server(folder, delay=0.01) as (run, server):
        questions = run.ask(8)
        first = run.finish()
        assert first.returncode == 0 and first.stdout == ""
        assert run.questions() == questions and drafted(server) == dict.fromkeys(questions, 1)
        before = (run.out / "traces.jsonl").read_bytes()

        server.reset()
        assert run.finish().returncode == 0
        assert only_looked(server) and (run.out / "traces.jsonl").read_bytes() == before

        # More questions, one of which the server refuses; and a writer that was killed left half a line.
        more = run.ask(4, first=8)
        (run.out / "traces.jsonl").write_bytes(before + before[: len(before) // 20])
        server.reply = lambda body: Fault(400) if body["messages"][-1]["content"] == more[0] else busy(body)
        done = run.finish()
        assert done.returncode == 1 and "--retry-failed" in done.stderr
        assert drafted(server) == dict.fromkeys(more, 1)
        assert (run.out / "traces.jsonl").read_bytes().startswith(before)
        assert run.questions() == sorted([*questions, *more])
        assert [trace.question for trace in run.traces() if trace.status == "failed"] == more[:1]

        server.reset()
        server.reply = busy
        done = run.finish("--retry-failed", "--json")
        assert done.returncode == 0 and drafted(server) == {more[0]: 1}
        assert run.questions() == sorted([*questions, *more])
        assert {trace.status for trace in run.traces()} == {"finished"}
        (failed,) = [json.loads(line) for line in (run.out / "failed.jsonl").read_text().splitlines()]
        assert failed["question"] == more[0] and failed["status"] == "failed"
        assert done.stdout.count("\n") == 1
        summary = Summary.model_validate_json(done.stdout)
        assert (summary.state, summary.questions.done, summary.questions.finished) == ("done", 12, 12)
        assert summary.this_start.scenes == 1 and timeless(summary) == timeless(run.summary)

        # Other settings are refused.
        server.reset()
        other = ("--steps", 2, "--temperature", 0.7)
        done = run.finish(*other)
        assert done.returncode == 2
        assert "scene.steps: 1 -> 2" in done.stderr and "scene.temperature: null -> 0.7" in done.stderr
        assert "--force-new-settings" in done.stderr and "another --out" in done.stderr
        assert only_looked(server) and len(run.traces()) == 12


@STORIES.add
def a_run_that_is_done_or_must_not_go_on_waits_for_no_server(folder: Path) -> None:
    with on_server(folder, models=(MODEL_NAME,)) as (run, server):
        questions = run.ask(4)
        run.ask(1)
        (folder / FILE).open("a").write("no question\n")
        server.reply = lambda body: Fault(400) if body["messages"][-1]["content"] == questions[0] else busy(body)
        named = ("--model", MODEL_NAME)
        assert run.finish(*named).returncode == 1
        before = (run.out / "traces.jsonl").read_bytes()

        # The name of the model being known, nobody is asked for it; a server of our own need not be started.
        server.reset()
        done = run.finish(*named, "--json")
        own = run.shell.run("run", FILE, "--out", "run", *SMALL, "--json")
        for again in (done, own):
            assert again.returncode == 1 and "nothing is played" in again.stderr, again.stderr
            summary = Summary.model_validate_json(again.stdout)
            counted = summary.questions
            assert (summary.state, summary.model, summary.this_start.scenes) == ("done", MODEL_NAME, 0)
            assert (counted.total, counted.finished, counted.failed, counted.left) == (4, 3, 1, 0)
            assert (counted.duplicates, counted.rejected, len(rejected(run))) == (1, 1, 1)
        other = run.shell.run("run", FILE, "--out", "run", "--steps", 2)
        assert other.returncode == 2 and "--force-new-settings" in other.stderr, other.stderr
        assert server.requests == [] and (run.out / "traces.jsonl").read_bytes() == before
        nowhere = run.shell.run("run", FILE, "--out", "x" * 300, *SMALL)
        assert nowhere.returncode == 2 and "cannot be made or written" in nowhere.stderr, nowhere.stderr

        # A failed scene that is to be tried again is something to do, and so is a question more.
        server.reply = busy
        run.finish(*named, "--retry-failed")
        assert drafted(server) == {questions[0]: 1}
        server.reset()
        more = run.ask(1, first=4)
        run.finish(*named)
        assert drafted(server) == {more[0]: 1} and run.questions() == sorted([*questions, *more])


# ---- watching, and one run at a time --------------------------------------------------------------------------------


@STORIES.add
def a_run_is_watched_while_it_goes_on_when_it_was_killed_and_after(folder: Path) -> None:
    with on_server(folder, delay=0.01) as (run, server):
        questions = run.ask(30)
        server.delay = 0.05
        with watched(run) as seen:
            process = run.start("--max-requests", 3)
            assert eventually(lambda: run.lines >= 2)
            server.delay = 60.0  # it stands still while it is looked at
            with ThreadPoolExecutor(3) as pool:
                looks = [pool.submit(run.status), pool.submit(run.status, "--json"), pool.submit(run.finish)]
                text, as_json, other = (look.result() for look in looks)
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            _, out, errors = ended(process)
            killed = run.status()
            kept = run.lines
            assert 2 <= kept < 30
            server.delay = 0.0
            done = run.finish("--json")
        assert done.returncode == 0 and run.questions() == sorted(questions)

        assert text.returncode == 0 and "running" in text.stdout and f"process {process.pid}" in text.stdout
        told = json.loads(as_json.stdout)
        assert as_json.returncode == 0 and told["running"] is True
        assert told["traces"]["finished"] >= 2
        assert Summary.model_validate(told["summary"]).pid == process.pid
        assert other.returncode == 1 and f"pid {process.pid}" in other.stderr and "--out" in other.stderr
        assert out == "" and "\x1b" not in errors
        assert "running" in errors

        assert killed.returncode == 0 and "was killed" in killed.stdout and f"{kept} questions done" in killed.stdout

        assert done.stdout.count("\n") == 1
        summary = Summary.model_validate_json(done.stdout)
        assert summary.state == "done" and timeless(summary) == timeless(run.summary)
        assert (summary.questions.total, summary.questions.done, summary.questions.left) == (30, 30, 0)
        assert (summary.questions.in_flight, summary.this_start.scenes) == (0, 30 - kept)
        assert summary.this_start.calls > 0 and summary.rates.calls_per_scene
        assert summary.limits.requests and summary.limits.scenes == 2 * summary.limits.requests
        assert len(seen) >= 4 and {"running", "done"} <= {one.state for one in seen}
        assert all(one.questions.done == one.questions.finished for one in seen)

        after = run.status()
        assert after.returncode == 0 and "done" in after.stdout and "30 questions done" in after.stdout


# ---- what comes in --------------------------------------------------------------------------------------------------

BAD_ROWS: list[tuple[bytes, str]] = [
    (b'{"question": "What is 1?", "draft"', "not JSON"),
    (b"\xff\xfe\x00", "not UTF-8"),
    (b'{"draft": "An answer to nothing."}', '"question" is missing'),
    (b'{"question": "  "}', '"question" is empty'),
    (b'{"question": 7}', '"question" is a number'),
    (b'{"question": "What is 1?", "draft": ["a"]}', '"draft" is a list'),
    (b'{"question": "What is 1?", "draft": ""}', '"draft" is empty'),
    (b'{"question": "What is 1?", "id": {}}', '"id" is an object'),
    (b"[1, 2]", "the row is a list"),
    (b"null", "the row is null"),
    (b'{"question": NaN}', '"question" is null'),
    (b"[" * 100_000, "nested too deep"),
]


@STORIES.add
def rows_that_are_no_questions_are_told_with_their_line(folder: Path) -> None:
    with on_server(folder, delay=0.01) as (run, _):
        good = [f"What is {number}?" for number in range(len(BAD_ROWS))]
        content = b""
        for number, (row, _) in enumerate(BAD_ROWS):
            content += row + b"\n\n" + json.dumps({"question": good[number], "id": number}).encode() + b"\r\n"
        (run.shell.folder / FILE).write_bytes(content)
        done = run.finish("--json")
        assert done.returncode == 1
        rows = rejected(run)
        assert [row["line"] for row in rows] == [1 + 3 * number for number in range(len(BAD_ROWS))]
        for row, (_, reason) in zip(rows, BAD_ROWS, strict=True):
            assert reason in row["reason"] and row["source"] == FILE, row
        assert run.questions() == sorted(good)
        ids = {trace.question: (trace.model_extra or {})["question_id"] for trace in run.traces()}
        assert ids == {question: str(number) for number, question in enumerate(good)}
        summary = Summary.model_validate_json(done.stdout)
        assert (summary.questions.rejected, summary.questions.total) == (len(BAD_ROWS), len(good))
        assert "rejected.jsonl" in done.stderr


CSV = b"""\xef\xbb\xbfID, Question ,draft,source
a,"What is ""1""?
And 2?",,x
b,What is 3?,"Three, that is.",x
,What is 4?, ,x
c,,nothing asked,x
d,What is 5?
e,What is 6?,,x,too many
b,What is 3?,"Three, that is.",y
f,What is 3?,,x
"""


def write_on(process: subprocess.Popen[bytes], rows: Iterable[str]) -> None:
    """Write rows into a pipe as fast as it takes them, as long as it does."""
    assert process.stdin is not None
    pipe = process.stdin

    def write() -> None:
        with suppress(BrokenPipeError, ValueError):
            for row in rows:
                pipe.write(row.encode() + b"\n")
                pipe.flush()

    threading.Thread(target=write, daemon=True).start()


@contextmanager
def piped(run: Run, *options: object) -> Iterator[subprocess.Popen[bytes]]:
    """The command, reading from a pipe that stays open; what a failed test leaves is killed."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, run.arguments(*options, questions="-"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=run.shell.folder,
        env=run.shell.environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


def ended_in_pipe(process: subprocess.Popen[bytes], within: float = 5) -> tuple[int, str]:
    """Exit code and standard error of a program whose standard input stays open."""
    code = process.wait(within)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    for word in ("Traceback", "Fatal Python", "never awaited", "never retrieved", "was destroyed"):
        assert word not in errors, errors
    return code, errors


@STORIES.add
def csv_by_standard_input_that_nobody_closes_is_played_and_keeps_no_run_alive(folder: Path) -> None:
    with on_server(folder, delay=0.01) as (run, server):
        with piped(run) as process:
            assert process.stdin is not None
            process.stdin.write(CSV)
            process.stdin.flush()
            assert eventually(lambda: run.lines == 5 and len(rejected(run)) == 2)
            process.send_signal(signal.SIGTERM)
            assert ended_in_pipe(process)[0] == 143
        assert [(row["line"], row["source"]) for row in rejected(run)] == [(6, "-"), (8, "-")]
        found = {(trace.question, (trace.model_extra or {}).get("question_id")) for trace in run.traces()}
        assert found == {
            ('What is "1"?\nAnd 2?', "a"),
            ("What is 3?", "b"),
            ("What is 4?", None),
            ("What is 5?", "d"),
            ("What is 3?", "f"),
        }
        given = [trace for trace in run.traces() if trace.draft == "Three, that is."]
        assert [[call.purpose for call in trace.calls[:2]] for trace in given] == [["check", "cast"]], (
            "a draft that is given is not asked for"
        )
        assert sum(drafted(server).values()) == 4
        counted = run.summary.questions
        assert (counted.finished, counted.duplicates, counted.rejected, counted.in_flight) == (5, 1, 2, 0)
        assert run.summary.state == "stopped"


@STORIES.add
def a_named_pipe_that_nobody_closes_keeps_no_run_alive(folder: Path) -> None:
    with on_server(folder, delay=0.01) as (run, _):
        path = run.shell.folder / "pipe"
        os.mkfifo(path)
        process = run.start(questions=path)
        with path.open("w") as pipe:
            pipe.write('"What is 1?"\n')
            pipe.flush()
            assert eventually(lambda: run.lines == 1)
            process.send_signal(signal.SIGINT)
            assert ended(process, 5)[0] == 130


@STORIES.add
def a_stream_without_end_is_played_as_it_comes_and_ends_with_ctrl_c(folder: Path) -> None:
    with on_server(folder, delay=0.01) as (run, server):
        with piped(run, "--max-requests", 2) as process:
            write_on(process, (f'"What is {number}?"' for number in range(10**6)))
            assert eventually(lambda: run.lines >= 5), "nothing is played before the input ends"
            process.send_signal(signal.SIGINT)
            code, errors = ended_in_pipe(process)
        assert code == 130
        assert "no new scenes begin" in errors
        assert run.questions() == sorted(drafted(server)), "what was begun is kept"
        assert set(drafted(server).values()) == {1}


@STORIES.add
def a_run_does_not_play_its_own_files(folder: Path) -> None:
    with on_server(folder, delay=0.01) as (run, server):
        run.ask(1)
        with (folder / FILE).open("a") as file:
            file.write('{"quesion": "typo"}\nnot json\n')
        assert run.finish().returncode == 1
        before = (run.out / "rejected.jsonl").read_bytes()
        assert before.count(b"\n") == 2
        (folder / "link.jsonl").symlink_to(run.out / "rejected.jsonl")
        for own in ("run/rejected.jsonl", "link.jsonl", "run/traces.jsonl"):
            done = run.finish(questions=own, timeout=60)
            assert done.returncode == 2
            assert "a file that this command writes itself" in done.stderr
            assert "Copy it elsewhere" in done.stderr
        assert (run.out / "rejected.jsonl").read_bytes() == before
        shutil.copy(run.out / "rejected.jsonl", folder / "copy.jsonl")
        assert run.finish(questions="copy.jsonl").returncode == 1
        assert len(rejected(run)) == 4
        assert set(drafted(server).values()) == {1}


@STORIES.add
def what_cannot_be_run_is_told(folder: Path) -> None:
    with on_server(folder, delay=0.01) as (run, server):
        run.ask(1)
        (folder / "odd.csv").write_text("id,text\n1,What is 1?\n")
        (folder / "empty.jsonl").write_text("\n\n")
        (folder / "wide.csv").write_text("question\nWhat is 1?\n", encoding="utf-16")
        url = ("--base-url", run.base_url)
        cases: dict[tuple[object, ...], tuple[int, str]] = {
            ("run", "none.jsonl", "--out", "o1", *url): (2, "none.jsonl does not exist"),
            ("run", "odd.csv", "--out", "o2", *url): (2, 'no column "question"'),
            ("run", FILE, "--out", "o3", "--max-requests", 0, *url): (2, "--max-requests"),
            ("run", "empty.jsonl", "--out", "o4", *url): (2, "empty.jsonl holds no rows: it is empty"),
            ("run", "wide.csv", "--out", "o5", *url): (2, "wide.csv is UTF-16, not UTF-8. Save it as UTF-8"),
            ("status", "nowhere"): (2, "holds no run"),
        }
        with ThreadPoolExecutor(3) as pool:
            runs = pool.map(lambda case: run.shell.run(*case), cases)
            for (code, said), done in zip(cases.values(), runs, strict=True):
                assert done.returncode == code, (done.args, done.stderr)
                assert said in " ".join(done.stderr.replace("│", " ").split()), (done.args, done.stderr)
        assert only_looked(server)
        assert not any(path.stat().st_size for path in folder.glob("o*/traces.jsonl"))
