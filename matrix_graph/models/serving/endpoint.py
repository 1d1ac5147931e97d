"""What is asked of a running vLLM server besides completions: health, models, adapters and counters.

What always holds: each request has a deadline, none to this machine goes through a proxy, none follows a redirect, the
key is in no error, whatever the server says, and a server of this program gets it only after it is certain who listens.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

from matrix_graph.errors import ServerError
from matrix_graph.models.client import key_files, own_servers
from matrix_graph.models.client.failures import key_advice
from matrix_graph.models.client.gateways import is_page, page_instead, redirected, untrusted
from matrix_graph.models.client.headers import request_headers, without_login
from matrix_graph.models.client.metrics import parse_counters
from matrix_graph.models.client.plain_http import PlainHTTPError, Reply, exchange
from matrix_graph.models.client.proxies import proxy_for
from matrix_graph.models.client.redact import Redactor, secrets_of
from matrix_graph.models.client.strings import name_in
from matrix_graph.models.client.wire import decode, message_in

_ADAPTER_SECONDS = 120.0
_ALIVE_SECONDS = 10.0


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

    @property
    def shown_url(self) -> str:
        """As `base_url`, without a user's name and password, for messages."""
        return without_login(self.base_url)

    def health(self, seconds: float) -> int | None:
        """Returns the status that `/health` answers (200: the engine lives), None for no answer within `seconds`."""
        try:
            return self._request("GET", "/health", seconds=seconds).status
        except (OSError, HTTPException):
            return None

    def models(self, seconds: float) -> list[str] | None:
        """Returns the names that requests can use, None if the server gives no list to our key: then it is not ours."""
        try:
            status, body, _ = self._request("GET", "/v1/models", seconds=seconds)
            return [str(model["id"]) for model in self._decoded(body)["data"]] if status == 200 else None
        except (OSError, HTTPException, ValueError, LookupError, TypeError):
            return None

    def served(self, seconds: float) -> list[ServedModel]:
        """Returns what requests can name: models and adapters.

        Raises:
            ServerError: the server does not answer within `seconds`, refuses the key, or is none that lists models.
        """
        try:
            status, body, location = self._request("GET", "/v1/models", seconds=seconds)
        except (OSError, HTTPException) as error:
            if (problem := untrusted(error)) is not None:
                raise ServerError(f"{self.shown_url} cannot be used: {problem}.") from error
            raise ServerError(
                f"No model server answers at {self.shown_url} ({error}). Start it, or correct its address."
            ) from error
        if status == 401 and (newer := self._newer()) is not None:
            return newer.served(seconds)
        if status in (401, 403):
            said = message_in(body, self._redactor()).rstrip(".")
            advice = key_advice(said, authorized=bool(self.api_key))
            refusal = "refuses the key" if self.api_key else "asks for a key"
            raise ServerError(f"The server at {self.shown_url} {refusal} (HTTP {status}: {said}). {advice}")
        if 300 <= status < 400:
            advice = redirected(location, self._redactor())
            raise ServerError(f"The server at {self.shown_url} lists no models (HTTP {status}). {advice}")
        if is_page(body):
            raise ServerError(page_instead(self.shown_url, status, body, self._redactor()))
        try:
            cards = self._decoded(body)["data"]
            return [
                ServedModel(str(card["id"]), name_in(card.get("parent")), name_in(card.get("root"))) for card in cards
            ]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ServerError(
                f"The server at {self.shown_url} lists no models (HTTP {status}). Give the address of a vLLM server."
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
            body = self._request("GET", "/metrics", seconds=seconds).body
        except (OSError, HTTPException) as error:
            raise ServerError(f"The vLLM server gave no metrics ({error}). Look whether it still runs.") from error
        return parse_counters(body.decode("utf-8", "replace"))

    def _adapter(self, verb: str, name: str, body: dict[str, str]) -> None:
        try:
            status, answer, _ = self._request("POST", f"/v1/{verb}_lora_adapter", body, seconds=_ADAPTER_SECONDS)
        except (OSError, HTTPException) as error:
            raise ServerError(
                f"The vLLM server did not answer the request to {verb} the adapter {name!r} ({error}). Wait until it "
                "is ready and try again."
            ) from error
        if status == 200:
            return
        if status == 401 and (newer := self._newer()) is not None:
            newer._adapter(verb, name, body)
            return
        reason = self._reason_given(answer)
        if status == 404 and reason is None:
            raise ServerError(
                "The vLLM server takes no adapters while it runs. Start it with `--enable-lora` and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, as `matrix-graph serve` does."
            )
        # vLLM answers 500 to an adapter that it cannot load, and goes on.
        refused = status < 500 or (reason is not None and self.health(_ALIVE_SECONDS) == 200)
        kind = AdapterRefusedError if refused else ServerError
        said = self._redactor().quote(answer if reason is None else reason) if answer else "no reason given"
        raise kind(f"The vLLM server refused to {verb} the adapter {name!r} (HTTP {status}): {said}")

    def _reason_given(self, answer: bytes) -> str | None:
        """What vLLM says in its JSON; None if it is the answer of something else."""
        try:
            body = self._decoded(answer)
            return str(body["error"]["message"] if "error" in body else body["message"])
        except (ValueError, LookupError, TypeError):
            return None

    def _request(self, method: str, path: str, body: dict[str, str] | None = None, *, seconds: float) -> Reply:
        sent = None if body is None else json.dumps(body).encode()
        try:
            return exchange(
                method,
                self.root_url + path,
                headers=request_headers(self._key(), self.headers, self.root_url),
                body=sent,
                seconds=seconds,
                proxy=proxy_for(self.root_url),
                check=own_servers.problem,
            )
        except HTTPException as error:  # it may quote the answer
            said = self._redactor().quote(f"{type(error).__name__}: {error}")
        raise PlainHTTPError(said)

    def _key(self) -> str | None:
        return own_servers.current_key(self.root_url, self.api_key)

    def _newer(self) -> "Endpoint | None":
        """The same place with the key that `matrix-graph serve` of another program has now, if that is another."""
        key = key_files.key_for(self.root_url) if own_servers.find(self.root_url) is None else None
        return None if key is None or key == self.api_key else replace(self, api_key=key)

    def _decoded(self, body: bytes) -> dict[str, Any]:
        return decode(body, self._redactor())

    def _redactor(self) -> Redactor:
        return Redactor(*secrets_of(self.api_key, self.headers, self.root_url), self._key())
