"""Adapters on a server that already runs: loaded before the first question, so that candidates can name them.

Why apart: a server of our own gets its adapters when it starts; one that somebody else started has to be asked. What
always holds: a name stands for one folder; a server that serves something else under it is refused, not used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from matrix_graph.errors import ConfigError, ServerError
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.serving.adapter import check_adapter_folder, check_adapter_name
from matrix_graph.models.serving.endpoint import Endpoint

_SECONDS = 10.0


def checked_folders(adapters: Mapping[str, Path]) -> dict[str, Path]:
    """The absolute folders of adapters.

    Raises:
        ServerError: one does not exist, or is not an adapter that vLLM takes.
    """
    return {name: check_adapter_folder(path, max_rank=None) for name, path in adapters.items()}


async def load_adapters(model: ChatVLLM, adapters: Mapping[str, Path]) -> None:
    """Have a server load adapters, unless it serves them already.

    Args:
        model: on that server.
        adapters: folders by name, which the server must be able to read.

    Raises:
        ServerError: the server cannot be reached, a folder is not an adapter that fits, the server refuses it, or
            serves something else under its name.
    """
    if adapters:
        await asyncio.to_thread(_load, _endpoint(model), adapters)


async def require_served(model: ChatVLLM, names: Sequence[str]) -> None:
    """Make sure that a server serves all of these names.

    Raises:
        ConfigError: it does not; tells which it does serve.
        ModelError: the server cannot be reached.
    """
    if not names:
        return
    served = await model.aserved_names()
    for name in names:
        if name not in served:
            raise ConfigError(
                f"{name!r} is neither a method nor served: {model.base_url} serves {', '.join(served)}. "
                "Load an adapter with NAME=DIR."
            )


def _load(endpoint: Endpoint, adapters: Mapping[str, Path]) -> None:
    served = {one.name: one for one in endpoint.served(_SECONDS)}
    model = next((one for one in served.values() if one.base is None), None)
    root = Path(model.path) if model is not None and model.path else None
    base = root if root is not None and root.is_absolute() and root.is_dir() else None
    for name, path in adapters.items():
        check_adapter_name(name, model.name if model is not None else "")
        folder = check_adapter_folder(path, max_rank=None, base=base)
        known = served.get(name)
        if known is None:
            endpoint.load_adapter(name, folder)
        elif known.path is None or Path(known.path) != folder:
            raise ServerError(
                f"The server serves {name!r} from {known.path}, not from {folder}. Give the adapter another name, or "
                f"take that one off: matrix-graph adapters unload {name}."
            )


def _endpoint(model: ChatVLLM) -> Endpoint:
    address = urlsplit(model.base_url)
    root = model.base_url.removesuffix("/v1")
    return Endpoint(
        address.hostname or "",
        address.port or 0,
        api_key=model.request_key or "",
        url=root,
        headers=model.request_headers,
    )
