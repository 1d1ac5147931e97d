"""The command `adapters`: which ones a running server has, and to load and unload them while it serves."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matrix_graph.errors import ConfigError, ServerError
from matrix_graph.options import BaseUrlOption, ConfigOption, JsonOption, adapter_from, settings_from

if TYPE_CHECKING:
    from matrix_graph.models.serving.endpoint import Endpoint

_SECONDS = 10.0


class AdapterAction(StrEnum):
    """What is to be done."""

    list = "list"
    load = "load"
    unload = "unload"


def adapters(
    action: Annotated[AdapterAction, typer.Argument(help="What to do.")] = AdapterAction.list,
    adapter: Annotated[
        str | None, typer.Argument(help="NAME=DIR to load, NAME to unload.", metavar="ADAPTER", show_default=False)
    ] = None,
    base_url: BaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List, load or unload the LoRA adapters of a vLLM server while it runs.

    Requests name an adapter as their model. One that does not fit is refused with the reason, and the server goes on.
    The server must read DIR from its own disk. Start one with `matrix-graph serve`, and take over the address and the
    key that it shows.

        matrix-graph adapters

        matrix-graph adapters load kind=adapters/kind

        matrix-graph adapters unload kind
    """
    import json

    from matrix_graph.models.serving.adapter import check_adapter_folder, check_adapter_name

    if (action is AdapterAction.list) != (adapter is None):
        wanted = {"list": "no adapter", "load": "NAME=DIR", "unload": "NAME"}[action]
        raise ConfigError(f"`adapters {action}` takes {wanted}; see `matrix-graph adapters --help`.")
    endpoint = _endpoint(config, base_url)
    served = endpoint.served(_SECONDS)
    if action is AdapterAction.load:
        name, folder = adapter_from(adapter or "")
        model = next((one for one in served if one.base is None), None)
        root = Path(model.path) if model is not None and model.path else None
        check_adapter_name(name, model.name if model is not None else "")
        base = root if root is not None and root.is_absolute() and root.is_dir() else None
        endpoint.load_adapter(name, check_adapter_folder(Path(folder), max_rank=None, base=base))
        served = endpoint.served(_SECONDS)
    elif action is AdapterAction.unload:
        if adapter not in [one.name for one in served if one.base is not None]:
            have = ", ".join(one.name for one in served if one.base is not None) or "none"
            raise ServerError(f"The server has no adapter {adapter!r}; it has {have}.")
        endpoint.unload_adapter(adapter or "")
        served = endpoint.served(_SECONDS)
    found = [{"name": one.name, "base": one.base, "path": one.path} for one in served if one.base is not None]
    if as_json:
        typer.echo(json.dumps({"base_url": endpoint.shown_url, "adapters": found}))
        return
    from matrix_graph.live import safe

    for one in found:
        typer.echo(safe(f"{one['name']}  on {one['base']}  from {one['path']}"))
    if not found:
        typer.echo("no adapters", err=True)


def _endpoint(config: Path | None, base_url: str | None) -> Endpoint:
    import os
    from urllib.parse import urlsplit

    from matrix_graph.models.client.headers import checked_key, plain_headers
    from matrix_graph.models.serving.endpoint import Endpoint

    settings = settings_from(config, None, base_url, {})
    if settings.base_url is None:
        raise ConfigError(
            "Which server? Give --base-url, or set MATRIX_GRAPH_BASE_URL as `matrix-graph serve` shows it."
        )
    address = urlsplit(settings.base_url)
    try:
        host, port = address.hostname, address.port
    except ValueError:
        host = port = None
    if address.scheme not in ("http", "https") or not host:
        raise ConfigError(f"--base-url {settings.base_url!r} is not an address such as http://127.0.0.1:8000/v1.")
    key = settings.api_key.get_secret_value() if settings.api_key else os.environ.get("VLLM_API_KEY", "")
    checked_key(key, "VLLM_API_KEY")
    root = address.path.rstrip("/").removesuffix("/v1")
    return Endpoint(
        host,
        port or (443 if address.scheme == "https" else 80),
        api_key=key,
        url=f"{address.scheme}://{address.netloc}{root}",
        headers=plain_headers(settings.headers),
    )
