"""CSV, record by record: the questions in a table whose first line names the columns.

Why beside the standard library's csv: that neither bounds a record nor tells where it begins, and stops at the first
byte that is no text. What always holds: at most one record is held at a time, and none is longer than `LONGEST`; one
that cannot be used becomes a `Rejected` with its first line and does not stop the ones after it; csv's own limit of a
cell, which is one for the whole process, is as it was whenever nobody reads.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from matrix_graph.batch.rows import (
    LONGEST,
    Line,
    Rejected,
    Row,
    UnusableError,
    excerpt,
    is_blank,
    listed,
    not_utf8,
    too_long,
    usable_row,
)
from matrix_graph.errors import ConfigError
from matrix_graph.long_cells import LONG_CELLS


class Record(NamedTuple):
    """A record, of one line or several, quotes resolved."""

    line: int
    cells: list[str]
    problem: str | None
    """Why the cells cannot be used."""
    beginning: bytes


class _Feeder:
    """Gives csv its lines, and keeps what csv does not tell of the record that it is reading."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self.begin()

    def begin(self) -> None:
        """Before each record."""
        self.first: Line | None = None
        self.problem: str | None = None
        self._size = 0

    def __iter__(self) -> _Feeder:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.first = self.first or line
        self._size += len(line.data)
        if not line.whole or self._size > LONGEST:
            raise too_long()
        try:
            return line.data.decode()
        except UnicodeDecodeError as error:
            self.problem = self.problem or not_utf8(error)
            # Its quotes still tell where the record ends, so that one bad byte costs one row.
            return line.data.decode(errors="surrogateescape")


def read_records(lines: Iterator[Line], separator: str) -> Iterator[Record]:
    """All records that are not empty, the header among them.

    Args:
        lines: of the input, the header first.
        separator: between two cells.
    """
    feeder = _Feeder(lines)
    reader = csv.reader(feeder, delimiter=separator, strict=True)
    while True:
        feeder.begin()
        cells: list[str] = []
        try:
            with LONG_CELLS:
                cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            feeder.problem = f"not CSV: {error}; in a quoted cell every quote stands twice, and one quote closes it"
        except UnusableError as error:
            feeder.problem = str(error)
        if feeder.first is not None and (cells or feeder.problem):
            yield Record(feeder.first.number, cells, feeder.problem, feeder.first.data)


def csv_rows(lines: Iterator[Line], separator: str, name: str) -> Iterator[Row | Rejected]:
    """The questions of a CSV, in its order.

    Args:
        lines: of the input, the header first.
        separator: between two cells.
        name: the file's name, for errors.

    Raises:
        ConfigError: there is no column "question", or there are two columns of one name.
    """
    records = read_records(lines, separator)
    names = header_names(next(records, None), separator, name)
    for record in records:
        try:
            if record.problem:
                raise UnusableError(record.problem)
            if len(record.cells) > len(names):
                raise UnusableError(
                    f"{len(record.cells)} cells, but {len(names)} columns; quote a cell that holds a separator"
                )
            cells = dict(zip(names, record.cells, strict=False))
            given = {column: cells[column] for column in ("draft", "id") if not is_blank(cells.get(column, ""))}
            yield usable_row({"question": cells.get("question", ""), **given}, record.line)
        except UnusableError as error:
            yield Rejected(record.line, str(error), excerpt(record.beginning))


def header_names(record: Record | None, separator: str, name: str) -> list[str]:
    """The columns that the first record names.

    Raises:
        ConfigError: there is no column "question", or there are two columns of one name.
    """
    names = column_names(record.cells) if record else []
    if "question" not in names:
        found = record.problem if record and record.problem else f"the columns found are {listed(names)}"
        separators = "tabs" if separator == "\t" else "commas"
        raise ConfigError(
            f'{name} has no column "question": {found}. Name the columns in the first line, with {separators} between '
            "them, and the one that holds the questions: question."
        )
    for column in ("question", "draft", "id"):
        if names.count(column) > 1:
            raise ConfigError(f'{name} has {names.count(column)} columns "{column}". Leave one of them.')
    return names


def column_names(header: Iterable[str]) -> list[str]:
    """The names in a header, case and spaces around them ignored."""
    return [name.strip().casefold() for name in header]
