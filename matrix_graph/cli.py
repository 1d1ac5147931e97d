"""The command line: `matrix-graph rehearse | export | serve | install-engine`.

Every command says what it is doing, leaves with code 0 only if all is well, and tells what to do when it is not.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

import matrix_graph
from matrix_graph.errors import ConfigError, MatrixGraphError
from matrix_graph.traces.export import ExportFormat, Include

if TYPE_CHECKING:
    from matrix_graph.compose.rehearsal import RehearsalResult
    from matrix_graph.config import Settings
    from matrix_graph.live import View
    from matrix_graph.models.chat_vllm import ChatVLLM
    from matrix_graph.models.server import VLLMServer
    from matrix_graph.records import Cast

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
    question: Annotated[str, typer.Argument(help="The question, or - to read it from standard input.")],
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
    text = sys.stdin.read() if question == "-" else question
    if not text.strip():
        raise ConfigError('The question is empty. Give one: matrix-graph rehearse "How do I ...?"')
    result = asyncio.run(_rehearse(settings, text, draft, _cast(cast), out, Console(stderr=as_json)))
    if as_json:
        typer.echo(result["trace"].to_json_line())
    if result["status"] == "failed":
        raise typer.Exit(1)


async def _rehearse(
    settings: Settings, question: str, draft: str | None, cast: Cast | None, out: Path, console: Console
) -> RehearsalResult:
    from matrix_graph.compose.rehearsal import Rehearsal
    from matrix_graph.live import view_for
    from matrix_graph.traces.diagram import to_markdown, to_mermaid
    from matrix_graph.traces.store import append_trace

    with view_for(console) as view:
        async with _model(settings, view) as model:
            rehearsal = Rehearsal(model, cast=cast, config=settings.scene)
            async for event in rehearsal.astream({"question": question, "draft": draft}):
                view.show(event)
        result: RehearsalResult = event  # type: ignore[assignment]  # the last event is the result
    trace = result["trace"]
    path = append_trace(out, trace)
    kept = [path]
    for ending, content in ((".mmd", to_mermaid(trace)), (".md", to_markdown(trace))):
        kept.append(out / f"{trace.id[:12]}{ending}")
        kept[-1].write_text(content, encoding="utf-8")
    console.print(f"kept: {', '.join(str(file) for file in kept)}", style="dim", markup=False, soft_wrap=True)
    return result


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
    from matrix_graph.models.bundled import cache_directory
    from matrix_graph.models.server import VLLMServer

    options: dict[str, Any] = {"port": port, "adapters": dict(_adapter(text) for text in adapter or [])}
    server_options = {name: value for name, value in options.items() if value}
    settings = _settings(config, model, None, {}, server_options)
    console = Console(stderr=True)
    with (
        console.status("starting vLLM") as status,
        VLLMServer(
            settings.model,
            config=settings.server,
            on_status=lambda line: (
                status.update(line) if console.is_terminal else console.print(line, markup=False, highlight=False)
            ),
        ) as server,
    ):
        key_file = cache_directory() / "keys" / f"{server.base_url.rsplit(':', 1)[1].split('/')[0]}.key"
        key_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(server.api_key)
            _announce(server.base_url, server.model_name, key_file, server.log_path, as_json)
            status.update("serving; Ctrl-C stops it")
            _until_it_fails(server)
        finally:
            key_file.unlink(missing_ok=True)


def _announce(base_url: str, model: str, key_file: Path, log: Path, as_json: bool) -> None:
    if as_json:
        line = json.dumps({"base_url": base_url, "model": model, "key_file": str(key_file), "log": str(log)})
    else:
        line = (
            f"serving {model} at {base_url}\nlog: {log}\nIn another terminal:\n"
            f'  export MATRIX_GRAPH_BASE_URL={base_url} VLLM_API_KEY="$(cat {key_file})"\n'
            '  matrix-graph rehearse "How do I ...?"'
        )
    typer.echo(line)
    sys.stdout.flush()


def _until_it_fails(server: VLLMServer) -> NoReturn:
    while True:
        time.sleep(1)
        if not server.running:
            asyncio.run(server.wait_ready(None))  # raises when the server is given up, with the last lines of its log


@app.command()
def install_engine() -> None:
    """Install the vLLM build that fits this machine: the official one with an NVIDIA GPU, else the CPU build.

    It goes into the environment in which this command runs. Does nothing if it is there already.
    """
    from matrix_graph.models.engine import install_engine as install

    install(typer.echo)


@asynccontextmanager
async def _model(settings: Settings, view: View) -> AsyncIterator[ChatVLLM]:
    """The one chat model of a command: on the given server, or on one of our own that ends with the command."""
    from matrix_graph.models.chat_vllm import ChatVLLM
    from matrix_graph.models.server import VLLMServer

    if settings.base_url is not None:
        key = {"api_key": settings.api_key} if settings.api_key else {}
        view.status(f"using {settings.base_url}")
        yield ChatVLLM(model=settings.model, base_url=settings.base_url, **key)
        return
    async with VLLMServer(settings.model, config=settings.server, on_status=view.status) as server:
        yield ChatVLLM(
            model=server.model_name, base_url=server.base_url, api_key=_secret(server.api_key), server=server
        )


def _secret(key: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(key)


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


def _adapter(text: str) -> tuple[str, str]:
    name, sign, folder = text.partition("=")
    if not (name and sign and folder):
        raise ConfigError(f"The adapter {text!r} is not of the form NAME=DIR, such as kind=adapters/kind.")
    return name, folder


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command line; errors of ours come out as one message, without a traceback."""
    # As an exception SIGTERM runs every clean-up on its way out: the server's above all.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except MatrixGraphError as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
