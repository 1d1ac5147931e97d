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
import reprlib
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from matrix_graph.errors import ConfigError
from matrix_graph.records import clean

LONGEST = 16 * 1024 * 1024
"""The longest row, in bytes, its line ends included; a longer one is rejected."""
EXCERPT_LENGTH = 200
"""The longest excerpt of a rejected row, in characters."""

_STANDARD_INPUT = Path("-")
_ALLOWED = 'an object with "question" is allowed, or a text that is the question'
_CHUNK = 1024 * 1024
_MOST_NAMES, _LONGEST_NAME = 10, 40


@dataclass(frozen=True, slots=True)
class Row:
    """One question to rehearse.

    Args:
        question: to the letter; not blank.
        draft: the answer to rehearse; None has the model write one.
        id: the name that its sender knows it by.
        line: where the row begins in its file, from 1; 0 where there are no lines.
    """

    question: str
    draft: str | None = None
    id: str | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used.

    Args:
        line: where the row begins in its file, from 1; 0 where there are no lines.
        reason: what came, and what is allowed.
        excerpt: the beginning of what came, at most `EXCERPT_LENGTH` characters, that any UTF-8 file takes.
    """

    line: int
    reason: str
    excerpt: str


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
    yield from _json_rows(lines) if separator is None else _csv_rows(lines, separator, name)


def to_row(item: object, line: int = 0) -> Row | Rejected:
    """One question as Python programs give it.

    Args:
        item: a `Row`; the question; or a mapping with "question", and "draft" and "id" if there are any.
        line: where the row begins in its file, from 1; 0 where there are no lines, and keeps that of a `Row`.
    """
    if isinstance(item, Row):
        line = line or item.line
        item = {"question": item.question, "draft": item.draft, "id": item.id}
    try:
        return _to_row(item, line)
    except _UnusableError as error:
        return Rejected(line, str(error), _shown(item))


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
                return sum(not _is_blank(line.data) for line in lines)
            records = _records(lines, separator)
            _header(next(records, None), separator, path.name)
            return sum(1 for _ in records)
    except (OSError, ConfigError):
        return None


class _UnusableError(Exception):
    """Why a row cannot be used."""


class _Line(NamedTuple):
    number: int
    data: bytes
    whole: bool
    """Whether `data` is all of the line; otherwise it is the beginning of one that is too long."""


class _Record(NamedTuple):
    line: int
    cells: list[str]
    problem: str | None
    """Why the cells cannot be used."""
    beginning: bytes


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


def _begun(file: BinaryIO, format: InputFormat, name: str) -> tuple[Iterator[_Line], str | None]:
    """All lines from the first that is not blank, and what separates the columns: None if they are JSON lines."""
    lines = _lines(file, name)
    first = next((line for line in lines if not _is_blank(line.data)), None)
    if first is None:
        return lines, _separator(format, b"", name)
    return itertools.chain([first], lines), _separator(format, first.data, name)


def _lines(file: BinaryIO, name: str) -> Iterator[_Line]:
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
        yield _Line(number, data.removeprefix(codecs.BOM_UTF8) if number == 1 else data, whole)


def _separator(format: InputFormat, first_line: bytes, name: str) -> str | None:
    named = {".csv": ",", ".tsv": "\t"}.get(Path(name).suffix.lower())
    separator = named or ("\t" if b"\t" in first_line else ",")
    if format is InputFormat.csv or (format is InputFormat.auto and named):
        return separator
    text = _text(first_line).strip()
    if format is InputFormat.jsonl or text.startswith(("{", '"', "[")):
        return None
    try:
        header = _names(next(csv.reader([text], delimiter=separator), []))
    except csv.Error:
        return None
    return separator if "question" in header else None


def _json_rows(lines: Iterable[_Line]) -> Iterator[Row | Rejected]:
    for line in lines:
        if _is_blank(line.data):
            continue
        try:
            yield _to_row(_parsed(line), line.number)
        except _UnusableError as error:
            yield Rejected(line.number, str(error), _excerpt(line.data))


def _parsed(line: _Line) -> object:
    if not line.whole:
        raise _too_long()
    try:
        return _DECODER.decode(line.data.decode().rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise _UnusableError(_not_utf8(error)) from None
    except json.JSONDecodeError as error:
        raise _UnusableError(f"not JSON: {error.msg}, column {error.colno}; {_ALLOWED}") from None
    except ValueError as error:
        raise _UnusableError(f"not JSON: {error}") from None
    except RecursionError:
        raise _UnusableError(f"nested too deep; {_ALLOWED}") from None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not allowed there; write null")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


class _Feeder:
    """Gives csv its lines, and keeps what csv does not tell of the record that it is reading."""

    def __init__(self, lines: Iterator[_Line]) -> None:
        self._lines = lines
        self.begin()

    def begin(self) -> None:
        """Before each record."""
        self.first: _Line | None = None
        self.problem: str | None = None
        self._size = 0

    def __iter__(self) -> _Feeder:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.first = self.first or line
        self._size += len(line.data)
        if not line.whole or self._size > LONGEST:
            raise _too_long()
        try:
            return line.data.decode()
        except UnicodeDecodeError as error:
            self.problem = self.problem or _not_utf8(error)
            # Its quotes still tell where the record ends, so that one bad byte costs one row.
            return line.data.decode(errors="surrogateescape")


def _records(lines: Iterator[_Line], separator: str) -> Iterator[_Record]:
    """All records that are not empty, the header among them."""
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
        except _UnusableError as error:
            feeder.problem = str(error)
        if feeder.first is not None and (cells or feeder.problem):
            yield _Record(feeder.first.number, cells, feeder.problem, feeder.first.data)


class _LongCells:
    """Raises csv's limit of a cell, which is one for the whole process, while any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = csv.field_size_limit(max(LONGEST, csv.field_size_limit()))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                csv.field_size_limit(self._before)


_LONG_CELLS = _LongCells()


def _csv_rows(lines: Iterator[_Line], separator: str, name: str) -> Iterator[Row | Rejected]:
    records = _records(lines, separator)
    names = _header(next(records, None), separator, name)
    for record in records:
        try:
            if record.problem:
                raise _UnusableError(record.problem)
            if len(record.cells) > len(names):
                raise _UnusableError(
                    f"{len(record.cells)} cells, but {len(names)} columns; quote a cell that holds a separator"
                )
            cells = dict(zip(names, record.cells, strict=False))
            given = {column: cells[column] for column in ("draft", "id") if not _is_blank(cells.get(column, ""))}
            yield _to_row({"question": cells.get("question", ""), **given}, record.line)
        except _UnusableError as error:
            yield Rejected(record.line, str(error), _excerpt(record.beginning))


def _header(record: _Record | None, separator: str, name: str) -> list[str]:
    names = _names(record.cells) if record else []
    if "question" not in names:
        found = record.problem if record and record.problem else f"the columns found are {_listed(names)}"
        separators = "tabs" if separator == "\t" else "commas"
        raise ConfigError(
            f'{name} has no column "question": {found}. Name the columns in the first line, with {separators} between '
            "them, and the one that holds the questions: question."
        )
    for column in ("question", "draft", "id"):
        if names.count(column) > 1:
            raise ConfigError(f'{name} has {names.count(column)} columns "{column}". Leave one of them.')
    return names


def _names(header: Iterable[str]) -> list[str]:
    return [name.strip().casefold() for name in header]


def _to_row(item: object, line: int) -> Row:
    if isinstance(item, str):
        return _to_row({"question": item}, line)
    if not isinstance(item, Mapping):
        raise _UnusableError(f"the row is {_kind(item)}; {_ALLOWED}")
    if "question" not in item:
        raise _UnusableError(f'"question" is missing, the keys found are {_listed(item)}; {_ALLOWED}')
    question, draft, id = item["question"], item.get("draft"), item.get("id")
    if not isinstance(question, str):
        raise _UnusableError(f'"question" is {_kind(question)}; a text is allowed')
    if _is_blank(question):
        raise _UnusableError('"question" is empty; a text with words is allowed')
    if draft is not None and not isinstance(draft, str):
        raise _UnusableError(f'"draft" is {_kind(draft)}; a text or null is allowed')
    if draft is not None and _is_blank(draft):
        raise _UnusableError('"draft" is empty; leave it out to have the model write one')
    return Row(clean(question), None if draft is None else clean(draft), _id(id), line)


def _id(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return str(value)
        except ValueError:
            raise _UnusableError('"id" is a number of thousands of digits; a text is allowed') from None
    if value is not None and not isinstance(value, str):
        raise _UnusableError(f'"id" is {_kind(value)}; a text, a whole number or null is allowed')
    return None if value is None or _is_blank(value) else clean(value)


_KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), f"of the type {type(value).__name__}")


def _listed(names: Iterable[object]) -> str:
    """Names that came, few and short enough for a message."""
    texts = (name[:_LONGEST_NAME] for name in names if isinstance(name, str))
    return ", ".join(f'"{clean(text)}"' for text in itertools.islice(texts, _MOST_NAMES)) or "none"


def _is_blank(text: str | bytes) -> bool:
    return not text or text.isspace()


def _too_long() -> _UnusableError:
    return _UnusableError(f"longer than {LONGEST:,} bytes, the most that a row may have")


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: the byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of a line"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _excerpt(data: bytes) -> str:
    return _text(data[: 4 * EXCERPT_LENGTH]).strip()[:EXCERPT_LENGTH]


def _shown(item: object) -> str:
    if isinstance(item, str):
        return clean(item[:EXCERPT_LENGTH])
    try:
        return clean(reprlib.repr(item)[:EXCERPT_LENGTH])
    except ValueError:
        return type(item).__name__
