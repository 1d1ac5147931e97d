"""A run in words: how far it has come, how it stands, and what people want to know afterwards.

Why apart: the bar, the plain lines and `matrix-graph status` say the same numbers in the same words. What always holds:
what is not known is left out, and each line is one line of text without characters that a terminal would obey, since
names and messages come from outside.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import get_args

from matrix_graph.batch.folder import REJECTED_NAME
from matrix_graph.batch.summary import ENDED, Questions, Summary
from matrix_graph.live import safe
from matrix_graph.records import Status
from matrix_graph.traces.store import FILE_NAME

MOST_CUT = 0.05
"""The share of answers that may be cut without a warning."""


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
            (summary.this_start.cut, "cut"),
        )
        if number
    ]
    parts = [
        f"{done_part(summary)} done" + (f" ({', '.join(apart)})" if apart else ""),
        *([] if summary.state in ENDED else [f"{amount(q.in_flight)} in flight"]),
        *rate_parts(summary),
        *left_parts(summary),
    ]
    message = f": {single_line(summary.message)}" if summary.message else ""
    return f"{clock_time(summary.updated_at.astimezone())} {summary.state}  {', '.join(parts)}{message}"


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
        lines.append(f"this start: {', '.join([_count(start.scenes, 'scene'), *rate_parts(summary)])}")
    lines += cut_lines(summary)
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
    return [single_line(line) for line in lines]


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
        return [single_line(line) for line in [*lines, *cut_lines(summary)]]
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


def cut_lines(summary: Summary) -> list[str]:
    """How many answers of this start ended at their limit of tokens; of many of them, a warning."""
    start = summary.this_start
    if not start.cut:
        return []
    told = f"{_count(start.cut, 'answer')} of {_count(start.scenes, 'scene')} ended at the limit of tokens"
    if start.cut <= MOST_CUT * start.scenes:
        return [f"cut: {told}"]
    share = f"{start.cut / start.scenes:.0%}"
    return [f"warning: {told} ({share}); raise max_answer_tokens"]


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


def percent(share: float) -> str:
    """A share, 0 to 1, as people read it: "12%"."""
    return f"{int(share * 100)}%"  # never 100% before all is done


def done_part(summary: Summary) -> str:
    """How many questions are done, and of how many if that is known: "1,234/10,000"."""
    total = summary.questions.total
    return amount(summary.questions.done) + ("" if total is None else f"/{amount(total)}")


def left_parts(summary: Summary) -> list[str]:
    """How long it still takes, if that is known."""
    seconds = summary.rates.seconds_left
    return [] if seconds is None or summary.state in ENDED else [f"{duration(seconds)} left"]


def counted_parts(summary: Summary) -> list[str]:
    """What became of the questions, each count by itself."""
    q = summary.questions
    always = ((q.finished, "finished"), (q.failed, "failed"), (q.in_flight, "in flight"))
    sometimes = (
        (q.blocked, "blocked"),
        (q.set_aside, "set aside"),
        (q.rejected, "rejected"),
        (summary.this_start.cut, "cut"),
        (summary.this_start.restarts, "restart" if summary.this_start.restarts == 1 else "restarts"),
    )
    return [f"{amount(number)} {what}" for number, what in (*always, *((n, what) for n, what in sometimes if n))]


def rate_parts(summary: Summary) -> list[str]:
    """How fast it goes, each rate that is known by itself."""
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


def single_line(text: str) -> str:
    """The text as a single safe line."""
    return " ".join(safe(text).split())


def clock_time(moment: datetime) -> str:
    """The time of day, as it stands before a line."""
    return f"{moment:%H:%M:%S}"


def _date_time(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"
