"""Files of rows that are written: as their names say; and files that a command must not read, since it writes them."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from matrix_graph.align.runner import align
from matrix_graph.batch.folder import OWN_FILES
from matrix_graph.errors import ConfigError
from matrix_graph.files import refuse_own_files
from matrix_graph.options import require_folder
from matrix_graph.tables import Columns, read_table
from matrix_graph.traces.export import ExportFormat, ExportOptions, FileType, Include, export_runs
from matrix_graph.train.rows import read_chats
from tests.unit.test_export_runs import rows_of, run_of, varied
from tests.unit.test_records import a_trace

NAMES = ["rows.json", "rows.jsonl", "rows.ndjson", "rows.jsonl.gz", "rows.JSON.gz", "rows"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_of(tmp_path / "run", *(varied(number) for number in range(8)))


def contents(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, read by other means than this package's."""
    data = path.read_bytes()
    name = path.name.lower()
    if name.endswith(".gz"):
        data, name = gzip.decompress(data), name[:-3]
    if name.endswith(".json"):
        rows: list[dict[str, Any]] = json.loads(data)
        return rows
    return [json.loads(line) for line in data.decode().split("\n") if line]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("format", [ExportFormat.messages, ExportFormat.alpaca])
def test_a_file_is_what_its_name_says(run: Path, tmp_path: Path, name: str, format: ExportFormat) -> None:
    options = ExportOptions.of(format=format, parts=frozenset({Include.answers, Include.scene}))
    export_runs([run], tmp_path / "expected.jsonl", options)
    summary = export_runs([run], tmp_path / name, options, card=False)
    assert contents(tmp_path / name) == rows_of(tmp_path / "expected.jsonl")
    assert summary.files[0].bytes == (tmp_path / name).stat().st_size
    again = tmp_path / "again"
    again.mkdir()
    export_runs([run], again / name, options, card=False)
    assert (again / name).read_bytes() == (tmp_path / name).read_bytes()
    assert list(read_chats(tmp_path / name)) == list(read_chats(tmp_path / "expected.jsonl"))


@pytest.mark.parametrize(("name", "separator"), [("rows.csv", ","), ("rows.tsv", "\t"), ("rows.csv.gz", ",")])
def test_tables_of_texts(tmp_path: Path, name: str, separator: str) -> None:
    answer = 'Kindly, "so",\tand\rnot\r\notherwise.\n'
    run = run_of(tmp_path / "run", a_trace(answer=answer))
    options = ExportOptions.of(format=ExportFormat.alpaca)
    export_runs([run], tmp_path / "expected.jsonl", options)
    export_runs([run], tmp_path / name, options)
    data = (tmp_path / name).read_bytes()
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
    (read,) = csv.DictReader(text.splitlines(keepends=True), delimiter=separator)
    (expected,) = rows_of(tmp_path / "expected.jsonl")
    assert read == {name: str(value) for name, value in expected.items()}
    assert read["output"] == answer
    assert list(read_chats(tmp_path / name)) == list(read_chats(tmp_path / "expected.jsonl"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rows.txt", r"no rows are written as \.txt\. Give a name that ends in \.jsonl, \.json, \.csv or \.tsv"),
        ("rows.xlsx", r"no rows are written as \.xlsx"),
        ("rows.parquet.gz", "Parquet is packed already"),
        ("rows.csv", "CSV holds texts and numbers alone, and messages, taught of each row is a list"),
        ("rows.tsv", "TSV holds texts and numbers alone"),
    ],
)
def test_a_name_that_cannot_be_written_as(run: Path, tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        export_runs([run], tmp_path / name)
    assert not [path for path in tmp_path.iterdir() if "rows" in path.name]


def test_what_is_asked_for_counts_more_than_the_name(run: Path, tmp_path: Path) -> None:
    export_runs([run], tmp_path / "rows.txt", file_type=FileType.json)
    assert len(json.loads((tmp_path / "rows.txt").read_bytes())) == 8


def test_rows_for_validation_have_the_whole_ending(run: Path, tmp_path: Path) -> None:
    export_runs([run], tmp_path / "rows.jsonl.gz", ExportOptions.of(validation=0.5))
    train, held = contents(tmp_path / "rows.jsonl.gz"), contents(tmp_path / "rows.validation.jsonl.gz")
    assert (len(train) + len(held), bool(train), bool(held)) == (8, True, True)


def test_what_is_written_is_read_by_the_one_reader(run: Path, tmp_path: Path) -> None:
    export_runs([run], tmp_path / "rows.json.gz")
    with (tmp_path / "rows.json.gz").open("rb") as file:
        values = [entry.value for entry in read_table(file, Columns((("messages",),)), name="rows.json.gz")]
    assert values == contents(tmp_path / "rows.json.gz")


# ---- a command's own files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["traces.jsonl", "rejected.jsonl", "failed.jsonl", "settings.json", "summary.json"])
def test_a_run_does_not_read_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    own = out / name
    own.write_text("{}\n")
    hard, soft, folder = tmp_path / "hard.jsonl", tmp_path / "soft.jsonl", tmp_path / "folder"
    os.link(own, hard)
    soft.symlink_to(own)
    folder.symlink_to(out)
    monkeypatch.chdir(tmp_path)
    for path in (own, hard, soft, folder / name, Path("out") / name, out / "deep" / ".." / name):
        for given in (out, Path("out"), folder):
            with pytest.raises(ConfigError, match=r"this command writes itself.* Copy it elsewhere and give the copy"):
                refuse_own_files([path], given, OWN_FILES)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(own.read_bytes())
    mine = out / "mine.jsonl"
    mine.write_text("{}\n")
    refuse_own_files([copy, mine, tmp_path / "none", Path("Anthropic/hh-rlhf")], out, OWN_FILES)


def test_a_run_does_not_read_what_it_writes_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "rejected.jsonl"
    own.write_text("{}\n")
    with own.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(ConfigError, match=f"Standard input is {own}, a file that this command writes itself"):
            refuse_own_files([Path("-")], tmp_path, OWN_FILES)
        refuse_own_files([Path("-")], tmp_path / "other", OWN_FILES)


def test_an_alignment_does_not_read_what_it_writes(tmp_path: Path) -> None:
    own = tmp_path / "out" / "run" / "rejected.jsonl"
    own.parent.mkdir(parents=True)
    own.write_text("{}\n")
    with pytest.raises(ConfigError, match="this command writes itself"):
        align(own, tmp_path / "out")


def test_a_folder_is_not_called_as_a_file(tmp_path: Path) -> None:
    for name in ("x.json", "x.jsonl", "x.csv", "x.parquet", "x.jsonl.gz"):
        with pytest.raises(ConfigError, match=rf"{name} reads as a file.* Name a folder, such as {tmp_path / 'x'}\."):
            require_folder(tmp_path / name, results=True)
        assert not (tmp_path / name).exists()
        require_folder(tmp_path / name)
        require_folder(tmp_path / name, results=True)  # it is there: go on in it
    require_folder(tmp_path / "v1.5", results=True)
