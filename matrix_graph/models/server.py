"""One vLLM server of our own: started, watched, restarted when it dies, and ended with everything that it started.

Why: every part of a rehearsal asks the same model, so one server does for a whole program, and it should be no more
trouble than a function call. What always holds: the key is made here, anew for each start of vLLM, and appears in no
command line, log or repr; it is sent to nobody but vLLM itself, which answers nobody without it; synchronous and
asynchronous callers are served alike; whatever ends this program, SIGKILL included, ends the server and all its
workers.
"""

import asyncio
import atexit
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from matrix_graph.errors import PrerequisiteError, ServerError
from matrix_graph.models import engine
from matrix_graph.models.bundled import (
    BundledModel,
    bundled_model,
    cache_directory,
    check_model_folder,
    require_memory_to_serve,
    resolve_model,
)
from matrix_graph.models.bundled.folders import writable_home
from matrix_graph.models.memory import memory_bytes
from matrix_graph.models.serving.adapter import check_adapter_folder, check_adapter_name
from matrix_graph.models.serving.endpoint import AdapterRefusedError, Endpoint, new_key
from matrix_graph.models.serving.launch import (
    ServerConfig,
    free_port,
    new_log_path,
    require_free_port,
    served_name,
    server_command,
    server_environment,
    usual_cache_gib,
)
from matrix_graph.models.serving.process import SupervisedProcess
from matrix_graph.models.serving.watch import ServerWatch

__all__ = ["ServerConfig", "VLLMServer"]

_log = logging.getLogger(__name__)
_METRICS_SECONDS = 10.0
_DEFAULT_CONFIG = ServerConfig()


class VLLMServer:
    """A vLLM server for this program, on this machine.

        with VLLMServer() as server:
            model = ChatVLLM(
                base_url=server.base_url, api_key=server.api_key, model=server.model_name, server=server
            )

    Args:
        model: a Hugging Face folder, a hub id, or a bundled model: `bundled:135m` (which None means), `bundled:0.5b` or
            `bundled:1.5b`, prepared at the first start.
        config: the settings.
        on_status: gets short lines for a person while the server starts or restarts, from the watching thread.

    Attributes:
        log_path: the file with the server's output.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        config: ServerConfig = _DEFAULT_CONFIG,
        on_status: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config
        self._next_key = new_key()
        self.log_path = config.log_path or new_log_path(cache_directory() / "logs")
        self._model = None if model is None else str(model)
        self._bundled: BundledModel | None = None  # known at the start, whose error a wrong name is
        self._on_status = on_status or _say_nothing
        self._adapters: dict[str, Path] = {}
        self._adapter_lock = threading.RLock()
        self._watch: ServerWatch | None = None
        self._start_lock = threading.Lock()
        self._stop_ordered = False
        self._owner = os.getpid()

    def __repr__(self) -> str:
        """Shows everything but the key."""
        state = self._watch.state if self._watch else "new"
        where = self.base_url if self._watch and self._watch.endpoint else None
        return f"VLLMServer(model={self._model!r}, base_url={where!r}, state={state!r}, pid={self.pid})"

    @property
    def base_url(self) -> str:
        """The address for OpenAI-compatible clients, `http://127.0.0.1:PORT/v1`; the same after a restart.

        Raises:
            ServerError: the server was not started, so it has no port yet.
        """
        return self._endpoint().base_url

    @property
    def api_key(self) -> str:
        """The key that requests must bear; another after each start and restart, which the clients in this program
        follow by themselves."""
        endpoint = self._watch.endpoint if self._watch else None
        return endpoint.api_key if endpoint else self._next_key

    @property
    def model_name(self) -> str:
        """The name by which requests name the model: a folder's last part, a hub id as it is, a bundled model's own.

        Raises:
            ServerError: there is no such bundled model.
        """
        bundled = bundled_model(self._model)
        return served_name(self._model or "") if bundled is None else bundled.name

    @property
    def pid(self) -> int | None:
        """The pid of vLLM's main process; None if it does not run."""
        process = self._watch.process if self._watch else None
        return process.pid if process is not None and process.alive() else None

    @property
    def running(self) -> bool:
        """Whether the process runs, ready or not."""
        return self.pid is not None

    @property
    def healthy(self) -> bool:
        """Whether the server was well at the last look (every `health_interval` seconds) and runs; asks nobody."""
        return self._watch is not None and self._watch.ready

    @property
    def failed(self) -> bool:
        """Whether it was given up: it died, and could not be brought back."""
        return self._watch is not None and self._watch.state == "failed"

    @property
    def restarts(self) -> int:
        """How often the server died and was started again since `start`."""
        return self._watch.restarts if self._watch else 0

    def start(self) -> Self:
        """Starts the server and waits until it is ready (with the bundled model on a CPU about 45 s).

        Does nothing if it was started already; after `stop` it can be started again.

        Raises:
            PrerequisiteError: vLLM, or what unpacks a bundled model, is not installed (holds the command); or there is
                too little room for a bundled model, on the disk or in memory.
            ServerError: the model or an adapter cannot be used, the port is taken, or vLLM died or was not ready in
                time; holds the cause and the last lines of the log.
        """
        with self._start_lock:
            if self._watch is None or self._watch.state in ("new", "stopped", "failed"):
                self._stop_ordered = False
                self._watch = self._prepare()
                self._owner = os.getpid()
                atexit.register(self.stop)
                if self._stop_ordered:
                    raise ServerError("The vLLM server was stopped while it was being started.")
                self._watch.start()
        try:
            self._watch.wait(None)
        except BaseException:  # Ctrl-C above all: nobody else would know of the server
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends the server with all its workers and returns when none is left and its port is free.

        Does nothing if it does not run, and nothing in a fork of the program, whose server it is not.
        """
        if os.getpid() != self._owner:
            return
        self._stop_ordered = True
        atexit.unregister(self.stop)
        if self._watch is not None:
            self._watch.stop()

    async def astart(self) -> Self:
        """Does what `start` does without blocking the event loop."""
        try:
            return await asyncio.to_thread(self.start)
        except asyncio.CancelledError:
            await self.astop()
            raise

    async def astop(self) -> None:
        """Does what `stop` does without blocking the event loop."""
        await asyncio.to_thread(self.stop)

    async def wait_ready(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - also bounds a restart's wait
        """Waits until a look at the server that began after this call finds it well, across restarts.

        Meant for a client whose request has just failed: at most about 0.3 s if all is well, so not for every request.

        Args:
            timeout: at most so many seconds; None waits as long as there is hope.

        Raises:
            ServerError: it failed for good (holds the last lines of its log), was stopped, or is not ready in time.
        """
        if self._watch is None:
            raise ServerError("The vLLM server is not running. Call start() or use it in a with-block.")
        await self._watch.wait_async(timeout)

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Loads a LoRA adapter; requests then name it as their model, and a restart brings it back.

        Args:
            name: how requests name it.
            path: a folder as PEFT saves it.

        Raises:
            ServerError: the folder is not an adapter that fits this model, adapters are off, or the server refused it.
                The server goes on in any case.
        """
        if not self.config.enable_lora:
            raise ServerError("This server was started without adapters. Set `enable_lora` and start it again.")
        folder = self._checked(name, Path(path))
        self._wait_ready()
        with self._adapter_lock:
            self._endpoint().load_adapter(name, folder)
            self._adapters[name] = folder

    def unload_adapter(self, name: str) -> None:
        """Removes a LoRA adapter from the server.

        Raises:
            ServerError: there is none of that name, or the server refused.
        """
        self._wait_ready()
        with self._adapter_lock:
            self._endpoint().unload_adapter(name)
            self._adapters.pop(name, None)

    async def aload_adapter(self, name: str, path: str | Path) -> None:
        """Does what `load_adapter` does without blocking the event loop."""
        await asyncio.to_thread(self.load_adapter, name, path)

    async def aunload_adapter(self, name: str) -> None:
        """Does what `unload_adapter` does without blocking the event loop."""
        await asyncio.to_thread(self.unload_adapter, name)

    def adapters(self) -> dict[str, Path]:
        """Returns the loaded adapters: name for requests -> folder."""
        with self._adapter_lock:
            return dict(self._adapters)

    def metrics(self) -> dict[str, float]:
        """Returns vLLM's counters since its last start: prefix_cache_queries, prefix_cache_hits, prompt_tokens,
        generation_tokens (all in tokens) and requests; what this vLLM does not count is absent.

        Raises:
            ServerError: the server does not answer.
        """
        return self._endpoint().metrics(_METRICS_SECONDS)

    def __enter__(self) -> Self:
        """Starts the server."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server, also after an exception."""
        self.stop()

    async def __aenter__(self) -> Self:
        """Starts the server."""
        return await self.astart()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server, also after an exception."""
        await self.astop()

    def _endpoint(self) -> Endpoint:
        endpoint = self._watch.endpoint if self._watch else None
        if endpoint is None:
            raise ServerError("The vLLM server was not started. Call start() or use it in a with-block.")
        return endpoint

    def _wait_ready(self) -> None:
        self._endpoint()
        if self._watch is not None:
            self._watch.wait(self.config.start_timeout)

    def _prepare(self) -> ServerWatch:
        if self.config.command is None and not engine.engine_installed():
            raise PrerequisiteError(engine.missing_engine_message())
        bundled = self._bundled = self._bundled or bundled_model(self._model)
        self._model = model = resolve_model(self._model, echo=self._on_status)
        with self._adapter_lock:
            self._adapters = {name: self._checked(name, path) for name, path in self.config.adapters.items()}
        if self.config.port is not None:
            require_free_port(self.config.host, self.config.port)
        device = engine.engine_device()
        if bundled is not None and device == "cpu" and self.config.command is None:
            require_memory_to_serve(bundled, self.config.kv_cache_gib or usual_cache_gib(memory_bytes()))

        def launch(endpoint: Endpoint, on_line: Callable[[str], None]) -> SupervisedProcess:
            return SupervisedProcess(
                server_command(self.config, model=model, port=endpoint.port, device=device),
                environment=server_environment(
                    self.config,
                    local_model=Path(model).is_absolute(),
                    api_key=endpoint.api_key,
                    device=device,
                    base={**os.environ, **writable_home(os.environ)},
                ),
                log_path=self.log_path,
                stop_timeout=self.config.stop_timeout,
                secret=endpoint.api_key,
                on_line=on_line,
            )

        def endpoint() -> Endpoint:
            key, self._next_key = self._next_key, new_key()
            return Endpoint(self.config.host, self.config.port or free_port(self.config.host), api_key=key)

        return ServerWatch(
            self.config,
            endpoints=endpoint,
            launch=launch,
            on_up=self._load_all,
            on_status=self._on_status,
        )

    def _checked(self, name: str, path: Path) -> Path:
        """Without the server, which a wrong adapter must not reach."""
        model = Path(self._model or "")
        check_adapter_name(name, self.model_name)
        return check_adapter_folder(
            path,
            max_rank=self.config.max_lora_rank,
            base=model if model.is_absolute() else None,
            layers_only=engine.engine_device() == "cpu",
        )

    def _load_all(self, endpoint: Endpoint, first: bool) -> None:
        with self._adapter_lock:
            for name, folder in list(self._adapters.items()):
                try:
                    endpoint.load_adapter(name, folder)
                except AdapterRefusedError as error:
                    if first:
                        raise
                    # Better a server without this adapter than none: requests for it get a clear 404.
                    _log.warning("after the restart: %s", error)
                    self._on_status(f"adapter {name} is lost: {error}")
                    del self._adapters[name]


def name_of_source(model: str | Path | None) -> str:
    """The name by which a server of this model will know it, before there is one.

    Args:
        model: as `VLLMServer` takes it.

    Raises:
        ServerError: it is a folder that is missing, or holds no model; or there is no such bundled model.
    """
    if (bundled := bundled_model(model)) is not None:
        return bundled.name
    folder = check_model_folder(str(model))
    return served_name(str(model) if folder is None else str(folder.resolve()))


def _say_nothing(line: str) -> None:
    """Drops a status line."""
