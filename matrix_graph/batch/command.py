"""The commands `run` and `status`: a batch that is watched, drained by one Ctrl-C and stopped by two."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError
from rich.console import Console

from matrix_graph.batch.folder import OWN_FILES, read_summary
from matrix_graph.batch.intake import finished_run
from matrix_graph.batch.lock import is_locked
from matrix_graph.batch.process import collect_garbage_rarely, open_many_files
from matrix_graph.batch.progress import Progress
from matrix_graph.batch.questions import InputFormat, check_questions, count_rows, open_questions, read_rows
from matrix_graph.batch.rows import Rejected, Row
from matrix_graph.batch.summary import Summary
from matrix_graph.batch.views import run_view
from matrix_graph.batch.words import final, status_lines
from matrix_graph.config import Settings, explain
from matrix_graph.errors import ConfigError, MatrixGraphError
from matrix_graph.files import refuse_own_files
from matrix_graph.interrupts import interrupts
from matrix_graph.records import Cast, escaped


def run_questions(
    questions: Path,
    out: Path,
    settings: Settings,
    *,
    format: InputFormat,
    cast: Cast | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Play all questions of a file, and leave with code 0 only if every one of them is done well.

    Args:
        questions: the file; `-` is standard input.
        out: the run's folder.
        settings: model, server and scene.
        format: of the file.
        cast: who is in the scenes; None has the model cast each.
        as_json: print the summary as JSON on standard output; everything else goes to standard error.
        options: more of `Batch`.

    Raises:
        MatrixGraphError: as `Batch.play`.
        typer.Exit: something failed (1), or the run was stopped (128 plus the signal's number).
    """
    console = Console(stderr=True)
    open_many_files()
    refuse_own_files([questions], out, OWN_FILES)
    # Better told now than when the model server has started; what is no regular file can be read only once.
    if questions.is_file():
        check_questions(questions, format)
    elif str(questions) != "-" and not questions.is_fifo():
        with open_questions(questions):
            pass
    summary, stopped_by, error = asyncio.run(
        _run(questions, out, settings, console, format=format, cast=cast, **options)
    )
    for line in final(summary, out):
        console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
    if as_json:
        typer.echo(summary.model_dump_json())
    if error is not None:
        raise error
    if stopped_by is not None:
        raise typer.Exit(128 + stopped_by)
    if summary.questions.failed or summary.questions.rejected:
        raise typer.Exit(1)


def show_status(out: Path, *, as_json: bool) -> None:
    """Say how a run stands, while it goes on or after.

    Raises:
        ConfigError: nothing was run there.
    """
    from matrix_graph.traces.store import FILE_NAME, trace_heads

    content = read_summary(out)
    running = is_locked(out)
    if content is None and not (out / FILE_NAME).exists():
        raise ConfigError(f"{out} holds no run. Give the folder that `matrix-graph run` was given as --out.")
    counts: dict[str, int] = {}
    if (out / FILE_NAME).exists():
        for head in trace_heads(out / FILE_NAME):
            counts[head.status] = counts.get(head.status, 0) + 1
    try:
        summary = Summary.model_validate(content) if content is not None else None
    except ValidationError as error:
        raise ConfigError(f"{out} holds a summary.json that no run has written: {explain(error)}") from error
    if as_json:
        typer.echo(json.dumps({"running": running, "traces": counts, "summary": content}))
        return
    for line in status_lines(summary, running, counts, folder=out):
        typer.echo(line)


async def _run(
    questions: Path,
    out: Path,
    settings: Settings,
    console: Console,
    *,
    format: InputFormat,
    **options: Any,
) -> tuple[Summary, int | None, MatrixGraphError | None]:
    with run_view(console) as view:
        if (done := await asyncio.to_thread(_finished, questions, out, settings, format, **options)) is not None:
            view.status("every question is done already; nothing is played")
            return done.snapshot(), None, None
        # These imports take a second, in which people see that it starts.
        from matrix_graph.batch.jobs import StoppedError
        from matrix_graph.batch.runner import Batch
        from matrix_graph.connect import connected_model, steadfast

        async with connected_model(steadfast(settings), view.status) as model:
            async with Batch(
                _from_thread(questions, format),
                model,
                out=out,
                config=settings.scene,
                source=escaped(str(questions)),
                on_status=view.status,
                on_progress=lambda progress: view.show(progress.snapshot()),
                **options,
            ) as batch:
                _count(questions, format, batch.progress)
                collect_garbage_rarely()
                with interrupts(batch.drain, batch.stop, view.status) as received:
                    stopped_by, error = None, None
                    try:
                        async for _ in batch.play():
                            pass
                    except StoppedError:
                        stopped_by = received[0] if received else signal.SIGTERM
                    except MatrixGraphError as failure:
                        error = failure
            return batch.progress.snapshot(), stopped_by, error


def _finished(
    questions: Path,
    out: Path,
    settings: Settings,
    format: InputFormat,
    *,
    cast: Cast | None = None,
    retry_failed: bool = False,
    force_new_settings: bool = False,
    **_: Any,
) -> Progress | None:
    """How a run stands that is done already, before its model server is waited for; None: it may not be done."""
    from matrix_graph.connect import name_beforehand

    model = name_beforehand(settings)
    if model is None or force_new_settings or str(questions) == "-" or not questions.is_file():
        return None
    return finished_run(
        questions,
        format,
        out,
        model=model,
        base_url=settings.base_url or "",
        config=settings.scene,
        cast=cast,
        request={"request": settings.fixed_request} if settings.fixed_request else None,
        retry_failed=retry_failed,
    )


def _count(questions: Path, format: InputFormat, progress: Progress) -> None:
    """Count the questions in a thread, so that a run of millions begins at once."""

    def count() -> None:
        total = count_rows(questions, format)
        if total is not None:
            with suppress(RuntimeError):  # the run may be over before
                loop.call_soon_threadsafe(progress.total_known, total)

    loop = asyncio.get_running_loop()
    threading.Thread(target=count, name="count", daemon=True).start()


async def _from_thread(questions: Path, format: InputFormat) -> AsyncIterator[Row | Rejected]:
    """Rows that a thread reads ahead a little: a pipe may keep its reader waiting, but not the event loop.

    The thread is a daemon that opens the file itself: nothing wakes it from a pipe that nobody writes into, and nobody
    else may close what it waits for.
    """
    loop = asyncio.get_running_loop()
    ahead: asyncio.Queue[Row | Rejected | Exception | None] = asyncio.Queue(64)

    def read() -> None:
        def put(item: Row | Rejected | Exception | None) -> None:
            asyncio.run_coroutine_threadsafe(ahead.put(item), loop).result()

        with suppress(RuntimeError, asyncio.CancelledError):  # the run is over
            try:
                with open_questions(questions) as file:
                    for row in read_rows(file, format, name=questions.name):
                        put(row)
            except Exception as error:  # noqa: BLE001 - raised again where the rows are taken
                put(error)
            else:
                put(None)

    threading.Thread(target=read, name="questions", daemon=True).start()
    while (item := await ahead.get()) is not None:
        if isinstance(item, Exception):
            raise item
        yield item
