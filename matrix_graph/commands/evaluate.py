"""The command `evaluate`: candidates answer, are measured and compared, and the results are written."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from matrix_graph.evaluate.options import (
    JUDGE_KEY_VARIABLE,
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
    RolesOption,
    StepsOption,
    TemperatureOption,
    ThinkingOption,
)

DEFAULT_CANDIDATES = "base,rehearsal"


def evaluate(
    out: OutOption,
    questions: Annotated[
        list[str] | None,
        typer.Option(
            "--questions",
            "-q",
            help="Questions to answer: a file (JSON lines, CSV, ...) or a hub name such as `Anthropic/hh-rlhf`; "
            "several times for several. Their known answers, if any, are scored too.",
            metavar="FILE",
        ),
    ] = None,
    harmful: Annotated[
        list[str] | None,
        typer.Option(help="Likewise, where a good answer refuses; for the attack success rate.", metavar="FILE"),
    ] = None,
    harmless: Annotated[
        list[str] | None,
        typer.Option(help="Likewise, where a refusal is an over-refusal.", metavar="FILE"),
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            help="Rows with chosen and rejected, or reference, that are scored by log-probability alone and not "
            "answered.",
            metavar="FILE",
        ),
    ] = None,
    candidates: Annotated[
        str,
        typer.Option(
            help="Separated by commas: base, rehearsal, foresee, critique-revise, self-align, safe-prompt, debate, "
            "best-of-n, decrim, each with settings if you like (`best-of-n:n=8`, `rehearsal:roles=2`); "
            "`best-of-n:tokens=matched` and `critique-revise:tokens=matched` generate about as many tokens as the "
            "rehearsal did for the same question, with `tokens=1800` about so many; NAME=DIR loads an adapter; NAME is "
            "one that the server serves.",
            metavar="LIST",
        ),
    ] = DEFAULT_CANDIDATES,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Who compares the answers: base (the model itself), a name that the server serves, or URL:MODEL with "
            f"its key in {JUDGE_KEY_VARIABLE}. Default: nobody.",
            metavar="JUDGE",
        ),
    ] = None,
    judge_repeats: Annotated[
        int, typer.Option(min=1, help="How often each prompt of the judge is asked, for its agreement with itself.")
    ] = 1,
    baseline: Annotated[
        str | None,
        typer.Option(help="The candidate that the others are compared with. [default: base, else the first]"),
    ] = None,
    human: Annotated[
        bool, typer.Option("--human", help="Also make the blind page on which people compare the answers.")
    ] = False,
    limit: LimitOption = None,
    max_requests: MaxRequestsOption = None,
    give_up_after: GiveUpAfterOption = 3600.0,
    retry_failed: RetryFailedOption = False,
    force_new_settings: ForceOption = False,
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    config: ConfigOption = None,
    roles: RolesOption = None,
    steps: StepsOption = None,
    temperature: TemperatureOption = None,
    thinking: ThinkingOption = None,
    max_thinking_tokens: MaxThinkingTokensOption = None,
    request: RequestOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare candidates on questions: base model, adapters, rehearsal, and the methods that it is compared with.

    OUT gets every answer with its cost (answers.jsonl), scores, verdicts and scenes as JSON lines, and the results:
    results.json, results.md and results.html.

        matrix-graph evaluate --questions q.jsonl --candidates base,rehearsal,kind=adapters/kind --out runs/compare

        matrix-graph evaluate --harmful walledai/AdvBench --pairs Anthropic/hh-rlhf --candidates base --out runs/base
    """
    from matrix_graph.errors import ConfigError
    from matrix_graph.evaluate.candidates.roster import roster_from
    from matrix_graph.evaluate.carry_out import answering, carry_out, settings_of
    from matrix_graph.evaluate.loaders import load_questions, merged
    from matrix_graph.evaluate.results import write_results

    options: dict[str, Any] = {"limit": limit}
    if not (questions or harmful or harmless or pairs):
        raise ConfigError("There is no question. Give a file with --questions, --harmful, --harmless or --pairs.")
    settings = settings_of(
        config,
        model,
        base_url,
        roles,
        steps,
        temperature,
        thinking=thinking,
        max_thinking_tokens=max_thinking_tokens,
        request=request,
    )
    roster = roster_from(candidates, settings.scene, model=answering(settings))
    if baseline is not None and baseline not in roster.candidates:
        raise ConfigError(f"The baseline {baseline!r} is not a candidate; there are {', '.join(roster.candidates)}.")
    asked = merged(
        load_questions(questions or [], **options),
        load_questions(harmful or [], harmful=True, **options),
        load_questions(harmless or [], harmful=False, **options),
        load_questions(pairs or [], answered=False, **options),
    )
    outcome = carry_out(
        asked,
        roster,
        settings,
        out,
        judge=judge,
        judge_repeats=judge_repeats,
        baseline=baseline,
        max_requests=max_requests,
        give_up_after=give_up_after,
        retry_failed=retry_failed,
        force_new_settings=force_new_settings,
    )
    results = write_results(out, baseline=outcome.baseline)
    if as_json:
        typer.echo(results.model_dump_json())
    for name in ("results.json", "results.md", "results.html"):
        typer.echo(f"kept: {out / name}", err=True)
    if human:
        from matrix_graph.commands.human import make_page

        count, (page, key) = make_page(out, baseline=outcome.baseline)
        typer.echo(f"kept: {page} ({count} pairs; give it to the raters), {key} (keep it to yourself)", err=True)
    if outcome.failed:
        typer.echo(f"{outcome.failed} failed; --retry-failed asks again for them.", err=True)
        raise typer.Exit(1)
