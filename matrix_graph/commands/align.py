"""The command `align`: from a file of questions to an adapter, and a first look at what it changed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from matrix_graph.options import (
    BaseUrlOption,
    ConfigOption,
    JsonOption,
    MaxThinkingTokensOption,
    ModelOption,
    RequestOption,
    RolesOption,
    StepsOption,
    TemperatureOption,
    ThinkingOption,
    scene_options,
    settings_from,
)
from matrix_graph.traces.export.options import Include


class RedoneStage(StrEnum):
    """Stages that can be done again."""

    export = "export"
    train = "train"
    compare = "compare"


def align(
    questions: Annotated[
        Path,
        typer.Argument(
            help="A table as of `matrix-graph run`, with the column question, and draft and id if you like.",
            metavar="QUESTIONS",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the alignment. The same folder again goes on there.")
    ],
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    config: ConfigOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="`paper`, `smoke` (minutes on a CPU), `8b`, or a YAML file. [default: smoke for the bundled model, "
            "else paper]"
        ),
    ] = None,
    include: Annotated[
        list[Include] | None,
        typer.Option(
            help="Parts of the scenes to train on beside the answers, as of `matrix-graph export`: `scene`, "
            "`simulation`, ... May be repeated."
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            "-q",
            help="Questions to compare on. Default: those that --validation keeps from training.",
            metavar="FILE",
        ),
    ] = None,
    validation: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=0.99,
            help="The share of questions kept from training, to compare on; two questions at least.",
        ),
    ] = 0.1,
    compare: Annotated[
        int | None,
        typer.Option(min=1, help="The most questions that base and adapter answer. [default: 100; bundled model: 8]"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="By which requests name the adapter. [default: the name of OUT]")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many rows of QUESTIONS. Default: all.")] = None,
    roles: RolesOption = None,
    steps: StepsOption = None,
    temperature: TemperatureOption = None,
    thinking: ThinkingOption = None,
    max_thinking_tokens: MaxThinkingTokensOption = None,
    request: RequestOption = None,
    redo: Annotated[
        RedoneStage | None,
        typer.Option(
            help="Do this stage and those after it again, with other settings if you like; what they made is deleted."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """From questions to a tuned model: run, export, train, serve, compare. Start it again and it does what is missing.

    OUT/run has the scenes, OUT/export the rows, OUT/adapter the LoRA adapter, OUT/compare what base and adapter answer
    to questions that were not learnt from; OUT/align.html shows all of it on one page. Our own server is stopped while
    the adapter is trained, so that both fit into one GPU; a server at --base-url goes on, needs room beside the
    training, must see OUT on its disk and take adapters while it runs, and serves the new one from then on.

    The small bundled model shows that everything runs, not that the method aligns. With it, scenes and answers are
    kept small (2 roles, 2 steps, 384 tokens an answer) unless you say otherwise.

        matrix-graph align questions.jsonl --out aligned/first

        matrix-graph align questions.jsonl --out aligned/kind --model org/name --recipe 8b --include simulation

        matrix-graph align questions.jsonl --out aligned/kind --model org/name --recipe mine.yaml --redo train
    """
    from matrix_graph.align.interrupts import AlignStoppedError
    from matrix_graph.align.options import AlignOptions
    from matrix_graph.align.page import PAGE_NAME
    from matrix_graph.align.runner import align as carry_out

    settings = settings_from(
        config,
        model,
        base_url,
        scene_options(roles, steps, temperature),
        thinking=thinking,
        max_thinking_tokens=max_thinking_tokens,
        request=request,
    )
    options = AlignOptions.of(
        recipe=recipe,
        include=frozenset(include or ()),
        validation=validation,
        held_out=held_out,
        most_compared=compare,
        limit=limit,
        name=name,
    )
    try:
        record = carry_out(questions, out, settings, options, redo=redo.value if redo is not None else None)
    except AlignStoppedError as error:
        typer.echo("stopped; the same command goes on where it stopped", err=True)
        raise typer.Exit(128 + error.signal) from error
    if as_json:
        typer.echo(record.model_dump_json())
        return
    typer.echo(f"adapter {record.name}: {out / 'adapter'}")
    typer.echo(f"what happened, and both models' answers side by side: {out / PAGE_NAME}")
