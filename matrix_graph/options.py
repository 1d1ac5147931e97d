"""What the command line is given, made into what the package takes, or refused with what to do.

The options that several commands have are here, so that they read the same everywhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from matrix_graph.errors import CastError, ConfigError
from matrix_graph.tables.formats import ENDINGS, ending_of, stem_of

if TYPE_CHECKING:
    from matrix_graph.config import Settings
    from matrix_graph.records import Cast

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Model folder, hub id, or `bundled:0.5b` or `bundled:1.5b`, which are fetched at the first use. Default: "
        "`bundled:135m`, the small bundled model.",
        metavar="MODEL",
    ),
]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        help="An OpenAI-compatible server that already runs, such as `http://127.0.0.1:8000/v1`; its key comes from "
        "VLLM_API_KEY, headers for a gateway from MATRIX_GRAPH_HEADERS. Default: a vLLM server of our own on "
        "127.0.0.1.",
        metavar="URL",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file with settings; see `configs/`.", metavar="FILE"),
]
RolesOption = Annotated[int | None, typer.Option(help="Other people in the scene. [default: 3]")]
StepsOption = Annotated[int | None, typer.Option(help="The most steps of the ego's plan. [default: 3]")]
TemperatureOption = Annotated[
    float | None, typer.Option(help="Sampling temperature of what is played. [default: the server's]")
]
ThinkingOption = Annotated[
    Literal["auto", "on", "off"] | None,
    typer.Option(
        help="Whether the model thinks before it answers (`enable_thinking` of its chat template). `auto` leaves it to "
        "the model. [default: auto]",
    ),
]
MaxThinkingTokensOption = Annotated[
    int | None,
    typer.Option(
        help="Tokens by which every limit of a reply grows for a model that thinks. [default: 4096]", metavar="N"
    ),
]
RequestOption = Annotated[
    list[str] | None,
    typer.Option(
        "--request",
        help="One more field of every request to the model, such as `top_k=20`; the value is YAML. Give it as often as "
        "you like.",
        metavar="FIELD=VALUE",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output; the rest on stderr.")]


def settings_from(
    config: Path | None,
    model: str | None,
    base_url: str | None,
    scene: dict[str, Any],
    server: dict[str, Any] | None = None,
    *,
    thinking: str | None = None,
    max_thinking_tokens: int | None = None,
    request: Sequence[str] | None = None,
) -> Settings:
    """The settings of a command; what is None or empty was not given.

    Raises:
        ConfigError: as `load_settings`, or a field of the request that is not of the form FIELD=VALUE.
    """
    from matrix_graph.config import load_settings

    return load_settings(
        config,
        model=model,
        base_url=base_url,
        scene=scene or None,
        server=server or None,
        thinking=thinking,
        max_thinking_tokens=max_thinking_tokens,
        request=request_from(request) or None,
    )


def request_from(fields: Sequence[str] | None) -> dict[str, Any]:
    """Fields of the request from `FIELD=VALUE` texts, whose values are YAML.

    Raises:
        ConfigError: one has another form.
    """
    import yaml

    found: dict[str, Any] = {}
    for text in fields or ():
        name, sign, value = text.partition("=")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"The value of --request {text!r} is not YAML: {error}") from error
        if not (name.strip() and sign):
            raise ConfigError(f"--request {text!r} is not of the form FIELD=VALUE, such as top_k=20.")
    return found


def cast_from(path: Path | None) -> Cast | None:
    """The cast in a YAML file; None without one.

    Raises:
        ConfigError: the file cannot be read, or no scene can be played with what it holds.
    """
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


def standard_input() -> str:
    """All of standard input, as one question.

    Raises:
        ConfigError: it is closed, or not UTF-8.
    """
    if sys.stdin is None:
        raise ConfigError("Standard input is closed. Give the question itself in place of -.")
    if sys.stdin.isatty():
        typer.echo("Type the question, then Ctrl-D on a line of its own:", err=True)
    try:
        return sys.stdin.buffer.read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"The question on standard input is not UTF-8: {error}") from error


def require_folder(out: Path, *, results: bool = False) -> None:
    """Make a folder for results, before anything is spent on them.

    Args:
        out: the folder.
        results: whether it gets tables of results, so that `x.json` must have been meant to be one of them.

    Raises:
        ConfigError: it cannot be made, or not be written to; or its name is that of a table, and it is not there yet.
    """
    if results and ending_of(out.name) in ENDINGS and not out.exists():
        raise ConfigError(
            f"{out} reads as a file, and --out is a folder here, for several files. "
            f"Name a folder, such as {out.with_name(stem_of(out.name))}."
        )
    # A scene may take minutes; whether it can be kept is better known before.
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {out} cannot be made: {error.strerror}. Name another with --out.") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise ConfigError(f"The folder {out} cannot be written to. Name another with --out.")


def adapter_from(text: str) -> tuple[str, str]:
    """Name and folder of an adapter, from NAME=DIR.

    Raises:
        ConfigError: it has another form.
    """
    name, sign, folder = text.partition("=")
    if not (name and sign and folder):
        raise ConfigError(f"The adapter {text!r} is not of the form NAME=DIR, such as kind=adapters/kind.")
    return name, folder


def scene_options(roles: int | None, steps: int | None, temperature: float | None) -> dict[str, Any]:
    """The scene's settings that were given as options of their own."""
    given = {"roles": roles, "steps": steps, "temperature": temperature}
    return {name: value for name, value in given.items() if value is not None}
