"""What the model calls of many scenes share: their number in flight, the server's absences, and who brought it down.

Why: one scene alone may simply call the model. Thousands side by side must not flood the server, must not fail because
it is away for a while, and must find out which of them kills it. What always holds: calls of older scenes go first;
while the server is away no scene's clock runs; a scene is set aside only if the server died while a call of that scene
was the only one in flight; a server that answers has not died, whatever it answers.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Awaitable, Callable

from matrix_graph.errors import CrashingQuestionError, ModelError, ModelUnavailableError
from matrix_graph.models.turn import Call, Clocks, Visitor, current_call

Probe = Callable[[], Awaitable[str | None]]
"""Asks the server for a token or two: None if it answers, else what is wrong; raises if it is gone for good.

One request that fails is not enough to say that something is wrong. A server that lives, but serves nothing, is told
by `Unserving`.
"""


class Unserving(str):
    """What is wrong with a server that answers, with errors alone: it is waited for, and nobody is blamed for it."""

    __slots__ = ()


_LEAST_TRIAL = 10.0
"""Seconds for which calls are tried one by one after an absence, however short it was."""
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 15.0
"""Seconds between two looks for a server that is away."""


class Traffic:
    """All calls of a run. It lives in one event loop.

    Args:
        most: calls in flight at once.
        probe: how to find out whether the server answers; None: its absences are nobody's business here.
        give_up_after: seconds that the server may be away.
        on_status: gets a line when the server goes away, comes back, or a question is set aside.
        on_absence: gets True when the server is away, False when all goes on.
        on_call: gets input and output tokens of every call that brought a reply.

    Attributes:
        clocks: of all its scenes.
        gone: why the server was given up; None while there is hope.
        over: set when the server was given up.
        absences: how often the server was away.
        condemned: how many questions were set aside.
    """

    def __init__(
        self,
        most: int,
        *,
        probe: Probe | None = None,
        give_up_after: float = 3600.0,
        on_status: Callable[[str], object] | None = None,
        on_absence: Callable[[bool], object] | None = None,
        on_call: Callable[[int, int], object] | None = None,
    ) -> None:
        self.most = most
        self.on_call = on_call or _ignore
        self.clocks = Clocks()
        self.gone: ModelUnavailableError | None = None
        self.over = asyncio.Event()
        self.absences = 0
        self.condemned = 0
        self._probe = probe
        self._give_up_after = give_up_after
        self._tell = on_status or _ignore
        self._absent = on_absence or _ignore
        self._open = True
        self._in_flight = 0
        self._expected = 0  # scenes that have begun and not called yet
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._entered = 0
        self._room: asyncio.Event = asyncio.Event()
        self._held: dict[Call, None] = {}  # in the order in which they were lost
        self._recovery: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        """Calls in flight."""
        return self._in_flight

    # ---- turns --------------------------------------------------------------------------------------------------

    def visitor(self, rank: int, *, last_chance: bool = False) -> Visitor:
        """A scene that is about to begin."""
        self._expected += 1
        return Visitor(self, rank, last_chance)

    async def room(self) -> None:
        """Wait until a call could go at once: then it is time for another scene."""
        while not self._has_room():
            self._room.clear()
            await self._room.wait()

    async def enter(self, visitor: Visitor) -> Call:
        """Wait for a call's turn."""
        self._arrived(visitor)
        self._check(visitor)
        if self._open and self._in_flight < self.most and not self._queue:
            self._in_flight += 1
            return Call(visitor, time.monotonic())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._entered += 1
        heapq.heappush(self._queue, (visitor.rank, self._entered, turn))
        try:
            await turn  # whoever lets it go counts it as in flight
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self._give_back()
            raise
        try:
            self._check(visitor)
        except ModelError:
            self._give_back()
            raise
        return Call(visitor, time.monotonic())

    def leave(self, call: Call) -> None:
        """A call is over, whatever came of it."""
        call.over = True
        call.moved.set()
        self._held.pop(call, None)
        self._give_back()

    def left(self, visitor: Visitor) -> None:
        """A scene is over."""
        self._arrived(visitor)
        self._wake()

    def _arrived(self, visitor: Visitor) -> None:
        if not visitor.arrived:
            visitor.arrived = True
            self._expected -= 1

    def _check(self, visitor: Visitor) -> None:
        refusal = self.gone or visitor.condemned
        if refusal is not None:
            raise refusal

    def _give_back(self) -> None:
        self._in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        while self._queue and self._open and self._in_flight < self.most:
            *_, turn = heapq.heappop(self._queue)
            if not turn.done():
                self._in_flight += 1
                turn.set_result(None)
        if self._has_room():
            self._room.set()

    def _has_room(self) -> bool:
        return self._open and self._in_flight + len(self._queue) + self._expected < self.most

    # ---- a server that is away ----------------------------------------------------------------------------------

    async def lost(self, *, reached: bool) -> bool:
        """Wait until a call that has lost its server may try again (`models.client.http.Lifeline`).

        Args:
            reached: whether the request had reached the server; else it cannot be what brought it down.

        Returns:
            Whether the server was away meanwhile: then the call may go at once.

        Raises:
            ModelUnavailableError: the server is gone for good.
            CrashingQuestionError: the server died of this call.
        """
        call = current_call.get()
        if call is None or self._probe is None:
            return False
        if self.gone is not None:
            raise self.gone
        call.reached = reached
        call.waiting = asyncio.get_running_loop().create_future()
        self._held[call] = None
        call.moved.set()
        if self._recovery is None:
            self._recovery = asyncio.create_task(self._recover(self._probe))
        try:
            return await call.waiting
        finally:
            self._held.pop(call, None)

    def look(self) -> None:
        """Find out whether the server still answers; if not, wait for it as if a call had lost it."""
        if self._probe is not None and self._recovery is None and self.gone is None:
            self._recovery = asyncio.create_task(self._recover(self._probe))

    async def close(self) -> None:
        """Stop looking for the server."""
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)

    async def _recover(self, probe: Probe) -> None:
        """Find out whether the server is away; if so, wait for it, and then find out whether a call brought it down."""
        self._open = False
        try:
            if (wrong := await probe()) is not None:
                seconds, died = await self._wait(probe, wrong)
                if died:
                    await self._try_apart(probe, seconds)
        except ModelUnavailableError as error:
            self._give_up(error)
        except Exception as error:  # noqa: BLE001 - those who wait must get an answer, whatever is wrong here
            self._give_up(ModelUnavailableError(f"The server was lost, and looking for it failed: {error!r}"))
        finally:
            for call in list(self._held):
                self._let_go(call)
            if self.clocks.stopped:
                self.clocks.start()
                self._absent(False)
            self._recovery = None
            self._open = True
            self._wake()

    async def _wait(self, probe: Probe, wrong: str) -> tuple[float, bool]:
        """Wait for the server; returns for how many seconds, and whether it may have died."""
        died = not isinstance(wrong, Unserving)
        began = time.monotonic()
        if not self.clocks.stopped:
            self.clocks.stop()
            self._absent(True)
        self.absences += 1
        self._tell(f"the model server is away ({wrong}); waiting up to {self._give_up_after:g} s for it")
        pause = _FIRST_WAIT
        while True:
            left = began + self._give_up_after - time.monotonic()
            if left <= 0:
                raise ModelUnavailableError(
                    f"The model server was away for {self._give_up_after:g} s (--give-up-after); the last: {wrong}. "
                    "Nothing that was finished is lost. Start the server, then the same command again."
                )
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_WAIT)
            found = await probe()
            if found is None:
                break
            wrong = found
            died = died or not isinstance(wrong, Unserving)
        seconds = time.monotonic() - began
        self._tell(f"the model server is back after {seconds:.0f} s")
        return seconds, died

    async def _try_apart(self, probe: Probe, seconds: float) -> None:
        """Send the calls that were in flight one at a time, so that one that kills the server gives itself away.

        The youngest go first, as the likeliest culprits, and those that have seen the server die twice before all. Most
        servers die for reasons of their own, and one at a time is slow; so it ends when as much time has passed as the
        server was away for. Then the rest go together again, but those that have seen it die twice in small groups, as
        many as each has members: of a group that the server dies of, each goes alone.
        """
        until = time.monotonic() + max(_LEAST_TRIAL, seconds)
        suspects = [call for call in self._held if call.reached]
        for call in suspects:
            call.deaths += 1
            if call.visitor.last_chance:
                self._condemn(call)
        suspects.sort(key=lambda call: (-min(call.deaths, 2), -call.sent_at))
        alone: list[Call] = []  # of a group that the server died of
        while alone or suspects:
            late = time.monotonic() > until
            if late and not alone and suspects[0].deaths < 2:
                return
            waiting = alone or suspects
            size = math.isqrt(sum(call.deaths > 1 for call in suspects)) if late and not alone else 1
            group = [call for call in waiting[:size] if call in self._held and not call.visitor.condemned]
            del waiting[:size]
            for call in group:
                call.moved.clear()
                self._let_go(call)
            # Else some are still waiting for the server that is gone.
            by_itself = len(group) == 1 and self._in_flight == len(self._held) + 1
            for call in group:
                await call.moved.wait()
            back = [call for call in group if not call.over and call.reached]
            if not back or (wrong := await probe()) is None:
                continue
            blamed = not isinstance(wrong, Unserving)
            if blamed:
                self._blame(back, by_itself)
            more, died = await self._wait(probe, wrong)
            until += more
            if died and not blamed:
                self._blame(back, by_itself)
            if died and len(group) > 1:
                alone += back

    def _blame(self, calls: list[Call], by_itself: bool) -> None:
        """The server died while these were in flight; by_itself: and nothing else was."""
        for call in calls:
            call.deaths += 1
            if by_itself:
                self._condemn(call)

    def _let_go(self, call: Call) -> None:
        self._held.pop(call, None)
        call.sent_at = time.monotonic()
        if call.waiting is not None and not call.waiting.done():
            refusal = self.gone or call.visitor.condemned
            if refusal is None:
                call.waiting.set_result(self.clocks.stopped)
            else:
                call.waiting.set_exception(refusal)

    def _condemn(self, call: Call) -> None:
        if call.visitor.condemned is None:
            self.condemned += 1
            call.visitor.condemned = CrashingQuestionError(
                f"The model server died {call.deaths} time{'s' * (call.deaths != 1)} while it answered this question, "
                "the last time with nothing else to do. The question was set aside; the others go on. "
                "The server's log may say why."
            )
            self._tell(f"a question is set aside: the server died {call.deaths} times over it")
        for other in [held for held in self._held if held.visitor is call.visitor]:
            self._let_go(other)

    def _give_up(self, error: ModelUnavailableError) -> None:
        self.gone = error
        self.over.set()
        for *_, turn in self._queue:
            if not turn.done():
                turn.set_exception(error)
        self._queue.clear()


def _ignore(*_: object) -> None:
    """Nobody wants to know."""
