"""The traces of several run folders, one by one, with what is told of each folder in the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from matrix_graph.records import escaped
from matrix_graph.traces.export.hashing import Digest
from matrix_graph.traces.export.scenes import Scene, parse_scene
from matrix_graph.traces.store import FILE_NAME, line_entries

_MOST_VALUES = 16
"""Different models, and different settings, that are told of."""


class Source(BaseModel):
    """A file of traces that was read."""

    run: str = Field(description="The name of its folder.")
    scenes: dict[str, int] = Field(description="How many scenes it has, by status.")
    sha256: str = Field(description="Of its whole lines.")


class Reader:
    """Reads traces, and remembers of each file how many and which.

    Args:
        paths: run folders, or files of traces.
        watch: told after each scene how many bytes of how many are read.
    """

    def __init__(self, paths: Sequence[Path], watch: Callable[[int, int], None] | None = None) -> None:
        self._paths = paths
        self._watch = watch
        self.sources: list[Source] = []
        self.models: Counter[str] = Counter()
        self.settings: Counter[str] = Counter()
        self._latest: dict[str, Any] | None = None
        self._settings = ""

    def scenes(self) -> Iterator[tuple[str, Scene]]:
        """Every scene, with the name of its run.

        Raises:
            TraceError: as `read_traces`, or a trace of a schema that no release ever wrote.
        """
        total = sum(_size(path) for path in self._paths)
        before = 0
        for path in self._paths:
            run, digest, statuses = run_name(path), Digest(), Counter[str]()

            def parse(line: bytes, digest: Digest = digest) -> Scene:
                scene = parse_scene(line)
                digest.update(line)
                return scene

            end = 0
            for end, scene in line_entries(path, parse):
                statuses[scene["status"]] += 1
                self._remember(scene)
                if self._watch is not None:
                    self._watch(before + end, total)
                yield run, scene
            before += end
            self.sources.append(Source(run=run, scenes=dict(sorted(statuses.items())), sha256=digest.hexdigest()))

    def _remember(self, scene: Scene) -> None:
        for model in {call["model"] for call in scene["calls"]}:
            _count(self.models, model)
        if scene["settings"] != self._latest:  # most often it is the same as that of the scene before
            self._latest = scene["settings"]
            self._settings = json.dumps(scene["settings"], sort_keys=True)
        _count(self.settings, self._settings)


def _count(counts: Counter[str], key: str) -> None:
    """Count a value, of which there are few; if there are many after all, the first must do."""
    if key in counts or len(counts) < _MOST_VALUES:
        counts[key] += 1


def run_name(path: Path) -> str:
    """The name of a run: its folder's, or that of a file that is not called as in a run's folder."""
    whole = path.resolve()
    name = whole.parent.name if whole.name == FILE_NAME else whole.stem if whole.is_file() else whole.name
    return escaped(name) or "run"


def _size(path: Path) -> int:
    file = path / FILE_NAME if path.is_dir() else path
    try:
        return file.stat().st_size
    except OSError:
        return 0  # reading it says what is wrong
