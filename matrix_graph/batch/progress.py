"""What a run has done so far: counts and rates, for people who watch it and for `summary.json`.

Why apart: the runner reports events, one call each, and whoever wants to know takes a snapshot; nothing is read or
written here. What always holds: done = finished + blocked + failed; a rate that is not known is None, never a guess by
division through nothing; memory does not grow with the run.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple, get_args

from matrix_graph.batch.summary import ENDED, Limits, Questions, Rates, State, Summary, ThisStart
from matrix_graph.models.client.headers import without_login
from matrix_graph.records import Status

_WINDOW_SECONDS = 90.0
"""Rates look back at least so far."""
_WINDOW_SCENES = 10
"""The rate of scenes looks back at least so many: of fewer it would jump from one look to the next."""
_STEP_SECONDS = 3.0
_MOST_SAMPLES = 300


class _Sample(NamedTuple):
    """Sums at one moment; work is in scenes, of which one in flight is half done on average."""

    time: float
    scenes: int
    work: float
    output_tokens: int
    cache_queries: float
    cache_hits: float


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Progress:
    """Counts the events of one start of a run; for one event loop.

    Args:
        folder: the run's folder, as people wrote it; empty: nothing is kept.
        source: where the questions come from, as people wrote it.
        clock: seconds, of which only differences count.
        now: the time of day, with its time zone.
    """

    def __init__(
        self,
        folder: str,
        source: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._folder, self._source = folder, source
        self._clock, self._now = clock, now
        self._started, self._started_at = clock(), now()
        self._ended: float | None = None
        self._state: State = "starting"
        self._message: str | None = None
        self._away_since: float | None = None
        self._seconds_away = 0.0
        self._restarts = 0
        self._model = self._base_url = ""
        self._limits = Limits()
        self._rows: int | None = None
        self._rejected = self._duplicates = self._set_aside = self._in_flight = 0
        self._done: Counter[Status] = Counter()
        self._scenes = self._scene_calls = self._cut = 0
        self._scene_seconds = 0.0
        self._calls = self._input_tokens = self._output_tokens = 0
        self._cache_read: tuple[float, float] | None = None
        self._cache_queries = self._cache_hits = 0.0
        self._first = self._sample(self._started)
        self._samples = deque([self._first], maxlen=_MOST_SAMPLES)

    # ---- the run and its server ---------------------------------------------------------------------------------

    @property
    def calls(self) -> int:
        """Model calls that were answered."""
        return self._calls

    @property
    def state(self) -> State:
        """What was last set; see `Summary`."""
        return self._state

    def connected(
        self, model: str, base_url: str = "", *, scenes: int | None = None, requests: int | None = None
    ) -> None:
        """The model server is known, or at least what it serves.

        Args:
            model: the served name.
            base_url: its address; a user and a password in it are not kept. Empty: none is needed.
            scenes: the most scenes in flight.
            requests: the most requests in flight.
        """
        self._model, self._base_url = model, without_login(base_url)
        self._limits = Limits(scenes=scenes, requests=requests)

    def state_changed(self, state: State, message: str | None = None) -> None:
        """The run is in another state, or in the same one for another reason; one that has ended stays so.

        Args:
            state: see `Summary`. The time in "waiting" is the time in which the server was away; rates count from when
                "starting" is left, and the clock stops when the run has ended.
            message: why.
        """
        if self._state in ENDED and state not in ENDED:
            return
        now = self._time()
        if self._away_since is not None:
            self._seconds_away += now - self._away_since
        self._away_since = now if state == "waiting" else None
        if self._state == "starting" and state != "starting":
            self._first = self._sample(now)
            self._samples = deque([self._first], maxlen=_MOST_SAMPLES)
        self._ended = now if state in ENDED else None
        self._state, self._message = state, message

    def engine_restarted(self) -> None:
        """The engine was restarted."""
        self._restarts += 1

    def metrics(self, counters: Mapping[str, float]) -> None:
        """The server's counters were read, as `parse_counters` gives them.

        What the server did before the first reading is not counted. A counter that goes down is that of a server that
        began anew, so that all that it holds is new.
        """
        if "prefix_cache_queries" not in counters:
            return
        self._mark()
        queries, hits = counters["prefix_cache_queries"], counters.get("prefix_cache_hits", 0.0)
        if self._cache_read is not None:
            queries_before, hits_before = self._cache_read
            if queries < queries_before or hits < hits_before:
                queries_before = hits_before = 0.0
            self._cache_queries += max(queries - queries_before, 0.0)
            self._cache_hits += max(hits - hits_before, 0.0)
        self._cache_read = queries, hits

    # ---- its questions ------------------------------------------------------------------------------------------

    def total_known(self, rows: int) -> None:
        """The input holds so many rows, those that are rejected, duplicate or done before included."""
        self._rows = rows

    def row_rejected(self) -> None:
        """A row is no question."""
        self._rejected += 1

    def row_duplicate(self) -> None:
        """A row asks what an earlier row asks."""
        self._duplicates += 1

    def row_done_before(self, status: Status = "finished") -> None:
        """A question was done in an earlier start, and is not played again."""
        self._done[status] += 1

    def begun(self) -> None:
        """A scene is in flight."""
        self._in_flight += 1

    def put_back(self) -> None:
        """A scene is no longer in flight, and its question is not done."""
        self._mark()
        self._in_flight = max(self._in_flight - 1, 0)

    def scene_ended(self, status: Status, *, seconds: float = 0.0, calls: int = 0, cut: bool = False) -> None:
        """A scene is no longer in flight, and its question is done.

        Args:
            status: how it ended.
            seconds: how long it took.
            calls: its model calls.
            cut: whether its answer ended at its limit of tokens.
        """
        self.put_back()
        self._cut += cut
        self._done[status] += 1
        self._scenes += 1
        self._scene_seconds += seconds
        self._scene_calls += calls

    def set_aside(self) -> None:
        """A question is not tried for the time being; if a scene of it is in flight, that ends apart from this."""
        self._set_aside += 1

    def taken_back(self) -> None:
        """A question that was set aside is tried once more, or given up."""
        self._set_aside = max(self._set_aside - 1, 0)

    def call_ended(self, input_tokens: int, output_tokens: int) -> None:
        """A model call was answered."""
        self._mark()
        self._calls += 1
        self._input_tokens += input_tokens
        self._output_tokens += output_tokens

    # ---- what it comes to ---------------------------------------------------------------------------------------

    def snapshot(self) -> Summary:
        """All that is known at this moment; once the run has ended, at that moment."""
        self._mark()
        now = self._time()
        away = 0.0 if self._away_since is None else now - self._away_since
        questions = self._questions()
        return Summary(
            state=self._state,
            message=self._message,
            folder=self._folder,
            source=self._source,
            model=self._model,
            base_url=self._base_url,
            pid=os.getpid(),
            host=platform.node(),
            started_at=self._started_at,
            updated_at=self._now(),
            questions=questions,
            this_start=ThisStart(
                seconds=round(now - self._started, 3),
                seconds_away=round(self._seconds_away + away, 3),
                scenes=self._scenes,
                cut=self._cut,
                calls=self._calls,
                input_tokens=self._input_tokens,
                output_tokens=self._output_tokens,
                restarts=self._restarts,
            ),
            rates=self._rates(now, questions.left),
            limits=self._limits,
        )

    def _questions(self) -> Questions:
        finished, blocked, failed = (self._done[status] for status in get_args(Status))
        done = finished + blocked + failed
        seen = done + self._set_aside + self._in_flight
        total = left = None
        if self._rows is not None:
            # An input that grew after it was counted does not make more done than there was to do.
            total = max(self._rows - self._rejected - self._duplicates, seen)
        elif self._state == "done":
            total = seen
        if total is not None:
            left = total - done - self._set_aside
        return Questions(
            total=total,
            done=done,
            finished=finished,
            blocked=blocked,
            failed=failed,
            in_flight=self._in_flight,
            set_aside=self._set_aside,
            rejected=self._rejected,
            duplicates=self._duplicates,
            left=left,
        )

    def _rates(self, now: float, left: int | None) -> Rates:
        current = self._sample(now)
        ended = self._state in ENDED
        recent = self._first if ended else self._look_back(current, 0)
        recent_scenes = self._first if ended else self._look_back(current, _WINDOW_SCENES)
        scenes = _per_second(current.scenes - recent_scenes.scenes, now - recent_scenes.time) if self._scenes else None
        work = _per_second(current.work - recent_scenes.work, now - recent_scenes.time) if self._scenes else None
        tokens = _per_second(current.output_tokens - recent.output_tokens, now - recent.time) if self._calls else None
        hit_rate = _hit_rate(current, recent)
        return Rates(
            scenes_per_hour=_rounded(scenes, 3600),
            output_tokens_per_second=_rounded(tokens),
            calls_per_scene=_rounded(self._scene_calls / self._scenes) if self._scenes else None,
            seconds_per_scene=_rounded(self._scene_seconds / self._scenes) if self._scenes else None,
            prefix_cache_hit_rate=_rounded(_hit_rate(current, self._first) if hit_rate is None else hit_rate),
            seconds_left=self._seconds_left(work, left),
        )

    def _seconds_left(self, work_per_second: float | None, left: int | None) -> float | None:
        if self._state == "draining":
            left = self._in_flight
        if left == 0:
            return 0.0
        if left is None or not work_per_second or work_per_second < 0 or self._state in ("waiting", *ENDED):
            return None
        return _rounded((left - self._in_flight / 2) / work_per_second)

    def _look_back(self, current: _Sample, scenes: int) -> _Sample:
        """The latest sample that lies far enough back in time and in scenes, else the first that there is."""
        for sample in reversed(self._samples):
            if current.time - sample.time >= _WINDOW_SECONDS and current.scenes - sample.scenes >= scenes:
                return sample
        return self._samples[0]

    def _mark(self) -> None:
        """Keep the sums before the next event, every few seconds."""
        now = self._clock()
        if now - self._samples[-1].time >= _STEP_SECONDS:
            self._samples.append(self._sample(now))

    def _sample(self, now: float) -> _Sample:
        return _Sample(
            now,
            self._scenes,
            self._scenes + self._in_flight / 2,
            self._output_tokens,
            self._cache_queries,
            self._cache_hits,
        )

    def _time(self) -> float:
        return self._clock() if self._ended is None else self._ended


def _per_second(count: float, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _hit_rate(current: _Sample, base: _Sample) -> float | None:
    queries, hits = current.cache_queries - base.cache_queries, current.cache_hits - base.cache_hits
    return min(max(hits / queries, 0.0), 1.0) if queries > 0 else None


def _rounded(value: float | None, times: float = 1.0) -> float | None:
    return None if value is None else round(value * times, 3)
