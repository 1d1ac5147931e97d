"""Which stages are done, with what, and what may be gone on with.

What always holds: a stage counts as done only if its settings, all that it worked on and all that it made are as they
were; settings of a stage that is begun change only where it is to be done again; what is deleted was made by a stage
that is done again, and is never a scene.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, get_args

from matrix_graph.align.job import Job
from matrix_graph.align.options import stage_settings
from matrix_graph.align.record import (
    FOLDERS,
    RECORD_NAME,
    STAGES,
    AlignRecord,
    Redone,
    StageName,
    StageRecord,
    marks,
    unchanged,
    write_align_record,
)
from matrix_graph.batch.folder import setting_changes
from matrix_graph.errors import ConfigError, SettingsChangedError
from matrix_graph.records import escaped

_BEFORE: dict[StageName, tuple[StageName, ...]] = {
    "run": (),
    "export": ("run",),
    "train": ("export",),
    "serve": ("train",),
    "compare": ("export", "train"),
}
"""Whose files a stage works on."""
_REDONE: tuple[Redone, ...] = get_args(Redone)
_MOST_CHANGES = 8


class Ledger:
    """The record of an alignment, kept while it goes on.

    Args:
        job: what is to be done now.
        known: what stands in the folder; None: nothing was begun there.
        redo: the stage that is to be done again, with those after it; None: none.

    Raises:
        SettingsChangedError: the folder was begun with other settings, and not only of stages to be done again.
        ConfigError: a file of questions cannot be read; or the folder holds somebody else's work.

    Attributes:
        record: as `align.json` holds it.
    """

    def __init__(self, job: Job, known: AlignRecord | None, redo: Redone | None) -> None:
        self._job = job
        settings = stage_settings(
            job.questions,
            job.options,
            model=job.target.name,
            name=job.name,
            scene=job.settings.scene,
            recipe=job.recipe,
            compared=job.compared,
            request=job.settings.fixed_request,
        )
        if known is None:
            _refuse_foreign(job.out)
            self.record = AlignRecord(
                questions=escaped(str(job.questions)),
                model=job.target.name,
                weights=job.target.weights,
                bundled=job.target.bundled,
                name=job.name,
                settings={str(name): values for name, values in settings.items()},
            )
            return
        changed = [name for name in STAGES if known.settings.get(name) != settings[name]]
        first = len(STAGES) if redo is None else STAGES.index(redo)
        if any(STAGES.index(name) < first for name in changed):
            raise SettingsChangedError(_refusal(job.out, known, settings, changed))
        self.record = known
        if redo is not None:
            known.settings = {str(name): values for name, values in settings.items()}
            known.name = job.name
            for place in range(first, len(STAGES)):
                known.stages[place] = StageRecord(name=STAGES[place])

    def is_done(self, name: StageName) -> bool:
        """Whether there is nothing to do for a stage."""
        stage = self.record.stage(name)
        return (
            stage.state == "done" and stage.identity == self._identity(name) and unchanged(self._job.out, stage.files)
        )

    def begin(self, name: StageName) -> StageRecord:
        """A stage begins, or goes on; what it made of something else is deleted."""
        stage, identity = self.record.stage(name), self._identity(name)
        if stage.identity != identity:
            if name in _REDONE:
                shutil.rmtree(self._job.out / FOLDERS[name], ignore_errors=True)
            stage = StageRecord(name=name, identity=identity)
            self.record.stages[STAGES.index(name)] = stage
        stage.state, stage.message, stage.starts = "running", None, stage.starts + 1
        return stage

    def note_files(self, stage: StageRecord) -> None:
        """Note what a stage has made.

        Raises:
            ConfigError: it cannot be read again.
        """
        job = self._job
        made: dict[StageName, list[Path]] = {
            "run": [job.run / "traces.jsonl"],
            "export": [job.rows, job.held_rows],
            "train": [job.adapter / "adapter_model.safetensors", job.adapter / "adapter_config.json"],
            "serve": [],
            "compare": [job.compare / "answers.jsonl"],
        }
        try:
            stage.files = marks(job.out, made[stage.name])
        except OSError as error:
            raise ConfigError(f"{error.filename or job.out} cannot be read: {error.strerror or error}.") from error

    def keep(self) -> None:
        """Write the record.

        Raises:
            ConfigError: it cannot be written.
        """
        write_align_record(self._job.out, self.record)

    def _identity(self, name: StageName) -> str:
        """What a stage is known by: its settings, and the files that it works on."""
        works_on = {
            file: mark.model_dump()
            for earlier in _BEFORE[name]
            for file, mark in self.record.stage(earlier).files.items()
        }
        content = {"settings": self.record.settings[name], "works on": works_on}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _refuse_foreign(out: Path) -> None:
    found = [folder for folder in FOLDERS.values() if (out / folder).exists()]
    if found:
        raise ConfigError(
            f"{out} holds {', '.join(found)}, but no {RECORD_NAME}: somebody else's work, which must not be lost. Name "
            "another --out."
        )


def _refusal(out: Path, known: AlignRecord, settings: dict[StageName, dict[str, Any]], changed: list[StageName]) -> str:
    old: dict[str, Any] = {name: known.settings.get(name, {}) for name in changed}
    new: dict[str, Any] = {name: settings[name] for name in changed}
    lines = [f"  {change}" for change in setting_changes(old, new)]
    more = [f"  and {len(lines) - _MOST_CHANGES} more"] if len(lines) > _MOST_CHANGES else []
    advice = "Give what it was begun with, or name another --out"
    if changed[0] in _REDONE:
        advice += (
            f"; or give --redo {changed[0]}, which does that stage and those after it again and deletes what they made"
        )
    return "\n".join([f"{out} was begun otherwise:", *lines[:_MOST_CHANGES], *more, f"{advice}."])
