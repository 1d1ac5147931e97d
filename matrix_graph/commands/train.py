"""The command `train`: rows in, an adapter out, watched on the way."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from matrix_graph.options import JsonOption, ModelOption


class TrainingMethod(StrEnum):
    """How is learnt."""

    sft = "sft"
    dpo = "dpo"


def train(
    data: Annotated[
        Path,
        typer.Argument(
            help="Rows as `matrix-graph export` writes them: JSON lines, JSON, CSV or Parquet.", metavar="FILE"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter's folder.", metavar="ADAPTER")],
    model: ModelOption = None,
    method: Annotated[
        TrainingMethod,
        typer.Option(help="`sft` imitates the assistant's text; `dpo` prefers `chosen` to `rejected`."),
    ] = TrainingMethod.sft,
    recipe: Annotated[
        str, typer.Option(help="`paper`, `smoke` (minutes on a CPU), `8b`, or a YAML file; see `configs/train-*.yaml`.")
    ] = "paper",
    validation: Annotated[
        Path | None, typer.Option(help="Rows whose loss is measured and not learnt.", metavar="FILE")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Go on from the last checkpoint, or delete what is in ADAPTER."),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Train a LoRA adapter on exported rows; start it again and it goes on where it was broken off.

    The loss falls on what the assistant says alone, by the model's own chat template. Rows that are too long are left
    out and counted, never cut. The small bundled model shows that everything runs, not that the method aligns.

        matrix-graph export runs/first --format messages --out sft.jsonl

        matrix-graph train sft.jsonl --model org/name --out adapters/kind

        matrix-graph serve --model org/name --adapter kind=adapters/kind

    Several GPUs: `accelerate launch --num_processes 4 -m matrix_graph.train sft.jsonl --model ... --out ...`
    """
    from matrix_graph.train.recipe import load_recipe
    from matrix_graph.train.run import train_adapter

    record = train_adapter(
        data,
        out,
        model=model,
        method=method.value,
        recipe=load_recipe(recipe),
        validation=validation,
        resume=resume,
    )
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        typer.echo(record.model_dump_json())
        return
    typer.echo(
        f"adapter in {out}: {record.steps} steps, loss {record.first_loss:.3f} -> {record.last_loss:.3f}, "
        f"{record.seconds:.0f} s"
    )
