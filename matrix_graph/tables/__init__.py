"""Tables of questions, answers and training rows: the one reader of them all, with one set of rules.

    formats.py   what a file is: JSON lines, a JSON array, CSV, TSV or Parquet, each also packed with gzip
    source.py    its bytes, opened, unpacked and looked at before anything is read
    pieces.py    the lines, or the elements of an array, one by one
    records.py   the records of a CSV
    parquet.py   the rows of Parquet
    values.py    what a cell may hold: ids, texts, blanks
    reading.py   all of it together: rows, and what is wrong with those that cannot be used
    writing.py   rows back into a file, as its name says

What always holds: rows are read one by one, and none is longer than `pieces.LONGEST`; a row that cannot be used is told
by its number with a reason and does not stop the ones after it; a file without any row is an error.
"""

from __future__ import annotations

from matrix_graph.tables.formats import Columns, TableFormat
from matrix_graph.tables.reading import Entry, count_table, read_table, whole_rows
from matrix_graph.tables.source import open_table
from matrix_graph.tables.values import UnusableError, id_text, is_blank, kind_of, listed

__all__ = [
    "Columns",
    "Entry",
    "TableFormat",
    "UnusableError",
    "count_table",
    "id_text",
    "is_blank",
    "kind_of",
    "listed",
    "open_table",
    "read_table",
    "whole_rows",
]
