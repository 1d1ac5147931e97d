"""Rows into a file, as its name says: JSON lines, a JSON array, CSV, TSV or Parquet, packed with gzip or not.

What always holds: the same rows give the same bytes; at most some megabytes of rows are held in memory.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, TypeAlias, cast

from orjson import OPT_APPEND_NEWLINE, dumps

from matrix_graph.errors import ConfigError
from matrix_graph.tables.formats import PACKED, ending_of
from matrix_graph.tables.parquet import pyarrow_parquet

Row = dict[str, Any]
Column: TypeAlias = "str | list[Any] | dict[str, Any]"
"""A column's type: "string", "int64", a list of one type, or a dict of names and types."""

_GROUP_BYTES = 16_000_000
"""Text in a row group of a Parquet file; so much is held in memory."""


class FileType(StrEnum):
    """How rows are written."""

    jsonl = "jsonl"
    json = "json"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"


_ENDINGS = {
    ".jsonl": FileType.jsonl,
    ".ndjson": FileType.jsonl,
    ".json": FileType.json,
    ".csv": FileType.csv,
    ".tsv": FileType.tsv,
    ".parquet": FileType.parquet,
}


class Writing(NamedTuple):
    """How a file of rows is written."""

    type: FileType
    packed: bool


class RowFile(Protocol):
    """A file that takes rows."""

    rows: int

    def write(self, row: Row) -> None:
        """Take one row."""

    def end(self) -> None:
        """Write what is left; the file below stays open."""


def writing_of(out: Path, wanted: FileType | None = None) -> Writing:
    """How rows are written to a file: as its name says, JSON lines if it has no ending.

    Args:
        out: the file.
        wanted: what is in it, whatever the name; None goes by the name. It is packed if its name ends in `.gz`.

    Raises:
        ConfigError: an ending that stands for nothing that is written here.
    """
    packed = out.suffix.lower() == PACKED
    ending = ending_of(out.name)
    type = wanted or (FileType.jsonl if not ending else _ENDINGS.get(ending))
    if type is None or (packed and type is FileType.parquet):
        why = "Parquet is packed already" if type else f"no rows are written as {ending}"
        raise ConfigError(
            f"{out} cannot be written: {why}. Give a name that ends in .jsonl, .json, .csv or .tsv, with .gz after it "
            "if you like, or in .parquet."
        )
    return Writing(type, packed)


def row_file(file: IO[bytes], writing: Writing, columns: dict[str, Column]) -> RowFile:
    """What takes the rows of a file.

    Args:
        file: opened for writing bytes; it is not closed.
        writing: how.
        columns: the names and types of the columns, in order.

    Raises:
        ConfigError: CSV or TSV, and a column holds more than a text or a number.
        PrerequisiteError: Parquet, and pyarrow is not installed.
    """
    if writing.type is FileType.parquet:
        return _ParquetRows(file, columns)
    packed = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if writing.packed else None
    sink = cast("IO[bytes]", packed) if packed else file
    if writing.type is FileType.jsonl:
        return _JsonRows(sink, packed)
    if writing.type is FileType.json:
        return _JsonArray(sink, packed)
    if nested := [name for name, type in columns.items() if not isinstance(type, str)]:
        raise ConfigError(
            f"{writing.type.upper()} holds texts and numbers alone, and {', '.join(nested)} of each row is a list. "
            "Give a name that ends in .jsonl, .json or .parquet, or rows of the format alpaca."
        )
    return _CsvRows(sink, packed, list(columns), "\t" if writing.type is FileType.tsv else ",")


class _JsonRows:
    def __init__(self, file: IO[bytes], packed: gzip.GzipFile | None) -> None:
        self.rows = 0
        self._file = file
        self._packed = packed

    def write(self, row: Row) -> None:
        self._file.write(dumps(row, option=OPT_APPEND_NEWLINE))
        self.rows += 1

    def end(self) -> None:
        if self._packed is not None:
            self._packed.close()


class _JsonArray(_JsonRows):
    def write(self, row: Row) -> None:
        content = dumps(row)  # before anything is written: a text that no file takes is not half a row
        self._file.write((b",\n" if self.rows else b"[\n") + content)
        self.rows += 1

    def end(self) -> None:
        self._file.write(b"\n]\n" if self.rows else b"[]\n")
        super().end()


class _CsvRows(_JsonRows):
    def __init__(self, file: IO[bytes], packed: gzip.GzipFile | None, columns: list[str], separator: str) -> None:
        super().__init__(file, packed)
        self._text = io.StringIO(newline="")
        self._columns = columns
        # The line end of RFC 4180: with another, csv leaves a lone \r without quotes, which nobody could read.
        self._writer = csv.writer(self._text, delimiter=separator, lineterminator="\r\n")
        self._put(columns)

    def write(self, row: Row) -> None:
        self._put([row[name] for name in self._columns])
        self.rows += 1

    def _put(self, cells: list[Any]) -> None:
        self._text.seek(0)
        self._text.truncate()
        self._writer.writerow(cells)
        self._file.write(self._text.getvalue().encode())


class _ParquetRows:
    def __init__(self, file: IO[bytes], columns: dict[str, Column]) -> None:
        parquet: Any = pyarrow_parquet()
        pyarrow: Any = import_module("pyarrow")
        self.rows = 0
        self._held: list[Row] = []
        self._bytes = 0
        self._schema = pyarrow.schema([(name, _arrow(type)) for name, type in columns.items()])
        self._table: Callable[..., Any] = pyarrow.Table.from_pylist
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, row: Row) -> None:
        self._bytes += len(dumps(row))
        self._held.append(row)
        self.rows += 1
        if self._bytes >= _GROUP_BYTES:
            self._flush()

    def end(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(self._table(self._held, schema=self._schema))
        self._held, self._bytes = [], 0


def _arrow(type: Column) -> Any:
    pyarrow: Any = import_module("pyarrow")
    if isinstance(type, str):
        return {"string": pyarrow.string(), "int64": pyarrow.int64()}[type]
    if isinstance(type, list):
        return pyarrow.list_(_arrow(type[0]))
    return pyarrow.struct([(name, _arrow(inner)) for name, inner in type.items()])
