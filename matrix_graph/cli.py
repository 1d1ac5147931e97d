"""The command line: a map of the commands. Those that are more than a call stand beside what they do.

Every command says what it is doing, leaves with code 0 only if all is well, and tells what to do when it is not.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

import matrix_graph
from matrix_graph.batch.questions import InputFormat
from matrix_graph.commands.ablation import ablation
from matrix_graph.commands.adapters import adapters
from matrix_graph.commands.align import align
from matrix_graph.commands.contrast import contrast
from matrix_graph.commands.evaluate import evaluate
from matrix_graph.commands.export import export
from matrix_graph.commands.human import human
from matrix_graph.commands.probe import probe
from matrix_graph.commands.quality import quality
from matrix_graph.commands.rehearse import rehearse
from matrix_graph.commands.repair import repair
from matrix_graph.commands.report import report
from matrix_graph.commands.train import train
from matrix_graph.errors import ConfigError, MatrixGraphError
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
    adapter_from,
    cast_from,
    scene_options,
    settings_from,
)
from matrix_graph.output import take_outputs

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


app.command()(rehearse)


@app.command()
def run(
    questions: Annotated[
        Path,
        typer.Argument(
            help="JSON lines, a JSON array, CSV, TSV or Parquet, each also packed (.gz), with the columns "
            "question, and draft and id if you like; - is standard input.",
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
    thinking: ThinkingOption = None,
    max_thinking_tokens: MaxThinkingTokensOption = None,
    request: RequestOption = None,
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

    OUT/traces.jsonl gets a line a scene, OUT/rejected.jsonl the rows that are not questions, OUT/summary.json how it
    stands. Ctrl-C once finishes what was begun, twice stops at once. Nothing that is done is ever done again.

        matrix-graph run questions.jsonl --out runs/first --base-url http://127.0.0.1:8000/v1

        matrix-graph status runs/first

        matrix-graph export runs/first --format messages --out sft.jsonl
    """
    from matrix_graph.batch.command import run_questions

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


app.command()(report)
app.command()(repair)
app.command()(export)
app.command()(train)
app.command()(align)


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


app.command()(adapters)
app.command()(evaluate)
app.command()(contrast)
app.command()(quality)
app.command()(probe)
app.command()(ablation)
app.command()(human)


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
    outputs = take_outputs()
    logging.getLogger("matrix_graph").addHandler(logging.NullHandler())  # the views tell the same, once
    code = _run()
    if (failure := outputs.failure) is not None:
        _say(f"Standard output cannot be written: {failure.strerror}. What was to be kept on disk is kept.")
        code = code or 1
    sys.exit(code)


def _run() -> int:
    """Run the command line.

    Returns:
        The exit code.
    """
    try:
        app()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except MatrixGraphError as error:
        _say(str(error))
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if "temporary directory" in str(error.strerror):
            _say(f"{error.strerror}. Name a folder that can be written by the environment variable TMPDIR.")
            return 1
        if error.filename is None:  # not a file that people could do something about
            raise
        _say(f"{os.fsdecode(error.filename)}: {error.strerror}. Grant access or make room there.")
        return 1
    return 0


def _say(text: str) -> None:
    from matrix_graph.live import safe

    message = f"Error: {safe(text)}"
    Console(stderr=True).print(message, style="red", markup=False, highlight=False, emoji=False, soft_wrap=True)


if __name__ == "__main__":
    main()
