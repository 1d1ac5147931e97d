"""Questions of a batch: what was written is read again, and what cannot be used is named by its line, and passed."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import sys
import threading
import tracemalloc
from collections import UserDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_graph.batch.questions import InputFormat, count_rows, open_questions, read_rows
from matrix_graph.batch.rows import Rejected, Row, to_row
from matrix_graph.errors import ConfigError
from matrix_graph.tables.pieces import EXCERPT_LENGTH, LONGEST

BOM = b"\xef\xbb\xbf"
DEEP = b"[" * 100_000 + b"]" * 100_000
KIB_64 = b"x" * 65536

# What a file can hold: no half of a character.
texts = st.text(st.characters(codec="utf-8"), max_size=30)
words = texts.filter(str.strip)
rows_written = st.lists(
    st.fixed_dictionaries({"question": words}, optional={"draft": st.none() | words, "id": st.none() | words}),
    max_size=6,
)
junk = st.sampled_from(
    [b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"\t", b"{", b"}", b"[", b'"question"', b":", BOM]
) | (st.binary(max_size=4))
any_bytes = st.lists(junk, max_size=30).map(b"".join)
headers = st.sampled_from([b"", b"question\n"])


def limit(monkeypatch: pytest.MonkeyPatch, longest: int) -> None:
    monkeypatch.setattr("matrix_graph.tables.pieces.LONGEST", longest)


class Stream(io.RawIOBase):
    """A pipe that gives what its parts give, and counts the bytes that were taken."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._left = b""
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._left = self._left or next(self._parts, b"")
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        self.taken += count
        return count


def stream(parts: Iterable[bytes]) -> io.BufferedReader:
    return io.BufferedReader(Stream(parts))


def read(content: bytes, format: InputFormat = InputFormat.auto, name: str = "standard input") -> list[Row | Rejected]:
    return list(read_rows(io.BytesIO(content), format, name=name))


def refused_as_empty(content: bytes, format: InputFormat, name: str = "standard input") -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(name)} holds no rows"):
        read(content, format, name)


def jsonl(content: bytes) -> list[Row | Rejected]:
    return read(content, InputFormat.jsonl)


def comma(content: bytes) -> list[Row | Rejected]:
    return read(content, InputFormat.csv)


def found(rows: list[Row | Rejected]) -> list[tuple[int, str | None]]:
    """Line and question; None where the row was rejected."""
    return [(row.line, row.question if isinstance(row, Row) else None) for row in rows]


def reason(row: Row | Rejected) -> str:
    assert isinstance(row, Rejected), row
    return row.reason


def expected(written: dict[str, str | None], line: int) -> Row:
    id = written.get("id")
    return Row(str(written["question"]), written.get("draft"), id if id and id.strip() else None, line)


# JSON lines


@given(rows_written, st.booleans(), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_json_lines_round_trip(
    written: list[dict[str, str | None]], ascii: bool, end: str, mark: bool, ended: bool
) -> None:
    lines = [json.dumps(row, ensure_ascii=ascii) for row in written]
    content = (BOM if mark else b"") + (end.join(lines) + (end if ended else "")).encode()
    if not written:
        refused_as_empty(content, InputFormat.auto)
        return
    assert read(content) == [expected(row, number) for number, row in enumerate(written, 1)]
    assert read(content) == jsonl(content) == read(content, name="questions.jsonl")


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (b'{"question": "Why?"}', Row("Why?")),
        (b'{"question": " Why? \\n", "draft": " So.\\t"}', Row(" Why? \n", " So.\t")),
        (b'{"question": "Why?", "draft": null, "id": null}', Row("Why?")),
        (b'{"id": 7, "question": "Why?"}', Row("Why?", id="7")),
        (b'{"id": -12345678901234567890, "question": "Why?"}', Row("Why?", id="-12345678901234567890")),
        (b'{"id": 7.0, "question": "Why?"}', Row("Why?", id="7")),
        (b'{"id": 7.5, "question": "Why?"}', Row("Why?", id="7.5")),
        (b'{"id": 1e300, "question": "Why?"}', Row("Why?", id="1e+300")),
        (b'{"id": true, "question": "Why?"}', Row("Why?", id="true")),
        (b'{"id": NaN, "question": "Why?", "draft": NaN}', Row("Why?")),
        (b'{"question": "Why?", "score": -Infinity}', Row("Why?")),
        (b'{"id": " a ", "question": "Why?"}', Row("Why?", id=" a ")),
        (b'{"id": "", "question": "Why?"}', Row("Why?")),
        (b'{"question": "Why?", "cast": {"ego": 1}, "Draft": 7, "line": 99}', Row("Why?")),
        (b'"Why?"', Row("Why?")),
        (b'  {"question": "Why?"}\t', Row("Why?")),
        (b'{"question": "half \\ud800, whole \\ud83d\\ude00"}', Row("half \ufffd, whole \U0001f600")),
        (b'{"question": "Why?", "draft": "\\udfff", "id": "\\udc80"}', Row("Why?", "\ufffd", "\ufffd")),
        (
            '{"question": "one\u2028two\u2029three\u0085four\x7f"}'.encode(),
            Row("one\u2028two\u2029three\u0085four\x7f"),
        ),
        (b'{"question": "a\\u0000b"}', Row("a\0b")),
        ('{"question": "怎样和邻居和好？", "draft": "كيف 🙂"}'.encode(), Row("怎样和邻居和好？", "كيف 🙂")),
    ],
)
def test_json_rows(line: bytes, row: Row) -> None:
    for end in (b"", b"\n", b"\r\n"):
        (read_row,) = jsonl(line + end)
        assert read_row == Row(row.question, row.draft, row.id, 1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"question": "Why?", "draft": ""}', '"draft" is empty; leave it out to have the model write one'),
        (b'{"question": "Why?", "draft": " \\n"}', '"draft" is empty'),
        (b'{"question": "Why?", "draft": 7}', '"draft" is a number; a text or null is allowed'),
        (b'{"question": "Why?", "draft": ["So."]}', '"draft" is a list; a text or null'),
        (b'{"question": ""}', '"question" is empty'),
        (b'{"question": " \\t\\u2003"}', '"question" is empty'),
        (b'" "', '"question" is empty'),
        (b'{"question": null}', '"question" is null; a text is allowed'),
        (b'{"question": 7.5}', '"question" is a number; a text is allowed'),
        (b'{"question": {"text": "Why?"}}', '"question" is an object; a text is allowed'),
        (b'{"question": true}', '"question" is true or false; a text is allowed'),
        (b'{"question": "Why?", "id": [7]}', '"id" is a list; a text, a number or null is allowed'),
        (b'{"question": "Why?", "id": {"n": 7}}', '"id" is an object; a text, a number or null is allowed'),
        (b'{"question": NaN}', '"question" is null; a text is allowed'),
        (
            b'{"prompt": "Why?", "\\ud800": 1}',
            '"question" is missing, the keys found are "prompt", "\ufffd"; an object',
        ),
        (b"{}", '"question" is missing, the keys found are none'),
        (b'["Why?"]', 'the row is a list; an object with "question" is allowed, or a text that is the question'),
        (b"7", "the row is a number; an object"),
        (b"null", "the row is null; an object"),
        (b"Why?", "not JSON: Expecting value, column 1; an object"),
        (b'{"question": "Why?"', "not JSON: Expecting ',' delimiter, column 20; an object"),
        (b'{"question": "Why?"} {}', "not JSON: Extra data, column 22"),
        (b'{"question": "a\tb"}', "not JSON: Invalid control character at, column 16"),
        (b"\0\0\0\0", "not JSON: Expecting value, column 1"),
        (BOM + b'{"question": "Why?"}', "not JSON: Expecting value, column 1"),
        (b'{"question": "Why?", "score": ' + b"9" * 5000 + b"}", "a number of thousands of digits; write it as a text"),
        (b'{"question": "caf\xe9"}', "not UTF-8: the byte 0xe9 at byte 18 of line 2; save the file as UTF-8"),
        ('{"question": "Why?"}'.encode("utf-16"), "not UTF-8: the byte 0xff at byte 1 of line 2"),
        (DEEP, "nested too deep; an object"),
        (b'{"question": "Why?", "more": ' + DEEP + b"}", "nested too deep; an object"),
    ],
    ids=lambda value: ascii(value[:40]),
)
def test_json_rows_that_cannot_be_used(line: bytes, said: str) -> None:
    before, rejected, *after = jsonl(b'"before"\n' + line.replace(b"\n", b"") + b'\n"after"\n')
    assert (before, after) == (Row("before", line=1), [Row("after", line=3)])
    assert said in reason(rejected)
    assert rejected.line == 2


def test_empty_lines_are_passed_over_but_counted() -> None:
    content = b'\n\r\n \t\r\n{"question": "Why?"}\n\n\x0c\n"How?"'
    assert found(jsonl(content)) == found(read(content)) == [(4, "Why?"), (7, "How?")]
    for nothing in (b"", b"\n", b"\r\n\n", BOM, BOM + b"\n"):
        for format in InputFormat:
            refused_as_empty(nothing, format)


def test_lines_end_at_line_feeds_alone() -> None:
    assert found(jsonl(b'"one"\r"two"\n"three"\n')) == [(1, None), (2, "three")]


def test_an_excerpt_is_short_and_any_file_takes_it() -> None:
    rows = jsonl('  é{"a": "'.encode() + b"\xff\xed\xa0\x80" + "🙂".encode() * 300 + b'"\n"\\ud800\n')
    for row in rows:
        assert isinstance(row, Rejected)
        row.excerpt.encode()
        row.reason.encode()
    assert isinstance(rows[0], Rejected)
    assert rows[0].excerpt.startswith('é{"a": "\ufffd')
    assert len(rows[0].excerpt) == EXCERPT_LENGTH
    many = json.dumps({"\ud800" * 99 + str(number): 0 for number in range(99)}).encode()
    assert len(reason(jsonl(many)[0])) < 1000


# CSV


@given(rows_written, st.permutations(["question", "draft", "id", "note"]), st.sampled_from([",", "\t"]), st.booleans())
def test_csv_round_trip(written: list[dict[str, str | None]], columns: list[str], separator: str, all: bool) -> None:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(
        file, columns, restval="", delimiter=separator, quoting=csv.QUOTE_ALL if all else csv.QUOTE_MINIMAL
    )
    writer.writeheader()
    lines = []
    for row in written:
        lines.append(file.getvalue().count("\n") + 1)
        writer.writerow({**row, "note": '"a", \n\t"b"'})
    content = file.getvalue().encode()
    if not written:
        refused_as_empty(content, InputFormat.csv)
        return
    rows = [expected(row, line) for row, line in zip(written, lines, strict=True)]
    assert read(content, name="q.tsv" if separator == "\t" else "q.CSV") == comma(content) == rows
    assert comma(BOM + content) == rows
    if not all:
        assert read(content) == rows


def test_columns_are_found_by_their_names() -> None:
    content = b"note, Draft ,QUESTION,Id,note\r\n1,So.,Why?,a,2\r\n,,How?,,\r\n, ,When?,\t,\r\n,,Who?\r\n"
    assert comma(content) == [
        Row("Why?", "So.", "a", 2),
        Row("How?", line=3),
        Row("When?", line=4),
        Row("Who?", line=5),
    ]


def test_a_record_may_take_many_lines() -> None:
    content = b'question,id\n\n"one\n\n""two""\r\nthree",1\n"a, b",2\nfour 5" six,3\n'
    assert comma(content) == [
        Row('one\n\n"two"\r\nthree', id="1", line=3),
        Row("a, b", id="2", line=7),
        Row('four 5" six', id="3", line=8),
    ]
    assert comma("question\none\u2028two\x0bthree\x1c\u0085four\n".encode())[0] == Row(
        "one\u2028two\x0bthree\x1c\u0085four", line=2
    )
    assert comma(b"question\na\0b\n") == [Row("a\0b", line=2)]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (b"Why?,a,b", "3 cells, but 2 columns; quote a cell that holds a separator"),
        (b",a", '"question" is empty'),
        (b'"  ",a', '"question" is empty'),
        (b"caf\xe9,a", "not UTF-8: the byte 0xe9 at byte 4 of line 3"),
        (b'Why?,"caf\xe9"', "not UTF-8"),
        (b'"caf\xe9\nbar",a', "not UTF-8"),
        (b'\xe9"Why?,a', "not UTF-8"),
        (b'"Why" not?,a', "not CSV: ',' expected after '\"'; in a quoted cell every quote stands twice"),
        (b"Why?\rHow?,a", "not CSV: new-line character seen in unquoted field"),
    ],
)
def test_records_that_cannot_be_used(record: bytes, said: str) -> None:
    before, rejected, *after = comma(b"question,id\nbefore,1\n" + record + b"\nafter,2\n")
    assert before == Row("before", id="1", line=2)
    assert said in reason(rejected)
    assert rejected == Rejected(3, reason(rejected), record.split(b"\n")[0].decode("utf-8", "replace").strip())
    assert after == [Row("after", id="2", line=4 + record.count(b"\n"))]


def test_a_quote_that_is_never_closed_is_rejected() -> None:
    before, rejected = comma(b'question\nbefore\n"Why?\nHow?\n')
    assert before == Row("before", line=2)
    assert "unexpected end of data" in reason(rejected)
    assert rejected == Rejected(3, reason(rejected), '"Why?')


def test_a_quote_that_is_never_closed_takes_no_more_than_a_row_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 100)
    content = b'question\n"open\n' + b"123456789\n" * 20 + b"after\n"
    rejected, *after = comma(content)
    assert rejected == Rejected(2, "longer than 100 bytes, the most that a row may have", '"open')
    assert found(after) == [*((number, "123456789") for number in range(13, 23)), (23, "after")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "q.csv holds no rows: it is empty. Give a file with questions."),
        (b"\n\n", "q.csv holds no rows"),
        (b"question\n", "q.csv holds no rows below its header"),
        (b"question,draft\n,\n\n , \n", "q.csv holds no rows below its header"),
        (b"prompt,answer\nWhy?,So.\n", 'the columns found are "prompt", "answer". Name the columns in the first line'),
        (b"question;draft\nWhy?;So.\n", 'found are "question;draft". Name the columns in the first line, with commas'),
        (b"pr\xffompt\n", "not UTF-8: the byte 0xff at byte 3"),
        (b'"question\nWhy?\n', "not CSV: unexpected end of data"),
        (b"question, Question\nWhy?,How?\n", 'q.csv has 2 columns "question". Leave one of them.'),
        (b"question,id,id\nWhy?,1,2\n", '2 columns "id"'),
    ],
)
def test_a_header_that_no_row_can_be_read_with(content: bytes, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(content, name="q.csv")
    assert said in str(error.value)
    str(error.value).encode()


def test_long_cells_are_read_and_csv_keeps_its_limit_for_others() -> None:
    limit = csv.field_size_limit()
    assert limit < 300_000
    rows = read_rows(io.BytesIO(b"question\n" + b"x" * 300_000 + b"\nWhy?\n"), InputFormat.csv, name="q")
    for length in (300_000, 4):
        row = next(rows)
        assert isinstance(row, Row)
        assert len(row.question) == length
        assert csv.field_size_limit() == limit


def test_csv_has_its_limit_back_whoever_leaves_last() -> None:
    limit = csv.field_size_limit()
    both_inside = threading.Barrier(2, timeout=10)
    rows: list[list[Row | Rejected]] = [[], []]

    def parts(number: int) -> Iterator[bytes]:
        yield b'question\n"x\n'
        both_inside.wait()
        if number == 1:
            readers[0].join(10)
            yield b"x" * 200_000
        yield b'"\n'

    def take(number: int) -> None:
        rows[number] += read_rows(stream(parts(number)), InputFormat.csv, name="pipe")

    readers = [threading.Thread(target=take, args=(number,)) for number in (0, 1)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(10)
    assert [found(read) for read in rows] == [[(2, "x\n")], [(2, "x\n" + "x" * 200_000)]]
    assert csv.field_size_limit() == limit


# Which of the two


@pytest.mark.parametrize(
    ("content", "name", "rows"),
    [
        (b"question\nWhy?\n", "standard input", [(2, "Why?")]),
        (b"\r\n id\tQuestion\n1\tWhy, though?\n", "q.txt", [(3, "Why, though?")]),
        (b"id,question\n1,Why?\n", "q.jsonl", [(2, "Why?")]),
        (b"id,prompt\n1,Why?\n", "q", [(1, None), (2, None)]),
        (b'"question"\n"Why?"\n', "q", [(1, "question"), (2, "Why?")]),
        (b'"question"\n"Why?"\n', "q.csv", [(2, "Why?")]),
        (b'"question"\n"Why, though?"\n', "q.TSV", [(2, "Why, though?")]),
        (BOM + b'{"question": "Why?"}', "question", [(1, "Why?")]),
        (b"[question,\n", "q", [(1, None), (2, None)]),
        (b"Why?\nquestion\n", "q.txt", [(1, None), (2, None)]),
        (b"question," + b"x" * 200_000, "q.txt", [(1, None)]),
    ],
)
def test_auto_goes_by_the_name_and_then_by_the_first_line(
    content: bytes, name: str, rows: list[tuple[int, str | None]]
) -> None:
    assert found(read(content, name=name)) == rows


def test_a_format_that_is_given_holds() -> None:
    assert found(read(b'{"question": "Why?"}', InputFormat.jsonl, "q.csv")) == [(1, "Why?")]
    assert found(read(b"question\nWhy?", InputFormat.jsonl, "q")) == [(1, None), (2, None)]
    assert found(read(b'"question"\nWhy?\n', InputFormat.csv, "q.jsonl")) == [(2, "Why?")]
    assert found(read(b"question\tid\nWhy, though?\t1", InputFormat.csv, "-")) == [(2, "Why, though?")]
    assert found(read(b"question,id\nWhy?\tHow?,1", InputFormat.csv, "-")) == [(2, "Why?\tHow?")]


# Streams


def endless(first: bytes) -> Iterator[bytes]:
    yield first
    for number in itertools.count():
        yield b'"number %d"\n' % number


@pytest.mark.parametrize("first", [b'{"question": "first"}\n', b"question\nfirst\n"])
def test_an_endless_stream_is_read_as_its_rows_are_taken(first: bytes) -> None:
    raw = Stream(endless(first))
    rows = read_rows(io.BufferedReader(raw), InputFormat.auto, name="standard input")
    assert raw.taken == 0
    row = next(rows)
    assert isinstance(row, Row)
    assert (row.question, raw.taken) == ("first", len(first))
    assert [row.question for row in itertools.islice(rows, 1000) if isinstance(row, Row)] == [
        f"number {number}" for number in range(1000)
    ]
    assert raw.taken < 1001 * len(b'"number 999"\n')


@pytest.mark.parametrize("format", [InputFormat.jsonl, InputFormat.csv])
def test_a_huge_line_is_rejected_in_bounded_memory(format: InputFormat) -> None:
    def parts() -> Iterator[bytes]:
        yield b"question\n" if format is InputFormat.csv else b'"before"\n'
        yield b'"'
        yield from itertools.repeat(KIB_64, 1600)
        yield b'"\n"after"\n'

    tracemalloc.start()
    try:
        *_, rejected, after = read_rows(stream(parts()), format, name="pipe")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reason(rejected) == "longer than 16,777,216 bytes, the most that a row may have"
    assert rejected == Rejected(2, reason(rejected), '"' + "x" * (EXCERPT_LENGTH - 1))
    assert after == Row("after", line=3)
    assert peak < 3 * LONGEST


@pytest.mark.parametrize("excess", [-1, 0, 1, 2])
@pytest.mark.parametrize("ended", [b"\n", b""])
def test_the_longest_row(monkeypatch: pytest.MonkeyPatch, excess: int, ended: bytes) -> None:
    limit(monkeypatch, 50)
    text = "x" * (48 - len(ended) + excess)
    after = [(2, "after")] if ended else []
    line = f'"{text}"'.encode() + ended + (b'"after"\n' if ended else b"")
    assert found(jsonl(line)) == [(1, text if excess <= 0 else None), *after]
    assert [row for _, row in found(comma(b"question\n" + line))] == [
        text if excess <= 0 else None,
        *(row for _, row in after),
    ]


@given(any_bytes, st.sampled_from(InputFormat), headers)
def test_no_bytes_stop_the_reading_and_reading_again_gives_the_same(
    content: bytes, format: InputFormat, header: bytes
) -> None:
    content = header + content
    try:
        rows = read(content, format)
    except ConfigError as error:
        no_header = format is InputFormat.csv and not header
        assert no_header or re.search(r"holds no rows|UTF-(16|32)", str(error))
        return
    assert read(content, format) == rows
    assert list(read_rows(stream(content[i : i + 1] for i in range(len(content))), format, name="-")) == rows
    lines = [row.line for row in rows]
    assert lines == sorted(set(lines))
    if not content.removeprefix(BOM).lstrip().startswith(b"["):  # of an array, the rows are numbered
        assert all(1 <= line <= content.count(b"\n") + 1 for line in lines)
    for row in rows:
        json.dumps(
            [row.question, row.draft, row.id] if isinstance(row, Row) else row.excerpt, ensure_ascii=False
        ).encode()
        assert row.question.strip() if isinstance(row, Row) else row.reason


def test_ctrl_c_passes_through() -> None:
    def parts() -> Iterator[bytes]:
        yield b'"Why?"\n'
        raise KeyboardInterrupt

    rows = read_rows(stream(parts()), InputFormat.jsonl, name="pipe")
    assert next(rows) == Row("Why?", line=1)
    with pytest.raises(KeyboardInterrupt):
        next(rows)


def test_a_file_that_cannot_be_read_on_is_named() -> None:
    def parts() -> Iterator[bytes]:
        yield b"question\nWhy?\n"
        raise OSError(5, "Input/output error")

    rows = read_rows(stream(parts()), InputFormat.auto, name="q.csv")
    assert next(rows) == Row("Why?", line=2)
    with pytest.raises(ConfigError, match=r"q\.csv cannot be read on at line 3: .*Input/output error"):
        next(rows)


# Opening and counting


def test_a_file_is_opened_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'"Why?"\n')
    with open_questions(path) as file:
        assert found(list(read_rows(file, InputFormat.auto, name=path.name))) == [(1, "Why?")]
    assert file.closed


def test_what_cannot_be_opened_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    def message(path: Path) -> str:
        with pytest.raises(ConfigError) as error, open_questions(path):
            pass
        return str(error.value)

    assert (
        message(tmp_path / "q")
        == f"{tmp_path / 'q'} does not exist. Name a file of questions, or - for standard input."
    )
    assert "is a folder. Name a file of questions" in message(tmp_path)
    assert "cannot be opened: embedded null byte" in message(tmp_path / "a\0b")
    (tmp_path / "file").touch()
    assert "cannot be opened: [Errno 20] Not a directory" in message(tmp_path / "file" / "q")
    # Root may read everything, so that the system itself need not refuse.
    monkeypatch.setattr(Path, "open", refuse)
    assert "may not be read by you. Allow it (chmod +r)" in message(tmp_path / "file")


@pytest.mark.parametrize("path", [None, Path("-")])
def test_standard_input_stays_open(monkeypatch: pytest.MonkeyPatch, path: Path | None) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"Why?"\n')))
    with open_questions(path) as file:
        assert found(list(read_rows(file, InputFormat.auto, name="standard input"))) == [(1, "Why?")]
    assert not sys.stdin.closed
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match="Standard input is closed"), open_questions(path):
        pass


def test_standard_input_that_does_not_block_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    end, begin = os.pipe()
    os.set_blocking(end, False)

    def write_the_rest() -> None:
        os.write(begin, b'o"\n')
        os.close(begin)

    with os.fdopen(end, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        os.write(begin, b'"one"\n"tw')
        with open_questions(None) as file:
            rows = read_rows(file, InputFormat.jsonl, name="standard input")
            assert next(rows) == Row("one", line=1)
            writer = threading.Timer(0.05, write_the_rest)
            writer.start()
            assert list(rows) == [Row("two", line=2)]
            writer.join()


@given(any_bytes, st.sampled_from(InputFormat), headers)
def test_as_many_rows_are_counted_as_are_read(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, format: InputFormat, header: bytes
) -> None:
    content = header + content
    path = tmp_path_factory.getbasetemp() / "q.txt"
    path.write_bytes(content)
    try:
        number = len(read(content, format, path.name))
    except ConfigError:
        assert count_rows(path, format) is None
    else:
        assert count_rows(path, format) == number


def test_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_bytes(b'question,id\n"one\ntwo",1\n\nthree,2,3\nfour,4')
    assert count_rows(path, InputFormat.auto) == 3
    assert count_rows(path, InputFormat.jsonl) == 5
    path.write_bytes(b"")
    assert count_rows(path, InputFormat.auto) is None
    assert count_rows(path, InputFormat.jsonl) is None


def test_what_cannot_be_counted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (None, Path("-"), tmp_path, tmp_path / "none", tmp_path / "pipe"):
        assert count_rows(path, InputFormat.auto) is None


# Python's own


@pytest.mark.parametrize(
    ("item", "row"),
    [
        ("Why?", Row("Why?")),
        ({"question": "Why?", "id": 7, "more": object()}, Row("Why?", id="7")),
        (UserDict({"question": "Why?", "draft": "So."}), Row("Why?", "So.")),
        (Row("Why?", "So.", "a"), Row("Why?", "So.", "a")),
        ("half \ud800", Row("half \ufffd")),
        (Row("half \ud800"), Row("half \ufffd")),
    ],
)
def test_items(item: object, row: Row) -> None:
    assert to_row(item) == row
    assert to_row(item, 7) == Row(row.question, row.draft, row.id, 7)


def test_a_row_keeps_its_line() -> None:
    assert to_row(Row("Why?", line=3)) == Row("Why?", line=3)
    rejected = to_row(Row(" ", line=3))
    assert '"question" is empty' in reason(rejected)
    assert rejected.line == 3


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (None, "the row is null"),
        (7, "the row is a number"),
        (b"Why?", "the row is of the type bytes"),
        (["Why?"], "the row is a list"),
        ("", '"question" is empty'),
        ({7: "Why?", "prompt": 1}, '"question" is missing, the keys found are "prompt"'),
        ({"question": b"Why?"}, '"question" is of the type bytes; a text is allowed'),
        ({"question": "Why?", "draft": float("nan")}, '"draft" is a number; a text or null is allowed'),
        ({"question": "Why?", "id": 10**5000}, '"id" is a number of thousands of digits'),
        ({"question": 10**5000}, '"question" is a number'),
        ({"question": "\ud800", "draft": "\ud800" * 999, "id": ()}, '"id" is of the type tuple'),
        (Row(7), '"question" is a number'),  # type: ignore[arg-type]
    ],
    ids=lambda value: type(value).__name__,
)
def test_items_that_cannot_be_used(item: object, said: str) -> None:
    rejected = to_row(item, 7)
    assert isinstance(rejected, Rejected)
    assert said in rejected.reason
    assert rejected.line == 7
    assert len(rejected.excerpt) <= EXCERPT_LENGTH
    rejected.excerpt.encode()
