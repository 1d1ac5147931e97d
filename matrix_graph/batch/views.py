"""A run as people watch it: a bar on a terminal, plain lines in a pipe, and what they want to know afterwards.

What always holds: all three say the same numbers in the same words, what is not known is left out, and everything is
shown as text alone, since names and messages come from outside.
"""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, get_args

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from matrix_graph.batch.folder import REJECTED_NAME
from matrix_graph.batch.progress import ENDED, Questions, State, Summary
from matrix_graph.live import safe
from matrix_graph.records import Status
from matrix_graph.traces.store import FILE_NAME

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
            _print(self._console, f"{_clock_time(self._now())} {_line(line)}")

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
            notice = f"{_clock_time(self._now())} {_line(line)}"
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
            parts = (_counted(self._summary), _rates(self._summary))
            lines += [_one_line(Text(line)) for part in parts for line in _packed(part, width)]
            if self._summary.message:
                lines.append(_one_line(Text(_line(self._summary.message), style="dim")))
        return Group(*lines)


def _bar(summary: Summary, width: int) -> list[RenderableType]:
    questions = summary.questions
    state = Text(summary.state, style=_STYLES[summary.state])
    done, left = _done(summary), _left(summary)
    done += f" {_percent(questions.done / questions.total)}" if questions.total else " done"
    text = " · ".join([done, *left])
    room = width - cell_len(state.plain) - cell_len(text) - 2
    if room < _LEAST_BAR:
        return [_one_line(state), *(_one_line(Text(line)) for line in _packed([done, *left], width))]
    total = questions.total
    completed = questions.done if total is None or questions.left is None else total - questions.left
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row(state, ProgressBar(total=total, completed=completed, width=room), Text(text))
    return [row]


def plain_line(summary: Summary) -> str:
    """How far a run has come, in one line that is whole in itself."""
    q = summary.questions
    apart = [
        f"{amount(number)} {what}"
        for number, what in (
            (q.blocked, "blocked"),
            (q.failed, "failed"),
            (q.set_aside, "set aside"),
            (q.rejected, "rejected"),
        )
        if number
    ]
    parts = [
        f"{_done(summary)} done" + (f" ({', '.join(apart)})" if apart else ""),
        *([] if summary.state in ENDED else [f"{amount(q.in_flight)} in flight"]),
        *_rates(summary),
        *_left(summary),
    ]
    message = f": {_line(summary.message)}" if summary.message else ""
    return f"{_clock_time(summary.updated_at.astimezone())} {summary.state}  {', '.join(parts)}{message}"


def final(summary: Summary, folder: str | Path | None = None) -> list[str]:
    """What a person wants to know when a run has ended: how it went, where everything is, what to do next.

    Args:
        summary: the last one.
        folder: where the run's folder is now; None: where the summary has it.

    Returns:
        A few lines without characters that a terminal would obey.
    """
    q, start = summary.questions, summary.this_start
    where = str(folder) if folder is not None else summary.folder
    of = "" if q.total is None or q.total == q.done else f"{amount(q.done)} of "
    questions = _count(q.total if of and q.total is not None else q.done, "question")
    lines = [f"{summary.state} after {duration(start.seconds)}: {of}{questions} done: {_statuses(q)}"]
    if summary.state == "failed" and summary.message:
        lines.append(f"why: {summary.message}")
    if start.scenes:
        lines.append(f"this start: {', '.join([_count(start.scenes, 'scene'), *_rates(summary)])}")
    if start.restarts or start.seconds_away >= 1:
        restarts = f", {_count(start.restarts, 'restart')}" if start.restarts else ""
        lines.append(f"model server: away for {duration(start.seconds_away)}{restarts}")
    if q.duplicates:
        lines.append(f"duplicates: {_count(q.duplicates, 'row')}, each question is played once")
    if where and q.rejected:
        lines.append(f"rejected: {_count(q.rejected, 'row')}, see {Path(where) / REJECTED_NAME}")
    if where and q.done:
        lines.append(f"traces: {Path(where) / FILE_NAME}")
    lines += [f"next: {step}" for step in _next_steps(summary, where)]
    return [_line(line) for line in lines]


def status_lines(
    summary: Summary | None,
    running: bool,
    counts: Mapping[str, int] | None = None,
    *,
    folder: str | Path | None = None,
) -> list[str]:
    """How a run stands, for `matrix-graph status`.

    Args:
        summary: what the run last wrote; None: nothing yet.
        running: whether a run holds the folder now.
        counts: traces in the folder by status; None: unknown. They are the truth about a run that was killed, whose
            summary may be older.
        folder: where the run's folder is now; None: where the summary has it.

    Returns:
        A few lines without characters that a terminal would obey.
    """
    kept = sum((counts or {}).values())
    if summary is None:
        state = "starting" if running else "not running, and there is no summary"
        return [f"{state}; {_count(kept, 'trace')} kept so far"]
    if running and summary.state in ENDED:
        # Between two summaries: the last one of an earlier start, or this run's own while it still tidies up.
        return [f"starting or ending; {_count(kept, 'trace')} kept so far"] if counts is not None else ["starting"]
    if running:
        since = f"{_date_time(summary.started_at)}, process {summary.pid} on {summary.host}"
        model = f"model: {summary.model} at {summary.base_url}" if summary.base_url else f"model: {summary.model}"
        lines = [plain_line(summary), f"since {since}", f"questions: {summary.source}", model]
        return [_line(line) for line in lines]
    if counts is not None:
        summary = _corrected(summary, counts)
    if summary.state in ENDED:
        return final(summary, folder)
    left = f", {amount(summary.questions.left)} left" if summary.questions.left is not None else ""
    return [
        f"was killed or lost its machine at {_date_time(summary.updated_at)}",
        f"{_count(summary.questions.done, 'question')} done: {_statuses(summary.questions)}{left}",
        "next: start the same command again; it goes on where it stopped",
    ]


def duration(seconds: float) -> str:
    """Seconds as people say them: "48 s", "3 min 20 s", "43 min", "1 h 43 min", "2 d 4 h"."""
    unit = 1 if seconds < 600 else 60 if seconds < 48 * 3600 else 3600
    whole = max(round(seconds / unit), 0) * unit
    days, hours = divmod(whole // 3600, 24)
    if whole < 48 * 3600:
        days, hours = 0, whole // 3600
    units = ((days, "d"), (hours, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    return " ".join(f"{number} {name}" for number, name in units if number) or "0 s"


def amount(number: float) -> str:
    """A number as people read it: "10,000", "5,103", "24.8"."""
    return f"{number:,}" if isinstance(number, int) else f"{number:,.{0 if abs(number) >= 99.95 else 1}f}"


def _count(number: int, what: str) -> str:
    return f"{amount(number)} {what}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{int(share * 100)}%"  # never 100% before all is done


def _done(summary: Summary) -> str:
    total = summary.questions.total
    return amount(summary.questions.done) + ("" if total is None else f"/{amount(total)}")


def _left(summary: Summary) -> list[str]:
    seconds = summary.rates.seconds_left
    return [] if seconds is None or summary.state in ENDED else [f"{duration(seconds)} left"]


def _counted(summary: Summary) -> list[str]:
    q = summary.questions
    always = ((q.finished, "finished"), (q.failed, "failed"), (q.in_flight, "in flight"))
    sometimes = (
        (q.blocked, "blocked"),
        (q.set_aside, "set aside"),
        (q.rejected, "rejected"),
        (summary.this_start.restarts, "restart" if summary.this_start.restarts == 1 else "restarts"),
    )
    return [f"{amount(number)} {what}" for number, what in (*always, *((n, what) for n, what in sometimes if n))]


def _rates(summary: Summary) -> list[str]:
    rates = summary.rates
    known = (
        (rates.scenes_per_hour, "scenes/h"),
        (rates.output_tokens_per_second, "tok/s"),
        (rates.calls_per_scene, "calls/scene"),
    )
    parts = [f"{amount(value)} {unit}" for value, unit in known if value is not None]
    hit_rate = rates.prefix_cache_hit_rate
    return [*parts, *([] if hit_rate is None else [f"{hit_rate:.0%} cached"])]


def _statuses(q: Questions) -> str:
    parts = ((q.finished, "finished"), (q.blocked, "blocked"), (q.failed, "failed"), (q.set_aside, "set aside"))
    return ", ".join(f"{amount(number)} {what}" for number, what in parts if number or what == "finished")


def _next_steps(summary: Summary, where: str) -> list[str]:
    q = summary.questions
    steps = []
    if summary.state != "done":
        left = f"with the {_count(q.left, 'question')} left" if q.left else "where it stopped"
        steps.append(f"start the same command again; it goes on {left}")
    if q.failed and where:
        steps.append(f"the same command with --retry-failed plays the {amount(q.failed)} failed once more")
    if q.finished and where:
        folder = shlex.quote(where)
        steps.append(f"matrix-graph export {folder} --format messages --out {shlex.quote(f'{where}/sft.jsonl')}")
    return steps


def _corrected(summary: Summary, counts: Mapping[str, int]) -> Summary:
    """The summary with the traces that there are."""
    q = summary.questions
    statuses = {status: counts.get(status, 0) for status in get_args(Status)}
    done = sum(statuses.values())
    total = None if q.total is None else max(q.total, done + q.set_aside)
    left = None if total is None else total - done - q.set_aside
    questions = q.model_copy(update={**statuses, "done": done, "total": total, "left": left, "in_flight": 0})
    return summary.model_copy(update={"questions": questions})


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


def _line(text: str) -> str:
    """The text as a single safe line."""
    return " ".join(safe(text).split())


def _clock_time(moment: datetime) -> str:
    return f"{moment:%H:%M:%S}"


def _date_time(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _print(console: Console, line: str, *, style: str | None = None) -> None:
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True, emoji=False)
