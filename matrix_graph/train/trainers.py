"""TRL's trainers, told what to do by a recipe. Imports torch and TRL: imported itself only when training begins.

What always holds: the trainers get tokens and labels that `masks` made and leave them as they are; nothing is told to
the network; a loss that is not a number ends the training.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from matrix_graph.train.base import bfloat16_here
from matrix_graph.train.checkpoints import Checkpoints
from matrix_graph.train.errors import TrainingError
from matrix_graph.train.progress import TrainingView
from matrix_graph.train.recipe import Recipe
from matrix_graph.train.rows import Method

_MOST_LOSSES = 1000
_CHECKPOINTS = 10
_MOST_STEPS_APART = 200


class _QuietSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """Sends no usage statistics."""

    def _send_telemetry(self) -> None:
        pass


class _QuietDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """Sends no usage statistics, and takes tokens rather than text, which `SFTTrainer` does by itself."""

    def _send_telemetry(self) -> None:
        pass

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


class Watch(TrainerCallback):  # type: ignore[misc]
    """What happens at each step: the view is told, checkpoints are marked, a lost training is ended.

    Args:
        checkpoints: where whole ones are marked.
        view: None in all processes but the first.
        seconds: what earlier starts took.
        starts: this one is so many-th.
        base: the base model's name, for the checkpoints.
    """

    def __init__(
        self, checkpoints: Checkpoints, view: TrainingView | None, *, seconds: float, starts: int, base: str
    ) -> None:
        self._checkpoints = checkpoints
        self._view = view
        self._earlier, self._starts, self._base = seconds, starts, base
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time in training, over all starts."""
        return self._earlier + time.monotonic() - self._began

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The trainer is ready."""
        self._began = time.monotonic()
        if self._view is not None:
            self._view.begin(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step is made."""
        if self._view is not None:
            self._view.step(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """A loss is known."""
        loss = logs.get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss is not a number any more at step {state.global_step} ({loss}). Lower the recipe's "
                "learning_rate, and give --no-resume."
            )
        if self._view is not None:
            self._view.loss(state.global_step, loss)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint is written."""
        if state.is_world_process_zero:
            self._checkpoints.drop_private_paths(state.global_step, self._base)
            self._checkpoints.mark_whole(state.global_step, seconds=self.seconds, starts=self._starts)


def make_trainer(
    method: Method,
    recipe: Recipe,
    *,
    model: Any,
    tokenizer: Any,
    dataset: Any,
    validation: Any | None,
    checkpoints: Path,
    processes: int = 1,
    watch: Watch | None = None,
) -> Any:
    """A trainer that has added an adapter to the model.

    Args:
        method: "sft" or "dpo".
        recipe: the settings.
        model: the base model, as `load_model` gives it.
        tokenizer: its tokenizer.
        dataset: as `prepare` makes it.
        validation: likewise, or None.
        checkpoints: the folder that they are written to.
        processes: how many train together, one a GPU.
        watch: what is called as it goes.

    Raises:
        TrainingError: the model has none of the layers that the recipe names, or TRL refuses a setting.
    """
    import torch

    gpu = torch.cuda.is_available()
    steps = planned_steps(len(dataset), recipe, processes)
    apart = recipe.checkpoint_every or max(1, min(_MOST_STEPS_APART, math.ceil(steps / _CHECKPOINTS)))
    settings: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.max_steps or -1,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": math.ceil(steps * recipe.warmup),
        "per_device_train_batch_size": recipe.batch_size,
        "per_device_eval_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.accumulate,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "bf16": bfloat16_here(),
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "gradient_checkpointing": gpu and recipe.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "ddp_find_unused_parameters": False,
        "logging_steps": max(1, steps // _MOST_LOSSES),
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": apart,
        "save_total_limit": 2,
        "eval_strategy": "no" if validation is None else "epoch",
        "prediction_loss_only": True,
        "max_length": None,  # what is too long was left out
        "report_to": "none",
        "disable_tqdm": True,
    }
    adapter = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=recipe.target_modules,
        bias="none",
        task_type="CAUSAL_LM",
    )
    parts = {
        "model": model,
        "train_dataset": dataset,
        "eval_dataset": validation,
        "processing_class": tokenizer,
        "peft_config": adapter,
        "callbacks": [watch] if watch is not None else None,
    }
    set_seed(recipe.seed)
    try:
        if method == "sft":
            skip = {"skip_prepare_dataset": True}
            trainer = _QuietSFTTrainer(args=SFTConfig(**settings, dataset_kwargs=skip), **parts)
        else:
            trainer = _QuietDPOTrainer(args=DPOConfig(**settings, beta=recipe.beta), **parts)
    except ValueError as error:
        raise TrainingError(f"The model cannot be trained by this recipe: {error}") from error
    _silence(trainer)
    return trainer


def planned_steps(examples: int, recipe: Recipe, processes: int) -> int:
    """How many steps a training makes."""
    if recipe.max_steps is not None:
        return recipe.max_steps
    batches = math.ceil(examples / (recipe.batch_size * processes))
    return max(1, math.ceil(recipe.epochs * math.ceil(batches / recipe.accumulate)))


def _silence(trainer: Any) -> None:
    """Our view tells the same, once."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
