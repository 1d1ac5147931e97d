"""Which rows of the input are still to be played; the others are only counted.

Why apart: a run asks it of each row as it comes, and the command asks it of all rows before a model server is started,
which takes a minute that nobody should wait if nothing is left to do or the folder must not be used. What always holds:
both find the same; and a question that is done, or that came before in this start, is never played.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matrix_graph.batch.folder import RunFolder, identity, read_summary, require_usable
from matrix_graph.batch.progress import Progress
from matrix_graph.batch.questions import InputFormat, open_questions, read_rows
from matrix_graph.batch.rows import Rejected, Row
from matrix_graph.config import SceneConfig
from matrix_graph.errors import ConfigError, TraceError
from matrix_graph.records import Cast


def run_settings(
    model: str, config: SceneConfig, cast: Cast | None, request: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All that decides how a run's scenes are played, as plain JSON.

    Args:
        model: the served name.
        config: settings and limits of each scene.
        cast: who is in the scenes; None has the model cast each.
        request: as `models.complete.request_settings` gives it.
    """
    return {
        **(request or {}),
        "model": model,
        "scene": config.model_dump(mode="json"),
        "cast": cast.model_dump(mode="json") if cast else None,
    }


class Intake:
    """Tells the questions that are missing from those that are done or came before.

    Args:
        settings: of the run (`run_settings`).
        folder: the run's, opened; None: nothing is kept, so that nothing is done.
        progress: gets the others.
        retry_failed: whether a failed scene is missing, too.
    """

    def __init__(
        self, settings: Mapping[str, Any], folder: RunFolder | None, progress: Progress, *, retry_failed: bool = False
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._progress = progress
        self._retry_failed = retry_failed
        self._met: set[int] = set()

    def missing(self, row: Row) -> str | None:
        """The identity of a question that is to be played; None: it is not, and was counted."""
        key = identity(row.question, row.draft, self._settings)
        if int(key, 16) in self._met:
            self._progress.row_duplicate()
            return None
        self._met.add(int(key, 16))
        if self._folder is None or key not in self._folder:
            return key
        status = self._folder.status_of(key)
        if status == "failed" and self._retry_failed:
            return key
        self._progress.row_done_before(status)
        return None


def finished_run(
    questions: Path,
    format: InputFormat,
    out: Path,
    *,
    model: str,
    base_url: str,
    config: SceneConfig,
    cast: Cast | None,
    request: Mapping[str, Any] | None = None,
    retry_failed: bool,
) -> Progress | None:
    """See whether a run may go on in its folder and, if its last start said so, whether it is done already.

    What it writes to the folder is what a start of the run would write as well: rejected rows, and its summary if it is
    done.

    Args:
        questions: a regular file.
        format: how they are written.
        out: the run's folder.
        model: the served name.
        base_url: the server's address, as far as it is known.
        config: settings and limits of each scene.
        cast: who is in the scenes; None has the model cast each.
        request: as of `run_settings`.
        retry_failed: whether failed scenes are to be played again.

    Returns:
        How it stands, if every question is done; None if something is left to do, or may be, or cannot be read, which a
        start will tell.

    Raises:
        RunLockedError: a run is going on there.
        SettingsChangedError: the folder was begun under other settings.
        ConfigError: the folder cannot be used.
        TraceError: its traces cannot be read.
    """
    settings = run_settings(model, config, cast, request)
    # The traces are read for a run that has ended alone: to read those of a large one twice takes a while.
    if not require_usable(out, settings) or (read_summary(out) or {}).get("state") != "done":
        return None
    progress = Progress(str(out), str(questions))
    progress.connected(model, base_url)
    with RunFolder(out, settings) as folder:
        intake = Intake(settings, folder, progress, retry_failed=retry_failed)
        try:
            with open_questions(questions) as file:
                for row in read_rows(file, format, name=questions.name):
                    if isinstance(row, Rejected):
                        progress.row_rejected()
                        folder.reject(str(questions), row.line, row.reason, row.excerpt)
                    elif intake.missing(row) is not None:
                        return None
        except (ConfigError, TraceError):
            return None
        progress.state_changed("done")
        folder.write_summary(progress.snapshot().model_dump(mode="json"))
    return progress
