"""Many rehearsals side by side on one event loop, each exactly once, whatever happens in between.

What always holds: old scenes finish before new ones start, since their calls go first and a new scene begins only when
a call of it could go at once; a trace is on the disk before it is given out; a question whose trace is there is never
played again; and only what was in flight when the program was killed is played twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from langchain_core.language_models import BaseChatModel

from matrix_graph.batch import lookout
from matrix_graph.batch.folder import RunFolder
from matrix_graph.batch.intake import Intake, run_settings
from matrix_graph.batch.jobs import PER_REQUEST, Job, Jobs, StoppedError, each
from matrix_graph.batch.player import Played, Player, ScenePlayer
from matrix_graph.batch.process import most_open_connections
from matrix_graph.batch.progress import Progress
from matrix_graph.batch.rows import Rejected, Row, to_row
from matrix_graph.batch.summary import ENDED
from matrix_graph.batch.workers import WorkerPlayer, check_portable
from matrix_graph.config import SceneConfig
from matrix_graph.errors import ConfigError, ModelError, ModelRequestError
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.complete import request_settings
from matrix_graph.models.traffic import Traffic
from matrix_graph.models.turn import Visitor
from matrix_graph.models.wrapped import chat_model
from matrix_graph.records import Cast, Trace, escaped

Questions = Iterable[Any] | AsyncIterable[Any]
"""Questions as texts, `{"question", "draft"?, "id"?}` or rows of `read_rows`; of any number, taken one by one."""

_WAITING_TRACES = 16
"""Traces that wait for whoever takes them; then scenes wait too."""
_WATCH_SECONDS = 2.0
_ROWS_AT_ONCE, _BREATH_SECONDS = 50, 0.001
"""Rows that are looked at before the scenes get their turn, and how long that is."""

_log = logging.getLogger(__name__)


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
        self._given_model = model = chat_model(model, "run_batch")
        self._cast = cast
        self._config = config or SceneConfig()
        self._max_scenes, self._max_requests = max_scenes, max_requests
        self._folder_options = {"force_new_settings": force_new_settings, "retry_failed": retry_failed}
        self._source = source
        self._on_status = on_status or _log.info
        self._on_progress = on_progress
        self.progress = Progress(escaped(str(out)) if out is not None else "", source)
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
        self._finished: asyncio.Queue[Played | None] = asyncio.Queue(_WAITING_TRACES)
        self._conductor: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
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
        if self._conductor is not None and not self._conductor.done():
            self.stop()
        await self._close()

    async def _prepare(self) -> None:
        model = self._given_model
        self._name = name = await lookout.served_name(model)
        settings = run_settings(name, self._config, self._cast, request_settings(model))
        allowed = most_open_connections()
        if self._max_requests is not None and self._max_requests > allowed:
            raise ConfigError(
                f"--max-requests is {self._max_requests}, and this process may open {allowed} connections only. "
                "Raise that (ulimit -n), or lower --max-requests."
            )
        most = self._max_requests or min(allowed, await lookout.requests_for(model))
        self._max_scenes = self._max_scenes or PER_REQUEST * most
        self._traffic.most = most
        address = model.base_url if isinstance(model, ChatVLLM) else ""
        self.progress.connected(name, address, scenes=self._max_scenes, requests=most)
        self._jobs = Jobs(
            self._traffic, self._keep, self.progress, calls=lambda: self.progress.calls, most=self._max_scenes
        )
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
        tasks = [task for task in (self._conductor, self._watcher) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._workers is not None:
            await self._workers.close()
        await self._traffic.close()
        if self._folder is not None:
            if self.progress.state not in ENDED:
                self.progress.state_changed("stopped", str(self._jobs.error or "The run was left before its end."))
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
        self._conductor = conductor = asyncio.create_task(self._conduct())
        self._watcher = asyncio.create_task(self._watch())
        while (played := await self._finished.get()) is not None:
            yield played
        await conductor
        if self._error is not None:
            raise self._error

    def drain(self) -> None:
        """Begin no more scenes; those in flight finish. `play` ends with StoppedError if something is left."""
        if not self._jobs.draining:
            self.progress.state_changed("draining")
            self._jobs.drain()

    def stop(self) -> None:
        """Stop at once. What was in flight is played again by the next run."""
        self._jobs.stop()

    # ---- from row to scene ----------------------------------------------------------------------------------------

    async def _missing(self) -> AsyncGenerator[Job[Played], None]:
        """The questions that are to be played, as jobs; the others are counted."""
        rows = 0
        async with aclosing(each(self._questions)) as items:
            async for item in items:
                rows += 1
                if rows % _ROWS_AT_ONCE == 0:
                    # Rows that are done already wait for nothing, and must not keep scenes waiting.
                    await asyncio.sleep(_BREATH_SECONDS if self._jobs.in_flight else 0)
                row = item if isinstance(item, Rejected) else to_row(item)
                if isinstance(row, Rejected):
                    await self._reject(row)
                elif (key := self._intake.missing(row)) is not None:
                    yield partial(self._play, row, key)

    async def _play(self, row: Row, key: str, visitor: Visitor) -> Played:
        played = await self._player.play(row, key, visitor)
        if played.status == "failed" and (reason := await self._refused(played)) is not None:
            raise ModelError(f"{reason} Nothing that was finished is lost; then start the same command again.")
        return played

    async def _refused(self, played: Played) -> str | None:
        """Why the server refuses every call, if a refusal is what a scene has failed of."""
        error = played.trace.error
        if error is None or error.type != ModelRequestError.__name__:
            return None
        return await lookout.why_refused(self._given_model, self._name)

    async def _keep(self, played: Played) -> None:
        try:
            if self._folder is not None:
                await self._in_writer(self._folder.keep_line, played.key, played.line, played.status)
        except BaseException:
            self.progress.put_back()
            raise
        self.progress.scene_ended(played.status, seconds=played.seconds, calls=played.calls, cut=played.cut)
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
        try:
            async with aclosing(self._missing()) as missing:
                await self._jobs.run(missing)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again by `play`
            self._error = error
            self.progress.state_changed("stopped" if isinstance(error, StoppedError) else "failed", str(error))
        else:
            self.progress.state_changed("done")
        self._report()
        await self._finished.put(None)

    async def _watch(self) -> None:
        """Keep progress and summary up to date."""
        while True:
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
        self.progress.state_changed("waiting" if away else "draining" if self._jobs.draining else "running")


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
