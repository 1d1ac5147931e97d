"""`matrix-graph repair`: broken lines of a folder's JSON lines files are set aside, so that it can be read again."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matrix_graph.errors import ConfigError, RunLockedError
from matrix_graph.options import JsonOption

if TYPE_CHECKING:
    from matrix_graph.traces.repair import Check, Repaired

_MOST_SHOWN = 10


def repair(
    places: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs, rehearsals, evaluations or alignments, or files.", metavar="DIR..."),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is broken, and change nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Set broken lines aside, so that a folder can be read again.

    Lines of *.jsonl files that cannot be read are moved to broken.jsonl beside them, with numbers and reasons. All
    other lines stay as they are, byte for byte. No run may write to the folder meanwhile.

        matrix-graph repair runs/first --dry-run

        matrix-graph repair runs/first
    """
    from matrix_graph.batch.lock import RunLock, is_locked
    from matrix_graph.live import safe
    from matrix_graph.traces.repair import repair_file

    files = [file for place in places for file in _files(place)]
    folders = list(dict.fromkeys(folder.resolve() for file in files for folder in (file.parent, file.parent.parent)))
    for folder in folders:
        if is_locked(folder):
            raise RunLockedError(f"A run writes to {folder}. Wait for it or stop it, then repair.")
    done: list[Repaired] = []
    with ExitStack() as locks:
        if not dry_run:
            for folder in dict.fromkeys(file.resolve().parent for file in files):
                try:
                    locks.enter_context(RunLock(folder))
                except OSError as error:
                    raise ConfigError(
                        f"{folder} cannot be written: {error.strerror or error}. Grant access."
                    ) from error
        for file in files:
            done.append(repair_file(file, _check(file), dry_run=dry_run))
            if not as_json:
                for line in lines(done[-1], dry_run=dry_run):
                    typer.echo(safe(line))
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, "files": [_told(one) for one in done]}))


def lines(found: Repaired, *, dry_run: bool) -> list[str]:
    """What is said of a file."""
    from matrix_graph.traces.repair import ASIDE_NAME

    if not found.broken:
        return [f"{found.path}: nothing is broken, {_counted(found.kept)}"]
    count = len(found.broken)
    to = found.path.resolve().with_name(ASIDE_NAME)
    what = "would be set aside in" if dry_run else "set aside in"
    shown = [f"{found.path}: {_counted(count)} {what} {to}, {found.kept:,} kept"]
    shown += [f"  line {broken.line}: {broken.reason}" for broken in found.broken[:_MOST_SHOWN]]
    return shown + ([f"  and {count - _MOST_SHOWN:,} more"] if count > _MOST_SHOWN else [])


def _files(place: Path) -> list[Path]:
    """The JSON lines files of a place.

    Raises:
        ConfigError: there is none.
    """
    from matrix_graph.align.record import FOLDERS, RECORD_NAME
    from matrix_graph.traces.repair import ASIDE_NAME

    if place.is_file():
        return [place]
    folders = [place, *(place / name for name in FOLDERS.values() if (place / RECORD_NAME).exists())]
    files = [
        file
        for folder in folders
        for file in sorted(folder.glob("*.jsonl"))
        if file.is_file() and file.name != ASIDE_NAME and not file.name.startswith(".")
    ]
    if not files:
        raise ConfigError(f"{place} holds no JSON lines file (*.jsonl). Name a folder of a run, or a file.")
    return files


def _check(file: Path) -> Check | None:
    """What a file of that name holds; None: to be seen from its content."""
    from pydantic import BaseModel

    from matrix_graph.batch.folder import FAILED_NAME
    from matrix_graph.evaluate import folder as evaluation
    from matrix_graph.evaluate.human import RATINGS_NAME
    from matrix_graph.evaluate.records import AnswerRecord, Question, ScoreRecord, Verdict
    from matrix_graph.traces.store import FILE_NAME, check_trace

    if file.name in (FILE_NAME, FAILED_NAME):
        return check_trace
    if not file.with_name(evaluation.PLAN_NAME).exists():
        return None
    kinds: dict[str, type[BaseModel]] = {
        evaluation.ANSWERS_NAME: AnswerRecord,
        evaluation.SCORES_NAME: ScoreRecord,
        evaluation.VERDICTS_NAME: Verdict,
        evaluation.QUESTIONS_NAME: Question,
        RATINGS_NAME: Verdict,
    }
    kind = kinds.get(file.name)
    return None if kind is None else kind.model_validate_json


def _told(found: Repaired) -> dict[str, object]:
    broken = [{"line": broken.line, "reason": broken.reason} for broken in found.broken]
    return {"path": str(found.path), "kept": found.kept, "newer": found.newer, "broken": broken}


def _counted(count: int) -> str:
    return f"{count:,} line{'' if count == 1 else 's'}"
