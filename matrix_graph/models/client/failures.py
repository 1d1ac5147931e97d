"""What can go wrong between client and server, sorted: what may heal, what the request itself is to blame for.

What always holds: an HTTP 400 is never worth another try; every message says what came and what to do; what it quotes
was cleaned of secrets before (`client.redact`).
"""

import random
import re

import aiohttp
from tenacity import RetryCallState

from matrix_graph.errors import ContextLengthError, ModelAddressError, ModelRequestError
from matrix_graph.models.client.gateways import HEADER_ADVICE, page_title, told_page, untrusted
from matrix_graph.models.client.pool import StrangerError
from matrix_graph.models.client.redact import Redactor
from matrix_graph.models.client.wire import TooLongError, message_in
from matrix_graph.models.system_role import says_refused

_NEVER = (501, 505)
"""What a server answers that does not know the method or this HTTP at all, however often it is asked (RFC 9110)."""
_HEADER = re.compile(r"\bheaders?\b|subscription.key", re.IGNORECASE)
"""How a gateway names what it misses."""

_TOO_LONG = re.compile(r"context.?length|max_model_len", re.IGNORECASE)
"""How vLLM (renderers/params.py, serve/utils/api_utils.py) and OpenAI (`context_length_exceeded`) put it."""


class TryAgainError(Exception):
    """A failure that may heal; it stays inside the HTTP client.

    Attributes:
        status: HTTP status of the answer; None: there was no whole answer.
        wait: seconds that the server asked to wait (see `server_numbers.seconds`); None: it did not ask.
        lost: whether the server itself may be gone.
        reached: whether the request may have reached the server.
        crowded: whether the server is well, and has no room.
    """

    def __init__(
        self,
        what: str,
        *,
        status: int | None = None,
        wait: float | None = None,
        lost: bool = False,
        reached: bool = True,
        crowded: bool = False,
    ) -> None:
        """Args: what happened; the attributes."""
        super().__init__(what)
        self.status = status
        self.wait = wait
        self.lost = lost
        self.reached = reached
        self.crowded = crowded


def of_connection(
    error: Exception, limits: aiohttp.ClientTimeout, redact: Redactor, *, where: str = "The server"
) -> TryAgainError | ModelAddressError:
    """The failure behind an exception of aiohttp, or a time-out.

    Args:
        error: the exception.
        limits: the time limits that the request had.
        redact: keeps secrets out of the message.
        where: the address, for what no further try can heal.
    """
    if (problem := untrusted(error)) is not None:
        return ModelAddressError(f"{where} cannot be used: {redact.quote(problem)}.")
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        status = f"HTTP {error.status}" if isinstance(error, aiohttp.ClientHttpProxyError) else redact.quote(error)
        what = f"the proxy that the environment names (HTTP_PROXY, HTTPS_PROXY, NO_PROXY) failed: {status}"
        return TryAgainError(what, lost=True, reached=False)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        what = f"no connection within {limits.sock_connect:g} s (connect_timeout)"
        return TryAgainError(what, lost=True, reached=False)
    if isinstance(error, TimeoutError):
        return TryAgainError(f"no whole answer within {limits.total:g} s (timeout)", lost=True)
    if isinstance(error, TooLongError):
        return TryAgainError(f"HTTP 200 with garbage: {error}", status=200)
    what = f"{type(error).__name__}: {redact.quote(error) if str(error) else 'no details'}"
    return TryAgainError(what, lost=True, reached=not isinstance(error, (aiohttp.ClientConnectorError, StrangerError)))


def of_status(
    where: str,
    status: int,
    said: str,
    wait: float | None,
    *,
    authorized: bool = False,
    redirect: str = "Redirects and the like are not followed; set base_url to the final address.",
) -> Exception:
    """The error behind an HTTP status other than 200.

    Args:
        where: the address that answered.
        status: HTTP status.
        said: what the body says, as a message may quote it.
        wait: seconds that a Retry-After header asks for.
        authorized: whether the request bore a key.
        redirect: what to do about a redirect.
    """
    # llama.cpp answers 500 where a chat template refuses a system message; that heals by folding it, not by waiting.
    if status in (408, 429) or (status >= 500 and status not in _NEVER and not says_refused(said)):
        # What a gateway or a crowded server answers, the engine never saw.
        reached = status not in (429, 502, 503, 504)
        return TryAgainError(
            f"HTTP {status}: {said}",
            status=status,
            wait=wait,
            lost=status >= 500,
            reached=reached,
            crowded=status == 429,
        )
    what = f"{where} answered HTTP {status}: {said.rstrip('.')}."
    if status in (400, 413, 422) and _TOO_LONG.search(said):
        advice = "Shorten the prompt, lower max_tokens, or serve the model with a longer --max-model-len."
        return ContextLengthError(f"{what} {advice}", status=status)
    if status in (401, 403):
        advice = key_advice(said, authorized=authorized)
    elif 200 <= status < 400:
        advice = redirect
    elif status == 404:
        advice = ""  # the caller adds what the server does serve
    elif _HEADER.search(said):
        advice = HEADER_ADVICE
    else:
        advice = "The same request would fail again; change it."
    return ModelRequestError(f"{what} {advice}".rstrip(), status=status)


def key_advice(said: str, *, authorized: bool) -> str:
    """What to do about a request that is not authorized.

    Args:
        said: what the server says.
        authorized: whether the request bore a key.
    """
    if authorized and _HEADER.search(said):
        return f"A key was sent. {HEADER_ADVICE}"
    if authorized:
        return f"The key that was sent (api_key, or VLLM_API_KEY) is not enough or not the right one. {HEADER_ADVICE}"
    advice = "Set api_key, or the environment variable VLLM_API_KEY, to the key the server was started with."
    return f"{advice} {HEADER_ADVICE}" if _HEADER.search(said) else advice


def said_in(body: bytes, redact: Redactor) -> str:
    """What an error body says, as a message may quote it: of a web page that has a title that alone."""
    return told_page(body, redact) if page_title(body, redact) else message_in(body, redact)


def cause(error: Exception) -> Exception | None:
    """The error as a cause to show, unless its repr holds the request's headers, and so the key."""
    return None if isinstance(error, aiohttp.ClientResponseError) else error


def pause(state: RetryCallState) -> float:
    """Seconds before the next try: doubling from 0.25 to 8, spread at random; at least what the server asked for."""
    backoff = min(0.25 * 2.0 ** (state.attempt_number - 1), 8.0) * random.uniform(0.5, 1.0)
    failure = state.outcome.exception() if state.outcome else None
    asked = failure.wait if isinstance(failure, TryAgainError) else None
    return backoff if asked is None else asked + backoff / 4
