"""A worker: a process that plays scenes for a run, and asks the run before each model call.

    python -P -m matrix_graph.batch._worker

`matrix_graph.batch.workers` starts it and talks to it through its standard input and output (see `wire`). What always
holds: it keeps nothing and decides nothing that is the run's (turns, absences, blame); it ends when its standard input
ends, whatever ended the run; signals from a terminal or a service manager are the run's business, which drains first.
"""

from __future__ import annotations

import asyncio
import faulthandler
import itertools
import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from pydantic import SecretStr

from matrix_graph.batch.player import Player, ScenePlayer
from matrix_graph.batch.process import collect_garbage_rarely, open_many_files
from matrix_graph.batch.rows import Row
from matrix_graph.batch.wire import Message, Outbox, Unpacker, WireError
from matrix_graph.config import SceneConfig
from matrix_graph.errors import CrashingQuestionError, ModelError, ModelUnavailableError
from matrix_graph.models.ask import describe
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.client import own_servers
from matrix_graph.models.turn import Call, Clocks, Visitor, current_call
from matrix_graph.records import Cast

_LOOK_SECONDS = 2.0
"""Between two looks whether the run is still there. A fork of it may keep the pipe open after it."""
_REFUSALS = {error.__name__: error for error in (CrashingQuestionError, ModelUnavailableError)}


class RemoteGate:
    """The way to the run's traffic: `models.turn.Gate` and `models.client.http.Lifeline` by messages.

    A visitor's rank is its scene's number.

    Args:
        send: takes a message for the run.
    """

    def __init__(self, send: Callable[[Message], object]) -> None:
        self.clocks = Clocks()
        self._send = send
        self._numbers = itertools.count(1)
        self._calls: dict[Call, int] = {}
        self._tokens: dict[Call, tuple[int, int]] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def enter(self, visitor: Visitor) -> Call:
        """Wait for a call's turn."""
        number = next(self._numbers)
        self._send(["enter", visitor.rank, number])
        try:
            await self._answer(number, visitor)
        except asyncio.CancelledError:
            self._send(["leave", number])  # its turn may be on its way
            raise
        call = Call(visitor, time.monotonic())
        self._calls[call] = number
        return call

    def leave(self, call: Call) -> None:
        """A call is over, whatever came of it."""
        self._send(["leave", self._calls.pop(call), *self._tokens.pop(call, ())])

    def on_call(self, input_tokens: int, output_tokens: int) -> None:
        """A call was answered; the run hears of it when the call leaves."""
        call = current_call.get()
        if call in self._calls:
            self._tokens[call] = (input_tokens, output_tokens)

    async def lost(self, *, reached: bool) -> bool:
        """Wait until a call that has lost its server may try again; see `models.traffic.Traffic.lost`."""
        call = current_call.get()
        if call is not None and (number := self._calls.get(call)) is not None:
            self._send(["lost", number, reached])
            await self._answer(number, call.visitor)
        return self.clocks.stopped

    def go(self, number: int) -> None:
        """The run lets a call go on."""
        if (answer := self._waiting.get(number)) is not None and not answer.done():
            answer.set_result(None)

    def refuse(self, number: int, kind: str, message: str) -> None:
        """The run does not let a call go on."""
        if (answer := self._waiting.get(number)) is not None and not answer.done():
            answer.set_exception(_REFUSALS.get(kind, ModelError)(message))

    def away(self, away: bool) -> None:
        """The server is away, or back."""
        if away:
            self.clocks.stop()
        else:
            self.clocks.start()

    async def _answer(self, number: int, visitor: Visitor) -> None:
        self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._waiting[number]
        except CrashingQuestionError as refusal:
            visitor.condemned = refusal
            raise
        finally:
            del self._waiting[number]


class Worker(asyncio.Protocol):
    """All scenes of this process, and the run's voice.

    Args:
        outbox: to the run.

    Attributes:
        over: set when the run has nothing more to say.
    """

    def __init__(self, outbox: Outbox) -> None:
        self.over = asyncio.Event()
        self._outbox = outbox
        self._unpacker = Unpacker()
        self._gate = RemoteGate(outbox.send)
        self._player: Player | None = None
        self._base_url = ""
        self._scenes: dict[int, asyncio.Task[None]] = {}
        self._error: Exception | None = None

    def data_received(self, data: bytes) -> None:
        """The run has spoken."""
        try:
            for message, _ in self._unpacker.feed(data):
                self._take(message)
        except Exception as error:  # noqa: BLE001 - raised again by `close`, which ends the process
            self._error = error
            self.over.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The run is over."""
        self.over.set()

    async def close(self) -> None:
        """Break off what is being played.

        Raises:
            WireError: the run said something that is no message.
        """
        for scene in self._scenes.values():
            scene.cancel()
        await asyncio.gather(*self._scenes.values(), return_exceptions=True)
        if self._error is not None:
            raise self._error

    def _take(self, message: Message) -> None:
        match message:
            case ["go", number]:
                self._gate.go(number)
            case ["play", number, key, question, draft, id, line, last_chance]:
                visitor = Visitor(self._gate, number, last_chance)
                scene = asyncio.create_task(self._play(Row(question, draft, id, line), key, visitor))
                self._scenes[number] = scene
                scene.add_done_callback(lambda _: self._scenes.pop(number))
            case ["cancel", number]:
                if number in self._scenes:
                    self._scenes[number].cancel()
            case ["refused", number, kind, why]:
                self._gate.refuse(number, kind, why)
            case ["away", away]:
                self._gate.away(away)
            case ["server", key, sockets]:
                self._know(key, sockets)
            case ["begin", task]:
                self._begin(**task)
            case _:
                raise WireError(f"The run said {message!r}, which no worker understands.")

    def _begin(
        self,
        *,
        model: dict[str, Any],
        key: str | None,
        headers: dict[str, str],
        name: str,
        cast: dict[str, Any] | None,
        config: dict[str, Any],
        away: bool,
        run: int,
        server: list[Any] | None = None,
    ) -> None:
        self._base_url = model["base_url"]
        if server is not None:
            self._know(key, None)  # the key that it may have had before, where it is away at this moment
            self._know(*server)
        self._player = ScenePlayer(
            ChatVLLM(**model, api_key=None if key is None else SecretStr(key), default_headers=headers),
            name=name,
            lifeline=self._gate,
            cast=None if cast is None else Cast.model_validate(cast),
            config=SceneConfig.model_validate(config),
        )
        self._gate.away(away)
        self._watch = asyncio.create_task(self._until_gone(run))
        self._outbox.send(["ready"])

    def _know(self, key: str | None, sockets: list[int] | None) -> None:
        """The model server is one of the run's own, and this is how it is recognised."""
        sockets_or_none = None if sockets is None else frozenset(sockets)
        own_servers.announce(self._base_url, own_servers.OwnServer(key, sockets_or_none))

    async def _play(self, row: Row, key: str, visitor: Visitor) -> None:
        assert self._player is not None  # "begin" comes first
        try:
            played = await self._player.play(row, key, visitor)
        except Exception as error:  # noqa: BLE001 - the run decides what comes of it
            self._outbox.send(["broke", visitor.rank, *describe(error).values()])
        else:
            told = [played.status, played.seconds, played.calls, played.cut]
            self._outbox.send(["played", visitor.rank, *told], played.line)

    async def _until_gone(self, run: int) -> None:
        while os.getppid() == run:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(_LOOK_SECONDS)
        self.over.set()


async def _work(incoming: int, outgoing: int) -> None:
    loop = asyncio.get_running_loop()
    output, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(outgoing, "wb", 0))
    input, worker = await loop.connect_read_pipe(lambda: Worker(Outbox(output.write)), os.fdopen(incoming, "rb", 0))
    try:
        await worker.over.wait()
        await worker.close()
    finally:
        input.close()
        output.abort()


def main() -> None:
    """Work until the run is over."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    faulthandler.enable()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # The pipes are for messages alone: whatever prints, prints to standard error, and whatever reads, reads nothing.
    incoming, outgoing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    open_many_files()
    collect_garbage_rarely()
    asyncio.run(_work(incoming, outgoing))


if __name__ == "__main__":
    main()
