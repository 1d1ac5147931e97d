"""The model servers that this program has started itself: which key each takes now, and how it is recognised.

Why: a server that has died leaves its port free, and another process may take it before the server is back. Its key is
a new one after each start, and whoever holds the old address must neither keep the old key nor trust the port. What
always holds: a connection to such a server is used only if its own socket, which it was seen to have when it started,
is the one that listens at the other end; while the server is away, nothing is sent to its address at all.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from matrix_graph.models.client import listeners

Place = tuple[str, int]
_HERE = {"127.0.0.1", "::1", "localhost"}
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True)
class OwnServer:
    """A server that was started here, as it is now.

    Attributes:
        key: the bearer token that it takes; None while it is away.
        sockets: the inodes of the sockets by which it listens; None where the system does not tell.
    """

    key: str | None = field(repr=False)
    sockets: frozenset[int] | None


AWAY = OwnServer(None, None)

_known: dict[Place, OwnServer] = {}
_former: dict[Place, set[str]] = {}
"""The keys that each server has had."""
_watchers: list[Callable[[str, OwnServer], None]] = []
_lock = threading.Lock()


def announce(url: str, server: OwnServer) -> None:
    """Make known that a server is up, or away.

    Args:
        url: its address; the path does not matter.
        server: how it is now.
    """
    place = _place(url)
    with _lock:
        _known[place] = server
        if server.key is not None:
            _former.setdefault(place, set()).add(server.key)
        watchers = list(_watchers)
    for watcher in watchers:
        watcher(url, server)


def forget(url: str) -> None:
    """Make known that a server was stopped for good: whoever has the address then is somebody else's business."""
    with _lock:
        _known.pop(_place(url), None)
        _former.pop(_place(url), None)


def find(url: str) -> OwnServer | None:
    """The server of this program at an address; None: it is not one of this program's."""
    place = _named(_place(url))
    return None if place is None else _known.get(place)


def current_key(url: str, key: str | None) -> str | None:
    """The key for a server, given one that it may have had before it was started again.

    Args:
        url: its address.
        key: as the caller knows it; returned as it is where the server is none of this program's, is away, or never
            had this key.
    """
    if not _known or key is None or (place := _named(_place(url))) is None:
        return key
    return _known[place].key or key if key in _former.get(place, ()) else key


def same_place(one: str, other: str) -> bool:
    """Whether two addresses are of the same server."""
    (host, port), (other_host, other_port) = _place(one), _place(other)
    return port == other_port and (host == other_host or {host, other_host} <= _HERE)


def watch(watcher: Callable[[str, OwnServer], None]) -> Callable[[], None]:
    """Have a function called with address and server whenever one is announced, in the thread that announces it.

    Returns:
        A function that ends this.
    """
    with _lock:
        _watchers.append(watcher)

    def end() -> None:
        with _lock, suppress(ValueError):
            _watchers.remove(watcher)

    return end


def problem(host: str, port: int, peer: tuple[object, ...] | None) -> str | None:
    """Why a connection that was just opened must not be used; None: it may be.

    Args:
        host: as the address names it.
        port: the TCP port.
        peer: the address of the other end, as `socket.getpeername` gives it.
    """
    place = _named((host.casefold(), port)) if _known else None
    if place is None:
        return None
    server = _known[place]
    if server.key is None:
        return f"the model server at port {port} is away, and nothing is sent to its address until it is back"
    if server.sockets is None:
        return None
    # A socket that listens now and listened when the server started has been there all the time.
    found = listeners.at(str(peer[0]), port) if peer else set()
    if found and found <= server.sockets:
        return None
    return f"another process than the model server listens on port {port}; nothing was sent to it"


def _place(url: str) -> Place:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return _EVERYWHERE.get(host, host), parts.port or 0


def _named(place: Place) -> Place | None:
    """The place of a server of this program that is meant; None: none of them is."""
    host, port = place
    names = ("127.0.0.1", "::1") if host == "localhost" else (host,)
    return next(((name, port) for name in names if (name, port) in _known), None)
