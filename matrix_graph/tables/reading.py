"""Tables, row by row: the rules that hold for every file of questions, pairs, answers or training rows.

What always holds: the same bytes give the same rows each time, whoever reads them; at most one row is held at a time; a
row that cannot be used is told by its number with a reason, and does not stop the ones after it. What makes every row
unusable raises: a file that cannot be read, is in another encoding than UTF-8, lacks a column, or has no row at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from matrix_graph.errors import TableError
from matrix_graph.tables import pieces
from matrix_graph.tables.formats import Columns, Kind, TableFormat, kind_of_table
from matrix_graph.tables.parquet import parquet_rows
from matrix_graph.tables.pieces import Piece, excerpt, not_utf8, shown, split_array, split_lines, too_long
from matrix_graph.tables.records import named_records
from matrix_graph.tables.source import Source, open_table
from matrix_graph.tables.values import UnusableError, cleaned, is_blank

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Entry:
    """A row, or why it cannot be used.

    Attributes:
        number: of the row, from 1; of JSON lines, the line.
        line: where it begins in its file, from 1; 0 where there are no lines.
        value: what it holds: a dict by column, or whatever JSON a line is.
        problem: why it cannot be used; None: it can, as far as the table goes.
        beginning: how it begins, as it came.
    """

    number: int
    line: int = 0
    value: object = None
    problem: str | None = None
    beginning: bytes = b""

    @property
    def where(self) -> str:
        """Its place, for messages."""
        if self.line == self.number:
            return f"line {self.line}"
        return f"row {self.number}" + (f" (line {self.line})" if self.line else "")

    @property
    def place(self) -> int:
        """Its line; its number where there are no lines."""
        return self.line or self.number

    @property
    def excerpt(self) -> str:
        """The beginning of what came, short, as any UTF-8 file takes it."""
        return excerpt(self.beginning) if self.beginning else shown(self.value)


def read_table(
    file: BinaryIO, columns: Columns, *, name: str, format: TableFormat = TableFormat.auto
) -> Iterator[Entry]:
    """Read a table row by row, in the order of the file; each is given before the next one is read.

    - JSON lines: lines end with `\\n` or `\\r\\n` alone; blank ones are passed over. A JSON array: its elements.
    - CSV and TSV: below a header line, whose names are taken without case and the blanks around them. Rows without any
      word are passed over, and a blank or missing cell is None, but in a column that may be needed. Quoted cells may
      hold line ends.
    - Parquet: as CSV.

    Each may be packed with gzip. NaN stands for null. Text is UTF-8, with or without a byte order mark; lone surrogates
    in JSON are replaced.

    Args:
        file: opened for reading bytes, at its beginning.
        columns: that its use needs.
        name: the file's name, for `TableFormat.auto` and for errors.
        format: how the rows are written.

    Yields:
        An entry a row. Nothing is read before the first one is asked for.

    Raises:
        TableError: no row can be used: see above; or the file cannot be read on.
        PrerequisiteError: Parquet, and pyarrow is not installed.
    """
    source, kind, separator = _begun(file, columns, name, format)
    found = False
    for entry in _entries(source, kind, separator, columns):
        found = True
        yield entry
    if not found:
        raise _nothing(name, columns, kind)


def count_table(file: BinaryIO, columns: Columns, *, name: str, format: TableFormat = TableFormat.auto) -> int:
    """How many rows `read_table` gives, those that cannot be used included; JSON is not looked into.

    Raises:
        TableError: as `read_table`.
        PrerequisiteError: as `read_table`.
    """
    source, kind, separator = _begun(file, columns, name, format)
    rows = _split(source, kind) if kind in ("lines", "array") else _entries(source, kind, separator, columns)
    count = sum(1 for _ in rows)
    if not count:
        raise _nothing(name, columns, kind)
    return count


def whole_rows(path: Path, columns: Columns, *, format: TableFormat = TableFormat.auto) -> Iterator[tuple[str, object]]:
    """The rows of a file of which every one must be usable, each with its place, such as "row 2 (line 3)".

    Raises:
        TableError: as `read_table`, or a row cannot be used.
        PrerequisiteError: as `read_table`.
    """
    with open_table(path, columns.noun) as file:
        for entry in read_table(file, columns, name=str(path), format=format):
            if entry.problem is not None:
                raise TableError(f"{path}, {entry.where}: {entry.problem}.")
            yield entry.where, entry.value


def _begun(file: BinaryIO, columns: Columns, name: str, format: TableFormat) -> tuple[Source, Kind, str]:
    source = Source(file, name)
    first = source.begin(pieces.LONGEST + 1)
    kind, separator = kind_of_table(format, first, name, columns)
    if not first:
        raise _nothing(name, columns)
    return source, kind, separator


def _nothing(name: str, columns: Columns, kind: Kind | None = None) -> TableError:
    below = " below its header" if kind == "csv" else ""
    return TableError(f"{name} holds no rows{below}: it is empty. Give a file with {columns.noun}.")


def _entries(source: Source, kind: Kind, separator: str, columns: Columns) -> Iterator[Entry]:
    if kind == "csv":
        for number, record, cells in named_records(split_lines(source), separator, source.name, columns):
            yield Entry(number, record.line, cells, record.problem, record.beginning)
    elif kind == "parquet":
        for number, row in parquet_rows(source, columns):
            yield Entry(number, 0, row)
    else:
        for piece in _split(source, kind):
            line = piece.number if kind == "lines" else 0
            value = problem = None
            try:
                value = _parsed(piece, f"{'line' if line else 'row'} {piece.number}", columns.allowed)
            except UnusableError as error:
                problem = str(error)
            yield Entry(piece.number, line, value, problem, piece.data)


def _split(source: Source, kind: Kind) -> Iterator[Piece]:
    if kind == "array":
        yield from split_array(source)
    elif kind == "object":
        yield _all_of_it(source)
    else:
        yield from (line for line in split_lines(source) if not is_blank(line.data))


def _all_of_it(source: Source) -> Piece:
    data = bytearray()
    while len(data) <= pieces.LONGEST and (chunk := source.read(pieces.LONGEST)):
        data += chunk
    return Piece(1, bytes(data), len(data) <= pieces.LONGEST)


def _parsed(piece: Piece, place: str, allowed: str) -> object:
    if piece.problem is not None:
        raise UnusableError(piece.problem)
    if not piece.whole:
        raise too_long()
    try:
        value = _DECODER.decode(piece.data.decode().rstrip("\r\n"))
        return cleaned(value) if _SURROGATE.search(piece.data) else value
    except UnicodeDecodeError as error:
        raise UnusableError(not_utf8(error, place)) from None
    except json.JSONDecodeError as error:
        raise UnusableError(f"not JSON: {error.msg}, column {error.colno}; {allowed}") from None
    except ValueError:
        raise UnusableError("not JSON: a number of thousands of digits; write it as a text") from None
    except RecursionError:
        raise UnusableError(f"nested too deep; {allowed}") from None


def _constant(name: str) -> float | None:
    # Tools write NaN for what is missing.
    return None if name == "NaN" else float(name)


_DECODER = json.JSONDecoder(parse_constant=_constant)
