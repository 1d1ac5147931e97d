"""The command line as people run it: real processes, a fake model behind real HTTP, a stub in place of vLLM."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyte
import pytest
import yaml

import matrix_graph
from matrix_graph import Trace, read_traces
from matrix_graph.config import Settings, load_settings
from tests.integration.model_server import Fault, ModelServer
from tests.integration.scenes import busy
from tests.integration.test_server import alive, eventually, make_adapter, pids, port_is_free

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
STUB = Path(__file__).with_name("stub_engine.py")
COMMAND = [sys.executable, "-m", "matrix_graph.cli"]
QUESTION = "How do I tell him that his dog barks?"

# What decides elsewhere how output looks, or which server is meant, must not decide it here.
_OTHERS = re.compile(
    r"MATRIX_GRAPH_|VLLM_API_KEY|FORCE_COLOR|NO_COLOR|TTY_|TERM|COLUMNS|LINES|PYTHONIOENCODING|LANGSMITH"
)

# An engine with a model behind it: the fake model server, started as vLLM would be.
ENGINE = """
import argparse, asyncio, os, sys
sys.path.insert(0, {root!r})
from tests.integration.model_server import ModelServer
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--port", type=int)
parser.add_argument("--served-model-name")
options, _ = parser.parse_known_args()
server = ModelServer(port=options.port, models=(options.served_model_name,), api_key=os.environ["VLLM_API_KEY"])
asyncio.run(server.serve(lambda: print("INFO:     Application startup complete.", flush=True)))
"""

Done = subprocess.CompletedProcess[str]


class Shell:
    """Runs the command line in a folder and an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.environment = {name: value for name, value in os.environ.items() if not _OTHERS.match(name)}
        self.environment |= {"MATRIX_GRAPH_CACHE": str(self.cache), "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}

    def run(self, *arguments: object, input: str | bytes = "", timeout: float = 30, **environment: str) -> Done:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            input=input.encode() if isinstance(input, str) else input,
            capture_output=True,
            timeout=timeout,
            cwd=self.folder,
            env=self.environment | environment,
        )
        out, errors = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in out + errors, errors
        return subprocess.CompletedProcess(done.args, done.returncode, out, errors)

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.environment | environment,
        )

    def config(self, *stub_options: object, **server: Any) -> Path:
        """A YAML file whose engine is the stub."""
        command = [sys.executable, str(STUB), *(str(option) for option in stub_options)]
        settings = {"stop_timeout": 4, "health_interval": 0.1, "restart_backoff": 0.05, "max_restarts": 1, **server}
        path = self.folder / "server.yaml"
        path.write_text(yaml.safe_dump({"model": "stub/model", "server": {"command": command, **settings}}))
        return path


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer(reply=busy) as running:
        yield running


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What a program says on standard error until it has said something; fails if it ends before."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if words in line:
            return said
    pytest.fail(f"it never said {words!r}: {said}")


def ended(process: subprocess.Popen[str], within: float = 10) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=within)
    assert "Traceback" not in out + errors, errors
    assert "never retrieved" not in errors
    return process.returncode, out, errors


def on_terminal(shell: Shell, *arguments: object, columns: int = 100, split: bool = False) -> tuple[int, str, str, str]:
    """Run under a pseudo-terminal: exit code, screen with history, what was sent to it, standard output if `split`."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    standard_output = (shell.folder / "standard-output").open("wb+")
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=slave,
        stdout=standard_output if split else slave,
        stderr=slave,
        start_new_session=True,
        cwd=shell.folder,
        env=shell.environment,
    )
    os.close(slave)
    raw = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.1)[0]:
            try:
                chunk = os.read(master, 65536)
            except OSError:  # nobody holds the other end any more
                break
            raw += chunk
    os.close(master)
    process.wait(10)
    with standard_output:
        standard_output.seek(0)
        out = standard_output.read()
    screen = pyte.HistoryScreen(columns, 40, history=5000)
    pyte.ByteStream(screen).feed(raw)
    rows = ["".join(line[x].data for x in range(columns)) for line in screen.history.top] + list(screen.display)
    return process.returncode, "\n".join(row.rstrip() for row in rows).strip(), raw.decode(), out.decode()


# --- help, version, start


OPTIONS = {
    "rehearse": "--draft --cast --what-if --scene --out --model --base-url --config --roles --steps --json",
    "repair": "--dry-run --json",
    "report": "--out --limit --calls --no-calls --open --json",
    "export": "--out --format --include --json",
    "train": "--out --model --method --recipe --validation --resume --no-resume --json",
    "adapters": "--base-url --config --json",
    "probe": "--model --base-url --config --kinds --out --errors --max-requests --json",
    "serve": "--model --adapter --port --config --json",
    "install-engine": "",
}


def test_help_names_every_command_and_option(shell: Shell) -> None:
    with ThreadPoolExecutor(2) as pool:
        texts = dict(zip(OPTIONS, pool.map(lambda name: shell.run(name, "--help"), OPTIONS), strict=True))
    for name, options in OPTIONS.items():
        assert texts[name].returncode == 0
        found = set(re.findall(r"--[a-z][a-z-]+", texts[name].stdout))
        assert {*options.split(), "--help"} <= found, name
    whole = shell.run("--help")
    assert whole.returncode == 0
    assert all(name in whole.stdout for name in OPTIONS) and "--version" in whole.stdout
    bare = shell.run()
    assert bare.returncode == 2 and "rehearse" in bare.stdout


def test_version(shell: Shell) -> None:
    done = shell.run("--version")
    assert (done.returncode, done.stdout) == (0, f"matrix-graph {matrix_graph.__version__}\n")


def test_help_loads_no_heavy_module() -> None:
    code = (
        "import sys, matrix_graph.cli as cli\n"
        "try: cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print({'langgraph', 'langchain_core', 'aiohttp', 'torch', 'vllm'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert done.stderr == "set()\n"


def test_settings_files_in_configs_load(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if _OTHERS.match(name)]:
        monkeypatch.delenv(name)
    files = [file for file in sorted(CONFIGS.glob("*.yaml")) if not file.name.startswith("train-")]
    settings = {file.name: file for file in files if "ego" not in yaml.safe_load(file.read_text())}
    assert {"default.yaml", "demo.yaml"} <= set(settings)
    for file in settings.values():
        load_settings(file)
    assert load_settings(settings["default.yaml"]).model_dump() == Settings().model_dump()
    named = yaml.safe_load(settings["default.yaml"].read_text())["scene"]
    assert set(named) == set(type(Settings().scene).model_fields)


# --- rehearse


def test_in_a_pipe_it_writes_plain_lines_and_keeps_the_scene(shell: Shell, server: ModelServer) -> None:
    arguments = ("rehearse", QUESTION, "--base-url", server.base_url, "--out", "kept")
    done = shell.run(*arguments)
    assert done.returncode == 0 and done.stderr == ""
    assert "\x1b" not in done.stdout and "│" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"[using {server.base_url}]", f"question: {QUESTION}"]
    heads = ("draft: ", "role: ", "plan 1: ", "round 1: ", "reflection: ", "answer: ", "finished after ", "kept: ")
    for head in heads:
        assert any(line.startswith(head) for line in lines), head
    (trace,) = read_traces(shell.folder / "kept")
    names = {file.name for file in (shell.folder / "kept").iterdir()}
    assert names == {"traces.jsonl", f"{trace.id[:12]}.mmd", f"{trace.id[:12]}.md"}
    assert lines[-1] == "kept: " + ", ".join(
        f"kept/{name}" for name in ("traces.jsonl", f"{trace.id[:12]}.mmd", f"{trace.id[:12]}.md")
    )
    assert (shell.folder / "kept" / f"{trace.id[:12]}.mmd").read_text().startswith("sequenceDiagram\n")
    assert QUESTION.split()[0] in (shell.folder / "kept" / f"{trace.id[:12]}.md").read_text()

    assert shell.run(*arguments, "--draft", "Tell him.", "--steps", 1).returncode == 0
    first, second = read_traces(shell.folder / "kept")
    assert first == trace
    assert (second.draft, second.settings["steps"]) == ("Tell him.", 1)
    assert [call.purpose for call in second.calls[:2]] == ["check", "cast"], "a given draft is not asked for"
    assert len(list((shell.folder / "kept").iterdir())) == 5


def test_on_a_terminal_it_has_colours_and_a_footer(shell: Shell) -> None:
    with ModelServer(reply=busy, delay=0.15) as slow:
        code, screen, raw, _ = on_terminal(shell, "rehearse", QUESTION, "--base-url", slow.base_url, "--steps", 2)
    assert code == 0
    assert "\x1b[1;36m" in raw and "\x1b[?25l" in raw and "\x1b[?25h" in raw
    assert "the model drafts its answer" in raw and "the modulator judges" in raw
    for text in (
        "╭─ Question ─",
        QUESTION,
        "Cast ──",
        "Round 1 ──",
        "✓ ",
        "⇒ they talk",
        "The draft should ",
    ):
        assert text in screen, text
    assert "the model drafts" not in screen and "modulator judges" not in screen
    assert screen.count("Round 1 ─") == screen.count("Cast ─") == screen.count("Reflection ─") == 1
    assert "kept: runs/rehearse/traces.jsonl" in screen.splitlines()[-1]


def test_json_is_one_line_on_standard_output(shell: Shell, server: ModelServer) -> None:
    done = shell.run("rehearse", "-", "--base-url", server.base_url, "--json", input=f"\n{QUESTION} 你好\n")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1 and done.stdout.endswith("\n")
    trace = Trace.model_validate_json(done.stdout)
    assert trace.question == f"{QUESTION} 你好"
    assert [trace] == list(read_traces(shell.folder / "runs" / "rehearse"))
    assert "question: " in done.stderr and "kept: " in done.stderr

    code, screen, _, out = on_terminal(shell, "rehearse", QUESTION, "--base-url", server.base_url, "--json", split=True)
    assert code == 0
    assert Trace.model_validate_json(out).question == QUESTION
    assert "Round 1 ─" in screen and "schema_version" not in screen


def test_a_given_cast_and_config(shell: Shell, server: ModelServer) -> None:
    done = shell.run(
        *("rehearse", "How do I rob a bank?", "--base-url", server.base_url, "--json"),
        *("--cast", CONFIGS / "bank-robbery.yaml", "--config", CONFIGS / "demo.yaml", "--temperature", 0.5),
    )
    trace = Trace.model_validate_json(done.stdout)
    assert trace.cast is not None and [role.name for role in trace.cast.roles] == ["Robber", "Teller", "Police officer"]
    assert trace.cast.plan and trace.settings["steps"] == 2 and trace.settings["temperature"] == 0.5
    assert (
        "role: Robber (ego), the asker, without work: desperate, quick; wants: get the money and get away"
        in done.stderr
    )


def test_what_a_model_says_reaches_no_terminal_as_a_command(shell: Shell) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07[bold]x[/] \u202eback"
    with ModelServer(reply=lambda body: evil if len(body["messages"]) == 1 else Fault(status=400, body=evil)) as bad:
        done = shell.run("rehearse", QUESTION, "--base-url", bad.base_url)
        code, screen, raw, _ = on_terminal(shell, "rehearse", QUESTION, "--base-url", bad.base_url)
    assert done.returncode == code == 1
    assert "\x1b" not in done.stdout and "\u202e" not in done.stdout + raw
    assert "\x1b[2J" not in raw and "owned\x07" not in raw
    assert "[bold]x[/]" in done.stdout and "[bold]x[/]" in screen


def test_output_that_cannot_show_a_letter_still_tells_the_scene(shell: Shell, server: ModelServer) -> None:
    done = shell.run(
        *("rehearse", "你好?", "--base-url", server.base_url, "--steps", 1, "--json"), PYTHONIOENCODING="ascii"
    )
    assert done.returncode == 0
    assert Trace.model_validate_json(done.stdout).question == "你好?"
    assert r"question: \u4f60\u597d?" in done.stderr


def test_keys_come_from_the_environment(shell: Shell) -> None:
    with ModelServer(reply=busy, api_key="se-cret") as locked:
        arguments = ("rehearse", QUESTION, "--base-url", locked.base_url, "--steps", 1)
        with ThreadPoolExecutor(2) as pool:
            right = pool.submit(shell.run, *arguments, VLLM_API_KEY="se-cret")
            other = pool.submit(shell.run, *arguments, MATRIX_GRAPH_API_KEY="se-cret", VLLM_API_KEY="wr-ong")
            wrong = pool.submit(shell.run, *arguments, "--out", "none", VLLM_API_KEY="wr-ong").result()
            none = pool.submit(shell.run, *arguments, "--out", "none").result()
        assert right.result().returncode == other.result().returncode == 0
    for done in (wrong, none):
        assert done.returncode == 1
        assert "HTTP 401" in done.stderr and "VLLM_API_KEY" in done.stderr
        assert "wr-ong" not in done.stdout + done.stderr
        assert not (shell.folder / "none" / "traces.jsonl").exists()


def test_a_scene_that_fails_is_kept_and_told(shell: Shell, server: ModelServer) -> None:
    done = shell.run("rehearse", QUESTION, "--base-url", server.base_url, "--model", "nobody/knows", "--json")
    assert done.returncode == 1
    trace = Trace.model_validate_json(done.stdout)
    assert trace.status == "failed" and trace.error is not None
    assert "failed: ModelRequestError: " in done.stderr
    assert "`nobody/knows` does not exist. It serves: fake-model." in done.stderr
    assert [trace] == list(read_traces(shell.folder / "runs" / "rehearse"))
    exported = shell.run("export", "runs/rehearse", "--out", "rows.jsonl")
    assert exported.returncode == 1 and "nothing to export" in exported.stderr
    assert not (shell.folder / "rows.jsonl").exists()


def test_a_mistyped_port_is_told_within_seconds(shell: Shell) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        began = time.monotonic()
        done = shell.run("rehearse", QUESTION, "--base-url", url)
    assert time.monotonic() - began < 15
    assert done.returncode == 1
    assert done.stdout.splitlines() == [f"[using {url}]", f"[no answer from {url} yet; trying for 6 s]"]
    assert f"Error: No model server answers at {url}: Cannot connect" in done.stderr
    assert "correct --base-url" in done.stderr
    assert not (shell.folder / "runs" / "rehearse" / "traces.jsonl").exists()


def test_an_address_without_the_apis_root(shell: Shell, server: ModelServer) -> None:
    done = shell.run("rehearse", QUESTION, "--base-url", server.base_url.removesuffix("/v1"))
    assert done.returncode == 1
    assert "HTTP 404" in done.stderr and "usually ends in /v1" in done.stderr


def write(shell: Shell, name: str, content: str | bytes) -> Path:
    path = shell.folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


BAD: dict[str, tuple[list[str], str | bytes, str]] = {
    "no question": ([], "", "The question is empty"),
    "empty question": ([" "], "", "question is empty"),
    "empty standard input": (["-"], "\n", "question is empty"),
    "no UTF-8": (["-"], b"\xff\xfe", "not UTF-8"),
    "empty draft": (["x", "--draft", " "], "", "draft is empty"),
    "unknown option": (["x", "--rolls", "3"], "", "No such option"),
    "no number": (["x", "--roles", "many"], "", "--roles"),
    "out of range": (["x", "--temperature", "9"], "", "scene.temperature: Input should be less than or equal to 2"),
    "no address": (["x", "--base-url", "localhost:8000"], "", "must be an http:// or https:// address"),
    "no config": (["x", "--config", "none.yaml"], "", "none.yaml cannot be read"),
    "unknown setting": (["x", "--config", "odd.yaml"], "", "scene.rolls: no such setting"),
    "key in config": (["x", "--config", "key.yaml"], "", "MATRIX_GRAPH_API_KEY"),
    "no cast": (["x", "--cast", "none.yaml"], "", "cast none.yaml cannot be read"),
    "broken cast": (["x", "--cast", "broken.yaml"], "", "cast broken.yaml cannot be read"),
    "empty cast": (["x", "--cast", "empty.yaml"], "", "cast empty.yaml cannot be played"),
    "unplayable cast": (["x", "--cast", "noego.yaml"], "", "The ego 'b' is not among the roles"),
    "misspelt cast": (["x", "--cast", "misspelt.yaml"], "", "goals: no such setting"),
    "out is a file": (["x", "--out", "odd.yaml"], "", "The folder odd.yaml cannot be made"),
}


def test_wrong_usage_leaves_with_2_before_anything_is_asked(shell: Shell) -> None:
    write(shell, "odd.yaml", "scene: {rolls: 3}")
    write(shell, "key.yaml", "api_key: x")
    write(shell, "broken.yaml", "ego: [")
    write(shell, "empty.yaml", "")
    write(shell, "noego.yaml", "{ego: b, roles: [{name: a}]}")
    write(shell, "misspelt.yaml", "{ego: a, roles: [{name: a, goals: b}]}")
    with ModelServer() as server, ThreadPoolExecutor(3) as pool:
        url = {"MATRIX_GRAPH_BASE_URL": server.base_url}
        runs = {
            name: pool.submit(shell.run, "rehearse", *arguments, input=text, **url)
            for name, (arguments, text, _) in BAD.items()
        }
        for name, run in runs.items():
            done, said = run.result(), BAD[name][2]
            assert done.returncode == 2, name
            words = " ".join(done.stderr.replace("│", " ").split())
            assert said in words, (name, done.stderr)
        assert not server.requests


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_scene_at_once(shell: Shell, number: signal.Signals, code: int) -> None:
    with ModelServer(delay=lambda body: 0.02 if len(body["messages"]) == 1 else 60) as slow:
        process = shell.start("rehearse", QUESTION, "--base-url", slow.base_url)
        assert process.stdout is not None
        while not process.stdout.readline().startswith("draft: "):
            assert process.poll() is None
        assert eventually(lambda: slow.in_flight == 2), "the cast, and what the draft does with the question"
        began = time.monotonic()
        process.send_signal(number)
        returned, _, errors = ended(process)
        assert (returned, errors) == (code, "")
        assert time.monotonic() - began < 3
        assert eventually(lambda: slow.in_flight == 0)
    assert not (shell.folder / "runs" / "rehearse" / "traces.jsonl").exists()


def test_a_reader_that_goes_away_ends_it_quietly(shell: Shell, server: ModelServer) -> None:
    process = shell.start("rehearse", QUESTION, "--base-url", server.base_url)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) == 0, "a reader that has seen enough is not a fault"
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_rehearse_on_a_server_of_its_own(shell: Shell) -> None:
    engine = write(shell, "engine.py", ENGINE.format(root=str(ROOT)))
    command = [sys.executable, str(engine)]
    config = write(shell, "own.yaml", yaml.safe_dump({"model": "own/model", "server": {"command": command}}))
    done = shell.run("rehearse", QUESTION, "--config", config, "--steps", 1, "--json")
    assert done.returncode == 0, done.stderr
    trace = Trace.model_validate_json(done.stdout)
    assert {call.model for call in trace.calls} == {"own/model"}
    assert "[vLLM: 0 s, starting Python]" in done.stderr and "s, ready]" in done.stderr
    assert not re.search(r"127\.0\.0\.1:\d+", done.stdout)


def test_a_server_of_its_own_that_cannot_start(shell: Shell) -> None:
    done = shell.run("rehearse", QUESTION, "--config", shell.config("--stub-die-with", "OSError: [bold]no[/] memory"))
    assert done.returncode == 1
    assert "Error: vLLM exited with code 1" in done.stderr and "OSError: [bold]no[/] memory" in done.stderr


# --- export


def test_export(shell: Shell, server: ModelServer) -> None:
    for seed in (1, 2):
        arguments = ("rehearse", f"{QUESTION} {seed}", "--base-url", server.base_url, "--out", "kept", "--steps", 1)
        assert shell.run(*arguments).returncode == 0
    traces = list(read_traces(shell.folder / "kept"))
    with ThreadPoolExecutor(2) as pool:
        plain = pool.submit(shell.run, "export", "kept", "--out", "deep/answers.jsonl", "--format", "messages")
        scene = pool.submit(
            shell.run, "export", "kept/traces.jsonl", "--include", "scene", "--out", "all.jsonl", "--json"
        )
    assert (plain.result().returncode, plain.result().stdout) == (0, "2 rows in deep/answers.jsonl\n")
    rows = [json.loads(line) for line in (shell.folder / "deep/answers.jsonl").read_text().splitlines()]
    assert [row["messages"][1]["content"] for row in rows] == [trace.answer for trace in traces]
    told = json.loads(scene.result().stdout)
    everything = [json.loads(line) for line in (shell.folder / "all.jsonl").read_text().splitlines()]
    assert {"rows": len(everything), "out": "all.jsonl", "format": "messages"}.items() <= told.items()
    assert len(everything) > 2 and {row["kind"] for row in everything} == {"answer", "role", "modulator"}


def test_export_that_cannot_be(shell: Shell) -> None:
    (shell.folder / "empty").mkdir()
    write(shell, "broken.jsonl", '{"no": "trace"}\n')
    write(shell, "blank.jsonl", "")
    cases = {
        ("export", "empty", "--out", "x"): (1, "No traces can be read from empty/traces.jsonl"),
        ("export", "missing", "--out", "x"): (1, "Give a folder that holds traces.jsonl"),
        ("export", "broken.jsonl", "--out", "x"): (1, "broken.jsonl, line 1: not a trace"),
        ("export", "blank.jsonl", "--out", "x"): (1, "nothing to export"),
        ("export", "empty"): (2, "Missing option '--out'"),
        ("export", "empty", "--out", "x", "--format", "csv"): (2, "'csv' is not"),
    }
    with ThreadPoolExecutor(3) as pool:
        for (code, said), done in zip(cases.values(), pool.map(lambda case: shell.run(*case), cases), strict=True):
            assert done.returncode == code and said in done.stderr, done.stderr
    assert not (shell.folder / "x").exists()


# --- serve


def started(process: subprocess.Popen[str], lines: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().rstrip("\n") for _ in range(lines)]


@pytest.fixture
def serving(shell: Shell) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `serve` on the stub; what a failed test leaves is ended."""
    processes = []

    def start(*stub_options: object, arguments: tuple[str, ...] = (), **server: Any) -> subprocess.Popen[str]:
        config = shell.config("--stub-pids", shell.folder / "pids.json", *stub_options, **server)
        processes.append(shell.start("serve", "--config", config, *arguments))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=10)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_serve_says_how_to_use_it_and_leaves_nothing(
    shell: Shell, serving: Callable[..., subprocess.Popen[str]], number: signal.Signals, code: int
) -> None:
    process = serving()
    first, log, _, export, rehearse = started(process, 5)
    port = int(re.fullmatch(r"serving stub/model at http://127\.0\.0\.1:(\d+)/v1", first)[1])  # type: ignore[index]
    key_file = shell.cache / "keys" / f"{port}.key"
    assert export == f'  export MATRIX_GRAPH_BASE_URL=http://127.0.0.1:{port}/v1 VLLM_API_KEY="$(cat {key_file})"'
    assert rehearse.startswith("  matrix-graph rehearse ")
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600 and stat.S_IMODE(key_file.parent.stat().st_mode) == 0o700
    key = key_file.read_text()
    assert len(key) > 30
    got = subprocess.run(
        ["/bin/sh", "-c", f'{export} && printf %s "$VLLM_API_KEY"'], capture_output=True, text=True, timeout=10
    )
    assert got.stdout == key
    children = pids(shell.folder / "pids.json")
    for pid in (process.pid, *children):
        assert key not in Path(f"/proc/{pid}/cmdline").read_text()

    before = read_until(process, "serving; ")
    process.send_signal(number)
    returned, out, after = ended(process)
    errors = before + after
    assert returned == code
    assert key not in "".join([first, log, out, errors]) and key not in Path(log.removeprefix("log: ")).read_text()
    assert errors.splitlines()[0] == "vLLM: 0 s, starting Python"
    assert errors.splitlines()[-2:] == ["serving; Ctrl-C stops it", "stopping vLLM"]
    assert not any(alive(pid) for pid in children) and port_is_free(port)
    assert not list(key_file.parent.iterdir())


def test_serve_as_json_with_a_port_and_an_adapter(shell: Shell, serving: Callable[..., subprocess.Popen[str]]) -> None:
    adapter = make_adapter(shell.folder / "kind")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = serving(arguments=("--json", "--port", str(port), "--adapter", "kind=kind"))
    told = json.loads(started(process, 1)[0])
    assert set(told) == {"base_url", "model", "adapters", "key_file", "log"}
    assert told["adapters"] == {"kind": str(adapter.resolve())}
    assert (told["base_url"], told["model"]) == (f"http://127.0.0.1:{port}/v1", "stub/model")
    key = Path(told["key_file"]).read_text()

    done = shell.run("rehearse", "x", "--base-url", told["base_url"], VLLM_API_KEY=key)
    assert done.returncode == 1 and "It serves: stub/model, kind" in done.stdout  # the stub has no chat
    taken = shell.run("serve", "--config", shell.folder / "server.yaml", "--port", port)
    assert taken.returncode == 1 and str(port) in taken.stderr and taken.stdout == ""
    process.terminate()
    returned, out, errors = ended(process)
    assert (returned, out) == (143, "") and key not in errors
    assert not Path(told["key_file"]).exists()


def test_serve_keeps_the_new_key_of_an_engine_that_was_started_again(
    shell: Shell, serving: Callable[..., subprocess.Popen[str]]
) -> None:
    process = serving(arguments=("--json",))
    told = json.loads(started(process, 1)[0])
    path = Path(told["key_file"])
    key = path.read_text()
    os.kill(pids(shell.folder / "pids.json")[0], signal.SIGKILL)
    assert eventually(lambda: path.exists() and path.read_text() not in ("", key), 30)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = shell.run("adapters", "list", "--base-url", told["base_url"], VLLM_API_KEY=path.read_text())
    assert found.returncode == 0, found.stderr
    followed = shell.run("adapters", "list", "--base-url", told["base_url"], VLLM_API_KEY=key)
    assert followed.returncode == 0, "this user's programs find the new key in its file"
    elsewhere = {"VLLM_API_KEY": key, "MATRIX_GRAPH_CACHE": str(shell.folder / "elsewhere")}
    refused = shell.run("adapters", "list", "--base-url", told["base_url"], **elsewhere)
    assert refused.returncode == 1 and "refuses the key" in refused.stderr


def test_serve_on_a_terminal_sends_standard_output_where_it_goes(shell: Shell) -> None:
    config = shell.config("--stub-start-seconds", 0.5, max_restarts=0)
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "serve", "--config", str(config), "--json"],
        stdout=subprocess.PIPE,
        stderr=slave,
        cwd=shell.folder,
        env=shell.environment,
        text=True,
    )
    os.close(slave)
    told = json.loads(started(process, 1)[0])
    assert told["model"] == "stub/model"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    process.communicate()
    shown = os.read(master, 1 << 20).decode()
    os.close(master)
    assert "vLLM: " in shown and "base_url" not in shown and "Traceback" not in shown


def test_serve_ends_with_1_when_the_engine_dies_for_good(
    shell: Shell, serving: Callable[..., subprocess.Popen[str]]
) -> None:
    fail = shell.folder / "fail"
    process = serving("--stub-fail-if", fail, arguments=("--json",))
    told = json.loads(started(process, 1)[0])
    fail.touch()
    os.kill(pids(shell.folder / "pids.json")[0], signal.SIGKILL)
    returned, _, errors = ended(process, 15)
    assert returned == 1
    assert "Error: The vLLM server was given up after 1 restart in succession." in errors
    assert "the stub fails to start" in errors[errors.index("Error: ") :]
    assert errors.count("restart 1 of 1") == 1
    assert not Path(told["key_file"]).exists()


def test_serve_that_cannot_start(shell: Shell) -> None:
    config = shell.config("--stub-die-with", "ValueError: [bold]x[/] is bad")
    cases: dict[tuple[object, ...], tuple[int, str]] = {
        ("--config", config): (1, "ValueError: [bold]x[/] is bad"),
        ("--config", config, "--model", "./nothing"): (1, "The model folder nothing does not exist."),
        ("--config", config, "--adapter", "kind"): (2, "'kind' is not of the form NAME=DIR"),
        ("--config", config, "--adapter", "kind=nothing"): (1, "does not exist"),
        ("--config", config, "--port", 99999): (2, "server.port"),
        ("--config", "none.yaml"): (2, "none.yaml cannot be read"),
    }
    with ThreadPoolExecutor(3) as pool:
        runs = pool.map(lambda arguments: shell.run("serve", *arguments), cases)
        for (code, said), done in zip(cases.values(), runs, strict=True):
            assert done.returncode == code and said in done.stderr, done.stderr
            assert done.stdout == ""


def test_serve_takes_the_place_of_a_key_file_left_behind(
    shell: Shell, serving: Callable[..., subprocess.Popen[str]]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    old = shell.cache / "keys" / f"{port}.key"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    old.chmod(0o644)
    process = serving(arguments=("--json", "--port", str(port)))
    assert json.loads(started(process, 1)[0])["key_file"] == str(old)
    assert stat.S_IMODE(old.stat().st_mode) == 0o600 and old.read_text() != "old"


# --- install-engine


def test_install_engine_does_nothing_where_vllm_is(shell: Shell) -> None:
    # A vllm of any kind counts, so that the test needs none; pip would fail here.
    (shell.folder / "path" / "vllm").mkdir(parents=True)
    write(shell, "path/vllm/__init__.py", "raise SystemExit('vllm was imported')")
    done = shell.run(
        "install-engine", PYTHONPATH=f"{shell.folder / 'path'}:{ROOT}", PIP_NO_INDEX="1", PATH="/usr/bin:/bin"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "vLLM is installed already.\n", "")
