"""`matrix-graph report`: the scenes of some folders as one web page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from matrix_graph.options import JsonOption


def report(
    directories: Annotated[
        list[Path], typer.Argument(help="Folders with traces.jsonl, or such files.", metavar="DIR...")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write. Default: report.html in the first folder.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The most scenes, the last ones written. Default: all of them.")
    ] = None,
    calls: Annotated[
        bool, typer.Option("--calls/--no-calls", help="Whether the page holds the exact messages of every model call.")
    ] = True,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a web page of the scenes, to search, read and compare.

    One file, which needs no network and can be sent around. It holds everything that was said in the scenes, and with
    it the exact prompts, unless --no-calls. A run that still goes on can be looked at too.

        matrix-graph report runs/first --open

        matrix-graph report runs/first runs/second --out both.html --no-calls
    """
    from matrix_graph.batch.lock import is_locked
    from matrix_graph.traces.report import FILE_NAME, write_report

    first = directories[0]
    page = out or (first if first.is_dir() else first.parent) / FILE_NAME
    running = [directory for directory in directories if directory.is_dir() and is_locked(directory)]
    written = write_report(directories, page, calls=calls, limit=limit, running=running)
    if as_json:
        told = {**written._asdict(), "path": str(written.path), "running": [str(directory) for directory in running]}
        typer.echo(json.dumps(told))
    else:
        typer.echo(f"{written.path}: {_scenes(written.scenes)}, {_size(written.bytes)}")
        if written.left_out:
            typer.echo(f"{_scenes(written.left_out)} written before are left out (--limit).", err=True)
        for directory in running:
            typer.echo(f"A run still writes to {directory}; report again for its later scenes.", err=True)
    if open_page:
        typer.launch(page.resolve().as_uri())


def _scenes(count: int) -> str:
    return f"{count:,} scene{'' if count == 1 else 's'}"


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
