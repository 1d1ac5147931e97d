"""One small HTTP request from a thread that has no event loop, such as the one that watches over a server.

Why not urllib: it follows redirects and takes every header along, the key too, to whichever host it is sent to; and its
time-out starts anew with every byte. What always holds: no redirect is followed; the whole exchange ends at its
deadline; of the answer only so much is read as any should have.
"""

import http.client
import io
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from matrix_graph.models.client.headers import basic_login, without_login
from matrix_graph.models.client.wire import MOST_BODY, TooLongError

_BLOCK = 64 * 1024
_PORTS = {"http": 80, "https": 443}


class PlainHTTPError(http.client.HTTPException):
    """The request cannot be sent, or its answer cannot be read, as it is."""


Peer = tuple[object, ...] | None


class Reply(NamedTuple):
    """What came back.

    Attributes:
        status: as HTTP has it; a redirect is a reply like any other.
        body: as it came.
        location: where a redirect leads; None: it does not say.
    """

    status: int
    body: bytes
    location: str | None = None


def exchange(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    seconds: float,
    proxy: str | None = None,
    check: Callable[[str, int, Peer], str | None] | None = None,
) -> Reply:
    """Send one request, and read the answer whatever its status.

    Args:
        method: such as GET.
        url: an http or https address; a login in it is for `headers.request_headers`, and not sent from here.
        headers: sent as they are.
        body: sent with its length; None: there is none.
        seconds: from connecting to the last byte.
        proxy: the http or https address of a proxy to go through; None: none.
        check: gets host, port and the other end's address of a direct connection before anything is sent over it, and
            says why it must not be used; None: it may be.

    Raises:
        OSError: no connection, a broken one, or no whole answer in time.
        HTTPException: the answer is no HTTP, is longer than any should be, or a header cannot be sent; the message may
            quote the answer (see `client.redact`), never a header of the request.
    """
    deadline = time.monotonic() + seconds
    sent = False
    try:
        connection, target, more = _connection(url, proxy, seconds)
        with closing(connection):
            connection.response_class = _response_until(deadline)
            connection.connect()
            if check is not None and proxy is None:
                peer = connection.sock.getpeername()
                if (problem := check(connection.host, connection.port, peer)) is not None:
                    raise ConnectionError(problem)
            connection.request(method, target, body=body, headers={**headers, **more})
            sent = True
            with connection.getresponse() as response:
                return Reply(response.status, _read(response), response.getheader("Location"))
    except TooLongError as error:
        said = str(error)
    except OSError:  # some, such as that of a certificate, are a ValueError, too
        raise
    except ValueError:
        said = "the answer is not HTTP" if sent else "the address or a header holds what HTTP cannot send"
    raise PlainHTTPError(said)


def _connection(url: str, proxy: str | None, seconds: float) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """What to connect by, what to ask it for, and the headers that a proxy wants."""
    address = urlsplit(url)
    target = (address.path or "/") + (f"?{address.query}" if address.query else "")
    end = urlsplit(proxy) if proxy else address
    kinds = {"https": http.client.HTTPSConnection, "http": http.client.HTTPConnection}
    login = basic_login(proxy) if proxy else None
    more = {} if login is None else {"Proxy-Authorization": login}
    if proxy and address.scheme == "https":
        # A tunnel: the TLS within it is with the server.
        tunnel = http.client.HTTPSConnection(end.hostname or "", end.port or _PORTS[end.scheme], timeout=seconds)
        tunnel.set_tunnel(address.hostname or "", address.port or _PORTS["https"], headers=more)
        return tunnel, target, {}
    connection = kinds[end.scheme](end.hostname or "", end.port or _PORTS[end.scheme], timeout=seconds)
    return connection, without_login(url) if proxy else target, more


def _read(response: http.client.HTTPResponse) -> bytes:
    body = bytearray()
    # In blocks, since the standard library makes room at once for all that Content-Length promises.
    while block := response.read(_BLOCK):
        body += block
    return bytes(body)


def _response_until(deadline: float) -> type[http.client.HTTPResponse]:
    class Response(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
            super().__init__(_Timed(sock, deadline), *arguments, **options)  # type: ignore[arg-type]

    return Response


class _Timed:
    """As much of a socket as a response asks for; every read ends at the deadline, and all of them at the limit."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedBytes(self._sock, self._deadline), _BLOCK)


class _TimedBytes(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open when its connection has let go of it
        self._left = MOST_BODY

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("no whole answer in time")
        self._sock.settimeout(seconds)
        count = self._raw.readinto(buffer) or 0
        self._left -= count
        if self._left < 0:
            raise TooLongError(f"the answer is longer than {MOST_BODY:,} bytes")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
