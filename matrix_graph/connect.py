"""From settings to the one chat model of a command: on a server that already runs, or on one of our own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pydantic import SecretStr

from matrix_graph.config import Settings
from matrix_graph.errors import ModelRequestError, ModelUnavailableError
from matrix_graph.models.bundled import name_on_server
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.client.headers import without_login
from matrix_graph.models.server import ServerConfig, VLLMServer, name_of_source

_REACH_SECONDS = 6.0
"""How long a server that already runs is waited for before a command begins."""


@asynccontextmanager
async def connected_model(settings: Settings, status: Callable[[str], None]) -> AsyncIterator[ChatVLLM]:
    """The one chat model of a command: on the given server, or on one of our own that ends with the command."""
    if settings.base_url is not None:
        model = ChatVLLM(
            model=name_on_server(settings.model),
            base_url=settings.base_url,
            **settings.connection,
            **settings.of_the_model,
        )
        await _reach(model, status)
        yield model
        return
    async with VLLMServer(
        settings.model, config=as_needed(settings.server), on_status=lambda line: status(f"vLLM: {line}")
    ) as server:
        yield ChatVLLM(
            model=server.model_name,
            base_url=server.base_url,
            api_key=SecretStr(server.api_key),
            default_headers={},
            server=server,
            **settings.of_the_model,
        )


def name_beforehand(settings: Settings) -> str | None:
    """The name by which the server of `connected_model` will know the model; None if only that server can tell.

    Raises:
        ServerError: the model is a folder that is missing, or holds no model; or there is no such bundled model.
    """
    if settings.base_url is not None:
        return name_on_server(settings.model) or None
    return name_of_source(settings.model)


def as_needed(config: ServerConfig) -> ServerConfig:
    """The settings of a server that nobody else uses: room for adapters costs speed even while none is loaded."""
    if config.adapters or "enable_lora" in config.model_fields_set:
        return config
    return config.model_copy(update={"enable_lora": False})


def steadfast(settings: Settings) -> Settings:
    """For long work: a server of our own is brought back as often as it comes up again, and not five times only."""
    if "stable_after" in settings.server.model_fields_set:
        return settings
    return settings.model_copy(update={"server": settings.server.model_copy(update={"stable_after": 0.0})})


async def _reach(model: ChatVLLM, status: Callable[[str], None]) -> None:
    """Find out within seconds, rather than in the middle of a scene, that nobody answers or that the key is wrong."""
    url = without_login(model.base_url)
    status(f"using {url}")
    patience = f"no answer from {url} yet; trying for {_REACH_SECONDS:g} s"
    notice = asyncio.get_running_loop().call_later(1, status, patience)
    probe = model.model_copy(update={"timeout": 10.0, "give_up_after": _REACH_SECONDS})
    try:
        await probe.acontext_length()
    except ModelUnavailableError as error:
        raise ModelUnavailableError(
            f"No model server answers at {url}: {error.__cause__ or error}.\n"
            "Start it, or correct --base-url; without --base-url, vLLM is started for you."
        ) from error
    except ModelRequestError as error:
        # Some servers list no models; they can be used all the same where the model is named.
        if error.status in (401, 403) or not model.model:
            hint = " The base URL is the root of the API, which usually ends in /v1." if error.status == 404 else ""
            raise ModelRequestError(f"{error}{hint}", status=error.status) from error
    finally:
        notice.cancel()
