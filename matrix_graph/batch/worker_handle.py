"""One worker process, as the run sees it: what it is told, what it says, and how it ends.

What always holds: its calls get their turns from the run's traffic, like those of a scene played here; when it ends,
whatever it held is given back and whoever waits for a scene of it hears that; one that does not listen is killed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from matrix_graph.batch.player import Played
from matrix_graph.batch.rows import Row
from matrix_graph.batch.wire import Message, Outbox, Unpacker, WireError
from matrix_graph.errors import MatrixGraphError, ModelError
from matrix_graph.models.ask import describe
from matrix_graph.models.traffic import Traffic
from matrix_graph.models.turn import Call, Visitor, current_call

_START_SECONDS = 120.0
"""In which a worker must be ready, on a machine that is busy."""
_STOP_SECONDS = 5.0
"""In which a worker must end by itself."""
_KEPT = 2000
"""Characters of a worker's standard error that a message quotes."""

_log = logging.getLogger(__name__)


class WorkerError(MatrixGraphError):
    """Worker processes do not start, or die again and again."""


class WorkerDiedError(Exception):
    """The worker has died that played this scene."""


@dataclass(eq=False, slots=True)
class _Scene:
    """A scene that a worker plays."""

    key: str
    visitor: Visitor
    played: asyncio.Future[Played]


class WorkerHandle(asyncio.SubprocessProtocol):
    """One process, as the run sees it.

    Args:
        traffic: of the whole run.
        on_change: called when it was started, when it is ready, and when it has ended.
        apart: whether it plays a suspect alone.

    Attributes:
        ready: whether it ever was ready to play.
        settled: set when it is ready or has ended.
        over: set when it has ended and all that it had said was heard.
        scenes: that it plays, by number.
        end: how it ended.
        last_words: the end of what it wrote to standard error.
    """

    def __init__(self, traffic: Traffic, on_change: Callable[[WorkerHandle], None], *, apart: bool) -> None:
        self.apart = apart
        self.ready = False
        self.settled = asyncio.Event()
        self.over = asyncio.Event()
        self.scenes: dict[int, _Scene] = {}
        self.end = "is running"
        self.last_words = ""
        self._traffic = traffic
        self._on_change = on_change
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._waiting: dict[int, asyncio.Task[None]] = {}
        self._unpacker = Unpacker()
        self._ending = False

    @property
    def free(self) -> bool:
        """Whether any scene may be given to it."""
        return self.ready and not self._ending and not self.apart

    # ---- the process ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It was started."""
        assert isinstance(transport, asyncio.SubprocessTransport)
        pipe = transport.get_pipe_transport(0)
        assert isinstance(pipe, asyncio.WriteTransport)
        self._transport, self._pipe = transport, pipe
        self._outbox = Outbox(self._write)
        self._deadline = asyncio.get_running_loop().call_later(_START_SECONDS, self.kill, "was not ready in time")
        self._on_change(self)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """It has spoken."""
        if fd == 2:
            text = data.decode(errors="replace")
            self.last_words = (self.last_words + text)[-_KEPT:]
            _log.warning("worker %s: %s", self._transport.get_pid(), text.rstrip())
            return
        try:
            for message, body in self._unpacker.feed(data):
                self._take(message, body)
        except WireError as error:
            _log.error("worker %s is ended: %s", self._transport.get_pid(), error)
            self.kill("said something that is no message")

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """It is ending, or should be."""
        if fd != 2:
            self.finish()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, and all that it said was heard."""
        self._deadline.cancel()
        code = self._transport.get_returncode() or 0
        self._transport.close()
        if self.end == "is running":
            self.end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        self.over.set()
        self.settled.set()
        for number in [*self._waiting, *self._calls]:
            self._leave(number)
        self._on_change(self)
        for scene in self.scenes.values():
            if not scene.played.done():
                scene.played.set_exception(WorkerDiedError())

    def finish(self) -> None:
        """Have it end: at once if it can, and in a few seconds if it cannot."""
        if not self.over.is_set():
            self._ending = True
            self._pipe.close()
            self._deadline.cancel()
            self._deadline = asyncio.get_running_loop().call_later(_STOP_SECONDS, self.kill, "did not end in time")

    def kill(self, why: str) -> None:
        """End it at once."""
        self.end = why
        with suppress(ProcessLookupError):
            self._transport.kill()

    # ---- what is said ---------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Tell it something, if it still listens."""
        if not self.over.is_set():
            self._outbox.send(message)

    async def play(self, row: Row, key: str, visitor: Visitor) -> Played:
        """Have it play a question.

        Raises:
            WorkerDiedError: it has died.
            WorkerError: it could not tell how the scene ended.
        """
        number = next(self._numbers)
        scene = _Scene(key, visitor, asyncio.get_running_loop().create_future())
        self.scenes[number] = scene
        self.send(["play", number, key, row.question, row.draft, row.id, row.line, visitor.last_chance])
        try:
            return await scene.played
        except asyncio.CancelledError:
            self.send(["cancel", number])
            raise
        finally:
            del self.scenes[number]

    def _write(self, data: bytes) -> None:
        if not self._pipe.is_closing():
            self._pipe.write(data)

    def _take(self, message: Message, body: bytes) -> None:
        match message:
            case ["enter", scene, number]:
                if scene in self.scenes:  # else it is cancelled, and the worker will hear of it
                    self._wait_for(number, partial(self._enter, number, self.scenes[scene].visitor))
            case ["leave", number, *tokens]:
                self._leave(number, tokens)
            case ["lost", number, reached]:
                if number in self._calls:
                    self._wait_for(number, partial(self._lost, self._calls[number], reached=reached))
            case ["played", number, status, seconds, calls, cut]:
                if number in self.scenes and not (scene := self.scenes[number]).played.done():
                    scene.played.set_result(Played(scene.key, status, seconds, calls, body, cut))
            case ["broke", number, kind, why]:
                if number in self.scenes and not (scene := self.scenes[number]).played.done():
                    scene.played.set_exception(WorkerError(f"A scene broke off in a worker process: {kind}: {why}"))
            case ["ready"]:
                self.ready = True
                self._deadline.cancel()
                self.settled.set()
                self._on_change(self)
            case _:
                raise WireError(f"It said {message!r:.200}, which is no message to a run.")

    # ---- its calls in traffic -------------------------------------------------------------------------------------

    def _wait_for(self, number: int, decision: Callable[[], Awaitable[None]]) -> None:
        """Tell a call to go on, or not, when traffic has decided."""

        async def answer() -> None:
            try:
                await decision()
            except ModelError as refusal:
                self.send(["refused", number, *describe(refusal).values()])
            else:
                self.send(["go", number])
            finally:
                self._waiting.pop(number, None)

        self._waiting[number] = asyncio.create_task(answer())

    async def _enter(self, number: int, visitor: Visitor) -> None:
        self._calls[number] = await self._traffic.enter(visitor)

    async def _lost(self, call: Call, *, reached: bool) -> None:
        current_call.set(call)  # in this task alone
        await self._traffic.lost(reached=reached)

    def _leave(self, number: int, tokens: Sequence[int] = ()) -> None:
        if (waiting := self._waiting.pop(number, None)) is not None:
            waiting.cancel()
        if (call := self._calls.pop(number, None)) is not None:
            if tokens:
                self._traffic.on_call(*tokens)
            self._traffic.leave(call)
