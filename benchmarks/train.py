"""Does `matrix-graph train` cost more than TRL alone, and how fast are its token masks made?

Both sides train the same adapter on the same rows, one after the other, in rounds: ours through `train_adapter`, and
TRL's `SFTTrainer` as a plain script would use it, with the same settings and the loss on the completion. Compared is
the median processor time of a step, which other programs disturb little; the first two steps of a round are left out,
and loading is not in it. For CPUs. Needs the `train` extra.

    .venv/bin/python benchmarks/train.py --steps 12
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import Report, heading, parser

from matrix_graph.models.bundled import resolve_model
from matrix_graph.train import train_adapter
from matrix_graph.train.base import load_model, load_tokenizer, quiet_libraries
from matrix_graph.train.dataset import prepare
from matrix_graph.train.masks import Masker
from matrix_graph.train.recipe import Recipe

_WARM = 2


def _rows(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            prompt = [
                {"role": "user", "content": f"Somebody took my place in the queue, the {number}th time. And now?"}
            ]
            reply = [
                {"role": "assistant", "content": "Ask him kindly, listen, and let it go if it is not worth it. " * 3}
            ]
            file.write(json.dumps({"prompt": prompt, "completion": reply}) + "\n")


def _clock(times: list[float]) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.process_time())

    return Clock()


def _steps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)][_WARM:]


def _ours(rows: Path, out: Path, model: Path, recipe: Recipe) -> list[float]:
    from matrix_graph.train import trainers

    times: list[float] = []
    on_step_end = trainers.Watch.on_step_end

    def timed(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        on_step_end(self, args, state, control, **more)
        times.append(time.process_time())

    trainers.Watch.on_step_end = timed  # type: ignore[method-assign]
    try:
        train_adapter(rows, out, model=str(model), recipe=recipe, resume=False)
    finally:
        trainers.Watch.on_step_end = on_step_end  # type: ignore[method-assign]
    return _steps(times)


def _plain(rows: Path, out: Path, model: Path, recipe: Recipe) -> list[float]:
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    times: list[float] = []
    trainer = SFTTrainer(
        model=load_model(str(model), "none"),
        processing_class=load_tokenizer(str(model)),
        args=SFTConfig(
            output_dir=str(out),
            max_steps=recipe.max_steps or -1,
            learning_rate=recipe.learning_rate,
            per_device_train_batch_size=recipe.batch_size,
            gradient_accumulation_steps=recipe.accumulate,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=load_dataset("json", data_files=str(rows), cache_dir=str(out / "cache"))["train"],
        peft_config=LoraConfig(
            r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, target_modules="all-linear"
        ),
        callbacks=[_clock(times)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return _steps(times)


def main() -> int:
    """Measure, print, and return the exit code."""
    made = parser(__doc__)
    made.add_argument("--model", help="a model folder or bundled:NAME (default: the small bundled model)")
    made.add_argument("--steps", type=int, default=12, help="steps a round")
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--rows", type=int, default=2000, help="rows whose masks are made")
    options = made.parse_args()
    model = Path(resolve_model(options.model))
    quiet_libraries(str(model.resolve()))
    report = Report()
    recipe = Recipe(
        max_steps=options.steps, batch_size=2, accumulate=2, quantization="none", checkpoint_every=options.steps
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        heading(f"masks of {options.rows} rows")
        _rows(folder / "many.jsonl", options.rows)
        masker = Masker(load_tokenizer(str(model)))
        began = time.perf_counter()
        _, account = prepare(folder / "many.jsonl", "sft", masker, recipe)
        seconds = time.perf_counter() - began
        report.say("tokens of a row", account.tokens / account.rows)
        report.check("rows a second", account.rows / seconds, at_least=200)
        heading(f"{options.rounds} rounds of {options.steps} steps each")
        _rows(folder / "rows.jsonl", 4 * options.steps)
        ours: list[float] = []
        plain: list[float] = []
        for number in range(options.rounds):
            ours += _ours(folder / "rows.jsonl", folder / f"ours{number}", model, recipe)
            plain += _plain(folder / "rows.jsonl", folder / f"plain{number}", model, recipe)
        report.say("ours, median step", statistics.median(ours), "s")
        report.say("TRL alone, median step", statistics.median(plain), "s")
        report.check("ours / TRL alone", statistics.median(ours) / statistics.median(plain), at_most=1.1)
    return report.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
