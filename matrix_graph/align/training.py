"""The stage `train`: the adapter, made by a process of its own while no server of ours holds the memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from matrix_graph.align.job import Job
from matrix_graph.errors import ConfigError, MatrixGraphError, PrerequisiteError, ServerError
from matrix_graph.train.errors import TrainingError
from matrix_graph.train.record import TrainingRecord, read_record

_ROOT = Path(__file__).resolve().parents[2]
_ERRORS: dict[str, type[MatrixGraphError]] = {
    kind.__name__: kind for kind in (ConfigError, PrerequisiteError, ServerError, TrainingError)
}
_PATIENCE = 10.0


def train(job: Job) -> dict[str, Any]:
    """Train the adapter, or go on with it.

    Returns:
        How many steps it made, its losses, and what it was made on.

    Raises:
        MatrixGraphError: as `train_adapter`; or its process was ended from outside.
    """
    asked = {
        "data": str(job.rows),
        "out": str(job.adapter),
        "model": job.target.weights,
        "recipe": job.recipe.model_dump(mode="json"),
        "validation": str(job.held_rows) if job.held_rows.is_file() else None,
    }
    _run_apart(job, asked)
    record = read_record(job.adapter)
    if record is None:
        raise TrainingError(f"{job.adapter} holds no adapter after its training. Give the same command again.")
    return _facts(record)


def _facts(record: TrainingRecord) -> dict[str, Any]:
    measured = record.validation_loss
    return {
        "steps": record.steps,
        "examples": record.data.examples,
        "first loss": round(record.first_loss, 4),
        "last loss": round(record.last_loss, 4),
        "validation loss": round(measured[-1].loss, 4) if measured else None,
        "left out": record.data.dropped,
        "device": record.device,
        "starts": record.starts,
    }


def _run_apart(job: Job, asked: dict[str, Any]) -> None:
    shown = job.voice.console.is_terminal  # then the bar of the other process is seen as it is
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "matrix_graph.align._trainer"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if shown else subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise TrainingError(f"{sys.executable} could not be started: {error}.") from error
    told: list[str] = []
    assert process.stdin is not None and process.stdout is not None  # they were asked for
    readers = [threading.Thread(target=_keep, args=(process.stdout, told), daemon=True)]
    if process.stderr is not None:
        readers.append(threading.Thread(target=_pass_on, args=(process.stderr, job), daemon=True))
    try:
        for reader in readers:
            reader.start()
        with suppress(BrokenPipeError):  # its exit code says the rest
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        code = process.wait()
        for reader in readers:
            reader.join(_PATIENCE)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                _close(stream)
    if code:
        raise _error(code, told)


def _error(code: int, told: list[str]) -> BaseException:
    if code == 130:
        return KeyboardInterrupt()
    try:
        error = json.loads(told[-1])
        return _ERRORS.get(error["type"], TrainingError)(error["message"])
    except (LookupError, ValueError, TypeError):
        why = (
            f"signal {-code}, as the system does it when memory runs out"
            if code < 0
            else f"an error (exit code {code})"
        )
        return TrainingError(
            f"The training was ended by {why}. The same command goes on from its last whole checkpoint; if memory runs "
            "out again, give a recipe with a smaller batch_size or max_length, and another --out."
        )


def _keep(stream: IO[str], told: list[str]) -> None:
    told.extend(line for line in stream if line.strip())


def _pass_on(stream: IO[str], job: Job) -> None:
    for line in stream:
        if line.strip():
            job.voice.say(line)


def _close(stream: IO[str]) -> None:
    with suppress(OSError):  # what it still held has no reader any more
        stream.close()
