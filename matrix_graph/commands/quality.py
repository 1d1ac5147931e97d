"""The command `quality`: how good the scenes of a run are, from their traces alone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from matrix_graph.options import JsonOption

EMBEDDINGS_KEY_VARIABLE = "MATRIX_GRAPH_EMBEDDINGS_API_KEY"
_EMBEDDINGS = re.compile(r"(?P<url>https?://[^/]+/[^:]*):(?P<model>.+)")


def quality(
    run: Annotated[Path, typer.Argument(help="Folder that holds traces.jsonl, or such a file.", metavar="RUN")],
    embeddings: Annotated[
        str | None,
        typer.Option(
            help="Embedding model for caricature, as URL:MODEL of an OpenAI-compatible server, such as "
            f"`http://127.0.0.1:8001/v1:my-embedder`; its key in {EMBEDDINGS_KEY_VARIABLE}. Default: not measured.",
            metavar="URL:MODEL",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell how good the scenes of a run are: leaks, rejections, observers, repetition, calls, tokens.

    Leaves with code 1 if a role was told what it may not know.

        matrix-graph quality runs/first --embeddings http://127.0.0.1:8001/v1:my-embedder
    """
    import asyncio

    from matrix_graph.evaluate.document import number, percent
    from matrix_graph.evaluate.quality import SHARES, scene_quality
    from matrix_graph.evaluate.results_document import interval
    from matrix_graph.traces.store import read_traces

    more = {}
    if embeddings is not None:
        from matrix_graph.evaluate.caricature import caricatures

        more = asyncio.run(caricatures(read_traces(run), _embedder(embeddings)))
    found = scene_quality(read_traces(run), more)
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        typer.echo(f"{found.scenes} scenes, {found.failed} failed, {found.leaks} leak{'s' * (found.leaks != 1)}")
        for name, value in found.measures.items():
            share = name in SHARES
            if value is None:
                continue
            shown = percent(value.mean) if share else number(value.mean, 2)
            if value.interval is not None:
                shown = interval(value.interval, share=share, digits=2)
            typer.echo(f"{name:18} {shown}")
    for trace in found.leaking:
        typer.echo(f"leak in {trace}", err=True)
    if found.leaks:
        raise typer.Exit(1)


def _embedder(text: str) -> Any:
    """The embedding model that URL:MODEL names.

    Raises:
        ConfigError: it has another form.
    """
    from pydantic import SecretStr

    from matrix_graph.errors import ConfigError
    from matrix_graph.evaluate.caricature import ServerEmbedder

    match = _EMBEDDINGS.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"The embedding model {text!r} is not of the form URL:MODEL, such as http://127.0.0.1:8001/v1:my-embedder."
        )
    key = os.environ.get(EMBEDDINGS_KEY_VARIABLE)
    return ServerEmbedder(match["url"], match["model"], api_key=SecretStr(key) if key else None)
