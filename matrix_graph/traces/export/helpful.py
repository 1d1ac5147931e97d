"""Questions and answers from a file of one's own, to mix with what the scenes gave.

Such rows keep a model helpful while it learns from harmful questions (MATRIX, arXiv 2402.05699, section 4).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from matrix_graph.errors import ExportError
from matrix_graph.long_cells import LONG_CELLS
from matrix_graph.records import clean
from matrix_graph.traces.export.files import pyarrow_parquet
from matrix_graph.traces.export.pieces import Piece

COLUMNS = (("question", "answer"), ("prompt", "response"), ("prompt", "completion"), ("instruction", "output"))
"""The names that question and answer may have; the first pair that a row has counts."""
_ROWS_AHEAD = 256


def helpful_pieces(path: Path) -> Iterator[Piece]:
    """Read the rows one by one.

    Args:
        path: `.csv` with a header, `.parquet`, or else JSON lines. An alpaca row's `input` follows its instruction
            after an empty line. Other columns are passed over.

    Yields:
        One piece a row.

    Raises:
        ExportError: the file cannot be read, or a row (named by its number) holds no question and answer.
        PrerequisiteError: a Parquet file, and pyarrow is not installed.
    """
    reader = {".csv": _csv, ".parquet": _parquet}.get(path.suffix.lower(), _json_lines)
    try:
        for where, row in reader(path):
            question, answer = _pair(row, f"{path}, {where}")
            yield Piece(
                kind="helpful",
                question=question,
                messages=[{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
                taught=[1],
                purpose="given",
                run=path.stem,
            )
    except UnicodeDecodeError as error:
        raise ExportError(f"The helpful rows in {path} are not UTF-8: {error}.") from error
    except (OSError, csv.Error) as error:
        raise ExportError(f"The helpful rows in {path} cannot be read: {error}.") from error


def _pair(row: Any, where: str) -> tuple[str, str]:
    if isinstance(row, Mapping):
        for first, second in COLUMNS:
            question, answer = row.get(first), row.get(second)
            if isinstance(question, str) and isinstance(answer, str) and question.strip() and answer.strip():
                more = row.get("input") if first == "instruction" else None
                text = f"{question}\n\n{more}" if isinstance(more, str) and more.strip() else question
                return clean(text), clean(answer)
    names = ", ".join(sorted(str(name) for name in row)) if isinstance(row, Mapping) else type(row).__name__
    pairs = " or ".join(f"{first} and {second}" for first, second in COLUMNS)
    raise ExportError(f"{where}: no question and answer (it has: {names[:200] or 'nothing'}). Give {pairs}, not empty.")


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ExportError(
                    f"{path}, line {number}: not JSON ({error}). Give JSON lines, CSV or Parquet."
                ) from error


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        for number in count(1):
            with LONG_CELLS:
                row = next(rows, None)
            if row is None:
                return
            yield f"row {number}", row


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    parquet = pyarrow_parquet()
    numbers = count(1)
    with path.open("rb") as file:
        try:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=_ROWS_AHEAD):
                for row in batch.to_pylist():
                    yield f"row {next(numbers)}", row
        except ValueError as error:  # pyarrow's own errors are ValueErrors
            raise ExportError(f"{path} is no Parquet file: {error}.") from error
