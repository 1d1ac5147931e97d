"""`matrix-graph rehearse`: one scene before your eyes, or one that was played, changed and played on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from matrix_graph.errors import ConfigError, TraceError
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
    cast_from,
    require_folder,
    scene_options,
    settings_from,
    standard_input,
)

if TYPE_CHECKING:
    from matrix_graph.compose.rehearsal import Rehearsal, RehearsalResult
    from matrix_graph.compose.what_if import WhatIf
    from matrix_graph.config import Settings
    from matrix_graph.records import Cast, Trace


def rehearse(
    question: Annotated[
        str | None, typer.Argument(help="The question, or - to read it from standard input.", metavar="QUESTION")
    ] = None,
    draft: Annotated[str | None, typer.Option(help="The answer to rehearse. Default: the model's own.")] = None,
    cast: Annotated[
        Path | None, typer.Option(help="YAML file with ego, roles, objects, plan. Default: the model casts the scene.")
    ] = None,
    what_if: Annotated[
        str | None,
        typer.Option(
            "--what-if",
            help="In the place of a question: change one thing in a scene of OUT and play on from there.",
            metavar="CHANGE",
        ),
    ] = None,
    scene: Annotated[
        str | None, typer.Option(help="With --what-if: the scene's id, or how it begins. Default: OUT's last.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the trace and the picture of the scene.")] = Path(
        "runs/rehearse"
    ),
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
    """Rehearse one question and watch the scene; or change a scene, and see what would have come of it.

    The trace is appended to OUT/traces.jsonl; beside it stand the scene as a Mermaid diagram (ID.mmd) and as a page to
    read (ID.md). `matrix-graph report OUT` shows all scenes, and a changed one beside the one it came from.

        matrix-graph rehearse "How do I tell my neighbour that his dog barks all night?"

        matrix-graph rehearse "..." --base-url http://127.0.0.1:8000/v1 --model my-model --json

    What can be changed: what somebody does, how it is judged (yes or no), or a thing's state after a round.

        matrix-graph rehearse --what-if "round 2: Neighbour: shuts the door without a word"

        matrix-graph rehearse --what-if "round 2: verdict: Neighbour: no: nobody is at home"

        matrix-graph rehearse --what-if "round 1: object: dog: asleep in its basket"
    """
    from matrix_graph.batch.lock import is_locked
    from matrix_graph.traces.file_lock import require_locks

    settings = settings_from(
        config,
        model,
        base_url,
        scene_options(roles, steps, temperature),
        thinking=thinking,
        max_thinking_tokens=max_thinking_tokens,
        request=request,
    )
    people = cast_from(cast)
    if what_if is None:
        if scene is not None:
            raise ConfigError("--scene goes with --what-if, which says what is changed in it.")
        parent, change, text = None, None, _question(question)
        if draft is not None and not draft.strip():
            raise ConfigError("The draft is empty. Leave --draft out to have the model write one.")
    else:
        parent, change = _branching(what_if, out, scene, [question, draft, roles, steps, temperature])
        text = parent.question
    require_folder(out)
    require_locks(out)
    if is_locked(out):
        raise ConfigError(f"A run writes to {out}. Name another folder with --out, or wait for it.")

    def play(rehearsal: Rehearsal) -> AsyncIterator[dict[str, Any]]:
        if parent is not None and change is not None:
            return _branch(rehearsal, parent, change)
        return rehearsal.astream({"question": text, "draft": draft})

    result = asyncio.run(_rehearse(settings, people, play, out, Console(stderr=as_json)))
    if as_json:
        typer.echo(result["trace"].to_json_line().encode())
    if result["status"] == "failed":
        raise typer.Exit(1)


def _question(question: str | None) -> str:
    text = standard_input() if question == "-" else question or ""
    if not text.strip():
        raise ConfigError('The question is empty. Give one: matrix-graph rehearse "How do I ...?"')
    return text


def _branching(text: str, out: Path, scene: str | None, others: list[object]) -> tuple[Trace, WhatIf]:
    """The scene that is changed, and the change.

    Raises:
        ConfigError: the change cannot be read, there is no such scene, or options that a branch cannot have.
    """
    from matrix_graph.compose.what_if import parse_change
    from matrix_graph.traces.store import read_traces

    if any(value is not None for value in others):
        raise ConfigError(
            "--what-if plays a scene on under the settings that it was played under; it takes no question, --draft, "
            "--roles, --steps or --temperature."
        )
    change = parse_change(text)
    if not out.exists():
        raise ConfigError(f"There is no folder {out} with a scene to change. Name one with --out.")
    found: dict[str, Trace] = {}
    last: Trace | None = None
    for trace in read_traces(out):
        last = trace
        if scene is not None and trace.id.startswith(scene):
            found[trace.id] = trace
    if scene is None:
        if last is None:
            raise ConfigError(f"{out} holds no scene to change. Play one first: matrix-graph rehearse QUESTION")
        return last, change
    if len(found) != 1:
        raise ConfigError(f"{len(found)} scenes in {out} have an id that begins with {scene!r}; one is needed.")
    return found.popitem()[1], change


async def _branch(rehearsal: Rehearsal, parent: Trace, change: WhatIf) -> AsyncIterator[dict[str, Any]]:
    """What is new in the branch, as `Rehearsal.astream` tells of a scene."""
    yield {"type": "question", "question": parent.question}
    result = await rehearsal.awhat_if(parent, **change.arguments)
    for event in result["trace"].events if result["trace"] else []:
        if event.round >= change.round:
            yield {"type": "event", **event.model_dump()}
    yield {"type": "result", **result}


async def _rehearse(settings: Settings, cast: Cast | None, play: Any, out: Path, console: Console) -> RehearsalResult:
    from matrix_graph.live import view_for

    with view_for(console) as view:
        # These imports take a second, in which people see that it starts.
        from matrix_graph.compose.rehearsal import Rehearsal
        from matrix_graph.connect import connected_model

        async with connected_model(settings, view.status) as model:
            async for event in play(Rehearsal(model, cast=cast, config=settings.scene)):
                view.show(event)
        result: RehearsalResult = event  # the last event is the result
    kept = ", ".join(str(file) for file in _keep(out, result["trace"]))
    console.print(f"kept: {kept}", style="dim", markup=False, highlight=False, emoji=False, soft_wrap=True)
    return result


def _keep(out: Path, trace: Trace) -> list[Path]:
    from matrix_graph.traces.diagram import to_markdown, to_mermaid
    from matrix_graph.traces.store import append_trace

    kept = [append_trace(out, trace)]
    for ending, content in ((".mmd", to_mermaid(trace)), (".md", to_markdown(trace))):
        kept.append(out / f"{trace.id[:12]}{ending}")
        try:
            kept[-1].write_text(content, encoding="utf-8")
        except OSError as error:
            raise TraceError(f"{kept[-1]} cannot be written: {error.strerror}. The trace is in {kept[0]}.") from error
    return kept
