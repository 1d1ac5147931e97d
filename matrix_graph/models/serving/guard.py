"""The door of a vLLM server of our own: middleware that vLLM loads, through which every request comes first.

Why: vLLM asks for its key under `/v1` and a few other prefixes alone, while `/invocations` generates as well, and
`/adapters` loads adapters from anywhere. A web page in a browser on this machine could use both. What always holds:
nothing but `GET /health` is answered without the key, websockets included; no request comes through that was made in
the name of a web page or for another host; without a key in the environment the server does not start.

This module is imported by vLLM's process, so it needs the standard library alone.
"""

import hashlib
import hmac
import ipaddress
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

MIDDLEWARE = f"{__name__}.RequireKey"
"""By which vLLM's option `--middleware` names the class below."""
KEY_VARIABLE = "VLLM_API_KEY"
HOSTS_VARIABLE = "MATRIX_GRAPH_GUARD_HOSTS"
"""The environment variable with the names, separated by commas, by which clients may call the server besides."""
_OPEN_PATH = "/health"
_POLICY_VIOLATION = 1008
"""How a websocket is closed (RFC 6455, section 7.4.1)."""


class RequireKey:
    """ASGI middleware that lets a request through only if it bears the key and was meant for this server.

    Args:
        app: the application behind it.
        environment: where the key and further host names are found.

    Raises:
        ValueError: the environment holds no key.
    """

    def __init__(self, app: ASGIApp, environment: Mapping[str, str] = os.environ) -> None:
        key = environment.get(KEY_VARIABLE, "")
        if not key:
            raise ValueError(f"{KEY_VARIABLE} is not set, and this server answers nobody without a key.")
        self._app = app
        self._key = _digest(key.encode())
        names = [*environment.get(HOSTS_VARIABLE, "").split(","), "localhost", socket.gethostname()]
        self._hosts = {name.strip().casefold() for name in names if name.strip()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection, as ASGI 3 has it."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        refusal = self._refusal(scope)
        if refusal is None:
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            await receive()  # its "connect", which has to be read before it may be refused
            return await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": refusal[1]})
        return await _answer(send, *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Returns the HTTP status and the reason for which a request is refused; None: it is not."""
        headers: dict[str, list[bytes]] = {}
        for name, value in scope.get("headers", ()):
            headers.setdefault(name.decode("latin-1").lower(), []).append(value)
        if not self._is_open(scope) and not self._has_key(headers.get("authorization", [])):
            return 401, "The key is missing or wrong. Send it as `Authorization: Bearer KEY`."
        hosts = [host.decode("latin-1") for host in headers.get("host", [])]
        if not all(map(self._is_ours, hosts)):
            return 403, (
                "The Host of the request is no name of this server. Use its address, or add the name to "
                "`allowed_hosts` of the server's settings."
            )
        own = {f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts}
        if any(origin.decode("latin-1") not in own for origin in headers.get("origin", [])):
            return 403, "Requests of web pages of other origins are refused."
        return None

    @staticmethod
    def _is_open(scope: Scope) -> bool:
        return scope["type"] == "http" and scope["path"] == _OPEN_PATH and scope["method"] in ("GET", "HEAD")

    def _has_key(self, given: list[bytes]) -> bool:
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        return scheme.lower() == b"bearer" and hmac.compare_digest(_digest(token.strip()), self._key)

    def _is_ours(self, netloc: str) -> bool:
        """Returns whether a Host header names this server: by a name of its own, or by an address in numbers, which no
        other site's name server can point here."""
        try:
            host = urlsplit(f"//{netloc}").hostname or ""
        except ValueError:
            return False
        if host.casefold().rstrip(".") in self._hosts:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True


def _digest(key: bytes) -> bytes:
    """Returns a key's digest, so that comparing takes the same time whatever its length."""
    return hashlib.sha256(key).digest()


async def _answer(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": {"message": reason, "type": "Unauthorized", "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
