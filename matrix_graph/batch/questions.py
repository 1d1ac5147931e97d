"""The questions of a run: the rows of any table, or why one cannot be used.

What always holds: a row that cannot be used becomes a `Rejected` with its place and never stops the ones after it; what
a table is, and how it is read, is what `matrix_graph.tables` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from matrix_graph.batch.rows import ALLOWED, Rejected, Row, usable_row
from matrix_graph.errors import ConfigError, PrerequisiteError
from matrix_graph.tables import Columns, Entry, TableFormat, UnusableError, count_table, open_table, read_table
from matrix_graph.tables.source import STANDARD_INPUT

InputFormat = TableFormat
open_questions = open_table

QUESTION_COLUMNS = Columns(needed=(("question",),), optional=("draft", "id"), allowed=ALLOWED)
_BUFFER = 1024 * 1024


def read_rows(file: BinaryIO, format: InputFormat, *, name: str) -> Iterator[Row | Rejected]:
    """Read questions one by one, in the order of the file; each is given before the next one is read.

    A row has "question", and "draft" and "id" if there are any; its other columns are ignored. In JSON it may be a
    string as well, which is the question. See `read_table` for how they may be written.

    Args:
        file: opened for reading bytes.
        format: how the questions are written.
        name: the file's name, for `InputFormat.auto` and for errors.

    Yields:
        A `Row` or a `Rejected` a row. Nothing is read before the first one is asked for.

    Raises:
        ConfigError: the file cannot be read on, is empty, lacks the column "question" or is in another encoding.
        PrerequisiteError: Parquet, and pyarrow is not installed.
    """
    for entry in read_table(file, QUESTION_COLUMNS, name=name, format=format):
        yield _row(entry)


def check_questions(path: Path, format: InputFormat) -> None:
    """See whether a file holds questions at all, by its beginning.

    Raises:
        ConfigError: as `read_rows`, or it cannot be opened.
        PrerequisiteError: as `read_rows`.
    """
    with open_questions(path) as file:
        next(read_table(file, QUESTION_COLUMNS, name=path.name, format=format))


def count_rows(path: Path | None, format: InputFormat) -> int | None:
    """How many rows `read_rows` gives, those to be rejected included, so that progress can be told.

    Returns:
        The rows; None if that cannot be told beforehand: not a regular file, or one that `read_rows` cannot read.
    """
    if path is None or path == STANDARD_INPUT or not path.is_file():
        return None
    try:
        with path.open("rb", buffering=_BUFFER) as file:
            return count_table(file, QUESTION_COLUMNS, name=path.name, format=format)
    except (OSError, ConfigError, PrerequisiteError):
        return None


def _row(entry: Entry) -> Row | Rejected:
    problem = entry.problem
    if problem is None:
        try:
            return usable_row(entry.value, entry.place)
        except UnusableError as error:
            problem = str(error)
    return Rejected(entry.place, problem, entry.excerpt)
