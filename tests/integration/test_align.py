"""`align` as people use it: real processes, a fake model behind real HTTP, real training of a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from matrix_graph.align.record import STAGES, AlignRecord, StageName, read_align_record
from matrix_graph.evaluate.folder import read_answers
from matrix_graph.traces.store import read_traces
from matrix_graph.train import read_record
from tests.integration.model_server import ModelServer
from tests.integration.scenes import busy, purpose
from tests.integration.test_cli import ROOT, Shell
from tests.integration.tiny_models import chatml, tiny_model

COMMAND = """
import sys, typer
from matrix_graph.commands.align import align
from matrix_graph import cli
cli.app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
cli.app.command()(align)
cli.main()
"""

# A fake vLLM of our own: slow enough to be killed in the midst of a stage.
ENGINE = """
import argparse, asyncio, os, sys
sys.path.insert(0, {root!r})
from tests.integration.model_server import ModelServer
from tests.integration.scenes import busy
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--port", type=int)
parser.add_argument("--served-model-name")
options, _ = parser.parse_known_args()
with open({life!r}, "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
server = ModelServer(
    port=options.port, models=(options.served_model_name,), api_key=os.environ["VLLM_API_KEY"], reply=busy, delay=0.1
)
asyncio.run(server.serve(lambda: print("INFO:     Application startup complete.", flush=True)))
"""
RECIPE = {"max_steps": 24, "batch_size": 2, "accumulate": 1, "max_length": 4096, "learning_rate": 0.01,
          "quantization": "none", "checkpoint_every": 2}  # fmt: skip
QUESTIONS = 8

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", chatml())


class Place:
    """A folder with all that `align` needs, and what came of it."""

    def __init__(self, folder: Path, tiny: Path, *, count: int = QUESTIONS) -> None:
        self.shell = Shell(folder)
        self.tiny = tiny
        self.out = folder / "out"
        self.folder = folder
        questions = [{"question": f"What is {number}?"} for number in range(count)]
        (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
        (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        self.life = folder / "life"

    def engine(self) -> Path:
        script = self.folder / "engine.py"
        script.write_text(ENGINE.format(root=str(ROOT), life=str(self.life)))
        config = self.folder / "server.yaml"
        server = {"command": [sys.executable, str(script)], "stop_timeout": 4, "health_interval": 0.1}
        config.write_text(yaml.safe_dump({"server": server}))
        return config

    def start(self, *options: object) -> subprocess.Popen[str]:
        small = ("--roles", 1, "--steps", 1, "--recipe", "recipe.yaml", "--model", self.tiny, "--name", "tuned")
        arguments = ["questions.jsonl", "--out", "out", *small, *options]
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, arguments)],
            cwd=self.folder,
            env=self.shell.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, *options: object) -> tuple[int, str, str]:
        process = self.start(*options)
        try:
            out, errors = process.communicate(timeout=240)
        finally:
            process.kill()
        assert "Traceback" not in out + errors, errors
        return process.returncode, out, errors

    @property
    def record(self) -> AlignRecord:
        record = read_align_record(self.out)
        assert record is not None
        return record

    def state(self, name: StageName) -> str:
        record = read_align_record(self.out) if self.out.exists() else None
        return record.stage(name).state if record else "waiting"

    def rows(self, name: str) -> list[dict[str, Any]]:
        lines = (self.out / "export" / name).read_text().splitlines()
        return sorted((json.loads(line) for line in lines), key=lambda row: str(row["trace_id"]))

    def killed(self, when: Callable[[], bool], *options: object) -> None:
        """Start it, and kill it as soon as something is so."""
        process = self.start(*options)
        until = time.monotonic() + 120
        try:
            while not when():
                if process.poll() is not None:
                    pytest.fail(f"it ended before: {process.communicate()[1]}")
                assert time.monotonic() < until, "it never came so far"
                time.sleep(0.005)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer(reply=busy, models=("tiny",)) as running:
        yield running


def test_killed_in_each_stage_it_finishes_with_the_same_rows(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, server: ModelServer
) -> None:
    place = Place(tmp_path_factory.mktemp("killed"), tiny)
    own = ("--config", place.engine())
    out = place.out
    place.killed(lambda: lines(out / "run" / "traces.jsonl") >= 2, *own)
    kept = (out / "run" / "traces.jsonl").read_bytes()
    assert place.state("run") == "running"
    place.killed(lambda: place.state("export") == "running", *own)
    assert (out / "run" / "traces.jsonl").read_bytes().startswith(kept)
    place.killed(lambda: any((out / "adapter" / "checkpoints").glob("checkpoint-*/whole.json")), *own)
    assert place.state("train") == "running" and not (out / "adapter" / "training.json").exists()
    place.killed(lambda: place.state("serve") == "running", *own)
    assert (out / "adapter" / "training.json").exists()
    place.killed(lambda: lines(out / "compare" / "answers.jsonl") >= 1, *own)
    code, said, errors = place.finish(*own)
    assert code == 0, errors
    assert "1 of 5, run: done before: 8 scenes" in errors and "3 of 5, train: done before" in errors
    assert "5 of 5, compare: done in" in errors and "align.html" in said
    assert all(line.startswith(("5 stages in", *(f"{n} of 5, " for n in range(1, 6)))) for line in errors.splitlines())

    # Somebody else's server, never killed: the same scenes, rows, steps and questions.
    whole = Place(tmp_path_factory.mktemp("whole"), tiny)
    code, said, errors = whole.finish("--base-url", server.base_url, "--json")
    assert code == 0, errors
    told = AlignRecord.model_validate_json(said)
    assert told.done and told == whole.record
    assert {trace.question for trace in read_traces(out / "run")} == {f"What is {n}?" for n in range(QUESTIONS)}
    assert len(list(read_traces(out / "run"))) == QUESTIONS
    for name in ("sft.jsonl", "sft.validation.jsonl"):
        assert place.rows(name) == whole.rows(name)
    learnt, kept_apart = place.rows("sft.jsonl"), place.rows("sft.validation.jsonl")
    assert len(kept_apart) == 2 and len(learnt) == QUESTIONS - 2
    trained, straight = read_record(out / "adapter"), read_record(whole.out / "adapter")
    assert trained is not None and straight is not None
    assert trained.steps == straight.steps == RECIPE["max_steps"] and trained.starts >= 2 and straight.starts == 1
    for one in (place, whole):
        answers = read_answers(one.out / "compare")
        asked = sorted(row["messages"][0]["content"] for row in kept_apart)
        for name in ("base", "tuned"):
            assert sorted(answer.question for answer in answers if answer.candidate == name) == asked
        assert lines(one.out / "compare" / "answers.jsonl") == 4  # nothing was asked twice and kept twice
        assert {answer.exchanges[0].model for answer in answers} == {"tiny", "tuned"}
        page = (one.out / "align.html").read_text()
        assert all(row["messages"][0]["content"] in page for row in kept_apart) and "<polyline" in page
        assert (one.out / "run" / "report.html").exists() and (one.out / "compare" / "results.html").exists()
    assert server.adapters == {"tuned": str((whole.out / "adapter").resolve())}  # it serves it from now on
    starts = place.life.read_text().splitlines()
    assert "--enable-lora" not in starts[0] and "--enable-lora" in starts[-1]
    assert not any("checkpoint" in path.name for path in (out / "adapter").iterdir())

    unhurt(place, own)
    done_again(whole, server)


def unhurt(place: Place, own: tuple[object, ...]) -> None:
    """Started again it does nothing, and starts no server; with other settings it is refused."""
    before = {path: path.stat().st_mtime_ns for path in place.out.rglob("*") if path.name.startswith(("s", "adapter"))}
    starts = lines(place.life)
    code, _, errors = place.finish(*own)
    assert code == 0 and "nothing to do: all 5 stages" in errors and len(errors.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before and lines(place.life) == starts
    code, _, errors = place.finish(*own, "--roles", 2)
    assert code == 2 and "run.scene.roles: 1 -> 2" in errors and "another --out" in errors and "--redo" not in errors
    code, _, errors = place.finish(*own, "--recipe", "smoke")
    assert code == 2 and "--redo export" in errors  # whose rows may be as long as the recipe takes them
    moved = place.folder / "moved"
    place.out.rename(moved)
    place.out.symlink_to(moved)
    assert place.finish(*own)[0] == 0


def done_again(place: Place, server: ModelServer) -> None:
    """A stage is done again with other settings; the server gets the new adapter in the old one's place."""
    old = (place.out / "adapter" / "adapter_model.safetensors").read_bytes()
    scenes = (place.out / "run" / "traces.jsonl").read_bytes()
    (place.folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "max_steps": 2}))
    given = ("--base-url", server.base_url)
    code, _, errors = place.finish(*given)
    assert code == 2 and "train.recipe.max_steps: 24 -> 2" in errors and "--redo train" in errors
    server.reset()
    code, _, errors = place.finish(*given, "--redo", "train")
    assert code == 0, errors
    assert "run: done before" in errors and "export: done before" in errors
    assert (place.out / "adapter" / "adapter_model.safetensors").read_bytes() != old
    assert (place.out / "run" / "traces.jsonl").read_bytes() == scenes
    paths = [path for _, path in server.requests]
    assert "/v1/unload_lora_adapter" in paths and "/v1/load_lora_adapter" in paths
    assert len([body for body in server.bodies if body.get("max_tokens") != 1]) == 4  # all were asked again
    server.stop()
    code, _, errors = place.finish(*given)  # there is nothing left that a server is needed for
    assert code == 0 and "nothing to do" in errors


def test_what_stops_it_is_told_with_what_to_do(tiny: Path, tmp_path: Path, server: ModelServer) -> None:
    place = Place(tmp_path, tiny, count=2)
    given = ("--base-url", server.base_url)
    code, _, errors = place.finish(*given)
    assert code == 1 and "rows of 2 different questions; 3 are needed" in errors and "Give more questions" in errors
    assert [stage.state for stage in place.record.stages] == ["done", "failed", "waiting", "waiting", "waiting"]
    page = (place.out / "align.html").read_text()
    assert "3 are needed" in page and ">failed<" in page

    # A file to compare on makes do with fewer; what was learnt from is not compared on.
    (tmp_path / "other.jsonl").write_text('{"question": "what is  1?"}\n{"question": "And what is kind?"}\n')
    shutil.rmtree(place.out)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "max_steps": 1}))
    code, _, errors = place.finish(*given, "--questions", "other.jsonl")
    assert code == 0, errors
    assert "1 questions were learnt from" in errors
    assert {answer.question for answer in read_answers(place.out / "compare")} == {"And what is kind?"}
    assert not (place.out / "export" / "sft.validation.jsonl").exists()
    shutil.rmtree(place.out)
    (tmp_path / "other.jsonl").write_text("{}\n")
    code, _, errors = place.finish(*given, "--questions", "other.jsonl")
    assert code == 2 and "other.jsonl" in errors and not (place.out / "run").exists()  # before the first scene

    def fails(body: dict[str, Any]) -> str | None:
        return " " if purpose(body) == "draft" else busy(body)

    shutil.rmtree(place.out)
    server.reply = fails
    code, _, errors = place.finish(*given)
    assert code == 1 and "all 2 failed" in errors and "--retry-failed" in errors
    assert place.record.stage("run").facts["failed"] == 2


class NoAdapters(ModelServer):
    """Started without runtime loading: the paths are not there."""

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        return web.json_response({"detail": "Not Found"}, status=404)


def test_a_server_that_is_of_no_use_is_refused_before_the_first_scene(tiny: Path, tmp_path: Path) -> None:
    place = Place(tmp_path, tiny)
    with NoAdapters(models=("tiny",)) as server:
        code, _, errors = place.finish("--base-url", server.base_url)
        assert code == 1 and "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in errors and "`align` needs that" in errors
        assert not server.bodies
    with ModelServer(models=("one", "two")) as server:
        code, _, errors = place.finish("--base-url", server.base_url)
        assert code == 2 and "serves one, two, and --model names" in errors
    code, _, errors = place.finish("--base-url", "http://127.0.0.1:9/v1")
    assert code == 1 and "No model server answers" in errors
    assert read_align_record(place.out) is None


def test_one_interrupt_finishes_what_was_begun_and_the_command_goes_on(
    tiny: Path, tmp_path: Path, server: ModelServer
) -> None:
    place = Place(tmp_path, tiny)
    server.delay = 0.2
    given = ("--base-url", server.base_url, "--config", "few.yaml")
    (tmp_path / "few.yaml").write_text("scene: {max_calls: 200}\n")
    process = place.start(*given)
    try:
        while place.state("run") != "running" or not server.bodies:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "stopped; the same command goes on" in errors and "Traceback" not in errors
    assert place.state("run") == "stopped" and place.record.stage("run").message
    assert [place.state(name) for name in STAGES[1:]] == ["waiting"] * 4
    with_lock = place.start(*given)
    try:
        while place.state("run") != "running":
            assert with_lock.poll() is None
            time.sleep(0.01)
        code, _, errors = place.finish(*given)
        assert code == 1 and "Another run" in errors
    finally:
        with_lock.kill()
        with_lock.communicate()
