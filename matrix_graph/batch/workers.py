"""Scenes played by several processes, for a server that answers faster than one process can ask.

Why: a process makes some 800 model calls a second; one engine seldom answers as many, several GPUs or a tiny model may.
What always holds: all that must be one stays in the run's process (questions, folder, progress, and the traffic, so
that turns go by age, absences are waited for and blame is found across all workers); a worker plays scenes and sends
its own requests. A worker that dies takes nothing with it: its scenes are played again from the start by others. No
worker outlives the run.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables.config import var_child_runnable_config

from matrix_graph.batch.player import Played, broken_off
from matrix_graph.batch.rows import Row
from matrix_graph.batch.wire import Message
from matrix_graph.batch.worker_handle import WorkerDiedError, WorkerError, WorkerHandle
from matrix_graph.config import SceneConfig
from matrix_graph.errors import ConfigError
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.client import own_servers
from matrix_graph.models.client.own_servers import OwnServer
from matrix_graph.models.traffic import Traffic
from matrix_graph.models.turn import Visitor
from matrix_graph.records import Cast

_COMMAND = (sys.executable, "-P", "-m", "matrix_graph.batch._worker")
_MOST_DEATHS = 3
"""Deaths of workers with no scene ended in between, after which more of the same is of no use."""
_TRIES = 2
"""How often a scene is played in company, and then, if its worker died each time, in a process of its own."""
_HERE = {"server", "api_key", "default_headers", "callbacks", "cache", "rate_limiter", "custom_get_token_ids"}
"""Fields of a model that stay in this process, or travel in a way of their own."""


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
        self._task: dict[str, Any] = {
            "model": fields,
            "key": model.request_key,
            "headers": model.request_headers,
            "name": name,
            "cast": cast.model_dump(mode="json") if cast else None,
            "config": config.model_dump(mode="json"),
            "run": os.getpid(),
        }
        self._base_url = model.base_url
        self._no_news = _nothing
        self._workers: list[WorkerHandle] = []
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
        loop = asyncio.get_running_loop()

        def tell(url: str, server: OwnServer) -> None:
            if own_servers.same_place(url, self._base_url):
                with suppress(RuntimeError):  # the loop is closed, and so is the run
                    loop.call_soon_threadsafe(self._tell_workers, server)

        self._no_news = own_servers.watch(tell)
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
            with suppress(WorkerDiedError):
                return self._ended_well(await worker.play(row, key, visitor))
        async with self._one_suspect:
            return self._ended_well(await self._play_apart(row, key, visitor))

    def absent(self, away: bool) -> None:
        """The server is away, or back."""
        for worker in self._workers:
            worker.send(["away", away])

    def _tell_workers(self, server: OwnServer) -> None:
        """The run's own server is up again, with another key, or away."""
        for worker in self._workers:
            worker.send(["server", *_told(server)])

    async def close(self) -> None:
        """End all workers; returns when none is left."""
        self._closing = True
        self._no_news()
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

    async def _launch(self, *, apart: bool = False) -> WorkerHandle | None:
        """Start one worker; None: it could not be."""
        worker = WorkerHandle(self._traffic, self._changed, apart=apart)
        try:
            await _spawn(worker)
        except OSError as error:
            self._count_death(f"could not be started ({error})")
            return None
        return worker

    def _changed(self, worker: WorkerHandle) -> None:
        """A worker was started, is ready, or has ended."""
        if worker not in self._workers:
            self._workers.append(worker)
            own = own_servers.find(self._base_url)
            now = {
                "away": self._traffic.clocks.stopped,
                "key": own_servers.current_key(self._base_url, self._task["key"]),
                "server": None if own is None else _told(own),
            }
            worker.send(["begin", {**self._task, **now}])
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

    async def _least_busy(self) -> WorkerHandle:
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
            except WorkerDiedError:
                end = worker.end
            finally:
                worker.finish()
        self._tell("a question has failed: every process that plays it dies")
        error = WorkerError(
            f"The process that played this question {end}, {2 * _TRIES} times, "
            f"{_TRIES} of them with nothing else to do."
        )
        return broken_off(row, key, self._config, error)


def _told(server: OwnServer) -> Message:
    """A server of this program, as a worker is told of it."""
    return [server.key, None if server.sockets is None else sorted(server.sockets)]


def _nothing() -> None:
    """Before the start there is nothing to end."""


async def _spawn(worker: asyncio.SubprocessProtocol) -> None:
    await asyncio.get_running_loop().subprocess_exec(
        lambda: worker,
        *_COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C at the terminal reaches the run alone
    )
