"""The files of an export: JSON lines or Parquet, which appear whole and together, or not at all.

What always holds: under its own name a file is complete; until then it is a hidden `.part` beside it, which is removed
whatever happens. The same rows give the same bytes. At most some megabytes of rows are held in memory.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple, Protocol

from orjson import OPT_APPEND_NEWLINE, JSONEncodeError, dumps

from matrix_graph.errors import ExportError, PrerequisiteError
from matrix_graph.traces.export.hashing import Digest
from matrix_graph.traces.export.options import FileType, Row
from matrix_graph.traces.export.shapes import Column

_FAULTS = (OSError, UnicodeEncodeError, JSONEncodeError)
_GROUP_BYTES = 16_000_000
"""Text in a row group of a Parquet file; so much is held in memory."""


class Written(NamedTuple):
    """A file of the export."""

    name: str
    rows: int
    bytes: int
    sha256: str


class RowFile(Protocol):
    """A file that takes rows."""

    rows: int

    def write(self, row: Row) -> None:
        """Take one row."""

    def end(self) -> None:
        """Write what is left."""


def file_type_of(out: Path, wanted: FileType | None) -> FileType:
    """How rows are written: as wanted, else Parquet if the name says so, else JSON lines."""
    return wanted or (FileType.parquet if out.suffix.lower() == ".parquet" else FileType.jsonl)


def pyarrow_parquet() -> ModuleType:
    """The module that reads and writes Parquet.

    Raises:
        PrerequisiteError: it is not installed.
    """
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise PrerequisiteError("Parquet needs pyarrow, which is not installed: `pip install pyarrow`.") from error
    return parquet


class DataFile:
    """One file to be, under its temporary name.

    Args:
        path: its name in the end.
        type: how rows are written.
        columns: the types of its columns, for Parquet.

    Raises:
        ExportError: it cannot be written.
        PrerequisiteError: Parquet, and pyarrow is not installed.
    """

    def __init__(self, path: Path, type: FileType, columns: dict[str, Column]) -> None:
        self.path = path
        self._part = path.with_name(f".{path.name}.part")
        parquet = pyarrow_parquet() if type is FileType.parquet else None
        with _refusing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                # A file is put in its place in the end, which would be the end of a device or a pipe.
                raise OSError("it is a folder" if path.is_dir() else "it is not a regular file")
            self._file = _Hashed(self._part.open("wb"))
            self._rows: RowFile = _ParquetRows(self._file, columns, parquet) if parquet else _JsonRows(self._file)

    @property
    def rows(self) -> int:
        """How many rows it has so far."""
        return self._rows.rows

    def write(self, row: Row) -> None:
        """Take one row.

        Raises:
            ExportError: the disk is full, or a text that no file takes.
        """
        try:
            self._rows.write(row)
        except _FAULTS as error:
            raise _refusal(self.path, error) from error

    def finish(self) -> Written:
        """Write what is left and wait until it is on the disk; the file keeps its temporary name.

        Raises:
            ExportError: as `write`.
        """
        with _refusing(self.path):
            self._rows.end()
            self._file.sync()
            size = self._file.tell()
            self._file.close()
        return Written(self.path.name, self.rows, size, self._file.sha256)

    def publish(self) -> None:
        """Give the file its own name, in the place of an older one.

        Raises:
            ExportError: it cannot be had.
        """
        with _refusing(self.path):
            self._part.replace(self.path)

    def discard(self) -> None:
        """Remove the file if it has not been published."""
        with suppress(OSError, ValueError):
            self._file.pretend()
            self._rows.end()
            self._file.abandon()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all.

    Raises:
        ExportError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    with _refusing(path):
        try:
            part.write_text(text, encoding="utf-8", newline="\n")
            part.replace(path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except _FAULTS as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> ExportError:
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ExportError(
        f"{path} cannot be written: {why}. Nothing of it was kept; make room, or name another file with --out."
    )


class _Hashed(io.RawIOBase):
    """A file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = Digest(file)
        self._size = 0
        self._pretends = False
        self.sha256 = ""

    def writable(self) -> bool:
        return True

    def pretend(self) -> None:
        # A Parquet writer that could not write to its end would try again whenever it is collected as garbage.
        self._pretends = True

    def write(self, content: Any) -> int:
        if not self._pretends:
            self._digest.update(content if isinstance(content, bytes) else bytes(content))
            self._size += len(content)
        return len(content)

    def tell(self) -> int:
        return self._size

    def sync(self) -> None:
        self.sha256 = self._digest.hexdigest()
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def abandon(self) -> None:
        self._digest.abandon()
        # Closing would try once more to write what found no room before; that is only passed over, the file is closed.
        with suppress(OSError):
            self._file.close()
        super().close()


class _JsonRows:
    def __init__(self, file: _Hashed) -> None:
        self.rows = 0
        self._file = file

    def write(self, row: Row) -> None:
        self._file.write(dumps(row, option=OPT_APPEND_NEWLINE))
        self.rows += 1

    def end(self) -> None:
        """Nothing is held."""


class _ParquetRows:
    def __init__(self, file: _Hashed, columns: dict[str, Column], parquet: Any) -> None:
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
