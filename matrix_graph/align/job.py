"""One alignment as its stages see it: what was asked for, resolved, and where each finds and puts what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matrix_graph.align.options import AlignOptions
from matrix_graph.align.record import FOLDERS
from matrix_graph.align.target import Target
from matrix_graph.align.voice import Voice
from matrix_graph.config import Settings
from matrix_graph.traces.export.checks import validation_path
from matrix_graph.train.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """What the stages share.

    Attributes:
        questions: the file of questions.
        out: the alignment's folder.
        settings: with the scenes' settings that hold, and the name that a given server knows the model by.
        options: as they were given.
        target: the model.
        recipe: of the training.
        compared: the most questions of the comparison.
        name: by which requests name the adapter.
        voice: says what happens.
    """

    questions: Path
    out: Path
    settings: Settings
    options: AlignOptions
    target: Target
    recipe: Recipe
    compared: int
    name: str
    voice: Voice

    @property
    def run(self) -> Path:
        """The folder of the scenes."""
        return self.out / FOLDERS["run"]

    @property
    def rows(self) -> Path:
        """The rows to train on."""
        return self.out / FOLDERS["export"] / "sft.jsonl"

    @property
    def held_rows(self) -> Path:
        """The rows that are kept from training, if any are."""
        return validation_path(self.rows)

    @property
    def adapter(self) -> Path:
        """The folder of the adapter."""
        return self.out / FOLDERS["train"]

    @property
    def compare(self) -> Path:
        """The folder of the comparison."""
        return self.out / FOLDERS["compare"]
