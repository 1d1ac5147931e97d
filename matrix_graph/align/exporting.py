"""The stage `export`: finished scenes become rows to train on, and some questions are kept apart to compare on.

What always holds: a question is learnt from or compared on, never both; there is at least one of the first kind and
there are two of the second, or it is said that the scenes are too few; the split goes by the question alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from matrix_graph.align.job import Job
from matrix_graph.align.options import LEAST_HELD
from matrix_graph.align.playing import played
from matrix_graph.align.voice import Voice
from matrix_graph.errors import ExportError
from matrix_graph.models.bundled import resolve_model
from matrix_graph.traces.export import ExportFormat, ExportOptions, Include, Summary, export_runs
from matrix_graph.traces.export.pipeline import is_validation

FEW_SCENES = 1000
"""Of more scenes, any share that people would give is two questions at least."""
_LINE_SECONDS = 10.0
_HALVINGS = 64
_ADVICE = (
    "Give more questions, with another --out; or a file to compare on with --questions, so that none are kept apart; "
    "or a recipe whose max_length has room for longer rows. Scenes that failed are played again by `matrix-graph run` "
    "with the run's folder as --out, the settings of this one, and --retry-failed; then give the same `align` again."
)


def export_rows(job: Job) -> dict[str, Any]:
    """Write the rows, and the dataset card beside them.

    Returns:
        How many rows there are for training and for validation, what was left out and why.

    Raises:
        ExportError: the scenes give too few rows.
        MatrixGraphError: as `export_runs`.
    """
    weights = resolve_model(job.target.weights, echo=job.voice.say)
    share = 0.0 if job.options.held_out else job.options.validation

    def options(validation: float) -> ExportOptions:
        return ExportOptions.of(
            format=ExportFormat.messages,
            parts=frozenset({Include.answers, *job.options.include}),
            tokenizer=weights,
            max_length=job.recipe.max_length,
            validation=validation,
            # The smallest model seldom ends an answer by itself; with it, align shows that everything runs, no more.
            cut_off=job.target.bundled,
        )

    def written(validation: float) -> Summary:
        return export_runs([job.run], job.rows, options(validation), watch=_progress(job.voice))

    try:
        if share and played(job.run) < FEW_SCENES:
            summary = written(0.0)
            asked = [question for _, question, _ in answer_rows(job.rows)]
            share = fitting_share(asked, share)
        summary = written(share)
    except ExportError as error:
        if error.__cause__ is not None:
            raise  # of the disk, say, which more questions do not help
        raise ExportError(f"{error}\n{_ADVICE}") from error
    for warning in summary.warnings:
        job.voice.say(f"note: {warning}")
    rows = {file.split: file.rows for file in summary.files}
    return {
        "rows": rows.get("train", 0),
        "rows kept apart": rows.get("validation", 0),
        "share kept apart": share,
        "kinds": summary.kinds,
        "left out": summary.dropped,
        "tokens": summary.lengths.tokens if summary.lengths else 0,
        "longest row": summary.lengths.longest if summary.lengths else 0,
    }


def fitting_share(questions: Iterable[str], share: float) -> float:
    """The share that keeps at least two questions apart and leaves at least one to learn from.

    Args:
        questions: of all rows.
        share: as it was asked for, which is taken if it does.

    Raises:
        ExportError: there are fewer than three different questions.
    """
    different = {" ".join(question.split()).casefold(): question for question in questions}.values()
    if len(different) <= LEAST_HELD:
        raise ExportError(
            f"The scenes give rows of {len(different)} different question{'' if len(different) == 1 else 's'}; "
            f"{LEAST_HELD + 1} are needed: 1 to learn from, and {LEAST_HELD} that are kept apart to compare on."
        )
    if LEAST_HELD <= sum(is_validation(question, share) for question in different) < len(different):
        return share
    # From which share on each question is kept apart: in the middle of a gap, exactly two are.
    begin = sorted(_begins(question) for question in different)
    return (begin[LEAST_HELD - 1] + begin[LEAST_HELD]) / 2


def _begins(question: str) -> float:
    """The smallest share that keeps a question apart."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_validation(question, middle) else (middle, high)
    return high


def answer_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Trace, question and answer of each row that is an answer, of a file that this stage has written.

    Raises:
        ExportError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if row["kind"] == "answer":
                    yield row["trace_id"], row["messages"][0]["content"], row["messages"][-1]["content"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ExportError(f"{path} cannot be read: {error}. Delete it, and give the same command again.") from error


def _progress(voice: Voice) -> Callable[[int, int], None]:
    began = told = time.monotonic()

    def watch(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _LINE_SECONDS:
            told = now
            left = (now - began) * (total - done) / max(1, done)
            voice.say(f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB read, about {left:.0f} s left")

    return watch
