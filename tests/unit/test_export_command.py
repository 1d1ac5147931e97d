"""The command: what it prints where, how options become an export, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from matrix_graph.commands import export as export_command
from matrix_graph.errors import ConfigError, ExportError
from tests.unit.test_export_runs import rows_of, run_of, varied
from tests.unit.test_records import a_trace

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(export_command.export)


def called(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_of(tmp_path / "run", *(varied(number) for number in range(30)), varied(1))


def test_rows_on_standard_output_the_rest_beside(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    done = called(run, "--format", "messages", "--include", "scene", "--out", out)
    assert (done.exit_code, done.stdout) == (0, f"{len(rows_of(out))} rows in {out}\n")
    assert "left out: 4 duplicate" in done.stderr
    assert {row["kind"] for row in rows_of(out)} == {"answer", "role", "modulator"}


def test_json(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    told = json.loads(called(run, "-o", out, "--validation", "0.2", "--json").stdout)
    assert (told["rows"], told["out"], told["format"]) == (30, str(out), "messages")
    assert [file["split"] for file in told["files"]] == ["train", "validation"] and told["dropped"] == {"duplicate": 1}


def test_validation_and_card_are_told_of(run: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    done = called(run, "--out", tmp_path / "rows.jsonl", "--validation", "0.2")
    first, second = done.stdout.splitlines()
    assert first.endswith("rows.jsonl") and second.endswith(f"rows in {tmp_path / 'rows.validation.jsonl'}")
    assert "README.md there is another's" in done.stderr and (tmp_path / "rows.README.md").exists()


def test_only_leaves_the_answers_out(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    called(run, "--out", out, "--only", "cast", "--only", "consequences", "--no-card")
    assert {row["kind"] for row in rows_of(out)} == {"cast", "consequence"} and not (tmp_path / "README.md").exists()
    with pytest.raises(ConfigError, match="give one of the two"):
        called(run, "--out", out, "--only", "cast", "--include", "roles")


def test_a_mix_from_the_command_line(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    done = called(run, "--out", out, "--mix", "harmful=5,simulation=1000", "--seed", "3")
    assert [row["kind"] for row in rows_of(out)].count("answer") == 5
    assert "Note: The mix wants 1000 rows of simulation; only 180 are there." in done.stderr


def test_progress_in_a_pipe(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_command, "_LINE_SECONDS", 0.0)
    done = called(run, "--out", tmp_path / "rows.jsonl", "--json")
    assert "MB read, about 0 s left" in done.stderr and json.loads(done.stdout)


def test_nothing_to_export(tmp_path: Path) -> None:
    failed = a_trace(status="failed", error={"type": "E", "message": "m"})
    with pytest.raises(ExportError, match="all 1 failed"):
        called(run_of(tmp_path / "run", failed), "--out", tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--format", "csv"), "'csv' is not one of"),
        (("--include", "everything"), "'everything' is not one of"),
        (("--validation", "1"), "--validation"),
        (("--max-length", "0"), "--max-length"),
    ],
)
def test_options_that_are_refused(run: Path, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = called(run, "--out", tmp_path / "rows.jsonl", *arguments)
    assert done.exit_code == 2 and says in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "rows.jsonl").exists()
