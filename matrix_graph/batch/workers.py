"""Scenes played by several processes, for a server that answers faster than one process can ask.

Why: a process makes some 800 model calls a second; one engine seldom answers as many, several GPUs or a tiny model may.
What always holds: all that must be one stays in the run's process (questions, folder, progress, and the traffic, so
that turns go by age, absences are waited for and blame is found across all workers); a worker plays scenes and sends
its own requests. A worker that dies takes nothing with it: its scenes are played again from the start by others. No
worker outlives the run.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables.config import var_child_runnable_config

from matrix_graph.batch.player import Played, broken_off
from matrix_graph.batch.rows import Row
from matrix_graph.batch.wire import Message, Outbox, Unpacker, WireError
from matrix_graph.config import SceneConfig
from matrix_graph.errors import ConfigError, MatrixGraphError, ModelError
from matrix_graph.models.ask import describe
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.traffic import Traffic
from matrix_graph.models.turn import Call, Visitor, current_call
from matrix_graph.records import Cast

_COMMAND = (sys.executable, "-P", "-m", "matrix_graph.batch._worker")
_START_SECONDS = 120.0
"""In which a worker must be ready, on a machine that is busy."""
_STOP_SECONDS = 5.0
"""In which a worker must end by itself."""
_MOST_DEATHS = 3
"""Deaths of workers with no scene ended in between, after which more of the same is of no use."""
_TRIES = 2
"""How often a scene is played in company, and then, if its worker died each time, in a process of its own."""
_KEPT = 2000
"""Characters of a worker's standard error that a message quotes."""
_HERE = {"server", "api_key", "callbacks", "cache", "rate_limiter", "custom_get_token_ids"}
"""Fields of a model that stay in this process, or travel in a way of their own."""

_log = logging.getLogger(__name__)


class WorkerError(MatrixGraphError):
    """Worker processes do not start, or die again and again."""


class _DiedError(Exception):
    """The worker has died that played this scene."""


def check_portable(model: BaseChatModel) -> None:
    """See that other processes can play with this model as well as this one.

    Raises:
        ConfigError: they cannot: the model, or somebody who listens to it, lives in this process.
    """
    advice = "leave `workers` at 1"
    if type(model) is not ChatVLLM:
        raise ConfigError(
            f"workers were asked for, and the model is a {type(model).__name__}, which lives in this process; "
            f"only ChatVLLM itself can be called from several. Use ChatVLLM, or {advice}."
        )
    for name in ("callbacks", "cache", "rate_limiter"):
        if getattr(model, name):
            raise ConfigError(
                f"workers were asked for, and the model has {name}, which other processes would not know. "
                f"Take that from the model, or {advice}."
            )
    config = var_child_runnable_config.get() or {}
    listeners = config.get("callbacks")
    handlers = listeners.handlers if isinstance(listeners, BaseCallbackManager) else listeners
    if handlers or get_llm_cache() is not None:
        what = "callbacks of the surrounding run" if handlers else "LangChain's cache"
        raise ConfigError(
            f"workers were asked for, and {what} would hear nothing of other processes' calls. "
            f"Call run_batch outside of it, or {advice}."
        )


class WorkerPlayer:
    """Plays in other processes (`batch.player.Player`). It lives in one event loop; Linux and macOS only.

    Args:
        model: passed on but for its server, which is the run's business.
        count: how many processes; each takes some 100 MB of memory.
        name: the model's name at the server.
        traffic: of the whole run.
        cast: who is in the scenes; None has the model cast each.
        config: settings and limits.
        on_status: gets a line when a worker has died.
    """

    def __init__(
        self,
        model: ChatVLLM,
        *,
        count: int,
        name: str,
        traffic: Traffic,
        cast: Cast | None,
        config: SceneConfig,
        on_status: Callable[[str], object],
    ) -> None:
        self._count = count
        self._traffic = traffic
        self._config = config
        self._tell = on_status
        # What was left to the defaults is left to them there too, since a run's patience depends on what was set.
        fields = model.model_dump(mode="json", exclude_unset=True, exclude=_HERE) | {"base_url": model.base_url}
        self._task = {
            "model": fields,
            "key": model.api_key.get_secret_value() if model.api_key else None,
            "name": name,
            "cast": cast.model_dump(mode="json") if cast else None,
            "config": config.model_dump(mode="json"),
            "run": os.getpid(),
        }
        self._workers: list[_Worker] = []
        self._launches: set[asyncio.Task[None]] = set()
        self._one_suspect = asyncio.Lock()
        self._news = asyncio.Event()
        self._deaths = 0
        self._error: WorkerError | None = None
        self._closing = False

    async def start(self) -> None:
        """Start the workers, and wait until they are ready.

        Raises:
            WorkerError: they do not start.
        """
        for _ in range(self._count):
            self._add()
        while self._error is None and sum(worker.ready for worker in self._workers) < self._count:
            await self._wait()
        if self._error is not None:
            raise self._error

    async def play(self, row: Row, key: str, visitor: Visitor) -> Played:
        """Play one question, again if need be.

        Raises:
            WorkerError: workers die again and again.
        """
        for _ in range(_TRIES):
            worker = await self._least_busy()
            with suppress(_DiedError):
                return self._ended_well(await worker.play(row, key, visitor))
        async with self._one_suspect:
            return self._ended_well(await self._play_apart(row, key, visitor))

    def absent(self, away: bool) -> None:
        """The server is away, or back."""
        for worker in self._workers:
            worker.send(["away", away])

    async def close(self) -> None:
        """End all workers; returns when none is left."""
        self._closing = True
        for launch in list(self._launches):
            launch.cancel()
        await asyncio.gather(*self._launches, return_exceptions=True)
        workers = list(self._workers)
        for worker in workers:
            if worker.ready:
                worker.finish()
            else:
                worker.kill("was not needed any more")  # it does not listen yet, and has nothing to lose
        await asyncio.gather(*(worker.over.wait() for worker in workers))

    # ---- workers that come and go ---------------------------------------------------------------------------------

    def _add(self) -> None:
        launch = asyncio.create_task(self._fill())
        self._launches.add(launch)
        launch.add_done_callback(self._launches.discard)

    async def _fill(self) -> None:
        while self._error is None and await self._launch() is None:
            pass

    async def _launch(self, *, apart: bool = False) -> _Worker | None:
        """Start one worker; None: it could not be."""
        worker = _Worker(self._traffic, self._changed, apart=apart)
        try:
            await _spawn(worker)
        except OSError as error:
            self._count_death(f"could not be started ({error})")
            return None
        return worker

    def _changed(self, worker: _Worker) -> None:
        """A worker was started, is ready, or has ended."""
        if worker not in self._workers:
            self._workers.append(worker)
            worker.send(["begin", {**self._task, "away": self._traffic.clocks.stopped}])
        elif worker.over.is_set():
            self._workers.remove(worker)
            if not self._closing and not (worker.apart and worker.ready):
                scenes = f"; its {len(worker.scenes)} scenes are played again" if worker.scenes else ""
                self._tell(f"a worker process {worker.end}{scenes}")
                self._count_death(worker.end, worker.last_words)
                if self._error is None and not worker.apart:
                    self._add()
        self._news.set()

    def _count_death(self, end: str, last_words: str = "") -> None:
        self._news.set()
        self._deaths += 1
        if self._deaths >= _MOST_DEATHS:
            said = f" The last one's last words:\n{last_words.strip()}" if last_words.strip() else ""
            self._error = WorkerError(
                f"{self._deaths} worker processes in a row have died before any scene ended; the last one {end}. "
                "Nothing that was finished is lost. Is there enough memory (some 100 MB each)? Try fewer --workers, "
                f"or none.{said}"
            )

    def _ended_well(self, played: Played) -> Played:
        self._deaths = 0
        return played

    async def _least_busy(self) -> _Worker:
        while self._error is None:
            if free := [worker for worker in self._workers if worker.free]:
                return min(free, key=lambda worker: len(worker.scenes))
            await self._wait()
        raise self._error

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()

    async def _play_apart(self, row: Row, key: str, visitor: Visitor) -> Played:
        """Play a question alone in a process: if that dies too, it is the question that kills it."""
        end = ""
        tries = 0
        while tries < _TRIES:
            worker = await self._launch(apart=True)
            if self._error is not None:
                raise self._error
            if worker is None:
                continue
            try:
                await worker.settled.wait()
                if worker.ready:
                    tries += 1
                    return await worker.play(row, key, visitor)
            except _DiedError:
                end = worker.end
            finally:
                worker.finish()
        self._tell("a question has failed: every process that plays it dies")
        error = WorkerError(
            f"The process that played this question {end}, {2 * _TRIES} times, "
            f"{_TRIES} of them with nothing else to do."
        )
        return broken_off(row, key, self._config, error)


async def _spawn(worker: asyncio.SubprocessProtocol) -> None:
    await asyncio.get_running_loop().subprocess_exec(
        lambda: worker,
        *_COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C at the terminal reaches the run alone
    )


@dataclass(eq=False, slots=True)
class _Scene:
    """A scene that a worker plays."""

    key: str
    visitor: Visitor
    played: asyncio.Future[Played]


class _Worker(asyncio.SubprocessProtocol):
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

    def __init__(self, traffic: Traffic, on_change: Callable[[_Worker], None], *, apart: bool) -> None:
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
                scene.played.set_exception(_DiedError())

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
            _DiedError: it has died.
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
            case ["played", number, status, seconds, calls]:
                if number in self.scenes and not (scene := self.scenes[number]).played.done():
                    scene.played.set_result(Played(scene.key, status, seconds, calls, body))
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
