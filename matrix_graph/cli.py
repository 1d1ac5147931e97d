"""The command line: `matrix-graph rehearse | export | serve | install-engine`.

Every command says what it is doing, leaves with code 0 only if all is well, and tells what to do when it is not.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

import matrix_graph
from matrix_graph.errors import (
    CastError,
    ConfigError,
    MatrixGraphError,
    TraceError,
)
from matrix_graph.traces.export import ExportFormat, Include

if TYPE_CHECKING:
    from matrix_graph.compose.rehearsal import RehearsalResult
    from matrix_graph.config import Settings
    from matrix_graph.records import Cast, Trace

"""How long a server that has not answered yet is tried."""

app = typer.Typer(
    name="matrix-graph",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Rehearse a language model's answers in social scenes before they are given.",
)

ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Model folder or hub id. Default: the small bundled model.", metavar="MODEL"),
]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        help="An OpenAI-compatible server that already runs, such as `http://127.0.0.1:8000/v1`; its key comes from "
        "VLLM_API_KEY. Default: a vLLM server of our own on 127.0.0.1.",
        metavar="URL",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file with settings; see `configs/`.", metavar="FILE"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output; the rest on stderr.")]


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
    roles: Annotated[int | None, typer.Option(help="Other people in the scene. [default: 3]")] = None,
    steps: Annotated[int | None, typer.Option(help="The most steps of the ego's plan. [default: 4]")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature. [default: 0.2]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Rehearse one question and watch the scene.

    The trace is appended to OUT/traces.jsonl; beside it stand the scene as a Mermaid diagram (ID.mmd) and as a page to
    read (ID.md).

        matrix-graph rehearse "How do I tell my neighbour that his dog barks all night?"

        matrix-graph rehearse "..." --base-url http://127.0.0.1:8000/v1 --model my-model --json
    """
    scene = {"roles": roles, "steps": steps, "temperature": temperature}
    settings = _settings(config, model, base_url, {name: value for name, value in scene.items() if value is not None})
    text = _standard_input() if question == "-" else question
    if not text.strip():
        raise ConfigError('The question is empty. Give one: matrix-graph rehearse "How do I ...?"')
    if draft is not None and not draft.strip():
        raise ConfigError("The draft is empty. Leave --draft out to have the model write one.")
    people = _cast(cast)
    _require_folder(out)
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

    options: dict[str, Any] = {"port": port, "adapters": dict(_adapter(text) for text in adapter or [])}
    server_options = {name: value for name, value in options.items() if value is not None and value != {}}
    serve_until_stopped(_settings(config, model, None, {}, server_options), as_json=as_json)


@app.command()
def install_engine() -> None:
    """Install the vLLM build that fits this machine: the official one with an NVIDIA GPU, else the CPU build.

    It goes into the environment in which this command runs. Does nothing if it is there already.
    """
    from matrix_graph.models.engine import install_engine as install

    install(typer.echo)


def _settings(
    config: Path | None,
    model: str | None,
    base_url: str | None,
    scene: dict[str, Any],
    server: dict[str, Any] | None = None,
) -> Settings:
    from matrix_graph.config import load_settings

    return load_settings(config, model=model, base_url=base_url, scene=scene or None, server=server or None)


def _cast(path: Path | None) -> Cast | None:
    if path is None:
        return None
    import yaml
    from pydantic import ValidationError

    from matrix_graph.config import explain
    from matrix_graph.records import Cast

    try:
        return Cast.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The cast {path} cannot be read: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"The cast {path} cannot be played:\n{explain(error)}") from error
    except CastError as error:
        raise ConfigError(f"The cast {path} cannot be played: {error}") from error


def _standard_input() -> str:
    if sys.stdin is None:
        raise ConfigError("Standard input is closed. Give the question itself in place of -.")
    if sys.stdin.isatty():
        typer.echo("Type the question, then Ctrl-D on a line of its own:", err=True)
    try:
        return sys.stdin.buffer.read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"The question on standard input is not UTF-8: {error}") from error


def _require_folder(out: Path) -> None:
    # A scene may take minutes; whether it can be kept is better known before.
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {out} cannot be made: {error.strerror}. Name another with --out.") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise ConfigError(f"The folder {out} cannot be written to. Name another with --out.")


def _adapter(text: str) -> tuple[str, str]:
    name, sign, folder = text.partition("=")
    if not (name and sign and folder):
        raise ConfigError(f"The adapter {text!r} is not of the form NAME=DIR, such as kind=adapters/kind.")
    return name, folder


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
