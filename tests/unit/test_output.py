"""Standard output that is closed, full or gone: nothing raises, what was to be kept is kept, and the code is right."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from matrix_graph.live import safe
from matrix_graph.records import escaped

ROOT = Path(__file__).parents[2]

# A command that says something, keeps something, says more, and ends with a code.
PROGRAM = """
import sys
from pathlib import Path
import typer
from matrix_graph import cli
def keep(path: Path, code: int = 0) -> None:
    for number in range(2000):
        typer.echo(f"line {number}")
    sys.stdout.flush()
    typer.echo("on the way", err=True)
    path.write_text("kept")
    typer.echo(b"bytes")
    raise typer.Exit(code)
cli.app.command()(keep)
cli.main()
"""


def command(path: Path, redirection: str, code: int = 0) -> tuple[int, str]:
    """Exit code and standard error of the program under a shell's redirection."""
    done = subprocess.run(
        [
            "bash",
            "-c",
            f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}',
            "-",
            sys.executable,
            "-c",
            PROGRAM,
            "keep",
            str(path),
            "--code",
            str(code),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )
    assert path.read_text() == "kept"
    return done.returncode, done.stderr


FULL = "Error: Standard output cannot be written: No space left on device. What was to be kept on disk is kept.\n"
CLOSED = FULL.replace("No space left on device", "it is closed")


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        ("| head -1", 0, "on the way\n"),
        ("| true", 0, "on the way\n"),
        (">/dev/full", 1, f"on the way\n{FULL}"),
        (">&-", 1, f"on the way\n{CLOSED}"),
        ("2>&- >/dev/null", 0, ""),
        ("2>/dev/full >/dev/null", 0, ""),
        (">&- 2>&- <&-", 1, ""),
    ],
)
def test_what_is_to_be_kept_is_kept_and_the_code_is_right(
    tmp_path: Path, redirection: str, code: int, said: str
) -> None:
    assert command(tmp_path / "kept", redirection) == (code, said)


def test_a_command_that_failed_keeps_its_own_code(tmp_path: Path) -> None:
    assert command(tmp_path / "kept", "| true", 3) == (3, "on the way\n")
    assert command(tmp_path / "kept", ">/dev/full", 3) == (3, f"on the way\n{FULL}")


@pytest.mark.parametrize("begin", ["import sys; sys.stdin.readline()", "import matrix_graph.cli; input()"])
def test_a_terminal_that_is_gone_ends_nothing(tmp_path: Path, begin: str) -> None:
    master, slave = pty.openpty()
    process: subprocess.Popen[Any] = subprocess.Popen(
        [sys.executable, "-c", f"{begin}\n{PROGRAM}", "keep", str(tmp_path / "kept")],
        stdin=subprocess.PIPE,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(slave)
    os.close(master)
    stdin: IO[bytes] | None = process.stdin
    assert stdin is not None
    process.communicate(b"go\n", timeout=60)
    assert process.returncode == 0 and (tmp_path / "kept").read_text() == "kept"


def test_names_that_are_not_utf_8_are_shown_escaped() -> None:
    name = os.fsdecode(b"runs/b\xffd\x80")
    assert escaped(name) == safe(name) == "runs/b\\xffd\\x80"
    assert escaped("naïve 🙂 \ud83d") == "naïve 🙂 \ufffd"
    assert safe("\x1b[31m\ud83d") == "\ufffd[31m\ufffd"
