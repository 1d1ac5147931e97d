"""The rows of Parquet, batch by batch; pyarrow is imported when there is some."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from matrix_graph.errors import PrerequisiteError, TableError
from matrix_graph.tables.formats import Columns
from matrix_graph.tables.source import Source
from matrix_graph.tables.values import column_names, is_nothing

_ROWS_AHEAD = 256


def pyarrow_parquet() -> ModuleType:
    """The module that reads and writes Parquet.

    Raises:
        PrerequisiteError: it is not installed.
    """
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise PrerequisiteError(
            "Parquet needs pyarrow, which is not installed: `pip install pyarrow`, "
            "or `pip install 'matrix-graph[parquet]'`."
        ) from error
    return parquet


def parquet_rows(source: Source, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    """All rows but blank ones, with their numbers from 1.

    Args:
        source: begun.
        columns: that the rows need; names of columns are folded as those of a CSV.

    Raises:
        TableError: it is no Parquet, lacks what is needed, or has two columns of one name.
        PrerequisiteError: pyarrow is not installed.
    """
    parquet = pyarrow_parquet()
    number = 0
    with source.seekable() as file:
        try:
            with parquet.ParquetFile(file) as table:
                names = column_names(table.schema_arrow.names)
                columns.require(names, source.name, hint="Name a column so.")
                for batch in table.iter_batches(batch_size=_ROWS_AHEAD):
                    batch = batch.rename_columns(names)
                    for row in batch.to_pylist():
                        number += 1
                        cells = {
                            name: None if name not in columns.texts and is_nothing(value) else value
                            for name, value in row.items()
                        }
                        if not all(is_nothing(value) for value in cells.values()):
                            yield number, cells
        except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own errors are these
            raise TableError(f"{source.name} is no Parquet file that can be read: {error}.") from error
