"""What can go wrong between client and server, sorted: what may heal, what the request itself is to blame for.

What always holds: an HTTP 400 is never worth another try; every message says what came and what to do; what it quotes
was cleaned of secrets before (`client.redact`).
"""

import random
import re

import aiohttp
from tenacity import RetryCallState

from matrix_graph.errors import ContextLengthError, ModelRequestError
from matrix_graph.models.client.redact import Redactor
from matrix_graph.models.client.wire import TooLongError

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


def of_connection(error: Exception, limits: aiohttp.ClientTimeout, redact: Redactor) -> TryAgainError:
    """The failure behind an exception of aiohttp, or a time-out."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        what = f"no connection within {limits.sock_connect:g} s (connect_timeout)"
        return TryAgainError(what, lost=True, reached=False)
    if isinstance(error, TimeoutError):
        return TryAgainError(f"no whole answer within {limits.total:g} s (timeout)", lost=True)
    if isinstance(error, TooLongError):
        return TryAgainError(f"HTTP 200 with garbage: {error}", status=200)
    what = f"{type(error).__name__}: {redact.quote(error) if str(error) else 'no details'}"
    return TryAgainError(what, lost=True, reached=not isinstance(error, aiohttp.ClientConnectorError))


def of_status(where: str, status: int, said: str, wait: float | None) -> Exception:
    """The error behind an HTTP status other than 200.

    Args:
        where: the address that answered.
        status: HTTP status.
        said: what the body says, as a message may quote it.
        wait: seconds that a Retry-After header asks for.
    """
    if status in (408, 429) or status >= 500:
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
        advice = "Set api_key, or the environment variable VLLM_API_KEY, to the key the server was started with."
    elif 200 <= status < 400:
        advice = "Redirects and the like are not followed; set base_url to the final address."
    elif status == 404:
        advice = ""  # the caller adds what the server does serve
    else:
        advice = "The same request would fail again; change it."
    return ModelRequestError(f"{what} {advice}".rstrip(), status=status)


def cause(error: Exception) -> Exception | None:
    """The error as a cause to show, unless its repr holds the request's headers, and so the key."""
    return None if isinstance(error, aiohttp.ClientResponseError) else error


def pause(state: RetryCallState) -> float:
    """Seconds before the next try: doubling from 0.25 to 8, spread at random; at least what the server asked for."""
    backoff = min(0.25 * 2.0 ** (state.attempt_number - 1), 8.0) * random.uniform(0.5, 1.0)
    failure = state.outcome.exception() if state.outcome else None
    asked = failure.wait if isinstance(failure, TryAgainError) else None
    return backoff if asked is None else asked + backoff / 4
