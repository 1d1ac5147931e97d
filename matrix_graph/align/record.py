"""How an alignment stands: `align.json`, by which a later start knows what is done.

Why one file: a stage is done only if all that it worked on is still the same, and that is known by hashes which stand
side by side here. What always holds: it is replaced as a whole; a stage is "done" in it only after its files are on the
disk; a file is known by its size and its SHA-256, traces, which may be many gigabytes, by their size alone.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import matrix_graph
from matrix_graph.config import explain
from matrix_graph.errors import ConfigError
from matrix_graph.files import replace_file
from matrix_graph.records import clean

RECORD_NAME = "align.json"
SCHEMA_VERSION = 1

StageName = Literal["run", "export", "train", "serve", "compare"]
StageState = Literal["waiting", "running", "done", "stopped", "failed"]
Redone = Literal["export", "train", "compare"]
"""Stages that can be done again by themselves, with those after them. Scenes are never thrown away."""
STAGES: tuple[StageName, ...] = get_args(StageName)
FOLDERS: dict[StageName, str] = {"run": "run", "export": "export", "train": "adapter", "compare": "compare"}
"""Where a stage keeps what it makes."""

_TRACES = "traces.jsonl"


class _Part(BaseModel):
    """A file of a later release may hold more."""

    model_config = ConfigDict(extra="ignore", validate_assignment=True)


class FileMark(_Part):
    """What a file is known by."""

    bytes: int
    sha256: str | None = Field(description="Null for traces, which may be many gigabytes.")


class StageRecord(_Part):
    """One stage."""

    name: StageName
    state: StageState = Field(
        default="waiting",
        description="waiting: not begun; running: begun, or killed meanwhile; done; stopped: on request; failed.",
    )
    identity: str | None = Field(
        default=None, description="SHA-256 of its settings and of all that it works on; null: not begun."
    )
    starts: int = Field(default=0, description="How often it was begun or gone on with.")
    seconds: float = Field(default=0.0, description="Over all starts but those that were killed.")
    message: str | None = Field(default=None, description="Why it is in this state; null: nothing to say.")
    facts: dict[str, Any] = Field(default={}, description="What came of it: counts and names.")
    files: dict[str, FileMark] = Field(default={}, description="What it made, by path in the folder.")


class AlignRecord(_Part):
    """All that is known of an alignment."""

    schema_version: Literal[1] = 1
    version: str = Field(default=matrix_graph.__version__, description="Of this package.")
    questions: str = Field(description="The file of questions, as it was given.")
    model: str = Field(description="The base model: a hub id, or a folder's last part.")
    weights: str | None = Field(description="The folder, hub id or bundled:NAME that is trained; null: bundled:135m.")
    bundled: bool = Field(description="Whether it is the small bundled model, which cannot be judged.")
    name: str = Field(description="By which requests name the adapter.")
    settings: dict[str, dict[str, Any]] = Field(description="By stage, all that decides what it makes.")
    stages: list[StageRecord] = Field(default_factory=lambda: [StageRecord(name=name) for name in STAGES])
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    def stage(self, name: StageName) -> StageRecord:
        """The record of a stage."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def done(self) -> bool:
        """Whether every stage is done."""
        return all(stage.state == "done" for stage in self.stages)


def read_align_record(folder: Path) -> AlignRecord | None:
    """The record in a folder; None if nothing was begun there.

    Raises:
        ConfigError: there is one that cannot be read, or that no release up to this one has written.
    """
    path = folder / RECORD_NAME
    try:
        record = AlignRecord.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise ConfigError(
            f"{path} was written by no `align` of this release:\n{explain(error)}\nName another --out."
        ) from error
    if tuple(stage.name for stage in record.stages) != STAGES:
        raise ConfigError(f"{path} does not have the stages {', '.join(STAGES)}. Name another --out.")
    return record


def write_align_record(folder: Path, record: AlignRecord) -> None:
    """Replace the record.

    Raises:
        ConfigError: the disk is full, say.
    """
    record.updated_at = datetime.now(UTC)
    try:
        content = json.dumps(record.model_dump(mode="json"), ensure_ascii=False, indent=2)
        replace_file(folder / RECORD_NAME, clean(content).encode() + b"\n", sync=True)
    except OSError as error:
        raise ConfigError(
            f"{folder / RECORD_NAME} cannot be written: {error.strerror or error}. Make room, and give the same "
            "command again: it goes on where it stopped."
        ) from error


def marks(folder: Path, paths: list[Path]) -> dict[str, FileMark]:
    """What the files that are there are known by, by their path in the folder."""
    return {path.relative_to(folder).as_posix(): mark(path) for path in paths if path.is_file()}


def mark(path: Path) -> FileMark:
    """What a file is known by.

    Raises:
        OSError: it cannot be read.
    """
    return FileMark(bytes=path.stat().st_size, sha256=None if path.name == _TRACES else file_hash(path))


def unchanged(folder: Path, known: dict[str, FileMark]) -> bool:
    """Whether the files are all there, as they were."""
    try:
        return all(
            (folder / name).stat().st_size == old.bytes and (old.sha256 is None or mark(folder / name) == old)
            for name, old in known.items()
        )
    except OSError:
        return False


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
