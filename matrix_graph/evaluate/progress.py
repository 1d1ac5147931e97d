"""How far an evaluation has come: counts, and the line that people see."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from matrix_graph.live import safe

_LINE_SECONDS = 30.0
"""How often a line is written where there is no terminal."""


class Progress:
    """Counts of one start of an evaluation.

    Args:
        clock: seconds, of which only differences count.

    Attributes:
        stage: what is being done: "answers", "matched answers" or "verdicts".
        total: jobs of the stage, those done before included.
        before: of these, jobs done in earlier starts.
        done: jobs that ended in this start.
        failed: how many of these failed.
        in_flight: jobs in flight.
        calls: model calls that were answered.
        output_tokens: that they generated.
        away: whether the server is away.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self.stage = "answers"
        self.total = self.before = self.done = self.failed = self.in_flight = 0
        self.calls = self.output_tokens = 0
        self.away = False

    def begin(self, stage: str, total: int, before: int) -> None:
        """A stage begins."""
        self.stage, self.total, self.before = stage, total, before
        self.done = 0
        self._began = self._clock()

    def call_ended(self, _input_tokens: int, output_tokens: int) -> None:
        """A model call was answered."""
        self.calls += 1
        self.output_tokens += output_tokens

    def begun(self) -> None:
        """A job is in flight."""
        self.in_flight += 1

    def put_back(self) -> None:
        """A job is no longer in flight, and not done."""
        self.in_flight -= 1

    def set_aside(self) -> None:
        """A job is not tried for the time being; it counts as one to come."""

    def taken_back(self) -> None:
        """A job that was set aside is tried once more, or given up."""

    def job_ended(self, *, failed: bool) -> None:
        """A job ended, and is kept."""
        self.in_flight -= 1
        self.done += 1
        self.failed += failed

    @property
    def line(self) -> str:
        """All of it in one line."""
        seconds = self._clock() - self._began
        ended = self.before + self.done
        parts = [f"{self.stage}: {ended} of {self.total}"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        parts.append(f"{self.calls} calls")
        if self.away:
            parts.append("waiting for the server")
        elif self.done and self.done + self.before < self.total:
            under_way = self.in_flight / 2  # a job in flight is half done on average
            left = seconds / (self.done + under_way) * max(self.total - ended - under_way, 0)
            parts.append(f"about {left / 60:.0f} min left" if left >= 90 else f"about {left:.0f} s left")
        return ", ".join(parts)


class ProgressView:
    """Shows progress: one line that changes on a terminal, a line now and then in a pipe; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("") if console.is_terminal else None
        self._written_at = float("-inf")
        self._written = ""

    def __enter__(self) -> ProgressView:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def status(self, line: str) -> None:
        """Something happened."""
        self._print(line)

    def show(self, progress: Progress) -> None:
        """How far it has come."""
        line = progress.line
        if self._status is not None:
            self._status.update(Text(safe(line)))
        elif line != self._written and (
            time.monotonic() - self._written_at >= _LINE_SECONDS or progress.before + progress.done == progress.total
        ):
            self._written, self._written_at = line, time.monotonic()
            self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(safe(line), markup=False, highlight=False, emoji=False, soft_wrap=True)
