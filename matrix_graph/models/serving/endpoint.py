"""What is asked of a running vLLM server besides completions: health, models, adapters and counters.

Why the standard library's client: these are a few small requests from the watching thread, which has no event loop.
What always holds: each has a time-out, none goes through a proxy, and the key is in no error.
"""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from matrix_graph.errors import ServerError
from matrix_graph.models.client.metrics import parse_counters

_ADAPTER_SECONDS = 120.0
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class AdapterRefusedError(ServerError):
    """The server is well, but does not want this adapter."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens, and the key to it.

    Args:
        host: the address to connect to.
        port: the TCP port.
        api_key: the key that it asks for.
    """

    host: str
    port: int
    api_key: str = field(repr=False)

    @property
    def root_url(self) -> str:
        """The server's address without a path."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
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
        if status != 200:
            kind = AdapterRefusedError if 400 <= status < 500 else ServerError
            raise kind(f"The vLLM server refused to {verb} the adapter {name!r} (HTTP {status}): {_reason(answer)}")

    def _request(
        self, method: str, path: str, body: dict[str, str] | None = None, *, seconds: float
    ) -> tuple[int, bytes]:
        request = urllib.request.Request(
            self.root_url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"},
        )
        try:
            with _direct.open(request, timeout=seconds) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


def check_adapter_folder(folder: Path, *, max_rank: int) -> Path:
    """Checks a LoRA adapter before the server is asked to load it.

    Args:
        folder: an adapter as PEFT saves it.
        max_rank: the highest rank that the server was started for.

    Returns:
        The absolute folder.

    Raises:
        ServerError: it does not exist, is no LoRA adapter, or its rank is too high.
    """
    folder = folder.expanduser().resolve()
    what_to_do = "Give a folder that `matrix-graph train` or PEFT's `save_pretrained` has written."
    if not folder.is_dir():
        raise ServerError(f"The adapter folder {folder} does not exist. {what_to_do}")
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank = config.get("r")
    except (OSError, ValueError, AttributeError) as error:
        raise ServerError(f"{folder} has no readable adapter_config.json ({error}). {what_to_do}") from error
    if not any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        raise ServerError(f"{folder} has no weights (adapter_model.safetensors or .bin). {what_to_do}")
    if isinstance(rank, int) and rank > max_rank:
        raise ServerError(
            f"The adapter {folder} has rank {rank}, the server takes at most {max_rank}. Start it with "
            f"`max_lora_rank` {rank} or more."
        )
    return folder


def _reason(answer: bytes) -> str:
    text = answer.decode("utf-8", "replace")
    try:
        body = json.loads(text)
        return str(body["error"]["message"] if "error" in body else body["message"])
    except (ValueError, LookupError, TypeError):
        return text[:500] or "no reason given"
