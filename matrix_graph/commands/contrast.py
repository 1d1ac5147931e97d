"""The command `contrast`: rows to train on, by the methods that rehearsal is compared with as adapters."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from matrix_graph.evaluate.options import (
    ForceOption,
    GiveUpAfterOption,
    LimitOption,
    MaxRequestsOption,
    OutOption,
    RetryFailedOption,
)
from matrix_graph.options import (
    BaseUrlOption,
    ConfigOption,
    JsonOption,
    MaxThinkingTokensOption,
    ModelOption,
    RequestOption,
    TemperatureOption,
    ThinkingOption,
)


class TrainingMethod(StrEnum):
    """Methods whose data the one model makes itself."""

    rlcd = "rlcd"
    mistake_analysis = "mistake-analysis"


def contrast(
    out: OutOption,
    questions: Annotated[
        list[str],
        typer.Option("--questions", "-q", help="A file or a hub name; several times for several.", metavar="FILE"),
    ],
    method: Annotated[TrainingMethod, typer.Option(help="What the rows are made by, and for.")] = TrainingMethod.rlcd,
    limit: LimitOption = None,
    max_requests: MaxRequestsOption = None,
    give_up_after: GiveUpAfterOption = 3600.0,
    retry_failed: RetryFailedOption = False,
    force_new_settings: ForceOption = False,
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    config: ConfigOption = None,
    temperature: TemperatureOption = None,
    thinking: ThinkingOption = None,
    max_thinking_tokens: MaxThinkingTokensOption = None,
    request: RequestOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make rows to train on by a method that rehearsal is compared with: RLCD (preference rows) or mistake analysis.

    OUT gets the records of every call, and the rows in rows.jsonl, which `matrix-graph train` and TRL take.

        matrix-graph contrast --questions q.jsonl --method rlcd --out runs/rlcd
    """
    import json

    from matrix_graph.evaluate.candidates.roster import TRAINING_METHODS, roster_from
    from matrix_graph.evaluate.carry_out import answering, carry_out, settings_of
    from matrix_graph.evaluate.folder import read_answers, read_questions
    from matrix_graph.evaluate.loaders import load_questions
    from matrix_graph.evaluate.training import training_rows, write_rows

    settings = settings_of(
        config,
        model,
        base_url,
        None,
        None,
        temperature,
        thinking=thinking,
        max_thinking_tokens=max_thinking_tokens,
        request=request,
    )
    roster = roster_from(method.value, settings.scene, TRAINING_METHODS, model=answering(settings))
    asked = [
        question.model_copy(update={"chosen": None, "rejected": None, "reference": None})
        for question in load_questions(questions, limit=limit)
    ]
    outcome = carry_out(
        asked,
        roster,
        settings,
        out,
        judge=None,
        max_requests=max_requests,
        give_up_after=give_up_after,
        retry_failed=retry_failed,
        force_new_settings=force_new_settings,
    )
    rows = out / "rows.jsonl"
    count = write_rows(rows, training_rows(read_questions(out), read_answers(out)))
    if as_json:
        typer.echo(json.dumps({"rows": count, "file": str(rows), "method": method.value, "failed": outcome.failed}))
    typer.echo(f"kept: {rows} ({count} rows)", err=True)
    if outcome.failed:
        raise typer.Exit(1)
