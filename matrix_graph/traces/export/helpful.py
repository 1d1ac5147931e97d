"""Questions and answers from a file of one's own, to mix with what the scenes gave.

Such rows keep a model helpful while it learns from harmful questions (MATRIX, arXiv 2402.05699, section 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matrix_graph.errors import ExportError, TableError
from matrix_graph.records import clean
from matrix_graph.tables import Columns, kind_of, listed, whole_rows
from matrix_graph.tables.formats import stem_of
from matrix_graph.traces.export.pieces import Piece

COLUMNS = (("question", "answer"), ("prompt", "response"), ("prompt", "completion"), ("instruction", "output"))
"""The names that question and answer may have; the first pair that a row has counts."""
_PAIRS = " or ".join(f"{first} and {second}" for first, second in COLUMNS)
_COLUMNS = Columns(
    needed=COLUMNS, optional=("input",), noun="questions and answers", allowed=f"a row is an object with {_PAIRS}"
)


def helpful_pieces(path: Path) -> Iterator[Piece]:
    """Read the rows one by one.

    Args:
        path: a table of any kind that `matrix_graph.tables` reads. An alpaca row's `input` follows its instruction
            after an empty line. Other columns are passed over.

    Yields:
        One piece a row.

    Raises:
        ExportError: the file cannot be read, or a row (named by its number) holds no question and answer.
        PrerequisiteError: a Parquet file, and pyarrow is not installed.
    """
    try:
        for where, row in whole_rows(path, _COLUMNS):
            question, answer = _pair(row, f"{path}, {where}")
            yield Piece(
                kind="helpful",
                question=question,
                messages=[{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
                taught=[1],
                purpose="given",
                run=stem_of(path.name),
            )
    except TableError as error:
        raise ExportError(f"The helpful rows cannot be read: {error}") from error


def _pair(row: Any, where: str) -> tuple[str, str]:
    if isinstance(row, Mapping):
        for first, second in COLUMNS:
            question, answer = row.get(first), row.get(second)
            if isinstance(question, str) and isinstance(answer, str) and question.strip() and answer.strip():
                more = row.get("input") if first == "instruction" else None
                text = f"{question}\n\n{more}" if isinstance(more, str) and more.strip() else question
                return clean(text), clean(answer)
    names = listed(sorted(map(str, row))) if isinstance(row, Mapping) else kind_of(row)
    raise ExportError(f"{where}: no question and answer (it has: {names}). Give {_PAIRS}, not empty.")
