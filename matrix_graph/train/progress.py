"""A training as people watch it: a bar with the time left on a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_LINE_SECONDS = 10.0


class TrainingView:
    """Shows how far a training is; a context manager.

    Args:
        console: where; nothing but a terminal gets a bar.
        clock: seconds, of which only differences count.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[loss]}{task.fields[left]}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, visible=False, loss="", left="")
        self._began = self._told = clock()
        self._total = self._first = 0
        self._fresh = True

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def begin(self, done: int, total: int) -> None:
        """Training begins, or goes on.

        Args:
            done: steps that an earlier start made.
            total: steps in all.
        """
        self._first, self._total = done, total
        self._began = self._told = self._clock()
        self._fresh = True
        self._bar.update(self._task, total=total, completed=done, visible=True)

    def step(self, done: int) -> None:
        """So many steps are made, earlier starts' ones among them."""
        self._bar.update(self._task, completed=done, left=self._left(done))

    def loss(self, done: int, value: float) -> None:
        """The loss of the last steps is known."""
        self._bar.update(self._task, loss=f"loss {value:.3f}")
        now = self._clock()
        if not self._console.is_terminal and (self._fresh or done == self._total or now - self._told >= _LINE_SECONDS):
            self._fresh, self._told = False, now
            self.say(f"step {done} of {self._total}, loss {value:.3f}{self._left(done)}")

    def _left(self, done: int) -> str:
        seconds = (self._clock() - self._began) / max(1, done - self._first)
        return f", {seconds:.1f} s a step, {_duration(seconds * (self._total - done))} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
