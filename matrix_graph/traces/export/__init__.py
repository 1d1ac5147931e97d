"""Training data from traces: rows that equal what stands in the traces, character by character.

The way of a row: `reading` takes the traces one by one, `pieces` takes out what can be taught, `duplicates` and
`lengths` say what is not kept of it, `mixing` draws the shares that were asked for, `shapes` gives a piece the form
that a trainer takes, `files` writes it, and `card` says what came of it all. `pipeline` is the map.

What always holds: no failed scene is exported; no word in a row is ours; the same traces and options give the same
bytes; and a million rows need no more memory than a thousand.
"""

from matrix_graph.tables.writing import FileType, Row
from matrix_graph.traces.export.options import ExportFormat, ExportOptions, Include, TooLong
from matrix_graph.traces.export.pipeline import export, export_runs, rows
from matrix_graph.traces.export.summary import Summary

__all__ = [
    "ExportFormat",
    "ExportOptions",
    "FileType",
    "Include",
    "Row",
    "Summary",
    "TooLong",
    "export",
    "export_runs",
    "rows",
]
