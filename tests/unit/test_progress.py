"""The counts of a run add up whatever happens, and its rates are those of the recent past."""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_graph.batch.progress import Progress
from matrix_graph.batch.summary import ENDED, State, Summary

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STATES: list[State] = ["running", "waiting", "draining", "done", "stopped", "failed"]


class Run:
    """A progress whose time is set by hand."""

    def __init__(self, rows: int | None = None) -> None:
        self.seconds = 1000.0
        self.progress = Progress(
            "runs/x", "questions.jsonl", clock=lambda: self.seconds, now=lambda: BEGAN + timedelta(seconds=self.seconds)
        )
        if rows is not None:
            self.progress.total_known(rows)

    def plays(self, scenes: int, *, every: float, calls: int = 2, tokens: int = 10) -> None:
        """Scenes end one after the other, each followed by a new one."""
        for _ in range(scenes):
            self.seconds += every
            for _ in range(calls):
                self.progress.call_ended(100, tokens)
            self.progress.scene_ended("finished", seconds=8.0, calls=calls)
            self.progress.begun()

    def started(self, scenes: int) -> Run:
        self.progress.state_changed("running")
        for _ in range(scenes):
            self.progress.begun()
        return self

    @property
    def now(self) -> Summary:
        return self.progress.snapshot()


# --- counts


def test_a_run_that_has_not_begun_knows_nothing() -> None:
    run = Run()
    run.seconds += 2.5
    summary = run.now
    assert (summary.state, summary.message, summary.folder, summary.source) == (
        "starting",
        None,
        "runs/x",
        "questions.jsonl",
    )
    assert (summary.pid, summary.model, summary.base_url) == (os.getpid(), "", "")
    assert summary.updated_at - summary.started_at == timedelta(seconds=2.5)
    assert (summary.questions.total, summary.questions.left, summary.questions.done) == (None, None, 0)
    assert summary.this_start.seconds == 2.5
    assert set(summary.rates.model_dump().values()) == {None}
    assert set(summary.limits.model_dump().values()) == {None}


def test_questions_of_all_starts_are_counted() -> None:
    run = Run(rows=20).started(5)
    for status in ("finished", "finished", "blocked", "failed"):
        run.progress.row_done_before(status)
    run.progress.row_rejected()
    run.progress.row_duplicate()
    run.progress.row_duplicate()
    run.progress.scene_ended("finished", seconds=1, calls=20)
    run.progress.scene_ended("failed", seconds=3, calls=10, cut=True)
    run.progress.set_aside()
    run.progress.put_back()
    summary = run.now
    assert summary.questions.model_dump() == {
        "total": 17,
        "done": 6,
        "finished": 3,
        "blocked": 1,
        "failed": 2,
        "in_flight": 2,
        "set_aside": 1,
        "rejected": 1,
        "duplicates": 2,
        "left": 10,
    }
    assert (summary.this_start.scenes, summary.this_start.cut) == (2, 1)
    assert (summary.rates.calls_per_scene, summary.rates.seconds_per_scene) == (15.0, 2.0)
    run.progress.taken_back()
    assert (run.now.questions.set_aside, run.now.questions.left) == (0, 11)


def test_an_input_that_grew_or_was_not_counted() -> None:
    run = Run(rows=2).started(3)
    assert (run.now.questions.total, run.now.questions.left) == (3, 3)

    run = Run().started(1)
    run.progress.scene_ended("finished")
    assert run.now.questions.total is None
    run.progress.state_changed("done")
    assert (run.now.questions.total, run.now.questions.left, run.now.rates.seconds_left) == (1, 0, 0.0)


def test_the_server_is_known_without_its_secrets() -> None:
    run = Run()
    run.progress.connected("m\ud800", "https://me:word@host:1/v1", scenes=64, requests=32)
    summary = run.now
    assert (summary.model, summary.base_url) == ("m\ufffd", "https://host:1/v1")
    assert (summary.limits.scenes, summary.limits.requests) == (64, 32)


def test_a_summary_crosses_the_disk() -> None:
    run = Run(rows=9).started(2)
    run.plays(3, every=1.0)
    run.progress.state_changed("waiting", "no answer from \udcff")
    summary = run.now
    text = summary.model_dump_json()
    assert Summary.model_validate_json(text) == summary
    assert (
        Summary.model_validate({**json.loads(text), "later": 1, "limits": {"more": 2}}).questions == summary.questions
    )
    assert summary.message == "no answer from \ufffd"
    parts = [Summary, *(field.annotation for name, field in Summary.model_fields.items() if name in PARTS)]
    for part in parts:
        assert all(field.description for name, field in part.model_fields.items() if name not in PARTS), part


PARTS = ("questions", "this_start", "rates", "limits")

EVENTS = st.one_of(
    st.tuples(st.sampled_from(["begun", "put_back"])),
    st.tuples(st.just("scene_ended"), st.sampled_from(["finished", "blocked", "failed"])),
    st.tuples(st.just("row_done_before"), st.sampled_from(["finished", "blocked", "failed"])),
    st.tuples(st.sampled_from(["row_rejected", "row_duplicate", "set_aside", "taken_back", "engine_restarted"])),
    st.tuples(st.just("call_ended"), st.integers(0, 5000), st.integers(0, 500)),
    st.tuples(st.just("total_known"), st.integers(0, 50)),
    st.tuples(st.just("state_changed"), st.sampled_from(STATES)),
    st.tuples(
        st.just("metrics"),
        st.fixed_dictionaries(
            {}, optional={"prefix_cache_queries": st.floats(0, 1e9), "prefix_cache_hits": st.floats(0, 1e9)}
        ),
    ),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.01, 2.0, 40.0, 5000.0])),
)


@given(st.lists(EVENTS, max_size=60))
def test_counts_add_up_and_rates_are_sound_whatever_happens(events: list[tuple[Any, ...]]) -> None:
    run, ended, seconds = Run(), Counter[Any](), 0.0
    for name, *arguments in events:
        if name == "wait":
            run.seconds += arguments[0]
            continue
        if name in ("scene_ended", "row_done_before"):
            ended[arguments[0]] += 1
        getattr(run.progress, name)(*arguments)
        summary = run.now
        q, start, rates = summary.questions, summary.this_start, summary.rates
        assert (q.finished, q.blocked, q.failed) == (ended["finished"], ended["blocked"], ended["failed"])
        assert q.done == q.finished + q.blocked + q.failed
        assert min(q.in_flight, q.set_aside, start.seconds_away) >= 0
        assert (q.left is None) == (q.total is None)
        if q.total is not None:
            assert q.left == q.total - q.done - q.set_aside >= q.in_flight
        assert start.seconds_away <= start.seconds and start.seconds >= seconds
        seconds = start.seconds
        assert all(value is None or value >= 0 for value in rates.model_dump().values())
        assert rates.prefix_cache_hit_rate is None or rates.prefix_cache_hit_rate <= 1
        assert summary.state not in ENDED or rates.seconds_left in (None, 0.0)
        assert Summary.model_validate_json(summary.model_dump_json()) == summary


# --- states and time


def test_waiting_is_the_time_away() -> None:
    run = Run().started(1)
    run.seconds += 10
    run.progress.state_changed("waiting", "no answer")
    run.seconds += 5
    run.progress.state_changed("waiting", "still none")
    run.seconds += 2
    assert (run.now.this_start.seconds_away, run.now.message) == (7.0, "still none")
    run.progress.state_changed("draining")
    run.seconds += 3
    assert (run.now.this_start.seconds_away, run.now.message) == (7.0, None)
    run.progress.state_changed("waiting")
    run.seconds += 1
    run.progress.state_changed("stopped")
    run.seconds += 100
    assert (run.now.this_start.seconds_away, run.now.this_start.seconds) == (8.0, 21.0)


def test_what_has_ended_does_not_go_on() -> None:
    run = Run().started(1)
    run.progress.state_changed("failed", "the disk is full")
    run.progress.state_changed("running")
    assert (run.now.state, run.now.message) == ("failed", "the disk is full")
    run.progress.state_changed("stopped")
    assert run.now.state == "stopped"


# --- rates


def test_rates_count_from_when_the_server_is_ready() -> None:
    run = Run()
    run.seconds += 600
    run.started(4)
    run.plays(6, every=2.0, calls=5, tokens=20)
    rates = run.now.rates
    assert (rates.scenes_per_hour, rates.output_tokens_per_second) == (1800.0, 50.0)
    assert run.now.this_start.seconds == 612.0


def test_rates_are_those_of_the_recent_past() -> None:
    run = Run().started(4)
    run.plays(1000, every=10.0)
    run.plays(200, every=1.0, tokens=30)
    rates = run.now.rates
    assert rates.scenes_per_hour == pytest.approx(3600, rel=0.02)
    assert rates.output_tokens_per_second == pytest.approx(60, rel=0.02)
    run.progress.state_changed("done")
    assert run.now.rates.scenes_per_hour == pytest.approx(3600 * 1200 / 10_200)
    assert run.now.rates.output_tokens_per_second == pytest.approx((1000 * 20 + 200 * 60) / 10_200, abs=1e-3)


@given(st.floats(0.05, 60), st.integers(20, 300))
def test_a_steady_run_has_a_steady_rate(every: float, scenes: int) -> None:
    run = Run(rows=scenes + 100).started(2)
    run.plays(scenes, every=every)
    rates = run.now.rates
    # A look just after a scene has ended may find one scene too many among the last ten or more.
    assert rates.scenes_per_hour == pytest.approx(3600 / every, rel=0.12)
    assert rates.output_tokens_per_second == pytest.approx(20 / every, rel=0.02 + every / 90)
    assert rates.seconds_left is not None
    # 100 rows are left, and the two in flight are half done; so they were when the run was young.
    assert rates.seconds_left == pytest.approx(99 * every, rel=0.15, abs=0.1)


def test_slow_scenes_are_counted_over_a_longer_time() -> None:
    run = Run().started(4)
    run.plays(100, every=40.0)
    run.seconds += 39.0
    assert run.now.rates.scenes_per_hour == pytest.approx(90, rel=0.1)


def test_a_standstill_shows() -> None:
    run = Run(rows=10_000).started(64)
    run.plays(1000, every=0.5)
    assert run.now.rates.scenes_per_hour == pytest.approx(7200, rel=0.01)
    run.progress.state_changed("waiting")
    for _ in range(150):
        run.seconds += 2
        rates = run.now.rates
    assert rates.scenes_per_hour is not None and rates.scenes_per_hour < 200
    assert (rates.output_tokens_per_second, rates.seconds_left) == (0.0, None)


def test_the_first_scenes_do_not_end_before_their_time() -> None:
    """64 scenes of about 60 s each: when the first few have ended, the others have come as far."""
    run = Run(rows=640).started(64)
    run.seconds += 59.0
    assert run.now.rates.seconds_left is None
    run.plays(4, every=0.25)
    assert run.now.rates.seconds_left == pytest.approx((636 - 32) / ((4 + 32) / 60))


def test_draining_lasts_until_nothing_is_in_flight() -> None:
    run = Run(rows=10_000).started(10)
    run.plays(200, every=1.0)
    run.progress.state_changed("draining")
    assert run.now.rates.seconds_left == pytest.approx(5, rel=0.1)
    for _ in range(10):
        run.progress.scene_ended("finished")
    assert (run.now.rates.seconds_left, run.now.questions.left) == (0.0, 9790)


def test_the_cache_is_told_by_increases_alone() -> None:
    run = Run().started(1)

    def read(queries: float, hits: float) -> float | None:
        run.progress.metrics({"prefix_cache_queries": queries, "prefix_cache_hits": hits, "requests": 1.0})
        return run.now.rates.prefix_cache_hit_rate

    assert read(1e6, 1e6) is None  # of others, before
    assert read(1e6 + 100, 1e6 + 80) == 0.8
    assert read(100, 20) == 0.5  # the server began anew
    assert read(200, 120) == pytest.approx(2 / 3, abs=1e-3)
    run.progress.metrics({"generation_tokens": 5.0})
    assert run.now.rates.prefix_cache_hit_rate == pytest.approx(2 / 3, abs=1e-3)
    run.seconds += 300
    run.now  # noqa: B018 - a look in between
    run.seconds += 300
    assert run.now.rates.prefix_cache_hit_rate == pytest.approx(2 / 3, abs=1e-3)  # nothing since then
    assert read(300, 120) == 0.0


def test_memory_does_not_grow() -> None:
    run = Run().started(1)
    for _ in range(20_000):
        run.seconds += 5.0
        run.progress.call_ended(1, 1)
    assert len(run.progress._samples) <= 300
