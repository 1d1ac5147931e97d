"""Many scenes for people: one HTML page that needs no network, from the traces alone.

What always holds: traces are read one by one, and memory holds no more than a block of them; the page appears whole or
not at all; the same traces give the same page, byte by byte; every text of a trace is untrusted model output, so that
it travels as compressed data in Base64, in which no markup can stand, and the page shows it as text only.
"""

from __future__ import annotations

import base64
import gzip
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from matrix_graph.errors import ExportError
from matrix_graph.records import Trace, escaped
from matrix_graph.traces.page.assemble import frame
from matrix_graph.traces.page.contents import LONGEST_SEARCHED, Words, list_row, scene_of, searched_text, to_json
from matrix_graph.traces.store import FILE_NAME as TRACES
from matrix_graph.traces.store import read_traces, trace_heads

FILE_NAME = "report.html"

_BLOCK_SCENES = 16
_BLOCK_CHARACTERS = 400_000
"""A block is closed at so many scenes, or when its words are so long: a browser unpacks it in some milliseconds."""
_LEVEL = 6
_MOST_IN_MEMORY = 8 << 20
"""Bytes of a part of the page that are kept in memory; what is longer waits on the disk."""
_ENCODED_AT_ONCE = 3 << 16
"""Bytes; a multiple of three, so that pieces of Base64 join without padding."""


class Report(NamedTuple):
    """What was written."""

    path: Path
    scenes: int
    finished: int
    blocked: int
    failed: int
    left_out: int
    """Earlier scenes that a limit left out."""
    bytes: int
    """The size of the page."""


def write_report(
    sources: Sequence[str | Path],
    out: Path,
    *,
    calls: bool = True,
    thoughts: bool = True,
    limit: int | None = None,
    running: Collection[str | Path] = (),
) -> Report:
    """Write the scenes of some folders as one web page.

    Args:
        sources: folders that hold `traces.jsonl`, or such files; what is given twice is read once.
        out: the page; its folder is made if need be, an older file of that name replaced.
        calls: also the exact messages of every model call, about half of the page.
        thoughts: also what the model thought before it replied.
        limit: the most scenes, the last ones that were written; None for all of them.
        running: those of the sources to which a run still writes, which the page tells.

    Returns:
        What was written.

    Raises:
        TraceError: a source cannot be read.
        ExportError: nothing was given to read, the limit is below one, or the page cannot be written.
    """
    places = {_file(source): str(source) for source in sources}
    if not places:
        raise ExportError("There is nothing to report: no folder was given. Name one that holds traces.jsonl.")
    if _real(out) in places:
        raise ExportError(f"{out} holds the traces themselves; the page would replace them. Name another with --out.")
    begun = {_file(source) for source in running}
    # A run that has just begun has no file yet, which is not a mistake of whoever looks at it.
    files = [file for file in places if file.exists() or file not in begun]
    if limit is not None and limit < 1:
        raise ExportError(f"The limit is {limit}; it must be at least 1. Leave it out to have every scene.")
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            content = stack.enter_context(_Content(calls=calls, thoughts=thoughts))
            skipped = 0 if limit is None else max(0, sum(1 for file in files for _ in trace_heads(file)) - limit)
            for source, trace in islice(_all(files), skipped, None if limit is None else skipped + limit):
                content.add(source, trace)
            told = {
                "sources": [escaped(places[file]) for file in files],
                "running": [escaped(str(source)) for source in running],
                "calls": calls,
                "left_out": skipped,
                "longest_searched": LONGEST_SEARCHED,
            }
            with part.open("wb") as page:
                content.write(page, told)
                size = page.tell()
        part.replace(out)
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {error.strerror or error}. Name another with --out.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    counts = content.counts
    return Report(out, sum(counts.values()), counts["finished"], counts["blocked"], counts["failed"], skipped, size)


def _file(source: str | Path) -> Path:
    """The file with the traces of a source, by one name however it was given."""
    path = Path(source)
    return _real(path / TRACES if path.is_dir() else path)


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def _all(files: Sequence[Path]) -> Iterator[tuple[int, Trace]]:
    for number, file in enumerate(files):
        for trace in read_traces(file):
            yield number, trace


class _Content:
    """The data of a page while it grows, on the disk as soon as it is long; a context manager.

    Args:
        calls: whether to keep the words of the calls.
        thoughts: whether to keep what was thought before them.
    """

    def __init__(self, *, calls: bool, thoughts: bool) -> None:
        self.counts = {"finished": 0, "blocked": 0, "failed": 0}
        self._calls = calls
        self._stack = ExitStack()
        self._rows = self._stack.enter_context(_Packed())
        self._searched = self._stack.enter_context(_Packed())
        self._blocks = self._stack.enter_context(_temporary())
        self._number = 0
        self._scenes: list[dict[str, Any]] = []
        self._thoughts = thoughts
        self._words = Words(thoughts=thoughts)

    def __enter__(self) -> _Content:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, source: int, trace: Trace) -> None:
        """Take in one scene."""
        self.counts[trace.status] += 1
        self._rows.append(list_row(trace, source=source, block=self._number, place=len(self._scenes)))
        self._searched.append(searched_text(trace))
        self._scenes.append(scene_of(trace))
        if self._calls:
            self._words.add(trace)
        if len(self._scenes) == _BLOCK_SCENES or self._words.size > _BLOCK_CHARACTERS:
            self._close_block()

    def write(self, file: IO[bytes], told: dict[str, Any]) -> None:
        """Write the whole page."""
        self._close_block()
        page = frame()
        file.write(page.before_list.encode())
        told_packed = base64.b64encode(gzip.compress(to_json(told), _LEVEL, mtime=0))
        file.write(_element("about", told_packed))
        for name, packed in (("rows", self._rows), ("searched", self._searched)):
            file.write(_opening(name))
            packed.copy_to(file)
            file.write(_CLOSING)
        file.write(page.before_scenes.encode())
        self._blocks.seek(0)
        shutil.copyfileobj(self._blocks, file, 1 << 20)
        file.write(page.after.encode())

    def _close_block(self) -> None:
        if not self._scenes:
            return
        parts: list[tuple[str, Any]] = [("scenes", self._scenes)]
        if self._calls:
            parts.append(("words", self._words.content()))
        for name, value in parts:
            packed = base64.b64encode(gzip.compress(to_json(value), _LEVEL, mtime=0))
            self._blocks.write(_element(f"{name}-{self._number}", packed))
        self._number += 1
        self._scenes = []
        self._words = Words(thoughts=self._thoughts)


class _Packed:
    """A JSON array that is compressed while it grows; a context manager."""

    def __init__(self) -> None:
        self._file = _temporary()
        self._pack = gzip.GzipFile(fileobj=self._file, mode="wb", compresslevel=_LEVEL, mtime=0, filename="")
        self._next = b"["

    def __enter__(self) -> _Packed:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, value: Any) -> None:
        """Add an item."""
        self._pack.write(self._next + to_json(value))
        self._next = b","

    def copy_to(self, file: IO[bytes]) -> None:
        """Close the array, and write it in Base64."""
        self._pack.write(b"[]" if self._next == b"[" else b"]")
        self._pack.close()
        self._file.seek(0)
        while piece := self._file.read(_ENCODED_AT_ONCE):
            file.write(base64.b64encode(piece))


def _temporary() -> IO[bytes]:
    return tempfile.SpooledTemporaryFile(max_size=_MOST_IN_MEMORY)


_CLOSING = b"</script>\n"


def _opening(name: str) -> bytes:
    return f'<script type="application/gzip" id="{name}">'.encode()


def _element(name: str, packed: bytes) -> bytes:
    return _opening(name) + packed + _CLOSING
