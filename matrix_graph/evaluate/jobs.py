"""Many jobs side by side on one model server, each to its end, whatever happens in between.

Why: answers, scores and verdicts are all the same to a server: calls. What always holds: old jobs' calls go first, and
a new job begins only when a call of it could go at once; a job's lines are on the disk before it counts as done; a job
that was in flight when a server died for good, or when the run was stopped, leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from matrix_graph.batch.runner import StoppedError
from matrix_graph.models.traffic import Traffic
from matrix_graph.models.turn import Visitor

JOBS_PER_REQUEST = 2
"""Jobs in flight at most, by requests in flight: those of many steps have now and then no call in flight."""
_SILENCE_SECONDS = 120.0
"""How long no call may end, with some in flight, before the server is asked whether it is well."""
_WATCH_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Finished:
    """What a job leaves behind.

    Attributes:
        lines: to be kept, each with the name of its file, in this order.
        failed: whether it counts as failed.
    """

    lines: tuple[tuple[str, bytes], ...]
    failed: bool


class Job(Protocol):
    """Something that calls the model and ends with a record."""

    async def run(self) -> Finished:
        """Do it; raise only for what is wrong with this machine or with the server as a whole."""


class Jobs:
    """Sees jobs through.

    Args:
        traffic: of their model server.
        keep: puts what a job left behind on the disk.
        calls: how many model calls were answered so far.
    """

    def __init__(
        self,
        traffic: Traffic,
        keep: Callable[[Finished], Awaitable[None]],
        *,
        calls: Callable[[], int],
    ) -> None:
        self._traffic, self._keep, self._calls = traffic, keep, calls
        self._running: set[asyncio.Task[None]] = set()
        self._aside: list[tuple[Job, Finished]] = []
        self._dispatcher: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(JOBS_PER_REQUEST * traffic.most)
        self._error: BaseException | None = None
        self._draining = False
        self._ranks = 0

    async def run(self, jobs: Sequence[Job]) -> None:
        """Do all jobs, the first ones first.

        Raises:
            StoppedError: it was drained or stopped before all were done.
            ModelUnavailableError: the server was away for too long.
            Exception: whatever a job or `keep` raised first; the others are ended.
        """
        self._dispatcher = asyncio.create_task(self._dispatch(jobs))
        background = [asyncio.create_task(self._until_gone()), asyncio.create_task(self._watch())]
        if self._draining:
            self._dispatcher.cancel()
        try:
            await asyncio.wait([self._dispatcher])
            left = self._dispatcher.cancelled()
            if not left and (error := self._dispatcher.exception()) is not None:
                self._fail(error)
            while self._running:
                await asyncio.wait(self._running)
            if self._error is None and not self._draining:
                await self._last_chances()
        finally:
            tasks = [self._dispatcher, *self._running, *background]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._error is not None:
            raise self._error
        if self._draining and (left or self._aside):
            raise StoppedError("Stopped; all that was begun is done. The same command goes on where it stopped.")

    def drain(self) -> None:
        """Begin no more jobs; those in flight finish."""
        self._draining = True
        if self._dispatcher is not None:
            self._dispatcher.cancel()

    def stop(self) -> None:
        """Stop at once. What was in flight is done again by the next run."""
        self._draining = True
        self._fail(StoppedError("Stopped at once. The same command goes on where it stopped."))

    async def _dispatch(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            await self._slots.acquire()
            try:
                await self._traffic.room()
            except asyncio.CancelledError:
                self._slots.release()
                raise
            self._begin(job)
            await asyncio.sleep(0)

    def _begin(self, job: Job, *, last_chance: bool = False) -> asyncio.Task[None]:
        self._ranks += 1
        visitor = self._traffic.visitor(self._ranks, last_chance=last_chance)
        task = asyncio.create_task(self._do(job, visitor))
        self._running.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._running.discard(done)
            self._traffic.left(visitor)
            self._slots.release()
            if not done.cancelled() and (error := done.exception()) is not None:
                self._fail(error)

        task.add_done_callback(ended)
        return task

    async def _do(self, job: Job, visitor: Visitor) -> None:
        with visitor.here():
            finished = await job.run()
        if self._traffic.gone is not None:
            return  # whatever became of it without a server
        if visitor.condemned is not None and not visitor.last_chance:
            self._aside.append((job, finished))
            return
        await self._keep(finished)

    async def _last_chances(self) -> None:
        """Jobs that were set aside because the server died over them are tried once more, alone."""
        # One job alone, in flight at every death there was: nothing speaks for it. Otherwise the server may die of
        # itself, and have died while an innocent one was tried.
        certain = self._traffic.condemned == 1 and self._traffic.absences <= 2
        while self._aside:
            job, finished = self._aside[0]
            if certain:
                await self._keep(finished)
            else:
                await self._slots.acquire()
                await asyncio.wait([self._begin(job, last_chance=True)])
                if self._error is not None or self._draining:
                    return
            self._aside.pop(0)

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        if self._dispatcher is not None:
            self._dispatcher.cancel()
        for task in self._running:
            task.cancel()

    async def _until_gone(self) -> None:
        await self._traffic.over.wait()
        assert self._traffic.gone is not None  # why it is over
        self._fail(self._traffic.gone)

    async def _watch(self) -> None:
        """A server that hangs breaks no connection; nothing but its silence tells."""
        loop = asyncio.get_running_loop()
        heard, heard_at = -1, 0.0
        while True:
            if self._calls() != heard or not self._traffic.in_flight or self._traffic.clocks.stopped:
                heard, heard_at = self._calls(), loop.time()
            elif loop.time() - heard_at > _SILENCE_SECONDS:
                heard_at = loop.time()
                self._traffic.look()
            await asyncio.sleep(_WATCH_SECONDS)
