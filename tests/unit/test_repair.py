"""`matrix-graph repair`: broken lines are set aside, the others stay byte for byte, and the folder is read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from matrix_graph.batch.lock import RunLock
from matrix_graph.cli import app
from matrix_graph.errors import RunLockedError, TraceError
from matrix_graph.evaluate.folder import read_records
from matrix_graph.evaluate.records import Question
from matrix_graph.records import SCHEMA_VERSION
from matrix_graph.traces import file_lock
from matrix_graph.traces.file_lock import locked_file
from matrix_graph.traces.repair import ASIDE_NAME, Broken, repair_file
from matrix_graph.traces.store import FILE_NAME, read_traces
from tests.unit.test_records import a_trace
from tests.unit.test_store import line

GOOD = [
    line(id="t1"),
    b"\n",
    line(id="t2", question="é\u2028"),
    json.dumps(json.loads(line(id="t3"))).encode() + b"\r\n",
]
BAD = [b"{oops\n", b"\xff\x00\xfe\n", line()[:100] + line(), b'{"id": "t"}\n', b"\0" * 5000 + b"\n"]


def repaired(*arguments: object) -> list[str]:
    found = CliRunner().invoke(app, ["repair", *map(str, arguments)], catch_exceptions=False)
    assert found.exit_code == 0
    return found.stdout.splitlines()


def aside(folder: Path) -> list[dict[str, object]]:
    return [json.loads(row) for row in (folder / ASIDE_NAME).read_bytes().splitlines()]


def test_broken_lines_are_set_aside_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    mixed = [GOOD[0], BAD[0], GOOD[1], BAD[1], BAD[2], GOOD[2], BAD[3], BAD[4], GOOD[3]]
    path.write_bytes(b"".join(mixed) + b'{"torn')
    path.chmod(0o600)
    with pytest.raises(TraceError, match=rf"line 2: .*\. `matrix-graph repair {path}` sets broken lines aside"):
        list(read_traces(tmp_path))
    before = path.read_bytes()

    shown = repaired(tmp_path, "--dry-run")
    assert shown[0] == f"{path}: 6 lines would be set aside in {tmp_path / ASIDE_NAME}, 3 kept"
    assert [text.split(":")[0] for text in shown[1:]] == [f"  line {number}" for number in (2, 4, 5, 7, 8, 10)]
    assert path.read_bytes() == before and not (tmp_path / ASIDE_NAME).exists()

    assert repaired(tmp_path)[0] == f"{path}: 6 lines set aside in {tmp_path / ASIDE_NAME}, 3 kept"
    assert path.read_bytes() == b"".join(GOOD) and path.stat().st_mode & 0o777 == 0o600
    assert [trace.id for trace in read_traces(tmp_path)] == ["t1", "t2", "t3"]
    rows = aside(tmp_path)
    assert [(row["file"], row["line"]) for row in rows] == [(FILE_NAME, number) for number in (2, 4, 5, 7, 8, 10)]
    assert (
        all(row["reason"] and row["set_aside_at"] for row in rows) and rows[-1]["reason"] == "torn: its end is missing"
    )
    contents = [str(row["text"]).encode("utf-8", "surrogateescape") for row in rows]
    assert contents == [content.removesuffix(b"\n") for content in BAD] + [b'{"torn']
    assert (tmp_path / ASIDE_NAME).stat().st_mode & 0o777 == 0o600

    assert repaired(tmp_path) == [f"{path}: nothing is broken, 3 lines"]
    assert len(aside(tmp_path)) == 6 and path.read_bytes() == b"".join(GOOD)


def test_lines_of_a_newer_release_are_kept(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    newer = json.dumps({**json.loads(line()), "schema_version": SCHEMA_VERSION + 1, "calls": 3}).encode() + b"\n"
    path.write_bytes(newer + BAD[0] + GOOD[0])
    assert json.loads("".join(repaired(path, "--json"))) == {
        "dry_run": False,
        "files": [
            {
                "path": str(path),
                "kept": 2,
                "newer": 1,
                "broken": [{"line": 2, "reason": json.loads(json.dumps(aside(tmp_path)[0]["reason"]))}],
            }
        ],
    }
    assert path.read_bytes() == newer + GOOD[0]
    with pytest.raises(TraceError, match="Update matrix-graph") as caught:
        list(read_traces(path))
    assert "repair" not in str(caught.value)


def test_all_files_of_an_evaluation_are_mended(tmp_path: Path) -> None:
    question = Question(id="q1", question="How?").to_line() + b"\n"
    (tmp_path / "evaluation.json").write_text("{}")
    (tmp_path / "questions.jsonl").write_bytes(question + b'{"id": "no question"}\n' + question)
    (tmp_path / "answers.jsonl").write_bytes(b"[]\n")
    (tmp_path / FILE_NAME).write_bytes(GOOD[0])
    with pytest.raises(TraceError, match=r"line 2: not a Question .*matrix-graph repair"):
        list(read_records(tmp_path / "questions.jsonl", Question))
    shown = [text for text in repaired(tmp_path) if not text.startswith("  ")]
    assert [Path(text.split(":")[0]).name for text in shown] == ["answers.jsonl", "questions.jsonl", FILE_NAME]
    assert (tmp_path / "questions.jsonl").read_bytes() == 2 * question
    assert [row["file"] for row in aside(tmp_path)] == ["answers.jsonl", "questions.jsonl"]


def test_a_file_of_any_name_is_mended_by_what_it_holds(tmp_path: Path) -> None:
    rows, traces = tmp_path / "sft.jsonl", tmp_path / "kept.jsonl"
    rows.write_bytes(b'{"messages": []}\n{oops\n[1]\n')
    traces.write_bytes(BAD[0] + GOOD[0] + b'{"messages": []}\n')
    assert repair_file(rows)[1:3] == (1, 0) and rows.read_bytes() == b'{"messages": []}\n'
    assert [broken.line for broken in repair_file(traces).broken] == [1, 3] and traces.read_bytes() == GOOD[0]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / FILE_NAME).write_bytes(GOOD[0] + BAD[0])
    (tmp_path / FILE_NAME).symlink_to(tmp_path / "disk" / FILE_NAME)
    assert repair_file(tmp_path / FILE_NAME).broken[0].line == 2
    assert (tmp_path / FILE_NAME).is_symlink() and (tmp_path / "disk" / FILE_NAME).read_bytes() == GOOD[0]


@pytest.mark.parametrize("option", [[], ["--dry-run"]])
def test_nothing_is_repaired_while_a_run_writes(tmp_path: Path, option: list[str]) -> None:
    (tmp_path / FILE_NAME).write_bytes(GOOD[0] + BAD[0])
    with RunLock(tmp_path):
        for place in (tmp_path, tmp_path / FILE_NAME):
            found = CliRunner().invoke(app, ["repair", str(place), *option])
            assert isinstance(found.exception, RunLockedError) and "A run writes to" in str(found.exception)
    assert (tmp_path / FILE_NAME).read_bytes() == GOOD[0] + BAD[0]


def test_a_writer_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILE_NAME).write_bytes(GOOD[0] + BAD[0])
    monkeypatch.setattr(file_lock, "LOCK_SECONDS", 0.05)
    with locked_file(tmp_path / FILE_NAME), pytest.raises(TraceError, match=r"has kept .* locked"):
        repair_file(tmp_path / FILE_NAME)
    assert repair_file(tmp_path / FILE_NAME).broken[0].line == 2


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(GOOD[0] + BAD[0])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("matrix_graph.traces.repair.os.fsync", full)
        with pytest.raises(TraceError, match="No space left"):
            repair_file(path)
    assert path.read_bytes() == GOOD[0] + BAD[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == [ASIDE_NAME, FILE_NAME]


def test_nothing_to_repair_is_said(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["repair", str(tmp_path)])
    assert found.exception is not None and "holds no JSON lines file" in str(found.exception)
    (tmp_path / FILE_NAME).write_bytes(b"")
    assert repaired(tmp_path) == [f"{tmp_path / FILE_NAME}: nothing is broken, 0 lines"]
    assert repair_file(tmp_path / FILE_NAME).broken == [] != [Broken(1, "")]


def test_what_was_read_before_is_read_after(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(a_trace(id="whole").to_json_line().encode())
    assert repair_file(tmp_path / FILE_NAME).kept == 1
    assert [trace.id for trace in read_traces(tmp_path)] == ["whole"]
