"""A run as people watch it: a bar on a terminal, plain lines in a pipe.

What always holds: both say what `words` says, and everything is shown as text alone, since names and messages come from
outside.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from matrix_graph.batch.summary import State, Summary
from matrix_graph.batch.words import (
    clock_time,
    counted_parts,
    done_part,
    left_parts,
    percent,
    plain_line,
    rate_parts,
    single_line,
)

LINE_SECONDS = 30.0
"""How often a line is written where there is no terminal."""
_LEAST_BAR = 8
"""Columns; a shorter bar shows nothing."""
_STYLES: dict[State, str] = {
    "starting": "dim",
    "running": "bold green",
    "waiting": "bold yellow",
    "draining": "bold yellow",
    "done": "bold green",
    "stopped": "bold yellow",
    "failed": "bold red",
}


class RunView(Protocol):
    """Something that shows a run; a context manager around it. Any thread may use it."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the show."""

    def status(self, line: str) -> None:
        """Show what is being waited for, or what has happened."""

    def show(self, summary: Summary) -> None:
        """Show how far the run has come."""


def run_view(console: Console) -> RunView:
    """The view that fits where the output goes."""
    return BarView(console) if console.is_terminal and not console.is_dumb_terminal else LineView(console)


def _local_now() -> datetime:
    return datetime.now().astimezone()


class LineView:
    """Plain lines, each whole in itself, for pipes and logs.

    The first and the last summary are written, each that is in another state than the one before, and otherwise one
    every `seconds`.

    Args:
        console: where to.
        seconds: between two lines.
        clock: seconds, of which only differences count.
        now: the time of day.
    """

    def __init__(
        self,
        console: Console,
        *,
        seconds: float = LINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _local_now,
    ) -> None:
        self._console, self._seconds, self._clock, self._now = console, seconds, clock, now
        self._writing = threading.Lock()
        self._written: Summary | None = None
        self._written_at = 0.0
        self._last: Summary | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._writing:
            if self._last is not None and self._last is not self._written:
                self._write(self._last)

    def status(self, line: str) -> None:
        """One line."""
        with self._writing:
            _print(self._console, f"{clock_time(self._now())} {single_line(line)}")

    def show(self, summary: Summary) -> None:
        """One line, or none if it is not yet time."""
        with self._writing:
            self._last = summary
            written = self._written
            due = self._clock() - self._written_at >= self._seconds
            if written is None or summary.state != written.state or due:
                self._write(summary)

    def _write(self, summary: Summary) -> None:
        self._written, self._written_at = summary, self._clock()
        _print(self._console, plain_line(summary))


class BarView:
    """A bar with the numbers below it and the latest notice above it, at the bottom of a terminal.

    A notice stays above all that when the next one comes; but one that says the same with other numbers ("vLLM: 5 s,
    loading weights", "vLLM: 10 s, warming up") takes its place.

    Args:
        console: the terminal.
        now: the time of day.
    """

    def __init__(self, console: Console, *, now: Callable[[], datetime] = _local_now) -> None:
        self._console, self._now = console, now
        self._notice = ""
        self._summary: Summary | None = None
        # Two threads that draw at once leave bits of the bar behind, so that rich starts none of its own.
        self._drawing = threading.RLock()
        self._live = Live(get_renderable=self._drawn, console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        with self._drawing:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._drawing:
            self._live.stop()
            self._keep_notice()

    def status(self, line: str) -> None:
        """Above the bar."""
        with self._drawing:
            notice = f"{clock_time(self._now())} {single_line(line)}"
            if _wording(notice) != _wording(self._notice):
                self._keep_notice()
            self._notice = notice
            self._refresh()

    def show(self, summary: Summary) -> None:
        """The bar; to be called every second or so."""
        with self._drawing:
            self._summary = summary
            self._refresh()

    def _refresh(self) -> None:
        if self._live.is_started:
            self._live.refresh()

    def _keep_notice(self) -> None:
        if self._notice:
            _print(self._console, self._notice, style="dim")
            self._notice = ""

    def _drawn(self) -> RenderableType:
        width = self._console.width
        lines: list[RenderableType] = []
        if self._notice:
            lines.append(_one_line(Text(self._notice, style="dim")))
        if self._summary is None:
            if not lines:
                lines.append(Text("starting", style=_STYLES["starting"]))
        else:
            lines += _bar(self._summary, width)
            parts = (counted_parts(self._summary), rate_parts(self._summary))
            lines += [_one_line(Text(line)) for part in parts for line in _packed(part, width)]
            if self._summary.message:
                lines.append(_one_line(Text(single_line(self._summary.message), style="dim")))
        return Group(*lines)


def _bar(summary: Summary, width: int) -> list[RenderableType]:
    questions = summary.questions
    state = Text(summary.state, style=_STYLES[summary.state])
    done, left = done_part(summary), left_parts(summary)
    done += f" {percent(questions.done / questions.total)}" if questions.total else " done"
    text = " · ".join([done, *left])
    room = width - cell_len(state.plain) - cell_len(text) - 2
    if room < _LEAST_BAR:
        return [_one_line(state), *(_one_line(Text(line)) for line in _packed([done, *left], width))]
    total = questions.total
    completed = questions.done if total is None or questions.left is None else total - questions.left
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row(state, ProgressBar(total=total, completed=completed, width=room), Text(text))
    return [row]


def _packed(parts: list[str], width: int) -> list[str]:
    """The parts in as few lines of that width as they fit into, in their order."""
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(f"{lines[-1]} · {part}") <= width:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return lines


def _one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _wording(notice: str) -> str:
    """What tells one notice from another: how it begins, its time left out, up to its first number."""
    return re.split(r"\d", notice.partition(" ")[2], maxsplit=1)[0]


def _print(console: Console, line: str, *, style: str | None = None) -> None:
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True, emoji=False)
