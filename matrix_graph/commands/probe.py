"""The command `probe`: is this model good enough? Single calls with known right answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matrix_graph.options import (
    BaseUrlOption,
    ConfigOption,
    JsonOption,
    MaxThinkingTokensOption,
    ModelOption,
    RequestOption,
    ThinkingOption,
    require_folder,
    settings_from,
)

if TYPE_CHECKING:
    from matrix_graph.config import Settings
    from matrix_graph.evaluate.probe.items import Kind
    from matrix_graph.evaluate.probe.runner import ProbeResult
    from matrix_graph.evaluate.probe.scoring import Measure, Outcome


def probe(
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    thinking: ThinkingOption = None,
    max_thinking_tokens: MaxThinkingTokensOption = None,
    request: RequestOption = None,
    config: ConfigOption = None,
    kinds: Annotated[
        str,
        typer.Option(
            help="Separated by commas: plausible (can this happen here and now?), observers (who notices it?), effect "
            "(whom did it help or harm?), cast (who must be in the scene?).",
            metavar="LIST",
        ),
    ] = "plausible,observers,effect,cast",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for every call, right or wrong. Default: nothing is kept."),
    ] = None,
    errors: Annotated[bool, typer.Option("--errors", help="Also show what was wrong.")] = False,
    max_requests: Annotated[int, typer.Option(min=1, help="Model calls in flight at most.")] = 32,
    as_json: JsonOption = False,
) -> None:
    """Find out within minutes whether a model is good enough to play, judge and reflect on scenes.

    Some 130 single calls whose right answers are known are asked with the scene's own prompts. Each share comes with
    its 95% interval and, where there is one, the bar that it should reach. OUT/calls.jsonl gets a line an item,
    OUT/probe.json the result. The exit code is 0 if the probe could be made, however good the model.

        matrix-graph probe --model org/name

        matrix-graph probe --base-url http://127.0.0.1:8000/v1 --errors --out runs/probe
    """
    import asyncio

    from matrix_graph.evaluate.probe.items import kinds_from
    from matrix_graph.evaluate.probe.runner import keep

    wanted = kinds_from(kinds)
    settings = settings_from(
        config,
        model,
        base_url,
        {},
        thinking=thinking,
        max_thinking_tokens=max_thinking_tokens,
        request=request,
    )
    if out is not None:
        require_folder(out, results=True)
    result = asyncio.run(_probed(settings, wanted, max_requests))
    if as_json:
        typer.echo(result.model_dump_json())
    else:
        _show(result)
    if errors:
        for outcome in result.outcomes:
            if not outcome.right:
                _show_wrong(outcome, err=as_json)
    for path in [] if out is None else keep(result, out):
        typer.echo(f"kept: {path}", err=True)


async def _probed(settings: Settings, kinds: list[Kind], most: int) -> ProbeResult:
    from rich.console import Console

    from matrix_graph.connect import connected_model
    from matrix_graph.evaluate.probe.runner import run_probe
    from matrix_graph.evaluate.progress import ProgressView

    with ProgressView(Console(stderr=True)) as view:
        async with connected_model(settings, view.status) as model:
            return await run_probe(model, kinds=kinds, config=settings.scene, most=most, on_progress=view.show)


def _show(result: ProbeResult) -> None:
    from matrix_graph.live import safe

    used = f", {result.unusable} without a usable reply" if result.unusable else ""
    typer.echo(f"{safe(result.model)}: {result.items} items{used}")
    for measure in result.measures:
        typer.echo(_line(measure))
    typer.echo(result.outlook)


def _line(measure: Measure) -> str:
    from matrix_graph.evaluate.document import percent

    name = measure.name if measure.name == measure.kind else f"  {measure.name}"
    span = "" if measure.low is None else f"[{percent(measure.low)}, {percent(measure.high)}]"
    bar = ""
    if measure.bar is not None:
        bar = f"{'at most' if measure.at_most else 'at least'} {100 * measure.bar:.0f}%: {_met(measure)}"
    count = f"{measure.total} {measure.of}"
    return f"{name:33} {count:>12}  {percent(measure.share):>6} {span:16}  {bar}".rstrip()


def _met(measure: Measure) -> str:
    return "met" if measure.met else "missed"


def _show_wrong(outcome: Outcome, *, err: bool) -> None:
    from matrix_graph.live import safe

    typer.echo(f"\n{outcome.id}", err=err)
    for mark in outcome.marks:
        if not mark.right:
            typer.echo(safe(f"  {mark.about}: {mark.got or 'nothing usable'}; right is: {mark.expected}"), err=err)
    said = outcome.said if outcome.problem is None else f"{outcome.problem.type}: {outcome.problem.message}"
    if said:
        typer.echo(f"  {safe(' '.join(said.split()))}", err=err)
