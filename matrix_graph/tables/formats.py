"""What a table is: by its name, and by its first bytes where the name does not say."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from matrix_graph.errors import TableError
from matrix_graph.tables.values import column_names, lenient_text, listed

Kind = Literal["lines", "array", "object", "csv", "parquet"]
"""`object` is one JSON object that fills the file, over several lines."""

NAMED_LINES = (".jsonl", ".ndjson")
NAMED_CSV = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
NAMED_PARQUET = (".parquet", ".pq")
PACKED = ".gz"
ENDINGS = (*NAMED_LINES, ".json", *NAMED_CSV, *NAMED_PARQUET)
"""All that say what a table is."""

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
_FOREIGN = {
    b"PK\x03\x04": "an Excel workbook or another zip file. In a spreadsheet, save the sheet as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook. In a spreadsheet, save the sheet as CSV (UTF-8)",
    b"\xfd7zXZ": "packed with xz. Unpack it, or pack it with gzip",
    b"\x28\xb5\x2f\xfd": "packed with zstd. Unpack it, or pack it with gzip",
}
_SAVE_AS_UTF8 = (
    'Save it as UTF-8: in Excel as "CSV UTF-8", in an editor as UTF-8, in PowerShell with Out-File -Encoding utf8.'
)
_WIDE_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_LOOKED_AT = 64
"""Bytes that tell whether a file without a mark is UTF-16."""


class TableFormat(StrEnum):
    """How a table is written.

    `auto` goes by the name's ending (`.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.parquet`), and where that says
    nothing, as on standard input, by the first line: CSV if it names a column that is needed, else JSON. A file that
    begins with `[` is one JSON array, and Parquet and gzip are known by their first bytes, whatever the name.
    The columns of a CSV are separated by commas in `.csv`, by tabs in `.tsv`, and elsewhere by tabs if the first line
    holds one, by commas if not.
    """

    auto = "auto"
    jsonl = "jsonl"
    csv = "csv"


@dataclass(frozen=True)
class Columns:
    """Which columns a table of some use has.

    Args:
        needed: alternatives; a header must have all columns of one of them.
        optional: others that are read. A header that has one of all these twice is refused.
        noun: what the rows are, for messages.
        allowed: what a row in JSON may be, for messages.
    """

    needed: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()
    noun: str = "questions"
    allowed: str = "a row is one JSON object"

    @property
    def texts(self) -> frozenset[str]:
        """The columns that are needed in one alternative or another."""
        return frozenset(name for names in self.needed for name in names)

    def fit(self, names: list[str]) -> bool:
        """Whether a header has what is needed."""
        return any(set(alternative) <= set(names) for alternative in self.needed)

    def require(self, names: list[str], name: str, *, hint: str, problem: str | None = None) -> None:
        """See whether rows can be read below a header.

        Args:
            names: of the columns, folded.
            name: the file's.
            hint: what to do where a column is missing.
            problem: what is wrong with the header, if that is known.

        Raises:
            TableError: a column is missing, or there are two of one name.
        """
        if not self.fit(names):
            wanted = " or ".join(_and(alternative) for alternative in self.needed)
            several = "s" if len(self.texts) > 1 else ""
            found = problem or f"the columns found are {listed(names)}"
            raise TableError(f"{name} has no column{several} {wanted}: {found}. {hint}")
        for column in sorted(self.texts.union(self.optional)):
            if names.count(column) > 1:
                raise TableError(f'{name} has {names.count(column)} columns "{column}". Leave one of them.')


def ending_of(name: str) -> str:
    """The ending that says what a file is, in lower case, without `.gz`."""
    path = Path(name)
    if path.suffix.lower() == PACKED:
        path = path.with_suffix("")
    return path.suffix.lower()


def stem_of(name: str) -> str:
    """A file's name without folder, without `.gz` and without the ending that says what it is."""
    path = Path(name)
    return Path(path.stem).stem if path.suffix.lower() == PACKED else path.stem


def refuse_foreign(head: bytes, name: str) -> None:
    """See by its first bytes whether a file can be a table at all.

    Raises:
        TableError: it is a workbook, packed otherwise, or in another encoding than UTF-8.
    """
    for mark, what in _FOREIGN.items():
        if head.startswith(mark):
            raise TableError(f"{name} is {what}.")
    for mark, encoding in _WIDE_MARKS:
        if head.startswith(mark):
            raise TableError(f"{name} is {encoding}, not UTF-8. {_SAVE_AS_UTF8}")
    begin = head[:_LOOKED_AT]
    begin = begin[: len(begin) & ~1]
    # Half of every character is 0 where the text is ASCII: `{` or a letter is a byte and a zero.
    if len(begin) >= 4 and (_only_zeros(begin[1::2], begin[0::2]) or _only_zeros(begin[0::2], begin[1::2])):
        raise TableError(f"{name} is UTF-16 by the look of it, not UTF-8. {_SAVE_AS_UTF8}")


def kind_of_table(format: TableFormat, first_line: bytes, name: str, columns: Columns) -> tuple[Kind, str]:
    """What a table is.

    Args:
        format: as it was asked for.
        first_line: the first that is not blank, without a byte order mark.
        name: the file's.
        columns: that its use needs.

    Returns:
        What it is, and what separates its columns.
    """
    ending = ending_of(name)
    separator = NAMED_CSV.get(ending) or ("\t" if b"\t" in first_line else ",")
    if format is TableFormat.csv:
        return "csv", separator
    if format is TableFormat.jsonl:
        return "lines", separator
    if first_line.startswith(PARQUET) or ending in NAMED_PARQUET:
        return "parquet", separator
    if ending in NAMED_CSV:
        return "csv", separator
    begin = first_line.lstrip()
    if begin.startswith(b"["):
        return "array", separator
    if begin.strip() == b"{" and ending not in NAMED_LINES:
        return "object", separator
    if begin.startswith((b"{", b'"')):
        return "lines", separator
    try:
        header = column_names(next(csv.reader([lenient_text(first_line).strip()], delimiter=separator), []))
    except csv.Error:
        return "lines", separator
    return ("csv" if columns.fit(header) else "lines"), separator


def _only_zeros(zeros: bytes, others: bytes) -> bool:
    return not any(zeros) and all(others)


def _and(names: tuple[str, ...]) -> str:
    return " and ".join(f'"{name}"' for name in names)
