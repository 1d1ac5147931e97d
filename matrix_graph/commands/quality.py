"""The command `quality`: how good the scenes of a run are, from their traces alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matrix_graph.evaluate.scene_words import FATES, GROUPS, SHARES
from matrix_graph.options import JsonOption

if TYPE_CHECKING:
    from matrix_graph.evaluate.quality import Measure, Quality

EMBEDDINGS_KEY_VARIABLE = "MATRIX_GRAPH_EMBEDDINGS_API_KEY"


def quality(
    run: Annotated[Path, typer.Argument(help="Folder that holds traces.jsonl, or such a file.", metavar="RUN")],
    embedder: Annotated[
        str | None,
        typer.Option(
            "--embedder",
            "--embeddings",
            help="Embedding model, which tells whether scenes tell their question, and measures caricature: a folder "
            "that sentence-transformers wrote, or URL:MODEL of an OpenAI-compatible server, such as "
            f"`http://127.0.0.1:8001/v1:my-embedder`; its key in {EMBEDDINGS_KEY_VARIABLE}. Default: not measured.",
            metavar="FOLDER|URL:MODEL",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell how good the scenes of a run are.

    Leaks and refused copies are counted over all scenes; the rest are means over the scenes that came to an end, with
    95% intervals. Leaves with code 1 if a role was told what it may not know.

        matrix-graph quality runs/first --embedder models/all-MiniLM-L6-v2
    """
    import asyncio

    from pydantic import SecretStr

    from matrix_graph.evaluate.quality import scene_quality
    from matrix_graph.traces.store import read_traces

    more: dict[str, dict[str, float]] = {}
    if embedder is not None:
        from matrix_graph.evaluate.caricature import caricatures
        from matrix_graph.evaluate.embedding import embedder_from
        from matrix_graph.evaluate.telling import tellings

        key = os.environ.get(EMBEDDINGS_KEY_VARIABLE)
        chosen = embedder_from(embedder, api_key=SecretStr(key) if key else None)

        async def embed() -> None:
            for part in (await tellings(read_traces(run), chosen), await caricatures(read_traces(run), chosen)):
                for id, measures in part.items():
                    more.setdefault(id, {}).update(measures)

        asyncio.run(embed())
    found = scene_quality(read_traces(run), more)
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        for line in lines(found):
            typer.echo(line)
    for trace in found.leaking:
        typer.echo(f"leak in {trace}", err=True)
    if found.leaks:
        raise typer.Exit(1)


# What each figure is stands in one place, and is part of the help.
quality.__doc__ = (quality.__doc__ or "") + "".join(
    f"\n\n    {group.capitalize()}:\n" + "".join(f"\n    - {name}: {words}.\n" for name, words in measures.items())
    for group, measures in {**GROUPS, "what becomes of drafts": FATES}.items()
)


def lines(found: Quality) -> list[str]:
    """What is printed of the quality of scenes: a line a figure, in groups."""
    shown = [f"{found.scenes} scenes, {found.failed} failed, {_counted(found.leaks, 'leak')}"]
    if found.copied_replies:
        shown.append(f"{_counted(found.copied_replies, 'reply', 'replies')} refused that copied a worked example")
    for group, names in GROUPS.items():
        some = [(name, found.measures.get(name)) for name in names]
        figures = [f"{name:22} {_figure(name, value)}" for name, value in some if value is not None]
        if figures:
            shown += ["", group, *(f"  {figure}" for figure in figures)]
    if found.fates:
        shown += ["", "what becomes of drafts", *(f"  {fate:22} {count}" for fate, count in found.fates.items())]
    for fate, ids in found.turned.items():
        shown += [f"  to be read ({fate}): {id}" for id in ids]
    return shown


def _figure(name: str, value: Measure) -> str:
    from matrix_graph.evaluate.document import number, percent
    from matrix_graph.evaluate.results_document import interval

    share = name in SHARES
    if value.interval is not None:
        return interval(value.interval, share=share, digits=2)
    return percent(value.mean) if share else number(value.mean, 2)


def _counted(count: int, one: str, several: str | None = None) -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"
