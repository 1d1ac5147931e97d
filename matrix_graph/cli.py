"""The command line: `matrix-graph rehearse | run | status | export | serve | install-engine`.

Every command says what it is doing, leaves with code 0 only if all is well, and tells what to do when it is not.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

import matrix_graph
from matrix_graph.batch.questions import InputFormat
from matrix_graph.errors import ConfigError, MatrixGraphError, TraceError
from matrix_graph.options import (
    BaseUrlOption,
    ConfigOption,
    JsonOption,
    ModelOption,
    RolesOption,
    StepsOption,
    TemperatureOption,
    adapter_from,
    cast_from,
    require_folder,
    settings_from,
    standard_input,
)
from matrix_graph.traces.export import ExportFormat, Include

if TYPE_CHECKING:
    from matrix_graph.compose.rehearsal import RehearsalResult
    from matrix_graph.config import Settings
    from matrix_graph.records import Cast, Trace

app = typer.Typer(
    name="matrix-graph",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Rehearse a language model's answers in social scenes before they are given.",
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False) -> None:
    """Rehearse a language model's answers in social scenes before they are given."""
    if version:
        typer.echo(f"matrix-graph {matrix_graph.__version__}")
        raise typer.Exit


@app.command()
def rehearse(
    question: Annotated[
        str, typer.Argument(help="The question, or - to read it from standard input.", metavar="QUESTION")
    ],
    draft: Annotated[str | None, typer.Option(help="The answer to rehearse. Default: the model's own.")] = None,
    cast: Annotated[
        Path | None, typer.Option(help="YAML file with ego, roles, objects, plan. Default: the model casts the scene.")
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
    as_json: JsonOption = False,
) -> None:
    """Rehearse one question and watch the scene.

    The trace is appended to OUT/traces.jsonl; beside it stand the scene as a Mermaid diagram (ID.mmd) and as a page to
    read (ID.md).

        matrix-graph rehearse "How do I tell my neighbour that his dog barks all night?"

        matrix-graph rehearse "..." --base-url http://127.0.0.1:8000/v1 --model my-model --json
    """
    from matrix_graph.batch.lock import is_locked

    settings = settings_from(config, model, base_url, _scene(roles, steps, temperature))
    text = standard_input() if question == "-" else question
    if not text.strip():
        raise ConfigError('The question is empty. Give one: matrix-graph rehearse "How do I ...?"')
    if draft is not None and not draft.strip():
        raise ConfigError("The draft is empty. Leave --draft out to have the model write one.")
    people = cast_from(cast)
    require_folder(out)
    if is_locked(out):
        raise ConfigError(f"A run writes to {out}. Name another folder with --out, or wait for it.")
    result = asyncio.run(_rehearse(settings, text, draft, people, out, Console(stderr=as_json)))
    if as_json:
        typer.echo(result["trace"].to_json_line().encode())
    if result["status"] == "failed":
        raise typer.Exit(1)


async def _rehearse(
    settings: Settings, question: str, draft: str | None, cast: Cast | None, out: Path, console: Console
) -> RehearsalResult:
    from matrix_graph.live import view_for

    with view_for(console) as view:
        # These imports take a second, in which people see that it starts.
        from matrix_graph.compose.rehearsal import Rehearsal
        from matrix_graph.connect import connected_model

        async with connected_model(settings, view.status) as model:
            rehearsal = Rehearsal(model, cast=cast, config=settings.scene)
            async for event in rehearsal.astream({"question": question, "draft": draft}):
                view.show(event)
        result: RehearsalResult = event  # type: ignore[assignment]  # the last event is the result
    kept = ", ".join(str(file) for file in _keep(out, result["trace"]))
    console.print(f"kept: {kept}", style="dim", markup=False, highlight=False, emoji=False, soft_wrap=True)
    return result


def _scene(roles: int | None, steps: int | None, temperature: float | None) -> dict[str, Any]:
    given = {"roles": roles, "steps": steps, "temperature": temperature}
    return {name: value for name, value in given.items() if value is not None}


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


@app.command()
def run(
    questions: Annotated[
        Path,
        typer.Argument(
            help="JSON lines or CSV with the columns question, and draft and id if you like; - is standard input.",
            metavar="QUESTIONS",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run. The same folder again goes on there.")],
    format: Annotated[
        InputFormat, typer.Option("--format", "-f", help="How the questions are written; auto goes by the name.")
    ] = InputFormat.auto,
    cast: Annotated[
        Path | None, typer.Option(help="YAML file with ego, roles, objects, plan. Default: the model casts each scene.")
    ] = None,
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    config: ConfigOption = None,
    roles: RolesOption = None,
    steps: StepsOption = None,
    temperature: TemperatureOption = None,
    max_scenes: Annotated[
        int | None, typer.Option(min=1, help="Scenes in flight at most. Default: twice --max-requests.")
    ] = None,
    max_requests: Annotated[
        int | None,
        typer.Option(min=1, help="Model calls in flight at most. Default: what the server's cache has room for."),
    ] = None,
    give_up_after: Annotated[
        float, typer.Option(min=0, help="Seconds that the server may be away; no scene fails meanwhile.")
    ] = 3600.0,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Play questions again whose scenes failed in earlier starts.")
    ] = False,
    force_new_settings: Annotated[
        bool,
        typer.Option("--force-new-settings", help="Go on in a folder that was begun under other settings."),
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes that play the scenes, each on a core and 100 MB. One makes some 800 calls a second; more "
            "are of use only if the server answers more than that: several GPUs, or a tiny model.",
        ),
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Rehearse many questions side by side; start it again and it does what is missing.

    OUT/traces.jsonl gets a line a scene, OUT/rejected.jsonl the rows that are no questions, OUT/summary.json how it
    stands. Ctrl-C once finishes what was begun, twice stops at once. Nothing that is done is ever done again.

        matrix-graph run questions.jsonl --out runs/first --base-url http://127.0.0.1:8000/v1

        matrix-graph status runs/first

        matrix-graph export runs/first --format messages --out sft.jsonl
    """
    from matrix_graph.batch.command import run_questions

    settings = settings_from(config, model, base_url, _scene(roles, steps, temperature))
    people = cast_from(cast)
    run_questions(
        questions,
        out,
        settings,
        format=format,
        cast=people,
        as_json=as_json,
        max_scenes=max_scenes,
        max_requests=max_requests,
        give_up_after=give_up_after,
        retry_failed=retry_failed,
        force_new_settings=force_new_settings,
        workers=workers,
    )


@app.command()
def status(
    directory: Annotated[Path, typer.Argument(help="Folder of a run, while it goes on or after.", metavar="DIR")],
    as_json: JsonOption = False,
) -> None:
    """Say how a run stands: scenes done, failed and in flight, speed, time left.

    matrix-graph status runs/first
    """
    from matrix_graph.batch.command import show_status

    show_status(directory, as_json=as_json)


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(help="Folder with traces.jsonl, or such a file.", metavar="DIR")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The JSON lines file to write.")],
    format: Annotated[ExportFormat, typer.Option("--format", "-f", help="The shape of a row.")] = ExportFormat.messages,
    include: Annotated[
        list[Include] | None,
        typer.Option(help="What else to export: `scene` adds every role's and the modulator's dialogue."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn finished scenes into training data.

    Each row is a chat: (question, answer), and with `--include scene` the dialogues too. Failed scenes are left out.

        matrix-graph export runs/demo --format messages --include scene --out sft.jsonl
    """
    from matrix_graph.traces.export import export as write_rows
    from matrix_graph.traces.store import read_traces

    count = write_rows(read_traces(directory), out, scene=Include.scene in (include or []))
    typer.echo(json.dumps({"rows": count, "out": str(out), "format": format}) if as_json else f"{count} rows in {out}")


@app.command()
def serve(
    model: ModelOption = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="LoRA adapter as NAME=DIR; requests then name it as their model. May be repeated."),
    ] = None,
    port: Annotated[int | None, typer.Option(help="TCP port. Default: a free one.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the shared vLLM server in the foreground, until Ctrl-C.

    The server listens on 127.0.0.1, with a key made for this run. The key is kept in a file that only you can read, and
    is shown nowhere.

        matrix-graph serve --adapter kind=adapters/kind
    """
    from matrix_graph.foreground import serve_until_stopped

    options: dict[str, Any] = {"port": port, "adapters": dict(adapter_from(text) for text in adapter or [])}
    server_options = {name: value for name, value in options.items() if value is not None and value != {}}
    serve_until_stopped(settings_from(config, model, None, {}, server_options), as_json=as_json)


@app.command()
def install_engine() -> None:
    """Install the vLLM build that fits this machine: the official one with an NVIDIA GPU, else the CPU build.

    It goes into the environment in which this command runs. Does nothing if it is there already.
    """
    from matrix_graph.models.engine import install_engine as install

    install(typer.echo)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command line; errors of ours come out as one message, without a traceback."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            # As an exception it runs every clean-up on its way out: the server's above all.
            signal.signal(number, _terminated)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show must not end a scene
    logging.getLogger("matrix_graph").addHandler(logging.NullHandler())  # the views tell the same, once
    try:
        app()
    except MatrixGraphError as error:
        from matrix_graph.live import safe

        message = f"Error: {safe(str(error))}"
        Console(stderr=True).print(message, style="red", markup=False, highlight=False, emoji=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
