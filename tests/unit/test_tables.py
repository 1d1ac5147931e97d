"""Tables: the same file gives the same outcome in every command that reads one."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from matrix_graph.align.serving import held_out_questions
from matrix_graph.batch.questions import InputFormat, check_questions, count_rows, open_questions, read_rows
from matrix_graph.batch.rows import Row
from matrix_graph.errors import ConfigError, ExportError, MatrixGraphError, PrerequisiteError
from matrix_graph.evaluate.loaders import load_questions
from matrix_graph.tables import Columns, id_text, read_table
from matrix_graph.traces.export.helpful import helpful_pieces
from matrix_graph.train.errors import TrainingError
from matrix_graph.train.rows import read_chats, read_pairs

BOM = b"\xef\xbb\xbf"
WIDE = "one\u2028two\u2029three\u0085four\x7f"
ODD = "one\u2028two\u2029three\x0bfour\x0cfive\u0085six\x1cseven"
LONG = "word " * 40_000
HUGE = b"9" * 5000
DEEP = b"[" * 100_000 + b"]" * 100_000


@dataclass(frozen=True)
class Use:
    """A command, the columns that it calls FIRST, SECOND and THIRD here, and how it reads them."""

    columns: tuple[str, str, str]
    error: type[MatrixGraphError]
    read: Callable[[Path], list[str]]


def _run(path: Path) -> list[str]:
    """As `run`: the rest is played; what was rejected is raised in the end, so that it can be compared."""
    with open_questions(path) as file:
        rows = list(read_rows(file, InputFormat.auto, name=path.name))
    assert count_rows(path, InputFormat.auto) == len(rows)
    check_questions(path, InputFormat.auto)
    questions = [row.question for row in rows if isinstance(row, Row)]
    rejected = [row for row in rows if not isinstance(row, Row)]
    if rejected:
        assert questions == ["one", "three"][: len(questions)]
        raise ConfigError("; ".join(f"line {row.line}: {row.reason}" for row in rejected))
    return questions


def _held_out(path: Path) -> list[str]:
    job: Any = type("Job", (), {"options": type("Options", (), {"held_out": path})()})()
    return [question.question for question in held_out_questions(job)]


USES = {
    "run": Use(("question", "draft", "note"), ConfigError, _run),
    "evaluate": Use(
        ("question", "reference", "category"), ConfigError, lambda path: [q.question for q in load_questions([path])]
    ),
    "evaluate --pairs": Use(
        ("question", "chosen", "rejected"),
        ConfigError,
        lambda path: [q.question for q in load_questions([path], answered=False)],
    ),
    "align --questions": Use(("question", "reference", "category"), ConfigError, _held_out),
    "export --helpful": Use(
        ("question", "answer", "note"), ExportError, lambda path: [piece.question for piece in helpful_pieces(path)]
    ),
    "train": Use(
        ("prompt", "completion", "note"),
        TrainingError,
        lambda path: [c.messages[0]["content"] for c in read_chats(path)],
    ),
    "train, alpaca": Use(
        ("instruction", "output", "note"),
        TrainingError,
        lambda path: [c.messages[0]["content"] for c in read_chats(path)],
    ),
    "train --method dpo": Use(
        ("prompt", "chosen", "rejected"), TrainingError, lambda path: [p.prompt[0]["content"] for p in read_pairs(path)]
    ),
}


@pytest.fixture(params=USES, ids=lambda name: name.replace(" ", "_"))
def use(request: pytest.FixtureRequest) -> Use:
    return USES[request.param]


def named(content: bytes, use: Use) -> bytes:
    """A table with the columns of a command."""
    for word, column in zip((b"FIRST", b"SECOND", b"THIRD"), use.columns, strict=True):
        content = content.replace(word, column.encode()).replace(word.title(), column.title().encode())
    return content


def row(text: str = "one", **more: object) -> str:
    return json.dumps({"FIRST": text, "SECOND": "Yes.", "THIRD": "No.", **more}, ensure_ascii=False)


def lines(*texts: str, end: str = "\n") -> bytes:
    return "".join(row(text) + end for text in texts).encode()


def comma(*records: str, end: str = "\n") -> bytes:
    return end.join(["FIRST,SECOND,THIRD", *records, ""]).encode()


TWO = ["one", "two"]
CSV = comma("one,Yes.,No.", "two,Yes.,No.")
TSV = CSV.replace(b",", b"\t")
ARRAY = b"[" + row("one").encode() + b"," + row("two").encode() + b"]"
PRETTY = json.dumps([json.loads(row("one")), json.loads(row("two"))], indent=2).encode()

GOOD: dict[str, tuple[str, bytes, list[str]]] = {
    "lines": ("q.jsonl", lines("one", "two"), TWO),
    "lines, named otherwise": ("q.ndjson", lines("one", "two"), TWO),
    "lines called json": ("q.json", lines("one", "two"), TWO),
    "CRLF": ("q.jsonl", lines("one", "two", end="\r\n"), TWO),
    "mark": ("q.jsonl", BOM + lines("one", "two"), TWO),
    "no last line end": ("q.jsonl", lines("one", "two").rstrip(), TWO),
    "blank lines": ("q.jsonl", b"\n \t\r\n" + lines("one") + b"\n\x0c\n" + lines("two") + b"\n\n", TWO),
    "packed lines": ("q.jsonl.gz", gzip.compress(lines("one", "two")), TWO),
    "packed in two parts": ("q.jsonl.gz", gzip.compress(lines("one")) + gzip.compress(lines("two")), TWO),
    "packed, unsaid": ("q.jsonl", gzip.compress(lines("one", "two")), TWO),
    "packed with mark": ("q.csv.gz", gzip.compress(BOM + CSV), TWO),
    "not packed": ("q.csv.gz", CSV, TWO),
    "array": ("q.json", ARRAY, TWO),
    "pretty array": ("q.json", PRETTY, TWO),
    "array with mark": ("q.json", BOM + b"\r\n " + PRETTY + b"\n", TWO),
    "packed array": ("q.json.gz", gzip.compress(PRETTY), TWO),
    "array called lines": ("q.jsonl", PRETTY, TWO),
    "one pretty object": ("q.json", json.dumps(json.loads(row("one")), indent=1).encode(), ["one"]),
    "brackets in an array's texts": (
        "q.json", b"[" + row('a]}," \\').encode() + b",\n" + row("[{b").encode() + b"]", ['a]}," \\', "[{b"],
    ),
    "csv": ("q.csv", CSV, TWO),
    "csv CRLF and mark": ("q.CSV", BOM + CSV.replace(b"\n", b"\r\n"), TWO),
    "packed csv": ("Q.CSV.GZ", gzip.compress(CSV), TWO),
    "tsv": ("q.tsv", TSV, TWO),
    "packed tsv": ("q.tsv.gz", gzip.compress(TSV), TWO),
    "csv by its header": ("q.txt", CSV, TWO),
    "tsv by its header": ("q", TSV, TWO),
    "packed csv by its header": ("q.dat", gzip.compress(CSV), TWO),
    "lines by their first line": ("q", lines("one", "two"), TWO),
    "folded header": ("q.csv", b'First," SECOND ",Third \none,Yes.,No.\n', ["one"]),
    "blank rows": ("q.csv", comma("", ",,", "one,Yes.,No.", " , ,\t", ",,,,,", "two,Yes.,No.", ",,"), TWO),
    "columns without a name": ("q.csv", b"FIRST,SECOND,THIRD,,\none,Yes.,No.,,\ntwo,Yes.,No.\n", TWO),
    "quoted": ("q.csv", comma('"a, ""b""\n\nc",Yes.,No.'), ['a, "b"\n\nc']),
    "long cell": ("q.csv", comma(f'"{LONG}",Yes.,No.'), [LONG]),
    "long line": ("q.jsonl", lines(LONG), [LONG]),
    "odd separators in a line": ("q.jsonl", lines(WIDE, "two"), [WIDE, "two"]),
    "odd separators escaped": ("q.jsonl", row(ODD).encode(), [ODD]),
    "odd separators in a cell": ("q.csv", comma(f"{ODD},Yes.,No.", "two,Yes.,No."), [ODD, "two"]),
    "NUL in a cell": ("q.csv", comma("a\0b,Yes.,No."), ["a\0b"]),
    "NUL in a line": ("q.jsonl", row("a\0b").encode(), ["a\0b"]),
    "lone surrogate": ("q.jsonl", row("@").encode().replace(b"@", b"\\ud800 \\ud83d\\ude00"), ["\ufffd \U0001f600"]),
    "lone surrogate in an array": ("q.json", b"[" + row("@").encode().replace(b"@", b"\\uDFFFa") + b"]", ["\ufffda"]),
    "NaN in a column that nobody reads": (
        "q.jsonl", row("one").encode()[:-1] + b', "score": NaN, "most": -Infinity}', ["one"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_what_every_command_reads(use: Use, case: str, tmp_path: Path) -> None:
    name, content, expected = GOOD[case]
    packed = content.startswith(b"\x1f\x8b")
    content = gzip.compress(named(gzip.decompress(content), use)) if packed else named(content, use)
    path = tmp_path / name
    path.write_bytes(content)
    assert use.read(path) == expected


def parquet_file(path: Path, rows: list[dict[str, object]]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["q.parquet", "q.pq", "q", "q.parquet.gz"])
def test_parquet_in_every_command(use: Use, name: str, tmp_path: Path) -> None:
    first, second, third = use.columns
    rows: list[dict[str, object]] = [{first.title(): text, second: "Yes.", f" {third}": "No."} for text in TWO]
    blank: dict[str, object] = dict.fromkeys(rows[0])
    content = parquet_file(tmp_path / "made", [blank, rows[0], blank, *rows[1:]])
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert use.read(tmp_path / name) == TWO


def test_parquet_that_lacks_a_column(use: Use, tmp_path: Path) -> None:
    parquet_file(tmp_path / "q.parquet", [{"text": "one"}])
    with pytest.raises(use.error, match=r'q\.parquet has no column.*: the columns found are "text"\. Name a column so'):
        use.read(tmp_path / "q.parquet")


THREE = lines("one") + b"%s\n" + lines("three")
BROKEN: dict[str, tuple[str, bytes, str, str]] = {
    "surplus cells": (
        "q.csv", comma("one,Yes.,No.", "two, exactly,Yes.,No.", "three,Yes.,No."),
        "row 2 (line 3)", "4 cells, but 3 columns; quote a cell that holds a separator",
    ),
    "surplus cells of a tsv": (
        "q.tsv", comma("one,Yes.,No.", "two,exactly,Yes.,No.").replace(b",", b"\t"),
        "row 2 (line 3)", "4 cells, but 3 columns",
    ),
    "surplus blank cells": ("q.csv", comma("one,Yes.,No.", "two,Yes.,No.,"), "row 2 (line 3)", "4 cells, but 3"),
    "after a row of two lines": (
        "q.csv", comma('"one",Yes.,"No.\n\n"', "a,b,c,d", "three,Yes.,No."), "row 2 (line 5)", "4 cells, but 3 columns",
    ),
    "no UTF-8 in a cell": (
        "q.csv", comma("one,Yes.,No.", '"cafE,Yes.\n",No.').replace(b"fE", b"f\xe9"),
        "row 2 (line 3)", "not UTF-8: the byte 0xe9 at byte 5 of line 3; save the file as UTF-8",
    ),
    "no UTF-8 in a line": (
        "q.jsonl", THREE % b'{"FIRST": "caf\xe9"}', "line 2", "not UTF-8: the byte 0xe9 at byte",
    ),
    "no UTF-8 in an array": (
        "q.json", b"[" + row("one").encode() + b',\n{"FIRST": "caf\xe9"}, ' + row("three").encode() + b"]",
        "row 2", "not UTF-8: the byte 0xe9 at byte",
    ),
    "a quote that is not closed": ("q.csv", comma("one,Yes.,No.", '"two,Yes.,No.'), "row 2 (line 3)", "not CSV"),
    "no JSON": ("q.jsonl", THREE % b'{"FIRST": "two"', "line 2", "not JSON: Expecting ',' delimiter"),
    "no JSON in an array": (
        "q.json", b"[" + row("one").encode() + b', {"FIRST": two},' + row("three").encode() + b"]",
        "row 2", "not JSON: Expecting value",
    ),
    "an array with a comma too much": ("q.json", b"[" + row("one").encode() + b",\n]", "row 2", "a comma of the JSON"),
    "an array that ends early": ("q.json", b"[" + row("one").encode() + b",", "row 2", "a closing ] is missing"),
    "text after an array": ("q.json", b"[" + row("one").encode() + b"] x", "row 2", "after the end of the JSON array"),
    "nested deep": ("q.jsonl", THREE % (b'{"FIRST": "two", "more": ' + DEEP + b"}"), "line 2", "nested too deep"),
    "a huge number": ("q.jsonl", THREE % (b'{"FIRST": "two", "n": ' + HUGE + b"}"), "line 2", "not JSON: a number of"),
    "a list": ("q.jsonl", THREE % b"[1]", "line 2", "list"),
    "null": ("q.jsonl", THREE % b"null", "line 2", "null"),
    "other keys": ("q.jsonl", THREE % b'{"other": "two"}', "line 2", "other"),
    "a line as long as a file": (
        "q.jsonl", THREE % (b'{"FIRST": "' + b"x" * 3000 + b'"}'), "line 2", "longer than 2,000 bytes",
    ),
    "an element as long as a file": (
        "q.json", b"[" + row("one").encode() + b',"' + b"x" * 3000 + b'",' + row("three").encode() + b"]",
        "row 2", "longer than 2,000 bytes",
    ),
    "a packed line as long as a file": (
        "q.jsonl.gz", THREE % (b'{"FIRST": "' + b"x" * 3000 + b'"}'), "line 2", "longer than 2,000 bytes",
    ),
    "a cell as long as a file": (
        "q.csv", comma("one,Yes.,No.", "x" * 3000 + ",Yes.,No.", "three,Yes.,No."),
        "row 2 (line 3)", "longer than 2,000 bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row_is_named_by_every_command(
    use: Use, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content, where, why = BROKEN[case]
    if "as long as a file" in case:
        monkeypatch.setattr("matrix_graph.tables.pieces.LONGEST", 2000)
    content = named(content, use)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(use.error) as error:
        use.read(path)
    said = str(error.value)
    assert why in said
    if use is USES["run"]:
        line = where.partition("(")[2].rstrip(")") or where.replace("row", "line")
        assert f"{line}: " in said
        assert said.count("line ") - said.count("of line ") == 1  # the others are played
    else:
        assert f"{path}, {where}: " in said


@pytest.mark.parametrize("text", ["", " \\t"])
def test_a_text_that_is_needed_is_not_blank(use: Use, text: str, tmp_path: Path) -> None:
    blank = text.encode().decode("unicode_escape")
    for name, content, where in (
        ("q.csv", comma("one,Yes.,No.", f"{blank},Yes.,No."), "line 3"),
        ("q.jsonl", lines("one", blank), "line 2"),
    ):
        path = tmp_path / name
        path.write_bytes(named(content, use))
        with pytest.raises(use.error, match=rf"{where}\)?: .*(empty|no question and answer)"):
            use.read(path)


@pytest.mark.parametrize(
    "use", [USES["export --helpful"], USES["train"], USES["train, alpaca"], USES["train --method dpo"]]
)
def test_a_missing_answer_is_not_learnt(use: Use, tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_bytes(named(comma("one,Yes.,No.", "two"), use))
    with pytest.raises(use.error, match=r"row 2 \(line 3\): .*(empty|no question and answer)"):
        use.read(path)


UNREADABLE: dict[str, tuple[str, bytes, str]] = {
    "empty": ("q.jsonl", b"", "q.jsonl holds no rows: it is empty"),
    "empty csv": ("q.csv", b"", "q.csv holds no rows: it is empty"),
    "empty parquet": ("q.parquet", b"", "q.parquet holds no rows: it is empty"),
    "empty, packed": ("q.jsonl.gz", gzip.compress(b""), "q.jsonl.gz holds no rows"),
    "empty, not even packed": ("q.jsonl.gz", b"", "q.jsonl.gz holds no rows"),
    "mark alone": ("q.jsonl", BOM, "holds no rows"),
    "blank lines": ("q.jsonl", b"\n \r\n\t\n", "holds no rows"),
    "empty array": ("q.json", b" [ \n]\n", "q.json holds no rows"),
    "header alone": ("q.csv", comma(), "q.csv holds no rows below its header"),
    "header and blank rows": ("q.csv", comma(",,", "", " , ,"), "holds no rows below its header"),
    "packed header": ("q.tsv.gz", gzip.compress(b"FIRST\tSECOND\tTHIRD\n"), "holds no rows below its header"),
    "UTF-16": ("q.csv", CSV.decode().encode("utf-16"), "q.csv is UTF-16, not UTF-8. Save it as UTF-8"),
    "UTF-16, big end first": ("q.jsonl", b"\xfe\xff" + row().encode("utf-16-be"), "q.jsonl is UTF-16, not UTF-8"),
    "UTF-16 without a mark": ("q.jsonl", lines("one").decode().encode("utf-16-le"), "is UTF-16 by the look of it"),
    "UTF-16 array": ("q.json", PRETTY.decode().encode("utf-16"), "q.json is UTF-16, not UTF-8"),
    "packed UTF-16": ("q.csv.gz", gzip.compress(CSV.decode().encode("utf-16")), "is UTF-16, not UTF-8"),
    "UTF-32": ("q.csv", CSV.decode().encode("utf-32"), "is UTF-32, not UTF-8"),
    "workbook": ("q.csv", b"PK\x03\x04\x14\0\0\0\x08\0", "is an Excel workbook or another zip file"),
    "no column": ("q.csv", b"a,b\n1,2\n", 'the columns found are "a", "b". Name the columns in the first line'),
    "semicolons": ("q.csv", CSV.replace(b",", b";"), "Name the columns in the first line, with commas between them"),
    "two columns of one name": ("q.csv", b"FIRST,SECOND,THIRD, First \none,Yes.,No.,two\n", 'q.csv has 2 columns "'),
    "torn": ("q.jsonl.gz", b"\x1f\x8b", "q.jsonl.gz cannot be read on at line"),
    "packed twice": ("q.jsonl.gz", gzip.compress(gzip.compress(lines("one"))), "q.jsonl.gz is packed twice"),
    "no Parquet": ("q.parquet", b"PAR1 and no more", "q.parquet is no Parquet file that can be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_no_command_reads(use: Use, case: str, tmp_path: Path) -> None:
    name, content, why = UNREADABLE[case]
    if case == "no Parquet":
        pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    packed = name.endswith(".gz") or content.startswith(b"\x1f\x8b")
    path = tmp_path / name
    path.write_bytes(content if packed or "UTF" in case else named(content, use))
    if case == "packed header":
        path.write_bytes(gzip.compress(named(gzip.decompress(content), use)))
    if case == "torn":
        path.write_bytes(gzip.compress(named(lines("one") * 99, use))[:-9])
    with pytest.raises(use.error) as error:
        use.read(path)
    assert why in str(error.value)
    str(error.value).encode()


def test_what_is_not_there(use: Use, tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(use.error) as error:
            use.read(path)
        assert str(path) in str(error.value)


def test_parquet_names_its_package(use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    path = tmp_path / "q.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(PrerequisiteError, match=r"pip install 'matrix-graph\[parquet\]'"):
        use.read(path)


# Ids


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1", "1"), ("1.0", "1"), ("-0.0", "0"), ("1.5", "1.5"), ("1e300", "1e+300"), ("12345678901234567890",) * 2,
        ("true", "true"), ("false", "false"), ('" a "', " a "), ('"\\ud800"', "\ufffd"),
        ("NaN", None), ("null", None), ('""', None), ('" "', None),
    ],
)  # fmt: skip
def test_ids_of_any_scalar_are_the_same_in_run_and_evaluation(value: str, text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(f'{{"question": "one", "id": {value}}}\n{{"question": "two", "id": "other"}}\n')
    with open_questions(path) as file:
        first, _ = read_rows(file, InputFormat.auto, name=path.name)
    question, _ = load_questions([path])
    assert isinstance(first, Row)
    assert first.id == text
    assert question.id == text or (text is None and len(question.id) == 16)


def test_ids_of_a_parquet_column_with_gaps(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    parquet_file(path, [{"question": "one", "id": 1.0}, {"question": "two", "id": None}])
    with open_questions(path) as file:
        assert [row.id for row in read_rows(file, InputFormat.auto, name="q") if isinstance(row, Row)] == ["1", None]
    assert load_questions([path])[0].id == "1"


def test_blank_cells_of_what_may_be_left_out_are_none(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(
        "id,question,chosen,rejected,reference,harmful,category,draft\n ,one,, ,,,,\n2,two,a,b,c,FALSE,d,e\n"
    )
    one, two = load_questions([path])
    assert len(one.id) == 16
    assert (one.chosen, one.rejected, one.reference, one.harmful, one.category) == (None,) * 5
    assert (two.id, two.chosen, two.rejected, two.reference, two.harmful, two.category) == (
        "2", "a", "b", "c", False, "d",
    )  # fmt: skip
    with open_questions(path) as file:
        assert list(read_rows(file, InputFormat.auto, name="q.csv")) == [
            Row("one", line=2), Row("two", "e", "2", line=3),
        ]  # fmt: skip


def test_an_id_that_is_no_scalar() -> None:
    from matrix_graph.tables import UnusableError

    for value in ([], {}, b"", object()):
        with pytest.raises(UnusableError, match="a text, a number or null is allowed"):
            id_text(value)


# One by one


class Parts(io.RawIOBase):
    """A pipe that gives its parts, and counts the bytes that were taken."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = next(self._parts, b"")
        buffer[: len(part)] = part
        self.taken += len(part)
        return len(part)


def test_an_endless_array_is_read_as_its_rows_are_taken() -> None:
    def parts() -> Iterator[bytes]:
        yield b"[\n"
        number = 0
        while True:
            yield b'{"question": "%d"},\n' % number
            number += 1

    raw = Parts(parts())
    entries = read_table(io.BufferedReader(raw), Columns((("question",),)), name="-")
    assert raw.taken == 0
    for number in range(1000):
        assert next(entries).value == {"question": str(number)}
    assert raw.taken == len("[\n") + sum(len(f'{{"question": "{number}"}},\n') for number in range(1000))


@pytest.mark.parametrize("kind", ["lines", "array", "packed"])
def test_cut_anywhere_it_is_the_same(kind: str) -> None:
    content = {"lines": lines("one", "two\U0001f600"), "array": PRETTY, "packed": gzip.compress(PRETTY)}[kind]
    columns = Columns((("FIRST",),))
    whole = [entry.value for entry in read_table(io.BytesIO(content), columns, name="-")]
    assert len(whole) == 2
    pieces = (content[at : at + 1] for at in range(len(content)))
    assert [entry.value for entry in read_table(io.BufferedReader(Parts(pieces)), columns, name="-")] == whole


def test_a_pipe_of_parquet_and_of_packed_lines(tmp_path: Path) -> None:
    columns = Columns((("question",),))
    content = parquet_file(tmp_path / "made", [{"question": "one"}])
    for data in (content, gzip.compress(content), gzip.compress(b'{"question": "one"}\n')):
        file = io.BufferedReader(Parts(data[at : at + 100] for at in range(0, len(data), 100)))
        assert [entry.value for entry in read_table(file, columns, name="-")] == [{"question": "one"}]
