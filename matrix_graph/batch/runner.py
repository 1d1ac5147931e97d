"""Many rehearsals side by side on one event loop, each exactly once, whatever happens in between.

What always holds: old scenes finish before new ones start, since their calls go first and a new scene begins only when
a call of it could go at once; a trace is on the disk before it is given out; a question whose trace is there is never
played again; and only what was in flight when the program was killed is played twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from langchain_core.language_models import BaseChatModel

from matrix_graph.batch import lookout
from matrix_graph.batch.folder import RunFolder
from matrix_graph.batch.intake import Intake, run_settings
from matrix_graph.batch.player import Played, Player, ScenePlayer
from matrix_graph.batch.process import most_open_connections
from matrix_graph.batch.progress import Progress
from matrix_graph.batch.rows import Rejected, Row, to_row
from matrix_graph.batch.summary import ENDED
from matrix_graph.batch.workers import WorkerPlayer, check_portable
from matrix_graph.config import SceneConfig
from matrix_graph.errors import ConfigError, MatrixGraphError, ModelError, ModelRequestError, TraceError
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.traffic import Traffic
from matrix_graph.models.turn import Visitor
from matrix_graph.records import Cast, Trace

Questions = Iterable[Any] | AsyncIterable[Any]
"""Questions as texts, `{"question", "draft"?, "id"?}` or rows of `read_rows`; of any number, taken one by one."""

SCENES_PER_REQUEST = 2
"""Scenes in flight at most, by requests in flight. A scene has two to three calls in flight, and now and then none."""
_WAITING_TRACES = 16
"""Traces that wait for whoever takes them; then scenes wait too."""
_WATCH_SECONDS = 2.0
_SILENCE_SECONDS = 120.0
"""How long no call may end, with some in flight, before the server is asked whether it is well."""
_ROWS_AT_ONCE, _BREATH_SECONDS = 50, 0.001
"""Rows that are looked at before the scenes get their turn, and how long that is."""

_log = logging.getLogger(__name__)


class StoppedError(MatrixGraphError):
    """The run was stopped before it was done."""


class Batch:
    """One run; an async context manager. See `run_batch` for the arguments.

    Attributes:
        progress: what has been done so far.
        directory: the run's folder; None if nothing is kept.
    """

    def __init__(
        self,
        questions: Questions,
        model: BaseChatModel,
        *,
        out: str | Path | None = None,
        cast: Cast | None = None,
        config: SceneConfig | None = None,
        max_scenes: int | None = None,
        max_requests: int | None = None,
        give_up_after: float = 3600.0,
        force_new_settings: bool = False,
        retry_failed: bool = False,
        workers: int = 1,
        source: str = "questions",
        on_status: Callable[[str], None] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        for name, limit in (("max_scenes", max_scenes), ("max_requests", max_requests), ("workers", workers)):
            if limit is not None and limit < 1:
                raise ConfigError(f"{name} is {limit}; it must be at least 1, or left out.")
        self.directory = Path(out) if out is not None else None
        if workers > 1:
            check_portable(model)
        self._worker_count = workers
        self._questions = questions
        self._given_model = model
        self._cast = cast
        self._config = config or SceneConfig()
        self._max_scenes, self._max_requests = max_scenes, max_requests
        self._folder_options = {"force_new_settings": force_new_settings, "retry_failed": retry_failed}
        self._source = source
        self._on_status = on_status or _log.info
        self._on_progress = on_progress
        self.progress = Progress(str(out) if out is not None else "", source)
        self._traffic = Traffic(
            max_requests or lookout.DEFAULT_REQUESTS,
            probe=lookout.probe_of(model),
            give_up_after=give_up_after,
            on_status=self._on_status,
            on_absence=self._absent,
            on_call=self.progress.call_ended,
        )

        self._folder: RunFolder | None = None
        self._workers: WorkerPlayer | None = None
        self._writer = ThreadPoolExecutor(1, "traces")
        self._scenes: set[asyncio.Task[None]] = set()
        self._aside: list[tuple[Row, Played]] = []
        self._finished: asyncio.Queue[Played | None] = asyncio.Queue(_WAITING_TRACES)
        self._dispatcher: asyncio.Task[None] | None = None
        self._background: list[asyncio.Task[None]] = []
        self._draining = False
        self._error: BaseException | None = None
        self._rows = self._ranks = 0
        self._restarts = 0

    # ---- before and after -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self._prepare()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._dispatcher is not None and not self._dispatcher.done() and self._error is None:
            self.stop()
        await self._close()

    async def _prepare(self) -> None:
        model = self._given_model
        self._name = name = await lookout.served_name(model)
        settings = run_settings(name, self._config, self._cast)
        allowed = most_open_connections()
        if self._max_requests is not None and self._max_requests > allowed:
            raise ConfigError(
                f"--max-requests is {self._max_requests}, and this process may open {allowed} connections only. "
                "Raise that (ulimit -n), or lower --max-requests."
            )
        most = self._max_requests or min(allowed, await lookout.requests_for(model))
        self._max_scenes = self._max_scenes or SCENES_PER_REQUEST * most
        self._traffic.most = most
        address = model.base_url if isinstance(model, ChatVLLM) else ""
        self.progress.connected(name, address, scenes=self._max_scenes, requests=most)
        self._slots = asyncio.Semaphore(self._max_scenes)
        if self.directory is not None:
            folder = RunFolder(self.directory, settings, **self._folder_options)
            await self._in_writer(folder.__enter__)
            self._folder = folder
        self._intake = Intake(settings, self._folder, self.progress)
        self._player: Player = await self._make_player(model, name)

    async def _make_player(self, model: BaseChatModel, name: str) -> Player:
        if self._worker_count == 1:
            return ScenePlayer(model, name=name, lifeline=self._traffic, cast=self._cast, config=self._config)
        assert isinstance(model, ChatVLLM)  # it is portable
        self._on_status(f"starting {self._worker_count} worker processes")
        self._workers = WorkerPlayer(
            model,
            count=self._worker_count,
            name=name,
            traffic=self._traffic,
            cast=self._cast,
            config=self._config,
            on_status=self._on_status,
        )
        await self._workers.start()
        return self._workers

    async def _close(self) -> None:
        tasks = [*self._scenes, *self._background, *([self._dispatcher] if self._dispatcher else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._workers is not None:
            await self._workers.close()
        await self._traffic.close()
        if self._folder is not None:
            if self.progress.state not in ENDED:
                self.progress.state_changed("stopped", str(self._error or "The run was left before its end."))
            self._folder.write_summary(self.progress.snapshot().model_dump(mode="json"))
            await self._in_writer(self._folder.__exit__, None, None, None)
            self._folder = None
        self._writer.shutdown(wait=True)

    async def _in_writer(self, function: Callable[..., Any], *arguments: Any) -> Any:
        # One thread for all that touches the traces: in order, and without the event loop waiting for the disk.
        return await asyncio.get_running_loop().run_in_executor(self._writer, function, *arguments)

    # ---- from outside ---------------------------------------------------------------------------------------------

    async def play(self) -> AsyncIterator[Played]:
        """Play what is missing, and give every scene when it is on the disk.

        Raises:
            StoppedError: the run was stopped before it was done.
            ModelUnavailableError: the server was away for too long.
            TraceError: a trace could not be written, the disk being full for instance.
            ConfigError: the questions cannot be read.
        """
        self.progress.state_changed("running")
        self._dispatcher = asyncio.create_task(self._dispatch())
        conductor = asyncio.create_task(self._conduct())
        self._background += [conductor, asyncio.create_task(self._watch()), asyncio.create_task(self._until_gone())]
        while (played := await self._finished.get()) is not None:
            yield played
        await conductor
        if self._error is not None:
            raise self._error

    def drain(self) -> None:
        """Begin no more scenes; those in flight finish. `play` ends with StoppedError if something is left."""
        if not self._draining:
            self._draining = True
            self.progress.state_changed("draining")
            if self._dispatcher is not None:
                self._dispatcher.cancel()

    def stop(self) -> None:
        """Stop at once. What was in flight is played again by the next run."""
        self._fail(StoppedError("Stopped at once. The same command goes on where it stopped."))

    # ---- from row to scene ----------------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        async for item in _each(self._questions):
            self._rows += 1
            if self._rows % _ROWS_AT_ONCE == 0:
                # Rows that are done already wait for nothing, and must not keep scenes waiting.
                await asyncio.sleep(_BREATH_SECONDS if self._scenes else 0)
            row = item if isinstance(item, Rejected) else to_row(item)
            if isinstance(row, Rejected):
                await self._reject(row)
                continue
            if (key := self._intake.missing(row)) is None:
                continue
            await self._slots.acquire()
            try:
                await self._traffic.room()
            except asyncio.CancelledError:
                self._slots.release()
                raise
            self._begin(row, key)
            await asyncio.sleep(0)

    def _begin(self, row: Row, key: str, *, last_chance: bool = False) -> asyncio.Task[None]:
        self._ranks += 1
        visitor = self._traffic.visitor(self._ranks, last_chance=last_chance)
        scene = asyncio.create_task(self._play(row, key, visitor))
        self._scenes.add(scene)
        self.progress.scene_started()

        def ended(task: asyncio.Task[None]) -> None:
            self._scenes.discard(task)
            self._traffic.left(visitor)
            self._slots.release()
            if not task.cancelled() and (error := task.exception()) is not None:
                self._fail(error)

        scene.add_done_callback(ended)
        return scene

    async def _play(self, row: Row, key: str, visitor: Visitor) -> None:
        played: Played | None = None
        try:
            played = await self._player.play(row, key, visitor)
            if self._traffic.gone is not None:
                played = None  # whatever became of it without a server
            elif visitor.condemned is not None and not visitor.last_chance:
                self._aside.append((row, played))
                self.progress.set_aside()
                played = None
            elif played.status == "failed" and (reason := await self._refused(played)) is not None:
                raise ModelError(f"{reason} Nothing that was finished is lost; then start the same command again.")
        except BaseException:
            played = None
            raise
        finally:
            if played is None:
                self.progress.scene_ended(None)
        if played is not None:
            await self._keep(played)

    async def _refused(self, played: Played) -> str | None:
        """Why the server refuses every call, if a refusal is what a scene has failed of."""
        error = played.trace.error
        if error is None or error.type != ModelRequestError.__name__:
            return None
        return await lookout.why_refused(self._given_model, self._name)

    async def _keep(self, played: Played) -> None:
        kept = False
        try:
            if self._folder is not None:
                await self._in_writer(self._folder.keep_line, played.key, played.line, played.status)
            kept = True
        finally:
            status = played.status if kept else None
            self.progress.scene_ended(status, seconds=played.seconds, calls=played.calls)
        await self._finished.put(played)

    async def _reject(self, row: Rejected) -> None:
        self.progress.row_rejected()
        if self._folder is not None:
            await self._in_writer(self._folder.reject, self._source, row.line, row.reason, row.excerpt)
        else:
            _log.warning("%s, line %d is no question: %s", self._source, row.line, row.reason)

    # ---- the whole run --------------------------------------------------------------------------------------------

    async def _conduct(self) -> None:
        """See the run through to its end, good or bad."""
        assert self._dispatcher is not None  # it was started before
        await asyncio.wait([self._dispatcher])
        if not self._dispatcher.cancelled() and (error := self._dispatcher.exception()) is not None:
            self._fail(error)
        while self._scenes:
            await asyncio.wait(self._scenes)
        if self._error is None and not self._draining:
            try:
                await self._last_chances()
            except TraceError as error:
                self._fail(error)
        self._conclude()
        await self._finished.put(None)

    async def _last_chances(self) -> None:
        # One question alone, in flight at every death there was: nothing speaks for it. Otherwise the server may die of
        # itself, and have died while an innocent one was tried.
        certain = self._traffic.condemned == 1 and self._traffic.absences <= 2
        for row, played in self._aside:
            self.progress.taken_back()
            if certain:
                self.progress.scene_started()
                await self._keep(played)
                continue
            await self._slots.acquire()
            await asyncio.wait([self._begin(row, played.key, last_chance=True)])
            if self._error is not None or self._draining:
                return
        self._aside.clear()

    def _conclude(self) -> None:
        if self._error is not None:
            stopped = isinstance(self._error, StoppedError)
            self.progress.state_changed("stopped" if stopped else "failed", str(self._error))
        elif self._draining and self._dispatcher is not None and (self._dispatcher.cancelled() or self._aside):
            self._error = StoppedError(
                "Stopped; all that was begun is done. The same command goes on where it stopped."
            )
            self.progress.state_changed("stopped", str(self._error))
        else:
            self.progress.state_changed("done")
        self._report()

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        if self._dispatcher is not None:
            self._dispatcher.cancel()
        for scene in self._scenes:
            scene.cancel()

    async def _until_gone(self) -> None:
        await self._traffic.over.wait()
        assert self._traffic.gone is not None  # why it is over
        self._fail(self._traffic.gone)

    async def _watch(self) -> None:
        """Keep progress and summary up to date."""
        heard, heard_at = -1, 0.0
        while True:
            # A server that hangs breaks no connection; nothing but its silence tells.
            now = time.monotonic()
            if self.progress.calls != heard or not self._traffic.in_flight or self._traffic.clocks.stopped:
                heard, heard_at = self.progress.calls, now
            elif now - heard_at > _SILENCE_SECONDS:
                heard_at = now
                self._traffic.look()
            counters = await lookout.counters_of(self._given_model) if not self._traffic.clocks.stopped else {}
            if counters:
                self.progress.metrics(counters)
            self._report()
            await asyncio.sleep(_WATCH_SECONDS)

    def _report(self) -> None:
        restarts = getattr(getattr(self._given_model, "server", None), "restarts", 0)
        while self._restarts < restarts:
            self._restarts += 1
            self.progress.engine_restarted()
        if self._folder is not None:
            self._folder.write_summary(self.progress.snapshot().model_dump(mode="json"))
        if self._on_progress is not None:
            self._on_progress(self.progress)

    def _absent(self, away: bool) -> None:
        if self._workers is not None:
            self._workers.absent(away)
        self.progress.state_changed("waiting" if away else "draining" if self._draining else "running")


async def run_batch(
    questions: Questions,
    model: BaseChatModel,
    *,
    out: str | Path | None = None,
    cast: Cast | None = None,
    config: SceneConfig | None = None,
    max_scenes: int | None = None,
    max_requests: int | None = None,
    give_up_after: float = 3600.0,
    force_new_settings: bool = False,
    retry_failed: bool = False,
    workers: int = 1,
) -> AsyncIterator[Trace]:
    """Rehearse many questions side by side on one model.

        async for trace in run_batch(["How do I ...?", ...], model, out="runs/first"):
            print(trace.status, trace.answer)

    Args:
        questions: texts, or mappings with "question" and, if you like, "draft" and "id"; sync or async, of any length,
            taken one by one as there is room. What is none is passed over, and noted in `out/rejected.jsonl`.
        model: the one chat model that plays everybody.
        out: the run's folder. Traces are appended to its `traces.jsonl`, and what stands there is not played again.
            None keeps nothing.
        cast: who is in the scenes; None has the model cast each.
        config: settings and limits of each scene.
        max_scenes: scenes in flight at most; None: twice `max_requests`.
        max_requests: model calls in flight at most; None: what the server's cache has room for, 64 if it does not tell.
        give_up_after: seconds that the server may be away (`ChatVLLM` only); no scene fails meanwhile.
        force_new_settings: go on in a folder that was begun under other settings.
        retry_failed: play questions again whose scenes failed; their old traces go to `out/failed.jsonl`.
        workers: processes that play scenes (`ChatVLLM` only). With 1 they are played in this one, which makes some 800
            calls a second on one core; more are of use where the server answers more than that, which only several
            GPUs or a tiny model do. Each takes a core and some 100 MB of memory; everything else stays the same.

    Yields:
        The trace of every question that was not done before, in the order in which they end.

    Raises:
        ModelUnavailableError: the server was away for longer than `give_up_after`; start again to go on.
        TraceError: a trace could not be written; start again to go on.
        RunLockedError: another run writes to `out`.
        SettingsChangedError: `out` was begun under other settings.
        ConfigError: a folder or an option that cannot be used.
        WorkerError: worker processes do not start, or die again and again; start again to go on.
    """
    async with Batch(
        questions,
        model,
        out=out,
        cast=cast,
        config=config,
        max_scenes=max_scenes,
        max_requests=max_requests,
        give_up_after=give_up_after,
        force_new_settings=force_new_settings,
        retry_failed=retry_failed,
        workers=workers,
    ) as batch:
        async for played in batch.play():
            yield played.trace


async def _each(questions: Questions) -> AsyncIterator[Any]:
    if isinstance(questions, AsyncIterable):
        async for question in questions:
            yield question
    else:
        for question in questions:
            yield question
