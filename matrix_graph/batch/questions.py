"""Questions from JSON lines, CSV, TSV or standard input: streamed, of any length, never wholly in memory.

What always holds: a row that cannot be used becomes a `Rejected` with its line and never stops the ones after it; at
most one row is held at a time, and none is longer than `LONGEST`; the same bytes give the same rows each time.
Only what makes every row unusable raises: a file that cannot be read, a CSV without a column "question".
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, NoReturn

from matrix_graph.batch.csv_records import column_names, csv_rows, header_names, read_records
from matrix_graph.batch.rows import (
    ALLOWED,
    EXCERPT_LENGTH,
    LONGEST,
    Line,
    Rejected,
    Row,
    UnusableError,
    excerpt,
    is_blank,
    lenient_text,
    not_utf8,
    too_long,
    usable_row,
)
from matrix_graph.errors import ConfigError

_STANDARD_INPUT = Path("-")
_CHUNK = 1024 * 1024


class InputFormat(StrEnum):
    """How questions are written.

    `auto` goes by the name's ending: `.csv` and `.tsv` are CSV, everything else JSON lines; but a file of another name,
    or standard input, is CSV if its first line begins with none of `{`, `"` and `[` and has a column "question".
    The columns of a CSV are separated by commas in `.csv`, by tabs in `.tsv`, and elsewhere by tabs if the first line
    holds one, by commas if not.
    """

    auto = "auto"
    jsonl = "jsonl"
    csv = "csv"


@contextmanager
def open_questions(path: Path | None) -> Iterator[BinaryIO]:
    """Open a file of questions, or standard input, which stays open afterwards.

    Args:
        path: None or `-` is standard input.

    Yields:
        The file, for `read_rows`.

    Raises:
        ConfigError: it cannot be opened.
    """
    if path is None or path == _STANDARD_INPUT:
        yield _standard_input()
        return
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist. Name a file of questions, or - for standard input.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder. Name a file of questions, such as one in it.") from None
    except PermissionError:
        raise ConfigError(f"{path} may not be read by you. Allow it (chmod +r), or name another file.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be opened: {error}. Name a file of questions, or - for standard input."
        ) from error
    with file:
        yield file


def read_rows(file: BinaryIO, format: InputFormat, *, name: str) -> Iterator[Row | Rejected]:
    """Read questions one by one, in the order of the file; each is given before the next one is read.

    JSON lines: lines end with `\\n` or `\\r\\n`, and empty ones are passed over. A row is an object with "question",
    and "draft" and "id" if there are any, its other keys being ignored; or a string, which is the question.
    CSV: a header line with a column "question", and "draft" and "id" if there are any, case and spaces ignored. Blank
    cells of these two mean none; quoted cells may hold line ends. A quote that is never closed takes what follows with
    it, `LONGEST` bytes at most. While a record is read, csv's own limit of a cell is raised for the whole process.
    Both are UTF-8, with or without a byte order mark.

    Args:
        file: opened for reading bytes.
        format: how the questions are written.
        name: the file's name, for `InputFormat.auto` and for errors.

    Yields:
        A `Row` or a `Rejected` a row. Nothing is read before the first one is asked for.

    Raises:
        ConfigError: the file cannot be read on, or a CSV has no column "question", or two columns of one name.
    """
    lines, separator = _begun(file, format, name)
    yield from _json_rows(lines) if separator is None else csv_rows(lines, separator, name)


def count_rows(path: Path | None, format: InputFormat) -> int | None:
    """How many rows `read_rows` gives, those to be rejected included, so that progress can be told.

    Returns:
        The rows; None if that cannot be told beforehand: not a regular file, or one that `read_rows` cannot read.
    """
    if path is None or path == _STANDARD_INPUT or not path.is_file():
        return None
    try:
        with path.open("rb", buffering=_CHUNK) as file:
            lines, separator = _begun(file, format, path.name)
            if separator is None:
                return sum(not is_blank(line.data) for line in lines)
            records = read_records(lines, separator)
            header_names(next(records, None), separator, path.name)
            return sum(1 for _ in records)
    except (OSError, ConfigError):
        return None


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise ConfigError("Standard input is closed. Name a file of questions in place of -.")
    try:
        number = sys.stdin.fileno()
    except (OSError, ValueError):  # it is no file of the system's
        return sys.stdin.buffer
    # Python takes "nothing there yet" for the end of a file that does not block, and rows would be lost unnoticed.
    with suppress(OSError):
        os.set_blocking(number, True)
    # A reader of its own: at exit Python closes its standard input, which fails while a thread waits for a row there.
    return open(number, "rb", closefd=False)


def _begun(file: BinaryIO, format: InputFormat, name: str) -> tuple[Iterator[Line], str | None]:
    """All lines from the first that is not blank, and what separates the columns: None if they are JSON lines."""
    lines = _lines(file, name)
    first = next((line for line in lines if not is_blank(line.data)), None)
    if first is None:
        return lines, _separator(format, b"", name)
    return itertools.chain([first], lines), _separator(format, first.data, name)


def _lines(file: BinaryIO, name: str) -> Iterator[Line]:
    """All lines, split at `\\n` alone, without a byte order mark at the beginning."""
    for number in itertools.count(1):
        try:
            data = file.readline(LONGEST + 1)
            whole = len(data) <= LONGEST
            if not whole:
                ended, data = data.endswith(b"\n"), data[: 4 * EXCERPT_LENGTH]
                while not ended:
                    rest = file.readline(_CHUNK)
                    ended = not rest or rest.endswith(b"\n")
        except OSError as error:
            raise ConfigError(
                f"{name} cannot be read on at line {number}: {error}. Mend that and start again."
            ) from error
        if not data:
            return
        yield Line(number, data.removeprefix(codecs.BOM_UTF8) if number == 1 else data, whole)


def _separator(format: InputFormat, first_line: bytes, name: str) -> str | None:
    named = {".csv": ",", ".tsv": "\t"}.get(Path(name).suffix.lower())
    separator = named or ("\t" if b"\t" in first_line else ",")
    if format is InputFormat.csv or (format is InputFormat.auto and named):
        return separator
    text = lenient_text(first_line).strip()
    if format is InputFormat.jsonl or text.startswith(("{", '"', "[")):
        return None
    try:
        header = column_names(next(csv.reader([text], delimiter=separator), []))
    except csv.Error:
        return None
    return separator if "question" in header else None


def _json_rows(lines: Iterable[Line]) -> Iterator[Row | Rejected]:
    for line in lines:
        if is_blank(line.data):
            continue
        try:
            yield usable_row(_parsed(line), line.number)
        except UnusableError as error:
            yield Rejected(line.number, str(error), excerpt(line.data))


def _parsed(line: Line) -> object:
    if not line.whole:
        raise too_long()
    try:
        return _DECODER.decode(line.data.decode().rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise UnusableError(not_utf8(error)) from None
    except json.JSONDecodeError as error:
        raise UnusableError(f"not JSON: {error.msg}, column {error.colno}; {ALLOWED}") from None
    except ValueError as error:
        raise UnusableError(f"not JSON: {error}") from None
    except RecursionError:
        raise UnusableError(f"nested too deep; {ALLOWED}") from None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not allowed there; write null")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
