"""What is asked of a running vLLM server besides completions: health, models, adapters and counters.

Why the standard library's client: these are a few small requests from the watching thread, which has no event loop.
What always holds: each has a time-out, none to this machine goes through a proxy, the key is in no error, and a server
of this program gets it only after it is certain who listens.
"""

import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

from matrix_graph.errors import ServerError
from matrix_graph.models.client import own_servers
from matrix_graph.models.client.failures import key_advice, without_key
from matrix_graph.models.client.gateways import is_page, page_instead, untrusted
from matrix_graph.models.client.headers import request_headers, secrets_of
from matrix_graph.models.client.metrics import parse_counters
from matrix_graph.models.client.proxies import proxy_for
from matrix_graph.models.client.wire import message_in

_ADAPTER_SECONDS = 120.0
_ALIVE_SECONDS = 10.0


class _KnownConnection(HTTPConnection):
    """A connection whose other end is known before anything is sent, where it is a server of this program."""

    def connect(self) -> None:
        """Raises ConnectionError if another process listens there."""
        super().connect()
        if wrong := own_servers.problem(self.host, self.port, self.sock.getpeername()):
            self.close()
            raise ConnectionError(wrong)


class _KnownHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        """As urllib's, by the connection above."""
        return self.do_open(_KnownConnection, req)


def new_key() -> str:
    """Returns a key that nobody can guess."""
    return secrets.token_urlsafe(32)


class AdapterRefusedError(ServerError):
    """The server is well, but does not want this adapter."""


@dataclass(frozen=True)
class ServedModel:
    """A name that requests can use, as the server lists it.

    Attributes:
        name: how requests name it.
        base: the model that it is an adapter of; None: it is none.
        path: the folder or hub id that the server loaded it from, if it tells.
    """

    name: str
    base: str | None
    path: str | None


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens, and the key to it.

    Args:
        host: the address to connect to.
        port: the TCP port.
        api_key: the key that it asks for.
        url: the server's address without a path, where host and port do not say it all; None: they do.
        headers: sent with every request besides.
    """

    host: str
    port: int
    api_key: str = field(repr=False)
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)

    def renewed(self) -> "Endpoint":
        """The same place with another key, for a server that is started again."""
        return replace(self, api_key=new_key())

    @property
    def connect_host(self) -> str:
        """The address to connect to: a server that listens everywhere is asked on this machine."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def root_url(self) -> str:
        """The server's address without a path."""
        if self.url is not None:
            return self.url
        host = self.connect_host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """The address that OpenAI-compatible clients take."""
        return f"{self.root_url}/v1"

    def health(self, seconds: float) -> int | None:
        """Returns the status that `/health` answers (200: the engine lives), None for no answer within `seconds`."""
        try:
            return self._request("GET", "/health", seconds=seconds)[0]
        except (OSError, HTTPException):
            return None

    def models(self, seconds: float) -> list[str] | None:
        """Returns the names that requests can use, None if the server gives no list to our key: then it is not ours."""
        try:
            status, body = self._request("GET", "/v1/models", seconds=seconds)
            return [str(model["id"]) for model in json.loads(body)["data"]] if status == 200 else None
        except (OSError, HTTPException, ValueError, LookupError, TypeError):
            return None

    def served(self, seconds: float) -> list[ServedModel]:
        """Returns what requests can name: models and adapters.

        Raises:
            ServerError: the server does not answer within `seconds`, refuses the key, or is none that lists models.
        """
        try:
            status, body = self._request("GET", "/v1/models", seconds=seconds)
        except (OSError, HTTPException) as error:
            if (problem := untrusted(error)) is not None:
                raise ServerError(f"{self.base_url} cannot be used: {problem}.") from error
            raise ServerError(
                f"No model server answers at {self.base_url} ({error}). Start it, or correct its address."
            ) from error
        if status in (401, 403):
            said = without_key(message_in(body), secrets_of(self.api_key, self.headers)).rstrip(".")
            advice = key_advice(said, authorized=bool(self.api_key))
            refusal = "refuses the key" if self.api_key else "asks for a key"
            raise ServerError(f"The server at {self.base_url} {refusal} (HTTP {status}: {said}). {advice}")
        if is_page(body):
            raise ServerError(page_instead(self.base_url, status, body))
        try:
            cards = json.loads(body)["data"]
            return [ServedModel(str(card["id"]), card.get("parent"), card.get("root")) for card in cards]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ServerError(
                f"The server at {self.base_url} lists no models (HTTP {status}). Give the address of a vLLM server."
            ) from error

    def load_adapter(self, name: str, path: Path) -> None:
        """Loads a LoRA adapter into the running server; requests then name it as their model.

        Raises:
            AdapterRefusedError: the server refused it; holds its reason.
            ServerError: the server did not answer, or failed over it.
        """
        self._adapter("load", name, {"lora_name": name, "lora_path": str(path)})

    def unload_adapter(self, name: str) -> None:
        """Removes a LoRA adapter from the running server.

        Raises:
            AdapterRefusedError: the server refused it; holds its reason.
            ServerError: the server did not answer, or failed over it.
        """
        self._adapter("unload", name, {"lora_name": name})

    def metrics(self, seconds: float) -> dict[str, float]:
        """Returns the server's counters since it started, as `parse_counters` has them.

        Raises:
            ServerError: the server did not answer within `seconds`.
        """
        try:
            _, body = self._request("GET", "/metrics", seconds=seconds)
        except (OSError, HTTPException) as error:
            raise ServerError(f"The vLLM server gave no metrics ({error}). Look whether it still runs.") from error
        return parse_counters(body.decode("utf-8", "replace"))

    def _adapter(self, verb: str, name: str, body: dict[str, str]) -> None:
        try:
            status, answer = self._request("POST", f"/v1/{verb}_lora_adapter", body, seconds=_ADAPTER_SECONDS)
        except (OSError, HTTPException) as error:
            raise ServerError(
                f"The vLLM server did not answer the request to {verb} the adapter {name!r} ({error}). Wait until it "
                "is ready and try again."
            ) from error
        if status == 200:
            return
        if status == 404 and not _reason_given(answer):
            raise ServerError(
                "The vLLM server takes no adapters while it runs. Start it with `--enable-lora` and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, as `matrix-graph serve` does."
            )
        # vLLM answers 500 to an adapter that it cannot load, and goes on.
        refused = status < 500 or (_reason_given(answer) and self.health(_ALIVE_SECONDS) == 200)
        kind = AdapterRefusedError if refused else ServerError
        reason = _reason_given(answer) or answer.decode("utf-8", "replace")[:500] or "no reason given"
        raise kind(f"The vLLM server refused to {verb} the adapter {name!r} (HTTP {status}): {reason}")

    def _request(
        self, method: str, path: str, body: dict[str, str] | None = None, *, seconds: float
    ) -> tuple[int, bytes]:
        request = urllib.request.Request(
            self.root_url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers=self._headers(),
        )
        through = _opener(urlsplit(self.root_url).scheme, proxy_for(self.root_url))
        try:
            with through.open(request, timeout=seconds) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def _headers(self) -> dict[str, str]:
        return request_headers(own_servers.current_key(self.root_url, self.api_key), self.headers)


@lru_cache(maxsize=8)
def _opener(scheme: str, proxy: str | None) -> urllib.request.OpenerDirector:
    """What opens addresses, directly or through a proxy; made once, since it reads the system's certificates."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({scheme: proxy} if proxy else {}), _KnownHandler)


def _reason_given(answer: bytes) -> str | None:
    """What vLLM says in its JSON; None if it is the answer of something else."""
    try:
        body = json.loads(answer)
        return str(body["error"]["message"] if "error" in body else body["message"])
    except (ValueError, LookupError, TypeError):
        return None
