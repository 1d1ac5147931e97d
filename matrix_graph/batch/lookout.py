"""What a batch asks its server besides completions: whether it answers, how much it can take, what it has counted."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
from langchain_core.language_models import BaseChatModel

from matrix_graph.errors import ModelError, ModelRequestError, ModelUnavailableError, ServerError
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.client.metrics import fetch_metrics, parse_cache_config, parse_counters
from matrix_graph.models.complete import name_of, read_completion
from matrix_graph.models.server import VLLMServer
from matrix_graph.models.traffic import Probe, Unserving

DEFAULT_REQUESTS = 64
"""Requests in flight where the server does not tell what it can take."""
MOST_REQUESTS = 256
"""vLLM's own default of requests in one batch (max_num_seqs): more would only wait there."""
_LEAST_REQUESTS = 8
_TOKENS_PER_REQUEST = 2048
"""Tokens of key-value cache for each request in flight: its own, and the dialogues that its scene will go on with."""
_LOOK_SECONDS = 5.0
_PROBE_SECONDS = 60.0
_LOOKS, _FIRST_PAUSE, _LONGEST_PAUSE = 9, 0.05, 0.8
"""How many requests in a row must fail until a server counts as away, and the seconds between them: some 4 in all. Of
one that fails a fifth of all requests by chance, two in a million of such series fail."""
_ANSWERS = (200, 408, 429, 500, 501)
"""What a server says itself, if only that it cannot; the other codes come as well from a gateway before a dead one."""


def probe_of(model: BaseChatModel) -> Probe | None:
    """How to find out whether a model's server answers; None where that is not known.

    A single request that fails says little: some servers fail now and then, and live. So it takes several in a row,
    unless nobody listens at the address at all.
    """
    if not isinstance(model, ChatVLLM):
        return None
    server = model.server
    patient: dict[str, Any] = {"server": None, "give_up_after": 0.0, "max_retries": 0, "timeout": _PROBE_SECONDS}
    patient |= {"max_tokens": 1, "max_thinking_tokens": 0}
    asked = model.model_copy(update=patient)
    restarts = getattr(server, "restarts", 0)

    async def wrong_with_our_own() -> str | None:
        nonlocal restarts
        if server is None:
            return None
        try:
            await server.wait_ready(_LOOK_SECONDS)
        except (ServerError, TimeoutError) as error:
            if isinstance(server, VLLMServer) and server.failed:
                raise ModelUnavailableError(str(error)) from error
            return str(error).splitlines()[0]
        if getattr(server, "restarts", 0) != restarts:
            # Back already; but it was away, and what it died of may still be among the calls.
            restarts = server.restarts
            return "it died, and was started again"
        return None

    async def probe() -> str | None:
        began, pause = time.monotonic(), _FIRST_PAUSE
        lives = True
        for look in range(1, _LOOKS + 1):
            if (wrong := await wrong_with_our_own()) is not None:
                return wrong
            try:
                await asked.acomplete([{"role": "user", "content": "Hello"}], read_completion, {})
            except ModelRequestError:
                return None  # it answers, if only to refuse; whether rightly is for the scenes' own calls to find out
            except ModelUnavailableError as error:
                if error.status == 200:
                    return None  # it answers, if only nonsense
                lives = lives and error.status in _ANSWERS
                wrong = str(error.__cause__ or error).splitlines()[0]
                if _nobody_listens(error.__cause__):
                    return wrong  # nobody listens
            except ModelError as error:
                lives, wrong = False, str(error.__cause__ or error).splitlines()[0]
            else:
                return None
            if look > 1 and time.monotonic() - began > _PROBE_SECONDS:
                break
            if look < _LOOKS:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        return Unserving(wrong) if lives else wrong

    return probe


def _nobody_listens(error: BaseException | None) -> bool:
    return isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientConnectorDNSError)


async def requests_for(model: BaseChatModel) -> int:
    """How many requests in flight a model's server can make use of."""
    page = await _page(model)
    cache = parse_cache_config(page) if page else None
    if cache is None or cache.tokens is None:
        return DEFAULT_REQUESTS
    return max(_LEAST_REQUESTS, min(MOST_REQUESTS * cache.engines, cache.tokens // _TOKENS_PER_REQUEST))


async def why_refused(model: BaseChatModel, name: str) -> str | None:
    """Why a model's server refuses every call, not only one; None: it does not, or nobody knows.

    Args:
        model: the model.
        name: by which its server knew it when the run began.
    """
    if not isinstance(model, ChatVLLM):
        return None
    try:
        names = await model.model_copy(update={"server": None, "give_up_after": 0.0}).aserved_names()
    except ModelRequestError as error:
        return str(error) if error.status in (401, 403) else None
    except ModelError:
        return None
    if not names or name in names:
        return None
    return f"The model server no longer serves {name}, but {', '.join(names)}. Serve {name} again."


async def counters_of(model: BaseChatModel) -> dict[str, float]:
    """The server's counters since it started, as `parse_counters` names them; empty if it has none."""
    page = await _page(model)
    return parse_counters(page) if page else {}


async def served_name(model: BaseChatModel) -> str:
    """The name of the model that the scenes are played by.

    Raises:
        ModelError: the server cannot be reached.
    """
    if isinstance(model, ChatVLLM):
        return await model.aserved_name()
    return name_of(model)


async def _page(model: BaseChatModel) -> str | None:
    if not isinstance(model, ChatVLLM):
        return None
    return await fetch_metrics(model.base_url, model.request_key, _LOOK_SECONDS, model.request_headers)
