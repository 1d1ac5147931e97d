"""Where a training stands on the disk, so that a killed one goes on rather than begins anew.

    OUT/checkpoints/begun.json          what is trained on what, by which an other training is told apart
    OUT/checkpoints/checkpoint-N/       as Hugging Face's trainer writes it, and `whole.json` in it when all of it is

What always holds: a checkpoint is gone on from only if it is whole and belongs to the same rows, model and recipe; when
the adapter is there, the checkpoints are not; no folder of this machine is named in them.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_graph.files import read_object, replace_file
from matrix_graph.train.base_name import without_private_path
from matrix_graph.train.errors import TrainingError

_FOLDER = "checkpoints"
_BEGUN = "begun.json"
_WHOLE = "whole.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        path: its folder.
        step: how many steps it holds.
        seconds: how long they took, over all starts.
        starts: how many starts made them.
    """

    path: Path
    step: int
    seconds: float
    starts: int


class Checkpoints:
    """The checkpoints in an adapter's folder.

    Args:
        out: the adapter's folder.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / _FOLDER

    def begin(self, identity: dict[str, Any], *, resume: bool) -> Checkpoint | None:
        """Prepare for a training, and say from where it goes on.

        Args:
            identity: all that decides the weights, as JSON.
            resume: whether an earlier start is gone on from; if not, what it left is deleted.

        Returns:
            The newest whole checkpoint; None: from the beginning.

        Raises:
            TrainingError: the earlier start trained something else.
            OSError: the folder cannot be written.
        """
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        before = read_object(self.folder / _BEGUN)
        if before is None:
            replace_file(self.folder / _BEGUN, json.dumps(identity, indent=2).encode(), sync=True)
        elif before != identity:
            names = sorted(name for name in {*before, *identity} if before.get(name) != identity.get(name))
            raise TrainingError(
                f"{self.folder.parent} holds a training that was begun with another {', another '.join(names)}. Give "
                "what it was begun with, name another --out, or give --no-resume to delete what is there."
            )
        whole = self.newest()
        for path in self._all():
            if whole is None or path != whole.path:
                shutil.rmtree(path, ignore_errors=True)  # torn, or older: the trainer would count it among its own
        return whole

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint."""
        for path in reversed(self._all()):
            mark = read_object(path / _WHOLE)
            if mark is not None:
                with suppress(LookupError, TypeError, ValueError):
                    step, seconds, starts = int(mark["step"]), float(mark["seconds"]), int(mark["starts"])
                    return Checkpoint(path, step, seconds, starts)
        return None

    def drop_private_paths(self, step: int, base: str) -> None:
        """Take out of a checkpoint what names folders of this machine; nobody needs it to go on.

        Args:
            step: of the checkpoint.
            base: the base model's name.

        Raises:
            OSError: the disk is full, say.
        """
        checkpoint = self.folder / f"checkpoint-{step}"
        without_private_path(checkpoint, base)
        for left in (checkpoint / "training_args.bin", checkpoint / "README.md", self.folder / "README.md"):
            left.unlink(missing_ok=True)

    def mark_whole(self, step: int, *, seconds: float, starts: int) -> None:
        """The checkpoint of this step is written.

        Raises:
            OSError: the disk is full, say.
        """
        mark = {"step": step, "seconds": round(seconds, 3), "starts": starts}
        replace_file(self.folder / f"checkpoint-{step}" / _WHOLE, json.dumps(mark).encode(), sync=True)

    def remove(self) -> None:
        """The adapter is there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        found = [path for path in self.folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
        return sorted(found, key=lambda path: int(path.name.partition("-")[2]))
