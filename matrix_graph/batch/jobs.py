"""Many jobs side by side on one model server, each to its end, whatever happens in between.

Why: scenes of a run, answers, scores and verdicts of an evaluation are all the same to a server: calls. What always
holds: old jobs finish before new ones start, since their calls go first and a new job begins only when a call of it
could go at once; what a job leaves behind is kept before it counts as done; a job that was in flight when a server died
for good, or when all was stopped, leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

from matrix_graph.errors import MatrixGraphError
from matrix_graph.models.traffic import Traffic
from matrix_graph.models.turn import Visitor

T = TypeVar("T")
Outcome = TypeVar("Outcome")
"""What a job leaves behind."""
Job = Callable[[Visitor], Awaitable[Outcome]]
"""Something that calls the model, as the visitor it is given, and ends with something to keep. It raises only for what
is wrong with this machine or with the server as a whole, and may be done again from its start."""

PER_REQUEST = 2
"""Jobs in flight at most, by requests in flight. A scene has two to three calls in flight, and now and then none."""
_WATCH_SECONDS = 2.0
_SILENCE_SECONDS = 120.0
"""How long no call may end, with some in flight, before the server is asked whether it is well."""


class StoppedError(MatrixGraphError):
    """The work was stopped before it was done."""


class Tally(Protocol):
    """Counts jobs in flight. Each that began is put back, or kept by somebody who counts that or puts it back."""

    def begun(self) -> None:
        """A job is in flight."""

    def put_back(self) -> None:
        """A job is no longer in flight, and not done."""

    def set_aside(self) -> None:
        """A job is not tried for the time being; that it is in flight no longer is told apart from this."""

    def taken_back(self) -> None:
        """A job that was set aside is tried once more, or given up."""


class Jobs(Generic[Outcome]):
    """Sees jobs through, once.

    Args:
        traffic: of their model server.
        keep: puts what a job left behind where it belongs, and counts it.
        tally: counts the others.
        calls: how many model calls were answered so far.
        most: jobs in flight at once; None: `PER_REQUEST` times the calls in flight that `traffic` allows.

    Attributes:
        error: what it ended with, or is about to; None: nothing went wrong so far.
        draining: whether no more jobs begin.
    """

    def __init__(
        self,
        traffic: Traffic,
        keep: Callable[[Outcome], Awaitable[None]],
        tally: Tally,
        *,
        calls: Callable[[], int],
        most: int | None = None,
    ) -> None:
        self.error: BaseException | None = None
        self.draining = False
        self._traffic, self._keep, self._tally, self._calls = traffic, keep, tally, calls
        self._slots = asyncio.Semaphore(most or PER_REQUEST * traffic.most)
        self._running: set[asyncio.Task[None]] = set()
        self._aside: list[tuple[Job[Outcome], Outcome]] = []
        self._dispatcher: asyncio.Task[None] | None = None
        self._ranks = 0

    @property
    def in_flight(self) -> int:
        """Jobs in flight."""
        return len(self._running)

    async def run(self, jobs: Iterable[Job[Outcome]] | AsyncIterable[Job[Outcome]]) -> None:
        """Do all jobs, the first ones first; they are taken one by one as there is room.

        Raises:
            StoppedError: it was drained or stopped before all were done.
            ModelUnavailableError: the server was away for too long.
            Exception: whatever `jobs`, a job or `keep` raised first; the others are ended.
        """
        self._dispatcher = asyncio.create_task(self._dispatch(jobs))
        background = [asyncio.create_task(self._until_gone()), asyncio.create_task(self._listen())]
        if self.draining:
            self._dispatcher.cancel()
        try:
            await asyncio.wait([self._dispatcher])
            cut_short = self._dispatcher.cancelled()
            if not cut_short and (error := self._dispatcher.exception()) is not None:
                self._fail(error)
            while self._running:
                await asyncio.wait(self._running)
            if self.error is None and not self.draining:
                await self._last_chances()
        except Exception as error:  # noqa: BLE001 - raised below
            self._fail(error)
        finally:
            tasks = [self._dispatcher, *self._running, *background]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self.error is None and self.draining and (cut_short or self._aside):
            self.error = StoppedError("Stopped; all that was begun is done. The same command goes on where it stopped.")
        if self.error is not None:
            raise self.error

    def drain(self) -> None:
        """Begin no more jobs; those in flight finish."""
        self.draining = True
        if self._dispatcher is not None:
            self._dispatcher.cancel()

    def stop(self) -> None:
        """Stop at once. What was in flight is done again by the next run."""
        self.draining = True
        self._fail(StoppedError("Stopped at once. The same command goes on where it stopped."))

    # ---- one job --------------------------------------------------------------------------------------------------

    async def _dispatch(self, jobs: Iterable[Job[Outcome]] | AsyncIterable[Job[Outcome]]) -> None:
        async with aclosing(each(jobs)) as one_by_one:
            async for job in one_by_one:
                await self._slots.acquire()
                try:
                    await self._traffic.room()
                except asyncio.CancelledError:
                    self._slots.release()
                    raise
                self._begin(job)
                await asyncio.sleep(0)

    def _begin(self, job: Job[Outcome], *, last_chance: bool = False) -> asyncio.Task[None]:
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

    async def _do(self, job: Job[Outcome], visitor: Visitor) -> None:
        self._tally.begun()
        keeps = False
        try:
            outcome = await job(visitor)
            if self._traffic.gone is not None:
                return  # whatever became of it without a server
            if visitor.condemned is not None and not visitor.last_chance:
                self._aside.append((job, outcome))
                self._tally.set_aside()
                return
            keeps = True
        finally:
            if not keeps:
                self._tally.put_back()
        await self._keep(outcome)

    async def _last_chances(self) -> None:
        """Jobs that were set aside because the server died over them are tried once more, alone."""
        # One job alone, in flight at every death there was: nothing speaks for it. Otherwise the server may die of
        # itself, and have died while an innocent one was tried.
        certain = self._traffic.condemned == 1 and self._traffic.absences <= 2
        while self._aside:
            job, outcome = self._aside[0]
            self._tally.taken_back()
            if certain:
                self._tally.begun()
                await self._keep(outcome)
            else:
                await self._slots.acquire()
                await asyncio.wait([self._begin(job, last_chance=True)])
                if self.error is not None or self.draining:
                    return
            self._aside.pop(0)

    # ---- all of them ----------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        if self._dispatcher is not None:
            self._dispatcher.cancel()
        for task in self._running:
            task.cancel()

    async def _until_gone(self) -> None:
        await self._traffic.over.wait()
        assert self._traffic.gone is not None  # why it is over
        self._fail(self._traffic.gone)

    async def _listen(self) -> None:
        """A server that hangs breaks no connection; nothing but its silence tells."""
        heard, heard_at = -1, 0.0
        while True:
            now = time.monotonic()
            if self._calls() != heard or not self._traffic.in_flight or self._traffic.clocks.stopped:
                heard, heard_at = self._calls(), now
            elif now - heard_at > _SILENCE_SECONDS:
                heard_at = now
                self._traffic.look()
            await asyncio.sleep(_WATCH_SECONDS)


async def each(items: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """The items one by one, whichever way they come."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
