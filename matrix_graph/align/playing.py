"""The stage `run`: every question is rehearsed, as by `matrix-graph run`, on a server of our own or a given one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from matrix_graph.align.interrupts import interruptible, run_here
from matrix_graph.align.job import Job
from matrix_graph.batch.process import collect_garbage_rarely, open_many_files
from matrix_graph.batch.questions import InputFormat, check_questions, count_rows, open_questions, read_rows
from matrix_graph.batch.rows import Rejected, Row
from matrix_graph.batch.summary import Summary
from matrix_graph.batch.views import run_view
from matrix_graph.traces.export.reading import Reader
from matrix_graph.traces.report import FILE_NAME, write_report

MOST_REPORTED = 500
"""Scenes in the report, which one looks at; `matrix-graph report` makes one of all."""
_FORMAT = InputFormat.auto


def play(job: Job) -> dict[str, Any]:
    """Play what is missing of the scenes.

    Returns:
        How many scenes there are of each status, how many of them revised their draft, and so on.

    Raises:
        MatrixGraphError: as `Batch.play`.
        AlignStoppedError: it was stopped on request.
    """
    open_many_files()
    summary = run_here(lambda: _play(job))
    scenes: Counter[str] = Counter()
    revised = 0
    for _, scene in Reader([job.run]).scenes():
        scenes[scene["status"]] += 1
        revised += scene["revised"]
    write_report([job.run], job.run / FILE_NAME, limit=MOST_REPORTED, thoughts=False)
    return {
        "scenes": sum(scenes.values()),
        "finished": scenes["finished"],
        "blocked": scenes["blocked"],
        "failed": scenes["failed"],
        "revised": revised,
        "rejected rows": summary.questions.rejected,
        "duplicate rows": summary.questions.duplicates,
    }


def played(run: Path) -> int:
    """How many scenes a folder has that came to an end."""
    return sum(scene["status"] != "failed" for _, scene in Reader([run]).scenes())


def check_first_rows(questions: Path) -> None:
    """See whether a file holds questions at all.

    Raises:
        ConfigError: it does not, or cannot be read.
    """
    check_questions(questions, _FORMAT)


def first_rows(questions: Path, limit: int | None) -> Iterator[Row | Rejected]:
    """The first rows of a file of questions.

    Raises:
        ConfigError: it cannot be read.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open_questions(questions))
        yield from islice(read_rows(file, _FORMAT, name=questions.name), limit)


def count_questions(questions: Path, limit: int | None) -> int | None:
    """How many rows there are to play; None if that cannot be told."""
    total = count_rows(questions, _FORMAT)
    return total if total is None or limit is None else min(total, limit)


async def _play(job: Job) -> Summary:
    with run_view(job.voice.console) as view:
        # These imports take a second, in which people see that it starts.
        from matrix_graph.batch.runner import Batch
        from matrix_graph.connect import connected_model, steadfast

        async with (
            connected_model(steadfast(job.settings), view.status) as model,
            Batch(
                first_rows(job.questions, job.options.limit),
                model,
                out=job.run,
                config=job.settings.scene,
                source=str(job.questions),
                on_status=view.status,
                on_progress=lambda progress: view.show(progress.snapshot()),
            ) as batch,
        ):
            total = count_questions(job.questions, job.options.limit)
            if total is not None:
                batch.progress.total_known(total)
            collect_garbage_rarely()
            with interruptible(batch.drain, batch.stop, view.status):
                async for _ in batch.play():
                    pass
            return batch.progress.snapshot()
