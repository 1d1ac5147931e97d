"""The files of an export, which appear whole and together, or not at all.

What always holds: under its own name a file is complete; until then it is a hidden `.part` beside it, which is removed
whatever happens. The same rows give the same bytes. At most some megabytes of rows are held in memory.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from orjson import JSONEncodeError

from matrix_graph.errors import ConfigError, ExportError
from matrix_graph.tables.parquet import pyarrow_parquet
from matrix_graph.tables.writing import Column, FileType, Row, RowFile, Writing, row_file
from matrix_graph.traces.export.hashing import Digest

_FAULTS = (OSError, UnicodeEncodeError, JSONEncodeError)


class Written(NamedTuple):
    """A file of the export."""

    name: str
    rows: int
    bytes: int
    sha256: str


class DataFile:
    """One file to be, under its temporary name.

    Args:
        path: its name in the end.
        writing: how rows are written.
        columns: the names and types of its columns.

    Raises:
        ConfigError: rows with such columns cannot be written so.
        ExportError: it cannot be written.
        PrerequisiteError: Parquet, and pyarrow is not installed.
    """

    def __init__(self, path: Path, writing: Writing, columns: dict[str, Column]) -> None:
        self.path = path
        self._part = path.with_name(f".{path.name}.part")
        if writing.type is FileType.parquet:
            pyarrow_parquet()  # before anything is made
        with _refusing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                # A file is put in its place in the end, which would be the end of a device or a pipe.
                raise OSError("it is a folder" if path.is_dir() else "it is not a regular file")
            self._file = _Hashed(self._part.open("wb"))
        try:
            self._rows: RowFile = row_file(cast("IO[bytes]", self._file), writing, columns)
        except ConfigError:
            self._file.close()
            self._part.unlink(missing_ok=True)
            raise

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
