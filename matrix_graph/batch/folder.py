"""The folder of a run on disk: what is done and what was rejected; only one run writes there.

Why: a run of days is interrupted, started again and watched, and the folder is all that outlives it. What always holds,
whenever and however a run ends: its files hold whole lines; a question that is done stands in `traces.jsonl` once and
is known at the next start; no trace is lost.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

from matrix_graph.batch.lock import RunLock
from matrix_graph.errors import ConfigError, SettingsChangedError, TraceError
from matrix_graph.files import part_of, read_object, replace_file
from matrix_graph.records import Status, Trace, clean
from matrix_graph.traces.file_lock import locked_file
from matrix_graph.traces.lines import LineWriter, mend_end
from matrix_graph.traces.store import FILE_NAME, TraceWriter, line_head, trace_heads, trace_line

FAILED_NAME = "failed.jsonl"
"""Failed traces that `retry_failed` moved out of the way."""
REJECTED_NAME = "rejected.jsonl"
SETTINGS_NAME = "settings.json"
SUMMARY_NAME = "summary.json"
OWN_FILES = (FILE_NAME, FAILED_NAME, REJECTED_NAME, SETTINGS_NAME, SUMMARY_NAME, ".*")
"""All that a run writes, which it must not read as its input."""

_KEY = re.compile(r"[0-9a-f]{32}")
_LONGEST_VALUE = 80
"""Characters of a setting in a message."""
_log = logging.getLogger(__name__)


def identity(question: str, draft: str | None, settings: Mapping[str, Any]) -> str:
    """What tells a question of a run from all others, the same on every machine and in every process.

    Args:
        question: the question.
        draft: a given draft; `None`, where the model drafts, differs from an empty one.
        settings: all that decides how the scene is played, as plain JSON.

    Returns:
        32 hexadecimal digits: the first half of the SHA-256 of question, draft and settings as JSON with sorted keys,
        no spaces and ASCII alone, lone surrogates replaced as in traces.
    """
    content = {"question": question, "draft": draft, "settings": dict(settings)}
    return hashlib.sha256(_canonical(content).encode()).hexdigest()[:32]


class RunFolder:
    """A run's folder while the run goes on; a context manager.

    Several threads may use it at once.

    Args:
        directory: the folder; made if need be.
        settings: all that decides how the scenes are played, as plain JSON; kept in `settings.json`.
        force_new_settings: go on in a folder that was begun under other settings. The same questions are done again.
        retry_failed: forget that failed scenes were done: their traces are moved to `failed.jsonl`. If the program is
            killed meanwhile, some may stand there twice; no trace is ever lost.

    Raises:
        ConfigError: when entered: the folder cannot be made or written, or its `settings.json` cannot be read.
        RunLockedError: when entered: another run writes there.
        SettingsChangedError: when entered: the folder was begun under other settings.
        TraceError: when entered: the traces cannot be read or moved.
    """

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, Any],
        *,
        force_new_settings: bool = False,
        retry_failed: bool = False,
    ) -> None:
        self.directory = directory
        self.counts: dict[str, int] = {}
        """How many traces of each status the folder held at the start, those of other settings among them."""
        self._settings = dict(settings)
        self._force_new_settings = force_new_settings
        self._retry_failed = retry_failed
        # Numbers, not the digits: of a million, that is 80 MB instead of 120.
        self._done: set[int] = set()
        self._otherwise: dict[int, Status] = {}  # those that did not finish, which are few
        self._traces = TraceWriter(directory)
        self._rejected: LineWriter | None = None
        self._rejections: set[bytes] = set()
        self._summary_failed = False
        # Two locks, so that a summary does not wait until a trace is on the disk.
        self._keeping = threading.Lock()
        self._noting = threading.Lock()
        self._resources: ExitStack | None = None

    def __enter__(self) -> Self:
        with ExitStack() as resources:
            with _told_if_unusable(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
                resources.enter_context(RunLock(self.directory))
                if self._force_new_settings or not _same_settings(self.directory, self._settings):
                    replace_file(self.directory / SETTINGS_NAME, _settings_file(self._settings).encode(), sync=True)
            if self._retry_failed:
                _set_failed_aside(self.directory)
            resources.enter_context(self._traces)
            self._scan()
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._keeping, self._noting:
            resources, self._resources, self._rejected = self._resources, None, None
            if resources is not None:
                resources.close()

    def __contains__(self, key: object) -> bool:
        """Whether the question of that identity is done: finished, blocked or failed."""
        return isinstance(key, str) and _KEY.fullmatch(key) is not None and int(key, 16) in self._done

    def status_of(self, key: str) -> Status:
        """How the question of that identity ended.

        Raises:
            KeyError: it is not done.
        """
        if key not in self:
            raise KeyError(key)
        return self._otherwise.get(int(key, 16), "finished")

    def keep(self, trace: Trace) -> None:
        """Append a trace, whose id is its question's identity; on return it is on the disk, and the question done.

        Raises:
            TraceError: it could not be written, the disk being full for instance; nothing of it was kept.
            ValueError: its question is done already, or its id is no identity.
        """
        self.keep_line(trace.id, trace_line(trace), trace.status)

    def keep_line(self, key: str, line: bytes, status: Status) -> None:
        """Append a trace that is JSON already.

        Args:
            key: the identity of its question.
            line: as `trace_line` makes it, without newline.
            status: its status.

        Raises:
            TraceError: it could not be written, the disk being full for instance; nothing of it was kept.
            ValueError: its question is done already, or the line is no trace with that identity and status.
        """
        if _KEY.fullmatch(key) is None:
            raise ValueError(f"{key!r} is no identity, which has 32 hexadecimal digits; make it with `identity`.")
        head = line_head(line)
        if head != (key, status):
            raise ValueError(f"A {status} trace {key} was expected, but the line holds a {head[1]} trace {head[0]}.")
        with self._keeping:
            if int(key, 16) in self._done:
                raise ValueError(
                    f"The question of trace {key} is done already; ask `key in folder` before it is begun."
                )
            self._traces.write(line)
            self._note(key, status)

    def reject(self, source: str, line: int, reason: str, excerpt: str) -> bool:
        """Note an input row that is no question, in `rejected.jsonl`.

        Args:
            source: where it was read, a file's name for instance.
            line: its line there, from 1.
            reason: what is wrong with it.
            excerpt: how it begins.

        Returns:
            False if the same rejection stands there already, from this start or an earlier one; it is not repeated.

        Raises:
            TraceError: it could not be written; nothing of it was kept.
            ValueError: the folder is not open.
        """
        row = {"source": clean(source), "line": line, "reason": clean(reason), "excerpt": clean(excerpt)}
        with self._noting:
            if self._resources is None:
                raise ValueError(f"{self.directory} is not open; reject within `with`.")
            if self._rejected is None:
                # Not synced line by line: the input still holds what a power failure takes from here.
                path = self.directory / REJECTED_NAME
                self._rejected = self._resources.enter_context(LineWriter(path, sync=False))
                self._rejections = set(_rejections(path))
            mark = _rejection(row)
            if mark in self._rejections:
                return False
            self._rejected.write(json.dumps(row, ensure_ascii=False).encode())
            self._rejections.add(mark)
            return True

    def write_summary(self, summary: Mapping[str, Any]) -> bool:
        """Replace `summary.json`; whoever reads it sees the old one or the new one whole.

        Args:
            summary: as plain JSON.

        Returns:
            Whether it could be written. If not, a warning is logged the first time: a summary is not worth a run.
        """
        content = clean(json.dumps(dict(summary), indent=2, ensure_ascii=False)) + "\n"
        with self._noting:
            try:
                replace_file(self.directory / SUMMARY_NAME, content.encode(), sync=False)
            except OSError as error:
                if not self._summary_failed:
                    _log.warning("%s cannot be written: %s. The run goes on.", self.directory / SUMMARY_NAME, error)
                self._summary_failed = True
                return False
        return True

    def _scan(self) -> None:
        self.counts = dict.fromkeys(get_args(Status), 0)
        self._done.clear()
        self._otherwise.clear()
        for head in trace_heads(self._traces.path):
            self.counts[head.status] += 1
            if _KEY.fullmatch(head.id):
                self._note(head.id, head.status)

    def _note(self, key: str, status: Status) -> None:
        self._done.add(int(key, 16))
        if status != "finished":
            self._otherwise[int(key, 16)] = status


def require_usable(directory: Path, settings: Mapping[str, Any]) -> bool:
    """See whether a run may go on in a folder, without looking at what is done there.

    Returns:
        Whether a run was begun there.

    Raises:
        ConfigError: the folder cannot be read or written, or its `settings.json` cannot be read.
        RunLockedError: another run writes there.
        SettingsChangedError: the folder was begun under other settings.
    """
    with _told_if_unusable(directory):
        if not (directory / SETTINGS_NAME).exists():
            return False
        with RunLock(directory):
            return _same_settings(directory, settings)


def read_summary(directory: Path) -> dict[str, Any] | None:
    """The summary that the run last wrote; `None` if there is none that can be read."""
    return read_object(directory / SUMMARY_NAME)


@contextmanager
def _told_if_unusable(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"The folder {directory} cannot be made or written: {error}. "
            "Make room or grant access there, or name another --out."
        ) from error


def _settings_file(settings: Mapping[str, Any]) -> str:
    return json.dumps(json.loads(_canonical(dict(settings))), indent=2, sort_keys=True) + "\n"


def _same_settings(directory: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder was begun under these settings; False: under none so far."""
    path = directory / SETTINGS_NAME
    try:
        old = json.loads(path.read_bytes())
        if not isinstance(old, dict):
            raise ValueError("it holds no JSON object")
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise ConfigError(
            f"{path} cannot be read: {error}. It tells under which settings the run was begun. "
            "Use another --out, or --force-new-settings to go on here under the present ones."
        ) from error
    changes = setting_changes(old, json.loads(_settings_file(settings)))
    if changes:
        raise SettingsChangedError(
            f"The run in {directory} was begun under other settings:\n"
            + "".join(f"  {change}\n" for change in changes)
            + "Use another --out, or --force-new-settings to go on here "
            "(questions done under the old settings will be done again under the new ones)."
        )
    return True


def _canonical(content: object) -> str:
    # Surrogates are replaced before anything is escaped: afterwards two lone ones in a row would pass for a character.
    cleaned = json.loads(clean(json.dumps(content, ensure_ascii=False)))
    return json.dumps(cleaned, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def setting_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs, as `name: old -> new`; compared as JSON, since that is what decides a question's identity."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return [
        f"{'.'.join(name)}: {_shown(before.get(name))} -> {_shown(after.get(name))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _leaves(settings: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), _canonical(value)


def _shown(value: str | None) -> str:
    if value is None:
        return "not set"
    text = json.dumps(json.loads(value), ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}... ({len(text)} characters)"


def _set_failed_aside(directory: Path) -> None:
    """Move the failed traces from `traces.jsonl` to `failed.jsonl`.

    They are on the disk there before the new file takes the old one's place, and it does so in one step, while nobody
    else can append to it.
    """
    path = (directory / FILE_NAME).resolve()  # a link to another disk stays one
    part = part_of(path)
    try:
        part.unlink(missing_ok=True)  # of a program that was killed
        with locked_file(path) as traces:
            mend_end(traces)
            if not any(head.status == "failed" for head in trace_heads(path)):
                return
            try:
                with (
                    path.open("rb") as old,
                    LineWriter(directory / FAILED_NAME, sync=False) as failed,
                    part.open("wb") as kept,
                ):
                    start = 0
                    for head in trace_heads(path):
                        line = old.read(head.end - start)
                        start = head.end
                        if head.status == "failed":
                            failed.write(line.strip())
                        else:
                            kept.write(line)
                    kept.flush()
                    os.fsync(kept.fileno())
                shutil.copymode(path, part)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        needed = f"{path.stat().st_size:,} bytes must be free" if path.exists() else "make room or grant access there"
        raise TraceError(
            f"The failed scenes in {path} cannot be set aside: {error}. They are all still there; {needed}."
        ) from error


def _rejections(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError, RecursionError):  # somebody else's line
                yield _rejection(json.loads(line))


def _rejection(row: dict[str, Any]) -> bytes:
    """What tells a rejection from others, short enough to remember a million."""
    content = _canonical([row["source"], row["line"], row["reason"]])
    return hashlib.sha256(content.encode()).digest()[:16]
