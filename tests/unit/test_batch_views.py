"""The views of a run: the same numbers everywhere, on terminals of any width, and nothing from outside is obeyed."""

from __future__ import annotations

import io
import random
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from matrix_graph.batch.summary import ENDED, Limits, Questions, Rates, State, Summary, ThisStart
from matrix_graph.batch.views import BarView, LineView, RunView, run_view
from matrix_graph.batch.words import amount, counted_parts, duration, final, plain_line, status_lines

MOMENT = datetime(2026, 1, 2, 12, 3, 4).astimezone()
HOSTILE = "\x1b[2J\x1b]0;title\x07 [bold]b[/bold] [/] :smile: \u202egnp\u2066 \x00\x9b31m\r\nnext \u2028line \ud800"
UNSAFE = set("\x1b\x00\x07\r\x9b\u202e\u2066\u2028\ud800")


def summary(state: State = "running", **more: Any) -> Summary:
    whole: dict[str, Any] = {
        "state": state,
        "folder": "runs/night",
        "source": "questions.jsonl",
        "model": "SmolLM2",
        "base_url": "http://127.0.0.1:8000/v1",
        "pid": 77,
        "host": "vm",
        "started_at": MOMENT.astimezone(UTC),
        "updated_at": MOMENT.astimezone(UTC),
        "questions": Questions(
            total=10_000, done=1234, finished=1231, failed=3, in_flight=64, set_aside=1, left=8765, rejected=2
        ),
        "this_start": ThisStart(seconds=872.4, scenes=1234, calls=30_603, output_tokens=253_000),
        "rates": Rates(
            scenes_per_hour=5100.2,
            output_tokens_per_second=291.4,
            calls_per_scene=24.8,
            prefix_cache_hit_rate=0.81,
            seconds_left=6180.0,
        ),
        "limits": Limits(scenes=64, requests=32),
    }
    return Summary.model_validate({**whole, **more})


def asked(**counts: int | None) -> dict[str, Questions]:
    return {"questions": summary().questions.model_copy(update=counts)}


NOTHING_YET = summary("starting", questions=Questions(), this_start=ThisStart(), rates=Rates())


class Terminal(io.StringIO):
    """A file that a terminal shows."""

    def __init__(self, width: int, height: int = 60) -> None:
        super().__init__()
        self.screen = pyte.Screen(width, height)
        self.screen.set_mode(pyte.modes.LNM)
        self._stream = pyte.Stream(self.screen)

    def write(self, text: str) -> int:
        self._stream.feed(text)
        return super().write(text)

    @property
    def shown(self) -> list[str]:
        return "\n".join(row.rstrip() for row in self.screen.display).rstrip().splitlines()


def console(file: io.StringIO, width: int = 100, term: str = "xterm") -> Console:
    return Console(
        file=file,
        force_terminal=True,
        width=width,
        height=60,
        color_system="truecolor",
        legacy_windows=False,
        _environ={"TERM": term},
    )


class Watched:
    """A line view on a clock set by hand, and what it wrote."""

    def __init__(self, **options: Any) -> None:
        self.seconds = 0.0
        self._file = io.StringIO()
        self.view = LineView(
            Console(file=self._file, width=40), clock=lambda: self.seconds, now=lambda: MOMENT, **options
        )

    @property
    def lines(self) -> list[str]:
        return self._file.getvalue().splitlines()


# --- numbers for people


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-3, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (599.7, "10 min"),
        (601, "10 min"),
        (3599, "1 h"),
        (6180, "1 h 43 min"),
        (47 * 3600 + 60, "47 h 1 min"),
        (48 * 3600 - 1, "2 d"),
        (52.2 * 3600, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e9))
def test_durations_are_short_and_right(seconds: float) -> None:
    units = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
    words = duration(seconds).split()
    told = sum(int(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert len(words) <= 4
    assert told == pytest.approx(seconds, rel=0.05, abs=0.5)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (10_000, "10,000"), (0.0, "0.0"), (24.84, "24.8"), (99.94, "99.9"), (99.96, "100"), (5103.2, "5,103")],
)
def test_numbers(number: float, text: str) -> None:
    assert amount(number) == text


# --- lines


def test_a_line_is_whole_in_itself() -> None:
    assert plain_line(summary()) == (
        "12:03:04 running  1,234/10,000 done (3 failed, 1 set aside, 2 rejected), 64 in flight, 5,100 scenes/h, "
        "291 tok/s, 24.8 calls/scene, 81% cached, 1 h 43 min left"
    )
    assert plain_line(NOTHING_YET) == "12:03:04 starting  0 done, 0 in flight"
    away = summary("waiting", message="no answer\nfrom there", rates=Rates(), **asked(failed=0, rejected=0))
    assert plain_line(away) == "12:03:04 waiting  1,234/10,000 done (1 set aside), 64 in flight: no answer from there"
    over = summary("done", rates=Rates(seconds_left=0.0), questions=Questions(total=5, done=5, finished=5, left=0))
    assert plain_line(over) == "12:03:04 done  5/5 done"


def test_lines_come_now_and_then() -> None:
    watched = Watched()
    with watched.view as view:
        for second in range(100):
            watched.seconds = float(second)
            view.show(summary(**asked(done=second)))
    assert [line.split()[2] for line in watched.lines] == [
        "0/10,000",
        "30/10,000",
        "60/10,000",
        "90/10,000",
        "99/10,000",
    ]


def test_a_new_state_is_told_at_once_and_the_last_line_once() -> None:
    watched = Watched(seconds=1000.0)
    with watched.view as view:
        for state in ("starting", "running", "running", "waiting", "running", "done"):
            view.show(summary(state))
    assert [line.split()[1] for line in watched.lines] == ["starting", "running", "waiting", "running", "done"]


def test_the_last_line_comes_after_an_exception_too_and_none_before_the_first() -> None:
    watched = Watched()
    with pytest.raises(KeyboardInterrupt), watched.view as view:
        view.show(summary(**asked(done=1)))
        view.show(summary(**asked(done=2)))
        raise KeyboardInterrupt
    assert [line.split()[2] for line in watched.lines] == ["1/10,000", "2/10,000"]
    watched = Watched()
    with watched.view as view:
        view.status("vLLM: 3 s, loading weights")
    assert watched.lines == ["12:03:04 vLLM: 3 s, loading weights"]


# --- the bar


def drawn(of: Summary, width: int) -> list[str]:
    file = Terminal(width)
    with BarView(console(file, width), now=lambda: MOMENT) as view:
        view.show(of)
        return file.shown


def test_the_bar() -> None:
    bar, counts, rates = drawn(summary(), 100)
    assert bar.startswith("running ━━━━") and bar.endswith("━━ 1,234/10,000 12% · 1 h 43 min left")
    assert cell_len(bar) == 100
    assert counts == "1,231 finished · 3 failed · 64 in flight · 1 set aside · 2 rejected"
    assert rates == "5,100 scenes/h · 291 tok/s · 24.8 calls/scene · 81% cached"


def test_a_narrow_terminal() -> None:
    bar, counts, more, rates = drawn(summary(), 60)
    assert bar.startswith("running ━━╺━━━━") and bar.endswith("━━ 1,234/10,000 12% · 1 h 43 min left")
    assert f"{counts} · {more}" == "1,231 finished · 3 failed · 64 in flight · 1 set aside · 2 rejected"
    assert rates == "5,100 scenes/h · 291 tok/s · 24.8 calls/scene · 81% cached"
    narrow = drawn(summary(), 30)
    assert narrow[:3] == ["running", "1,234/10,000 12%", "1 h 43 min left"]


def test_a_bar_without_a_total() -> None:
    unknown = summary(rates=Rates(), **asked(total=None, left=None))
    bar, *_ = drawn(unknown, 80)
    assert bar.startswith("running ━━━━") and bar.endswith("━━ 1,234 done")
    assert drawn(NOTHING_YET, 80)[1:] == ["0 finished · 0 failed · 0 in flight"]
    assert drawn(summary(rates=Rates(), questions=Questions(total=0, left=0)), 80)[0].endswith("━━ 0/0 done")


def test_the_bar_is_full_when_all_is_done_and_not_before() -> None:
    assert "99%" in drawn(summary(**asked(done=9999, left=1)), 80)[0]
    file = Terminal(80)
    with BarView(console(file, 80)) as view:
        view.show(summary("done", **asked(done=10_000, left=0)))
        assert "╺" not in file.shown[0] and "100%" in file.shown[0]


def test_a_restart_and_a_message_are_told() -> None:
    restarted = summary("waiting", message="no answer from there", this_start=ThisStart(restarts=1))
    assert drawn(restarted, 100)[1:] == [
        "1,231 finished · 3 failed · 64 in flight · 1 set aside · 2 rejected · 1 restart",
        "5,100 scenes/h · 291 tok/s · 24.8 calls/scene · 81% cached",
        "no answer from there",
    ]


def test_notices_stay_above_the_bar() -> None:
    file = Terminal(100)
    with BarView(console(file), now=lambda: MOMENT) as view:
        assert file.shown == ["starting"]
        view.status("vLLM: 5 s, loading [bold] weights")
        assert file.shown == ["12:03:04 vLLM: 5 s, loading [bold] weights"]
        view.status("vLLM: 10 s, ready")
        assert file.shown == ["12:03:04 vLLM: 10 s, ready"]
        view.show(summary())
        assert [line[:20] for line in file.shown] == [
            "12:03:04 vLLM: 10 s,",
            "running ━━━━━━━╺━━━━",
            "1,231 finished · 3 f",
            "5,100 scenes/h · 291",
        ]
        view.status("vLLM: killed; restart 1 of 5 in 1 s")
        view.status("a question is set aside")
        view.show(summary("draining"))
        assert [line[:30] for line in file.shown[:4]] == [
            "12:03:04 vLLM: 10 s, ready",
            "12:03:04 vLLM: killed; restart",
            "12:03:04 a question is set asi",
            "draining ━━━━━━╸━━━━━━━━━━━━━━",
        ]
    assert file.shown == [
        "12:03:04 vLLM: 10 s, ready",
        "12:03:04 vLLM: killed; restart 1 of 5 in 1 s",
        "12:03:04 a question is set aside",
    ]
    view.status("after the end")
    assert len(file.shown) == 3


def test_the_bar_ends_with_the_view_also_after_an_exception() -> None:
    file = Terminal(80)
    with pytest.raises(KeyboardInterrupt), BarView(console(file, 80)) as view:
        view.show(summary())
        raise KeyboardInterrupt
    assert file.shown == []
    assert "\x1b[?25h" in file.getvalue()  # the cursor is back


def test_threads_leave_nothing_behind() -> None:
    file = Terminal(60, height=400)
    notices = [f"{'abcdefghij'[number % 10]} notice" for number in range(60)]
    with BarView(console(file, 60), now=lambda: MOMENT) as view:
        teller = threading.Thread(target=lambda: [view.status(notice) for notice in notices])
        teller.start()
        for number in range(60):
            view.show(summary(**asked(set_aside=number % 2, rejected=random.choice([0, 10_000_000]))))
        teller.join()
    assert file.shown == [f"12:03:04 {notice}" for notice in notices]


# --- whatever there is to show

COUNTS = st.integers(0, 10**7)
SOME = st.none() | st.floats(0, 1e7)
TEXTS = st.text(max_size=30) | st.just(HOSTILE)
SUMMARIES = st.builds(
    summary,
    st.sampled_from(get_args(State)),
    message=st.none() | TEXTS,
    folder=TEXTS,
    source=TEXTS,
    model=TEXTS,
    base_url=TEXTS,
    host=TEXTS,
    questions=st.builds(
        Questions,
        total=st.none() | COUNTS,
        left=st.none() | COUNTS,
        **dict.fromkeys(("done", "finished", "blocked", "failed", "in_flight", "set_aside", "rejected"), COUNTS),
        duplicates=COUNTS,
    ),
    this_start=st.builds(
        ThisStart, seconds=st.floats(0, 1e7), seconds_away=st.floats(0, 1e7), scenes=COUNTS, restarts=COUNTS
    ),
    rates=st.builds(
        Rates,
        scenes_per_hour=SOME,
        output_tokens_per_second=SOME,
        calls_per_scene=SOME,
        prefix_cache_hit_rate=st.none() | st.floats(0, 1),
        seconds_left=SOME,
    ),
)


@given(SUMMARIES, TEXTS, st.integers(1, 200))
def test_every_summary_fits_and_is_inert(of: Summary, notice: str, width: int) -> None:
    lines = [plain_line(of), *final(of), *status_lines(of, True, None), *status_lines(of, False, {"failed": 2})]
    assert not UNSAFE & set("".join(lines))
    assert all(line and "\n" not in line for line in lines)
    watched, file = Watched(), io.StringIO()
    terminal = console(file, width)
    with watched.view as view, BarView(terminal) as bar:
        for shown in (view, bar):
            shown.status(notice)
            shown.show(of)
        rows = terminal.render_lines(bar._drawn(), pad=False)
        assert all(sum(cell_len(segment.text) for segment in row) <= width for row in rows)
    assert len(watched.lines) == 2
    assert not UNSAFE & set("".join(watched.lines))
    assert not UNSAFE - {"\x1b", "\r"} & set(file.getvalue())
    assert "\x1b[2J" not in file.getvalue() and "\x1b]0" not in file.getvalue()


def test_hostile_texts_are_shown_as_they_are() -> None:
    shown = "?[2J?]0;title? [bold]b[/bold] [/] :smile: ?gnp? ??31m? next ?line ?".replace("?", "\ufffd")
    watched, file = Watched(), Terminal(150)
    with watched.view as view, BarView(console(file, 150), now=lambda: MOMENT) as bar:
        view.status(HOSTILE)
        view.show(summary(message=HOSTILE))
        bar.status(HOSTILE)
        bar.show(summary(message=HOSTILE))
        assert (file.shown[0], file.shown[-1]) == (f"12:03:04 {shown}", shown)
    assert watched.lines[0] == f"12:03:04 {shown}"
    assert watched.lines[1].endswith(f" left: {shown}")
    assert final(summary("failed", message=HOSTILE))[1] == f"why: {shown}"


def test_the_view_that_fits() -> None:
    consoles = [console(io.StringIO()), console(io.StringIO(), term="dumb"), Console(file=io.StringIO(), _environ={})]
    views: list[RunView] = [run_view(one) for one in consoles]
    assert [type(view) for view in views] == [BarView, LineView, LineView]


# --- afterwards


def test_the_end_of_a_whole_run() -> None:
    over = summary(
        "done",
        questions=Questions(total=10_000, done=10_000, finished=10_000, left=0),
        this_start=ThisStart(seconds=7058, scenes=8766),
    )
    assert final(over) == [
        "done after 1 h 58 min: 10,000 questions done: 10,000 finished",
        "this start: 8,766 scenes, 5,100 scenes/h, 291 tok/s, 24.8 calls/scene, 81% cached",
        "traces: runs/night/traces.jsonl",
        "next: matrix-graph export runs/night --format messages --out runs/night/sft.jsonl",
    ]


def test_the_end_of_a_run_with_everything() -> None:
    counts = asked(done=1235, blocked=1, duplicates=1, left=8764)
    stopped = summary(
        "stopped", **counts, this_start=ThisStart(seconds=872, seconds_away=130, scenes=1, restarts=2), rates=Rates()
    )
    assert final(stopped, Path("else where")) == [
        "stopped after 15 min: 1,235 of 10,000 questions done: 1,231 finished, 1 blocked, 3 failed, 1 set aside",
        "this start: 1 scene",
        "model server: away for 2 min 10 s, 2 restarts",
        "duplicates: 1 row, each question is played once",
        "rejected: 2 rows, see else where/rejected.jsonl",
        "traces: else where/traces.jsonl",
        "next: start the same command again; it goes on with the 8,764 questions left",
        "next: the same command with --retry-failed plays the 3 failed once more",
        "next: matrix-graph export 'else where' --format messages --out 'else where/sft.jsonl'",
    ]


def test_answers_that_were_cut_are_counted_and_many_of_them_are_a_warning() -> None:
    few = summary("done", this_start=ThisStart(seconds=60, scenes=100, cut=5))
    assert "cut: 5 answers of 100 scenes ended at the limit of tokens" in final(few)
    assert "(3 failed, 1 set aside, 2 rejected, 5 cut)" in plain_line(few) and "5 cut" in counted_parts(few)
    many = summary(this_start=ThisStart(seconds=60, scenes=100, cut=6))
    warning = "warning: 6 answers of 100 scenes ended at the limit of tokens (6%); raise max_answer_tokens"
    assert warning in final(many) and status_lines(many, running=True)[-1] == warning
    assert not any("limit of tokens" in line for line in [*final(summary()), *status_lines(summary(), running=True)])


def test_the_end_of_a_run_that_did_nothing() -> None:
    nothing = summary("failed", message="the disk is full", folder="", **{"questions": Questions(rejected=3)})
    assert final(nothing.model_copy(update={"this_start": ThisStart()})) == [
        "failed after 0 s: 0 questions done: 0 finished",
        "why: the disk is full",
        "next: start the same command again; it goes on where it stopped",
    ]


def test_the_status_of_a_run_that_goes_on() -> None:
    assert status_lines(summary(), running=True, counts={"finished": 1240}) == [
        " ".join(plain_line(summary()).split()),
        "since 2026-01-02 12:03:04, process 77 on vm",
        "questions: questions.jsonl",
        "model: SmolLM2 at http://127.0.0.1:8000/v1",
    ]
    assert status_lines(None, running=True, counts={}) == ["starting; 0 traces kept so far"]
    assert status_lines(summary("done"), running=True, counts={"finished": 1}) == [
        "starting or ending; 1 trace kept so far"
    ]


@pytest.mark.parametrize("state", [state for state in get_args(State) if state not in ENDED])
def test_the_status_of_a_run_that_was_killed(state: State) -> None:
    """The traces are the truth: the summary is seconds older."""
    assert status_lines(summary(state), running=False, counts={"finished": 1300, "failed": 3, "blocked": 2}) == [
        "was killed or lost its machine at 2026-01-02 12:03:04",
        "1,305 questions done: 1,300 finished, 2 blocked, 3 failed, 1 set aside, 8,694 left",
        "next: start the same command again; it goes on where it stopped",
    ]


def test_the_status_afterwards() -> None:
    over = summary("done", questions=Questions(total=5, done=4, finished=4, left=1))
    assert status_lines(over, running=False, counts={"finished": 5}) == final(
        summary("done", questions=Questions(total=5, done=5, finished=5, left=0))
    )
    assert status_lines(over, running=False) == final(over)
    assert "traces: moved/traces.jsonl" in status_lines(over, running=False, folder="moved")
    assert status_lines(None, running=False, counts={"finished": 7}) == [
        "not running, and there is no summary; 7 traces kept so far"
    ]
