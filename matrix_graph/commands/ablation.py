"""The command `ablation`: the same questions with more, fewer and none of the scene's parts."""

from __future__ import annotations

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


def ablation(
    out: OutOption,
    questions: Annotated[
        list[str],
        typer.Option("--questions", "-q", help="A file or a hub name; several times for several.", metavar="FILE"),
    ],
    roles: Annotated[str | None, typer.Option(help="Numbers of other people to try, such as `1,2,5`.")] = None,
    steps: Annotated[str | None, typer.Option(help="Numbers of plan steps to try, such as `2,8`.")] = None,
    rounds: Annotated[str | None, typer.Option(help="Numbers of rounds at most to try, such as `1,3`.")] = None,
    without: Annotated[
        str | None,
        typer.Option(
            help="Parts of the modulator to do without: plausible_all (nothing is rejected), everyone_sees (everybody "
            "observes everything), off (no modulator: all happens, all see it, no objects, no judgement); or all."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Who compares the answers: base, a served name, or URL:MODEL. Default: nobody."),
    ] = None,
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
    """Play the same questions as configured and with one setting changed each, and compare scenes and answers.

    OUT gets ablation.json, ablation.md and ablation.html about the scenes, and an evaluation's files about the answers.

        matrix-graph ablation --questions q.jsonl --roles 1,5 --steps 2,8 --without all --out runs/ablation
    """
    from matrix_graph.errors import ConfigError
    from matrix_graph.evaluate.ablation import FULL, MARKDOWN_NAME, PAGE_NAME, WITHOUT, variants, write_ablation
    from matrix_graph.evaluate.candidates.rehearsal import RehearsalCandidate
    from matrix_graph.evaluate.candidates.roster import Roster
    from matrix_graph.evaluate.carry_out import carry_out, settings_of
    from matrix_graph.evaluate.loaders import load_questions, merged
    from matrix_graph.evaluate.results import write_results

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
    parts = list(WITHOUT) if without == "all" else [part.strip() for part in (without or "").split(",") if part.strip()]
    ways = variants(
        settings.scene,
        roles=_numbers("--roles", roles),
        steps=_numbers("--steps", steps),
        rounds=_numbers("--rounds", rounds),
        without=parts,
    )
    asked = [
        question.model_copy(update={"chosen": None, "rejected": None, "reference": None})
        for question in merged(load_questions(questions, limit=limit))
    ]
    if not asked:
        raise ConfigError("There is no question in what --questions names.")
    outcome = carry_out(
        asked,
        Roster({way.name: RehearsalCandidate(scene=way.scene) for way in ways}, {}, []),
        settings,
        out,
        judge=judge,
        baseline=FULL,
        max_requests=max_requests,
        give_up_after=give_up_after,
        retry_failed=retry_failed,
        force_new_settings=force_new_settings,
    )
    write_results(out, baseline=FULL)
    found = write_ablation(out)
    if as_json:
        typer.echo(found.model_dump_json())
    for name in (MARKDOWN_NAME, PAGE_NAME, "results.md", "results.html"):
        typer.echo(f"kept: {out / name}", err=True)
    if outcome.failed or any(variant.quality.leaks for variant in found.variants):
        raise typer.Exit(1)


def _numbers(option: str, text: str | None) -> list[int]:
    """The whole numbers in a list with commas.

    Raises:
        ConfigError: something else stands in it.
    """
    from matrix_graph.errors import ConfigError

    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise ConfigError(f"{option} is {text!r}; whole numbers separated by commas are allowed, such as 1,2,5.")
    return [int(part) for part in parts]
