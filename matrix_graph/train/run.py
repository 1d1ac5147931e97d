"""One training from rows to an adapter's folder, resumed where it was broken off.

    OUT/adapter_model.safetensors, adapter_config.json   as PEFT and vLLM load them
    OUT/README.md, loss.svg, training.json               what it is, for people and programs

What always holds: the folder has `training.json` only if all the rest of it is there and belongs to it; the same
command given again does nothing; a training that was killed goes on and makes as many steps as one that was not.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from matrix_graph.errors import ConfigError, MatrixGraphError
from matrix_graph.files import replace_file
from matrix_graph.models.bundled import resolve_model
from matrix_graph.models.serving.weights import fingerprint
from matrix_graph.train import base
from matrix_graph.train.base_name import base_name, without_private_path
from matrix_graph.train.checkpoints import Checkpoints
from matrix_graph.train.dataset import DataAccount, prepare
from matrix_graph.train.errors import TrainingError
from matrix_graph.train.masks import Masker
from matrix_graph.train.picture import loss_picture
from matrix_graph.train.progress import TrainingView
from matrix_graph.train.recipe import Recipe
from matrix_graph.train.record import RECORD_NAME, LossPoint, TrainingRecord, model_card, read_record
from matrix_graph.train.rows import Method, file_sha256

_PAPER = Recipe()
_PART = ".adapter.part"
_WEIGHTS = "adapter_model.safetensors"
_LIBRARIES = ("matrix-graph", *base.MODULES)
_LITTLE = 1 << 20
"""Bytes; a disk with less is full."""


def train_adapter(
    data: Path,
    out: Path,
    *,
    model: str | None = None,
    method: Method = "sft",
    recipe: Recipe = _PAPER,
    validation: Path | None = None,
    resume: bool = True,
    view: TrainingView | None = None,
) -> TrainingRecord:
    """Train a LoRA adapter, or go on with one, or find that it is there.

    Args:
        data: rows, in a format of `matrix-graph export`.
        out: the adapter's folder.
        model: a Hugging Face folder, a hub id, or a bundled model such as "bundled:1.5b"; None is the smallest of them.
        method: "sft" imitates the assistant's text; "dpo" prefers `chosen` to `rejected`.
        recipe: all settings.
        validation: rows of the same kind, whose loss is measured and not learnt.
        resume: whether what an earlier start left is gone on from; if not, it is deleted, the adapter too.
        view: who watches; None: lines on standard error.

    Returns:
        The record, as `training.json` holds it.

    Raises:
        PrerequisiteError: the `train` extra is not installed, or a GPU is needed; holds the command.
        TrainingError: no rows, a model without a chat template, a folder that belongs to another training, a full
            disk, too little memory on the GPU.
        ServerError: the model's folder is not a model.
        ConfigError: `out` cannot be written.
    """
    base.require_extra()
    view = view or TrainingView(Console(stderr=True))
    path = resolve_model(model, echo=view.say)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    identity = {
        "method": method,
        "rows": file_sha256(data),
        "validation rows": None if validation is None else file_sha256(validation),
        "base model": _known_by(path),
        "recipe": recipe.model_dump(mode="json"),
        "number of processes": processes,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    if resume and (done := _done(out, digest)) is not None:
        view.say(f"{out} holds this adapter already")
        return done
    base.quiet_libraries(path)
    from accelerate import PartialState

    state = PartialState(cpu=not _gpu())
    job = _Job(data, out, path, method, recipe, validation, resume, identity, digest, processes)
    with _kept_to_us(out, state.is_main_process), _told_clearly(out):
        return _train(job, state, view)


@dataclass(frozen=True)
class _Job:
    """What `train_adapter` was given, and what it is known by."""

    data: Path
    out: Path
    path: str
    method: Method
    recipe: Recipe
    validation: Path | None
    resume: bool
    identity: dict[str, Any]
    digest: str
    processes: int


def _train(job: _Job, state: Any, view: TrainingView) -> TrainingRecord:
    out, recipe, method = job.out, job.recipe, job.method
    checkpoints = Checkpoints(out)
    if state.is_main_process:
        if not job.resume:
            (out / RECORD_NAME).unlink(missing_ok=True)
        checkpoints.begin(job.identity, resume=job.resume)
    state.wait_for_everyone()
    newest = checkpoints.newest()

    quantization = base.chosen_quantization(recipe)
    tokenizer = base.load_tokenizer(job.path)
    masker = Masker(tokenizer, recipe.chat_template_kwargs)
    rows, account = prepare(job.data, method, masker, recipe)
    kept_back, kept_back_account = (None, None)
    if job.validation is not None:
        kept_back, kept_back_account = prepare(job.validation, method, masker, recipe)
    if state.is_main_process:
        _tell(view, account)
        if recipe.quantization == "auto" and quantization == "none":
            view.say("no GPU here: the base weights are not quantized, and training is slow")
        view.say("loading the model")
    model = base.load_model(job.path, quantization)

    from matrix_graph.train.trainers import Watch, make_trainer

    watch = Watch(
        checkpoints,
        view if state.is_main_process else None,
        seconds=newest.seconds if newest else 0.0,
        starts=newest.starts + 1 if newest else 1,
        base=base_name(job.path).name,
    )
    trainer = make_trainer(
        method,
        recipe,
        model=model,
        tokenizer=tokenizer,
        dataset=rows,
        validation=kept_back,
        checkpoints=checkpoints.folder,
        processes=job.processes,
        watch=watch,
    )
    if newest is not None and state.is_main_process:
        view.say(f"going on from step {newest.step}")
    with view:
        trainer.train(resume_from_checkpoint=str(newest.path) if newest else None)
    if kept_back is not None and not _measured_last(trainer):
        trainer.evaluate()
    seconds = watch.seconds
    history = trainer.state.log_history
    record = TrainingRecord(
        identity=job.digest,
        method=method,
        model=base.account_of(job.path, model),
        data=account,
        validation=kept_back_account,
        recipe=recipe,
        device=_device(),
        quantization=quantization,
        processes=job.processes,
        steps=trainer.state.global_step,
        loss=[
            LossPoint(step=entry["step"], loss=entry["loss"], learning_rate=entry.get("learning_rate"))
            for entry in history
            if "loss" in entry
        ],
        validation_loss=[
            LossPoint(step=entry["step"], loss=entry["eval_loss"]) for entry in history if "eval_loss" in entry
        ],
        starts=newest.starts + 1 if newest else 1,
        seconds=round(seconds, 3),
        created_at=datetime.now(UTC),
        versions={name: importlib.metadata.version(name) for name in _LIBRARIES},
    )
    if state.is_main_process:
        _keep(trainer, out, record)
        checkpoints.remove()
    state.wait_for_everyone()
    return record


def _known_by(path: str) -> str:
    folder = Path(path)
    if folder.is_absolute() and (print_ := fingerprint(folder)) is not None:
        return f"{print_.layout[:32]}{print_.content[:32]}"
    # A folder is known by a hash: what a training was begun with is written down beside the adapter.
    return hashlib.sha256(os.fsencode(path)).hexdigest() if folder.is_absolute() else path


def _done(out: Path, digest: str) -> TrainingRecord | None:
    record = read_record(out)
    if record is None:
        return None
    if record.identity == digest and (out / _WEIGHTS).is_file():
        return record
    raise TrainingError(
        f"{out} holds an adapter that was trained otherwise: with other rows, another model, another method or another "
        "recipe. Name another --out, or give --no-resume to replace it."
    )


@contextmanager
def _kept_to_us(out: Path, main: bool) -> Iterator[None]:
    """One training at a time in a folder; the system frees it when the process ends, however it ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise ConfigError(f"The folder {out} cannot be written to. Name another with --out.")
        if not main:
            yield
            return
        with FileLock(out / ".lock", timeout=0.2):
            yield
    except Timeout as error:
        raise TrainingError(
            f"Another training writes to {out}. Wait for it, stop it, or name another --out."
        ) from error
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"The folder {out} cannot be made: {error.strerror}. Name another with --out.") from error


@contextmanager
def _told_clearly(out: Path) -> Iterator[None]:
    """The faults that people meet, as messages that say what to do."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "The GPU's memory is too small for this recipe. Halve batch_size and double accumulate, which gives the "
            f"same adapter; or lower max_length, or set quantization: 4bit. ({str(error).splitlines()[0]})"
        ) from error
    except MatrixGraphError:
        raise
    except Exception as error:
        # Each library has an exception of its own for it, and torch's says nothing of the disk.
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error) or shutil.disk_usage(out).free < _LITTLE:
            raise TrainingError(
                f"The disk with {out} is full. Make room and give the same command again: it goes on from the last "
                f"whole checkpoint. ({error})"
            ) from error
        raise


def _keep(trainer: Any, out: Path, record: TrainingRecord) -> None:
    """Put the adapter in place, its record last."""
    import torch

    adapter = trainer.accelerator.unwrap_model(trainer.model)
    for name, weights in adapter.named_parameters():
        if weights.requires_grad and not bool(torch.isfinite(weights).all()):
            raise TrainingError(f"The adapter has weights that are not numbers ({name}). Lower the learning_rate.")
    part = out / _PART
    shutil.rmtree(part, ignore_errors=True)
    adapter.save_pretrained(part)
    without_private_path(part, record.model.name)
    # The library keeps the weights to their owner; a server may run as somebody else.
    (part / _WEIGHTS).chmod((part / "adapter_config.json").stat().st_mode)
    (part / _WEIGHTS).replace(out / _WEIGHTS)
    (part / "adapter_config.json").replace(out / "adapter_config.json")
    shutil.rmtree(part)
    points = [(point.step, point.loss) for point in record.loss]
    measured = [(point.step, point.loss) for point in record.validation_loss]
    replace_file(out / "loss.svg", loss_picture(points, measured).encode(), sync=True)
    replace_file(out / "README.md", model_card(record, out.resolve().name).encode(), sync=True)
    replace_file(out / RECORD_NAME, record.model_dump_json(indent=2).encode() + b"\n", sync=True)


def _measured_last(trainer: Any) -> bool:
    history = trainer.state.log_history
    return any("eval_loss" in entry and entry["step"] == trainer.state.global_step for entry in history)


def _tell(view: TrainingView, account: DataAccount) -> None:
    tokens = f"{account.tokens} tokens, {account.taught_tokens} with a loss"
    view.say(f"{account.rows} rows: {account.examples} examples, {tokens}")
    for reason, number in account.dropped.items():
        view.say(f"left out, {number}: {reason}")


def _gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _device() -> str:
    import torch

    return str(torch.cuda.get_device_name(0)) if _gpu() else "cpu"
