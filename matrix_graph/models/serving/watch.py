"""The thread that brings a server up, looks after it, and brings it back when it dies.

What always holds: one thread alone starts and ends the process, so nobody sees it half-started; nothing is sent before
it is certain that the process itself listens at the address; the thread ends in one of two states, "stopped" (it was
asked to) or "failed" (with an error), and no process is left in either; a restart keeps the port and takes a new key,
and restarts in succession are bounded.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

from matrix_graph.errors import ServerError
from matrix_graph.models.client import listeners, own_servers
from matrix_graph.models.serving import engine_log
from matrix_graph.models.serving.endpoint import Endpoint
from matrix_graph.models.serving.launch import ServerConfig
from matrix_graph.models.serving.process import SupervisedProcess

State = Literal["new", "starting", "ready", "restarting", "failed", "stopped"]

_log = logging.getLogger(__name__)
_TICK = 0.1
_STATUS_SECONDS = 5.0
_LONGEST_BACKOFF = 60.0
_LOOK_SECONDS = 5.0
_PORT_TRIES = 5
_REFUSALS = 3
"""Answers of `/health` other than 200 before a restart. vLLM's 503 means a dead engine; one alone may be a shutdown."""


class _Stop(Exception):
    """The order to stop, on its way through the thread."""


class PortTakenError(ServerError):
    """Another process took the port between its choice and the moment when the server listens."""


class ServerWatch:
    """Keeps one server alive in a daemon thread.

    Args:
        config: the settings.
        endpoints: makes an endpoint with the port to use; called again if the port turned out to be taken.
        launch: starts the process for an endpoint; its lines go to the given function.
        on_up: called in the thread when the server answers, before it counts as ready (True: for the first time). May
            raise ServerError.
        on_status: gets short lines for a person, in the thread.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        endpoints: Callable[[], Endpoint],
        launch: Callable[[Endpoint, Callable[[str], None]], SupervisedProcess],
        on_up: Callable[[Endpoint, bool], None],
        on_status: Callable[[str], None],
    ) -> None:
        self.state: State = "new"
        self.error: ServerError | None = None
        self.restarts = 0
        self.endpoint: Endpoint | None = None
        self.process: SupervisedProcess | None = None
        self._config = config
        self._endpoints = endpoints
        self._launch = launch
        self._on_up = on_up
        self._on_status = on_status
        self._wake = threading.Event()
        self._stop_ordered = False
        self._in_succession = 0
        self._looks_begun = 0
        self._look_passed = 0
        self._phase = "starting Python"
        self._last_line = ""
        self._thread = threading.Thread(target=self._run, name="server-watch", daemon=True)

    def start(self) -> None:
        """Starts the thread; `wait` tells when the server is ready."""
        self.state = "starting"
        self._thread.start()

    def stop(self) -> None:
        """Ends the server and the thread; returns when both are gone."""
        self._stop_ordered = True
        self._wake.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if self.endpoint is not None:
            own_servers.forget(self.endpoint.root_url)

    @property
    def ready(self) -> bool:
        """Whether the server was well at the last look and its process still runs."""
        process = self.process
        return self.state == "ready" and process is not None and process.alive()

    def wait(self, seconds: float | None) -> None:
        """Blocks until a look at the server that began after this call finds it well.

        Args:
            seconds: at most so long; None waits as long as there is hope.

        Raises:
            ServerError: it failed for good, was stopped, or is not ready in time.
        """
        done = self._looked_after_now()
        deadline = None if seconds is None else time.monotonic() + seconds
        while not done(deadline):
            time.sleep(_TICK / 2)

    async def wait_async(self, seconds: float | None) -> None:
        """Does what `wait` does without blocking the event loop, and without a thread for each who waits."""
        done = self._looked_after_now()
        deadline = None if seconds is None else time.monotonic() + seconds
        while not done(deadline):  # noqa: ASYNC110 - what is waited for lives in another thread
            await asyncio.sleep(_TICK / 2)

    def _looked_after_now(self) -> Callable[[float | None], bool]:
        wanted = self._looks_begun + 1

        def done(deadline: float | None) -> bool:
            if self.state == "failed":
                raise ServerError(str(self.error))
            if self.state in ("new", "stopped"):
                raise ServerError("The vLLM server is not running. Call start() or use it in a with-block.")
            if self._look_passed >= wanted and self.ready:
                return True
            if deadline is not None and time.monotonic() > deadline:
                raise ServerError(
                    f"The vLLM server is not ready yet ({self.state}, {self._phase}). Wait longer or read its log."
                )
            self._wake.set()
            return False

        return done

    def _run(self) -> None:
        try:
            self._bring_up()
            while True:
                self._bring_back(self._look_after())
        except _Stop:
            self._finish("stopped", None)
        except ServerError as error:
            self._finish("failed", error)
        except Exception as error:  # noqa: BLE001 - a mistake in here must not leave those who wait without an answer
            _log.exception("the server's watch failed")
            self._finish("failed", ServerError(f"The server's watch failed: {error!r}. Please report this."))

    def _finish(self, state: State, error: ServerError | None) -> None:
        if self.endpoint is not None:
            own_servers.announce(self.endpoint.root_url, own_servers.AWAY)
        if self.process is not None:
            self.process.stop()
        self.error = error
        self.state = state

    def _bring_up(self) -> None:
        for tries_left in reversed(range(1 if self._config.port is not None else _PORT_TRIES)):
            try:
                self._start_once(self._endpoints(), first=True)
            except PortTakenError:
                if not tries_left:
                    raise
            else:
                return

    def _bring_back(self, died: str) -> None:
        process, endpoint = self.process, self.endpoint
        assert process is not None and endpoint is not None  # they were up
        self.state = "restarting"
        own_servers.announce(endpoint.root_url, own_servers.AWAY)
        process.stop()
        message = self._explain(died, process)
        while True:
            tried = self._in_succession
            if tried >= self._config.max_restarts:
                raise ServerError(
                    f"The vLLM server was given up after {tried} restart{'s' * (tried != 1)} in succession. {message}"
                )
            delay = min(self._config.restart_backoff * 2**tried, _LONGEST_BACKOFF)
            notice = f"{died}; restart {tried + 1} of {self._config.max_restarts} in {delay:g} s"
            _log.warning("%s", notice)
            self._tell(notice)
            until = time.monotonic() + delay
            while time.monotonic() < until:
                self._tick()
            self._in_succession += 1
            self.restarts += 1
            try:
                self._start_once(endpoint.renewed(), first=False)
            except ServerError as error:
                message = str(error)
                died = message.splitlines()[0]
            else:
                return

    def _start_once(self, endpoint: Endpoint, *, first: bool) -> None:
        self._phase, self._last_line = "starting Python", ""
        self.endpoint = endpoint
        own_servers.announce(endpoint.root_url, own_servers.AWAY)
        self.process = process = self._launch(endpoint, self._on_line)
        server = own_servers.AWAY
        began = time.monotonic()
        told_phase, tell_next = "", began + _STATUS_SECONDS
        while True:
            self._tick()
            seconds = time.monotonic() - began
            if not process.alive():
                process.stop()
                message = self._explain(f"vLLM {engine_log.describe_exit(process.exit_code)} while starting", process)
                taken = engine_log.port_was_taken(process.tail(engine_log.READ_LINES))
                raise PortTakenError(message) if taken else ServerError(message)
            if seconds > self._config.start_timeout:
                process.stop()
                happened = f"vLLM was not ready after {self._config.start_timeout:g} s (start_timeout; {self._phase})"
                raise ServerError(self._explain(happened, process))
            if self._phase != told_phase or time.monotonic() > tell_next:
                told_phase, tell_next = self._phase, time.monotonic() + _STATUS_SECONDS
                self._tell(f"{seconds:.0f} s, {self._phase}" + (f": {self._last_line}" if self._last_line else ""))
            if server is own_servers.AWAY:
                if (found := self._recognised(endpoint, process)) is None:
                    continue
                server = found
                own_servers.announce(endpoint.root_url, server)
            look = self._begin_look()
            if endpoint.health(_LOOK_SECONDS) == 200 and endpoint.models(_LOOK_SECONDS) is not None:
                break
        self._on_up(endpoint, first)
        self._phase = "ready"
        self.state = "ready"
        self._look_passed = look
        self._tell(f"{time.monotonic() - began:.0f} s, ready")

    def _recognised(self, endpoint: Endpoint, process: SupervisedProcess) -> own_servers.OwnServer | None:
        """Returns the server once it listens, as it is recognised from then on; None: nobody listens yet.

        Raises:
            PortTakenError: another process listens. Nothing was sent to it.
        """
        if not listeners.supported():
            # vLLM reports a port that is taken when it binds it; who else may answer there cannot be told.
            return own_servers.OwnServer(endpoint.api_key, None)
        found = listeners.at(endpoint.connect_host, endpoint.port)
        if not found:
            return None
        if found - process.holds(found):
            if not found & listeners.at(endpoint.connect_host, endpoint.port):
                return None  # gone again while it was looked for
            process.stop()
            raise PortTakenError(
                f"Port {endpoint.port} on {endpoint.host} was taken by another process while vLLM was starting. It was "
                "sent nothing. End that process, set another `port`, or leave it unset to have a free one chosen."
            )
        return own_servers.OwnServer(endpoint.api_key, frozenset(found))

    def _look_after(self) -> str:
        """Returns what was wrong when the server was no longer well."""
        process, endpoint = self.process, self.endpoint
        assert process is not None and endpoint is not None  # they are up
        up_since = last_well = looked = time.monotonic()
        refusals = 0
        while True:
            asked = self._tick()
            now = time.monotonic()
            if not process.alive():
                return f"vLLM {engine_log.describe_exit(process.exit_code)}"
            if now - up_since > self._config.stable_after:
                self._in_succession = 0
            if now - looked < (_TICK if asked else self._config.health_interval):
                continue
            look = self._begin_look()
            status = endpoint.health(_LOOK_SECONDS)
            looked = time.monotonic()
            if status == 200:
                last_well, refusals, self._look_passed = looked, 0, look
                continue
            refusals += status is not None
            if refusals >= _REFUSALS:
                return f"vLLM still runs, but its engine is dead (/health answers {status})"
            if looked - last_well > self._config.unhealthy_after:
                return f"vLLM still runs, but has not answered for {looked - last_well:.0f} s"

    def _begin_look(self) -> int:
        self._looks_begun += 1
        return self._looks_begun

    def _tick(self) -> bool:
        """Lets a moment pass; returns whether somebody asked for a look."""
        asked = self._wake.wait(_TICK)
        self._wake.clear()
        if self._stop_ordered:
            raise _Stop
        if asked:
            time.sleep(_TICK / 2)  # those who wait ask often
        return asked

    def _explain(self, happened: str, process: SupervisedProcess) -> str:
        return engine_log.explain(
            happened, code=process.exit_code, lines=process.tail(engine_log.READ_LINES), log_path=process.log_path
        )

    def _on_line(self, line: str) -> None:
        self._phase = engine_log.phase_of(line) or self._phase
        if engine_log.is_telling(line):
            self._last_line = engine_log.plain(line)

    def _tell(self, line: str) -> None:
        try:
            self._on_status(line)
        except Exception:  # noqa: BLE001 - a caller's display must not end the watch over the server
            _log.exception("on_status failed")
