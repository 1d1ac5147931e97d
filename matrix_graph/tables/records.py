"""CSV, record by record: rows whose first line names the columns.

Why beside the standard library's csv: that neither bounds a record nor tells where it begins, and stops at the first
byte that is no text. What always holds: at most one record is held at a time, and none is longer than `LONGEST`; one
that cannot be used does not stop the ones after it; csv's own limit of a cell, which is one for the whole process, is
as it was whenever nobody reads.
"""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator
from typing import NamedTuple

from matrix_graph.tables import pieces
from matrix_graph.tables.formats import Columns
from matrix_graph.tables.pieces import Piece, not_utf8, too_long
from matrix_graph.tables.values import UnusableError, column_names, is_blank

_LONGEST_CELL = 2**31 - 1
"""Characters; the most that csv takes on every platform."""


class Record(NamedTuple):
    """A record, of one line or several, quotes resolved."""

    line: int
    cells: list[str]
    problem: str | None
    """Why the cells cannot be used."""
    beginning: bytes

    @property
    def blank(self) -> bool:
        """Whether there is no word in any cell: a row that a spreadsheet left behind."""
        return self.problem is None and all(is_blank(cell) for cell in self.cells)


class _LongCells:
    """Raises csv's limit of a cell, which is one for the whole process, while any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = csv.field_size_limit(max(_LONGEST_CELL, csv.field_size_limit()))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                csv.field_size_limit(self._before)


_LONG_CELLS = _LongCells()


class _Feeder:
    """Gives csv its lines, and keeps what csv does not tell of the record that it is reading."""

    def __init__(self, lines: Iterator[Piece]) -> None:
        self._lines = lines
        self.begin()

    def begin(self) -> None:
        """Before each record."""
        self.first: Piece | None = None
        self.problem: str | None = None
        self._size = 0

    def __iter__(self) -> _Feeder:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.first = self.first or line
        self._size += len(line.data)
        if not line.whole or self._size > pieces.LONGEST:
            raise too_long()
        try:
            return line.data.decode()
        except UnicodeDecodeError as error:
            self.problem = self.problem or not_utf8(error, f"line {line.number}")
            # Its quotes still tell where the record ends, so that one bad byte costs one row.
            return line.data.decode(errors="surrogateescape")


def read_records(lines: Iterator[Piece], separator: str) -> Iterator[Record]:
    """All records that are not empty lines, the header among them.

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
            with _LONG_CELLS:
                cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            feeder.problem = f"not CSV: {error}; in a quoted cell every quote stands twice, and one quote closes it"
        except UnusableError as error:
            feeder.problem = str(error)
        if feeder.first is not None and (cells or feeder.problem):
            yield Record(feeder.first.number, cells, feeder.problem, feeder.first.data)


def named_records(
    lines: Iterator[Piece], separator: str, name: str, columns: Columns
) -> Iterator[tuple[int, Record, dict[str, str | None]]]:
    """The records below the header, blank ones left out, with their cells by column.

    A cell that is blank or missing is None; in a column that may be needed it is the text that it is.

    Args:
        lines: of the input, the header first.
        separator: between two cells.
        name: the file's, for errors.
        columns: that the rows need.

    Yields:
        The number of a record, blank ones counted, the record, and its cells; of one with a problem they are empty.

    Raises:
        TableError: the header lacks what is needed, or has two columns of one name.
    """
    records = read_records(lines, separator)
    header = next(records, None)
    names = column_names(header.cells) if header else []
    separators = "tabs" if separator == "\t" else "commas"
    hint = f"Name the columns in the first line, with {separators} between them."
    columns.require(names, name, hint=hint, problem=header.problem if header else None)
    texts = columns.texts
    for number, record in enumerate(records, 1):
        if record.blank:
            continue
        cells: dict[str, str | None] = {}
        if record.problem is None and len(record.cells) > len(names):
            record = record._replace(
                problem=f"{len(record.cells)} cells, but {len(names)} columns; quote a cell that holds a separator"
            )
        elif record.problem is None:
            for at, column in enumerate(names):
                cell = record.cells[at] if at < len(record.cells) else ""
                cells[column] = cell if column in texts or not is_blank(cell) else None
            cells.pop("", None)
        yield number, record, cells
