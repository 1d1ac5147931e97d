"""One pool of HTTP connections for each event loop, shared by every client on it.

What always holds: nobody has to close it. The session is opened inside an async generator, so `asyncio.run` (through
`loop.shutdown_asyncgens`) closes it with its loop; no client could, as none knows when its loop ends. A forked child
neither uses nor closes its parent's connections. A connection to a server of this program goes to that server or to
nobody (`own_servers`).
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from functools import cached_property
from weakref import WeakKeyDictionary, WeakSet

import aiohttp
from aiohttp.client import ClientRequest, ClientTimeout
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from matrix_graph.models.client import own_servers

_Held = tuple[aiohttp.ClientSession, AsyncGenerator[aiohttp.ClientSession, None]]

_KEEPALIVE_SECONDS = 4.0
"""vLLM closes an idle connection after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE): let go first, or a request meets the end."""

_sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, _Held] = WeakKeyDictionary()
_inherited: list[object] = []


class StrangerError(aiohttp.ClientConnectionError):
    """Another process listens where a server of this program did, or none does; nothing was sent."""


class _Connector(aiohttp.TCPConnector):
    """Connections whose other end is known before anything is sent, where it is a server of this program."""

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout) -> Connection:  # noqa: ASYNC109
        """As aiohttp's; a kept connection was looked at when it was opened."""
        connection = await super().connect(req, traces, timeout)
        transport = connection.transport
        if transport is not None and transport not in self._seen:
            peer = transport.get_extra_info("peername")
            if wrong := own_servers.problem(req.url.host or "", req.url.port or 0, peer):
                connection.close()
                raise StrangerError(wrong)
            self._seen.add(transport)
        return connection

    @cached_property
    def _seen(self) -> WeakSet[asyncio.Transport]:
        return WeakSet()


async def _hold() -> AsyncGenerator[aiohttp.ClientSession, None]:
    loop = asyncio.get_running_loop()
    # No limit on connections: how many calls are in flight is the caller's choice, and queueing is the server's work.
    connector = _Connector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as opened:
        try:
            yield opened
        finally:
            _sessions.pop(loop, None)
    await asyncio.sleep(0)  # the transports close in the loop's next round, and this may be its last chance


async def session() -> aiohttp.ClientSession:
    """The running loop's session: opened at first use, closed with the loop; no cookies, no limit on connections.

    Raises:
        RuntimeError: no event loop is running.
    """
    loop = asyncio.get_running_loop()
    held = _sessions.get(loop)
    if held is not None and not held[0].closed:
        return held[0]
    for other in [other for other in _sessions if other.is_closed()]:
        del _sessions[other]  # its loop was closed without the clean-up, and the session would keep the loop for ever
    holder = _hold()
    opened = await anext(holder)
    _sessions[loop] = (opened, holder)
    return opened


def _leave_to_parent() -> None:
    global _sessions
    _inherited.append(_sessions)  # kept alive, unused: collecting them would close the parent's connections
    _sessions = WeakKeyDictionary()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
