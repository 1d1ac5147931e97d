"""A model call's turn, and the clock it runs by: what a scene needs to take part in the traffic of many.

Why: graph, nodes and model know nothing of traffic; a scene's calls find it through a context variable. What always
holds: outside of traffic a turn is free and the clock is `time.monotonic`; inside, neither clock nor timeouts run while
the server is away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from matrix_graph.errors import CrashingQuestionError


class Gate(Protocol):
    """Where turns are given out: `models.traffic.Traffic`, or a worker's way to it."""

    clocks: Clocks

    async def enter(self, visitor: Visitor) -> Call:
        """Wait for a call's turn."""

    def leave(self, call: Call) -> None:
        """A call is over, whatever came of it."""

    def on_call(self, input_tokens: int, output_tokens: int) -> object:
        """A call was answered."""


@dataclass(eq=False, slots=True)
class Visitor:
    """One scene, as traffic sees it.

    Attributes:
        gate: where its calls get their turns.
        rank: the lower, the sooner its calls go.
        last_chance: whether one death of the server during any of its calls condemns it.
        arrived: whether it has made its first call.
        condemned: why it is set aside; None: it is not.
    """

    gate: Gate
    rank: int
    last_chance: bool = False
    arrived: bool = False
    condemned: CrashingQuestionError | None = None

    @contextmanager
    def here(self) -> Iterator[None]:
        """The model calls made inside are this scene's."""
        token = _visitor.set(self)
        try:
            yield
        finally:
            _visitor.reset(token)


@dataclass(eq=False, slots=True)
class Call:
    """One model call, from its turn to its end, tries again included."""

    visitor: Visitor
    sent_at: float = 0.0
    deaths: int = 0
    reached: bool = True
    over: bool = False
    waiting: asyncio.Future[bool] | None = None
    moved: asyncio.Event = field(default_factory=asyncio.Event)


_visitor: ContextVar[Visitor | None] = ContextVar("visitor", default=None)
current_call: ContextVar[Call | None] = ContextVar("call", default=None)


def clock() -> float:
    """`time.monotonic()`, which stands still for a scene in traffic while its server is away, in seconds."""
    visitor = _visitor.get()
    return time.monotonic() if visitor is None else visitor.gate.clocks.now()


class Turn:
    """A call's place among those in flight; a context manager around the call. Outside of traffic it is always free."""

    __slots__ = ("_call", "_seconds", "_timeout", "_token", "_visitor")

    def __init__(self, seconds: float | None) -> None:
        """Args: how long the call may take from its turn on, the server's absences left out; None: any time."""
        self._visitor = _visitor.get()
        self._call: Call | None = None
        self._seconds = seconds
        self._timeout: asyncio.Timeout | None = None

    async def __aenter__(self) -> Self:
        """Raises: ModelUnavailableError: the server is gone for good. CrashingQuestionError: set aside before."""
        if self._visitor is not None:
            self._call = await self._visitor.gate.enter(self._visitor)
            self._token = current_call.set(self._call)
        self._timeout = asyncio.timeout(self._seconds)
        await self._timeout.__aenter__()
        if self._visitor is not None:
            self._visitor.gate.clocks.watch(self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._timeout is not None  # it was entered
        if self._visitor is not None and self._call is not None:
            self._visitor.gate.clocks.unwatch(self._timeout)
            self._visitor.gate.leave(self._call)
            current_call.reset(self._token)
        await self._timeout.__aexit__(kind, error, trace)

    @property
    def expired(self) -> bool:
        """Whether the call was ended because its time was up."""
        return self._timeout is not None and self._timeout.expired()

    def count(self, input_tokens: int, output_tokens: int) -> None:
        """Tell those who watch what the call took, in tokens."""
        if self._visitor is not None:
            self._visitor.gate.on_call(input_tokens, output_tokens)


class Clocks:
    """The clock and the timeouts of all calls, which stand still while the server is away."""

    def __init__(self) -> None:
        """The clock runs."""
        self._away_before = 0.0
        self._away_since: float | None = None
        self._timeouts: dict[asyncio.Timeout, float | None] = {}  # seconds left when the clock was stopped

    @property
    def stopped(self) -> bool:
        """Whether it stands still."""
        return self._away_since is not None

    @property
    def seconds_stopped(self) -> float:
        """For how long it stood still in all."""
        return self._away_before + (0.0 if self._away_since is None else time.monotonic() - self._away_since)

    def now(self) -> float:
        """`time.monotonic()` less the time for which it stood still, in seconds."""
        return (time.monotonic() if self._away_since is None else self._away_since) - self._away_before

    def watch(self, timeout: asyncio.Timeout) -> None:
        """Have a timeout stand still with the clock."""
        self._timeouts[timeout] = None
        if self._away_since is not None:
            self._stop(timeout)

    def unwatch(self, timeout: asyncio.Timeout) -> None:
        """Leave a timeout alone again."""
        self._timeouts.pop(timeout, None)

    def stop(self) -> None:
        """Stand still."""
        if self._away_since is None:
            self._away_since = time.monotonic()
            for timeout in self._timeouts:
                self._stop(timeout)

    def start(self) -> None:
        """Run again."""
        if self._away_since is None:
            return
        self._away_before += time.monotonic() - self._away_since
        self._away_since = None
        for timeout, left in self._timeouts.items():
            if left is not None:
                timeout.reschedule(asyncio.get_running_loop().time() + left)
                self._timeouts[timeout] = None

    def _stop(self, timeout: asyncio.Timeout) -> None:
        until = timeout.when()
        if until is not None and not timeout.expired():
            self._timeouts[timeout] = max(0.0, until - asyncio.get_running_loop().time())
            timeout.reschedule(None)
