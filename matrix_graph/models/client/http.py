"""HTTP to one model server: requests, one retry layer, and errors that say what to do.

Why by hand on aiohttp: at 50 calls a scene the usual client costs more CPU than the graph does. What always holds: a
bad request is sent once; whatever may heal (connection loss, time-out, garbage, HTTP 408, 429, 5xx) is tried again for
`give_up_after` seconds; cancellation passes at once and gives the connection back; the key is in no message or repr.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Protocol, TypeVar, runtime_checkable
from urllib.parse import urlsplit

import aiohttp
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
)
from yarl import URL

from matrix_graph.errors import (
    ConfigError,
    ModelAddressError,
    ModelError,
    ModelRequestError,
    ModelUnavailableError,
    ServerError,
)
from matrix_graph.models.client import failures, key_files, own_servers
from matrix_graph.models.client.failures import TryAgainError
from matrix_graph.models.client.gateways import is_page, page_instead, redirected
from matrix_graph.models.client.headers import request_headers, without_login
from matrix_graph.models.client.pool import session
from matrix_graph.models.client.proxies import proxy_for
from matrix_graph.models.client.redact import Redactor, secrets_of
from matrix_graph.models.client.server_numbers import error_status, seconds
from matrix_graph.models.client.wire import JSON, decode, encode, lines, read_beginning, read_body

T = TypeVar("T")

_GLANCE_SECONDS = 5.0
_BREAKS = (aiohttp.ClientError, TimeoutError, OSError, EOFError, ValueError, LookupError)
"""What comes of a connection that breaks, or of headers and bodies that no server should send."""
_GARBAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What reading a reply of the wrong shape raises."""


def _is_address(url: str) -> bool:
    try:
        return re.match(r"https?://[^/]", url) is not None and (urlsplit(url).port or 0) >= 0  # `port` may raise
    except ValueError:
        return False


class Waitable(Protocol):
    """A supervised server: `VLLMServer` is one."""

    async def wait_ready(self, timeout: float) -> object:  # noqa: ASYNC109 - the server's deadline, not a cancellation
        """Return when requests are answered again; raise ServerError or TimeoutError if that is not to be expected."""


@runtime_checkable
class Lifeline(Protocol):
    """Something that decides when a request that has lost its server may try again: `models.traffic.Traffic` is one."""

    async def lost(self, *, reached: bool) -> bool:
        """Return when the request may be sent again, or raise a ModelError.

        Args:
            reached: whether it had reached the server.

        Returns:
            Whether to send it at once, since it has been waited for long enough.
        """


class HTTPClient:
    """Where the requests go, and how patiently."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 300.0,
        connect_timeout: float = 10.0,
        give_up_after: float = 30.0,
        max_retries: int | None = None,
        server: Waitable | Lifeline | None = None,
    ) -> None:
        """Prepare requests to one server; nothing is sent yet.

        Args:
            base_url: the API's root, usually ending in `/v1`.
            key: bearer token; None sends none.
            headers: sent with every request besides; their values are kept out of messages as the key is.
            timeout: seconds for one try, from connecting to the last byte.
            connect_timeout: seconds to connect.
            give_up_after: seconds after a call's first failure in which further tries may start, waiting for `server`
                left out.
            max_retries: how many further tries at most; None: as many as `give_up_after` has room for.
            server: awaited before the next try when the server itself may be gone.

        Raises:
            ConfigError: `base_url` is no http(s) address, or no header can carry the key.
        """
        if not _is_address(base_url):
            raise ConfigError(
                f"base_url is {base_url!r}; it must be an http:// or https:// address such as http://127.0.0.1:8000/v1"
            )
        self._base = base_url.rstrip("/")
        self._extra = headers or {}
        self._use(key)
        self._timeout = timeout
        self._limits = aiohttp.ClientTimeout(total=timeout, sock_connect=connect_timeout)
        self._give_up_after = give_up_after
        self._max_retries = max_retries
        self._server = server
        self._urls: dict[str, URL] = {}
        self._proxy: tuple[str | None] | None = None
        self._answered = False

    @property
    def base_url(self) -> str:
        """The API's root, as it was given."""
        return self._base

    @property
    def shown_url(self) -> str:
        """The API's root as messages show it, without a user's name and password."""
        return without_login(self._base)

    @property
    def proxy(self) -> str | None:
        """The proxy that the environment names for this server; None: there is none to use.

        Raises:
            ConfigError: it names one of an unknown kind.
        """
        if self._proxy is None:
            self._proxy = (proxy_for(self._base),)
        return self._proxy[0]

    def url(self, path: str) -> URL:
        """The address of `path` under the API's root; with a leading slash, under the server's root (without `/v1`)."""
        if path not in self._urls:
            base = self.shown_url  # a login in the address goes out as a header
            root = base.removesuffix("/v1") if path.startswith("/") else base
            self._urls[path] = URL(f"{root}/{path.lstrip('/')}")
        return self._urls[path]

    # ---- requests -----------------------------------------------------------------------------------------------

    async def get(self, path: str, read: Callable[[JSON], T]) -> T:
        """GET `path` and read the JSON object it answers with; raises as `post` does."""
        return await self._retried(path, lambda: self._exchange("GET", path, None, read))

    async def glance(self, path: str, read: Callable[[JSON], T]) -> T | None:
        """GET `path` once and for a few seconds; None if that brings nothing, for whatever reason."""
        try:
            async with asyncio.timeout(_GLANCE_SECONDS):
                return await self._exchange("GET", path, None, read)
        except (ModelError, TryAgainError, TimeoutError):
            return None

    async def post(self, path: str, payload: JSON, read: Callable[[JSON], T]) -> T:
        """POST `payload` and return `read` of the JSON object that comes back.

        Args:
            path: see `url`.
            payload: sent as `wire.encode` has it.
            read: makes the result of the object; LookupError, TypeError, ValueError and the like mean garbage.

        Raises:
            ModelRequestError: HTTP 3xx or 4xx (but for 408 and 429); ContextLengthError where the prompt is too long.
            ModelAddressError: a web page, or a certificate that is not trusted.
            ModelUnavailableError: the failures did not heal in `give_up_after` seconds.
        """
        body = encode(payload)
        return await self._retried(path, lambda: self._exchange("POST", path, body, read))

    async def stream(self, path: str, payload: JSON, read: Callable[[JSON], T | None]) -> AsyncGenerator[T, None]:
        """POST `payload` and yield `read` of each server-sent event as it comes, but for None.

        Tries again as `post` does until the first item is there; from then on a failure ends the stream.

        Raises:
            ModelRequestError: as in `post`.
            ModelUnavailableError: as in `post`, or the stream broke off.
        """
        body = encode(payload)
        count = 1
        response, first, rest = await self._retried(path, lambda: self._open(path, body, read))
        try:
            yield first
            async for item in rest:
                count += 1
                yield item
        except TryAgainError as failure:
            raise ModelUnavailableError(
                f"{self._shown(path)}: the stream broke off after {count} pieces: {failure}. "
                "What came is not the whole reply; send the request again.",
                status=failure.status,
            ) from failure.__cause__
        finally:
            await rest.aclose()
            response.close()  # does nothing where the body was read to its end and the connection is back in the pool

    async def _exchange(self, method: str, path: str, body: bytes | None, read: Callable[[JSON], T]) -> T:
        http = await session()
        broken: TryAgainError | ModelAddressError | None = None
        try:
            async with http.request(
                method,
                self.url(path),
                data=body,
                headers=self._signed(),
                timeout=self._limits,
                allow_redirects=False,
                proxy=self.proxy,
            ) as response:
                blocks = response.content.iter_any()
                raw = await (read_body(blocks) if response.status == 200 else read_beginning(blocks))
        except _BREAKS as error:
            broken = self._broken(error)
        if broken is not None:
            raise broken
        if response.status != 200:
            raise self._refused(path, response.status, raw, response.headers)
        self._check_page(path, raw)
        return self._read(raw, read)

    async def _open(
        self, path: str, body: bytes, read: Callable[[JSON], T | None]
    ) -> tuple[aiohttp.ClientResponse, T, AsyncGenerator[T, None]]:
        """Send the request and wait for the first item."""
        http = await session()
        response: aiohttp.ClientResponse | None = None
        opened = False
        try:
            response = await http.post(
                self.url(path),
                data=body,
                headers=self._signed(),
                timeout=self._limits,
                allow_redirects=False,
                proxy=self.proxy,
            )
            if response.status != 200:
                raw = await read_beginning(response.content.iter_any())
                raise self._refused(path, response.status, raw, response.headers)
            if response.content_type == "text/html":
                self._check_page(path, await read_beginning(response.content.iter_any()))
            items = self._items(path, response, read)
            first = await anext(items, None)
            if first is None:
                raise TryAgainError("HTTP 200 with garbage: the stream holds no reply", status=200)
            opened = True
            return response, first, items
        except _BREAKS as error:
            broken = self._broken(error)
        finally:
            if response is not None and not opened:
                response.close()
        raise broken

    async def _items(
        self, path: str, response: aiohttp.ClientResponse, read: Callable[[JSON], T | None]
    ) -> AsyncGenerator[T, None]:
        def read_event(event: JSON) -> T | None:
            if error := event.get("error"):  # vLLM's way to fail after it has answered HTTP 200
                code = error.get("code") if isinstance(error, dict) else None
                raise self._refused(path, error_status(code), data)
            return read(event)

        ended = False
        broken: TryAgainError | ModelAddressError | None = None
        try:
            async for line in lines(response.content.iter_any()):
                if ended or not line.startswith(b"data:"):
                    continue  # after the end mark too: a body read to its end leaves a connection to use again
                data = line[5:].strip()
                if data == b"[DONE]":
                    ended = True
                elif (item := self._read(data, read_event)) is not None:
                    yield item
        except _BREAKS as error:
            broken = self._broken(error)
        if broken is not None:
            raise broken
        if not ended:
            raise TryAgainError("the stream ended without its end mark", lost=True)

    def _signed(self) -> dict[str, str]:
        """The headers, with the key that a server of this program has now."""
        self._take(own_servers.current_key(self._base, self._key))
        return self._headers

    def _use(self, key: str | None) -> None:
        self._key = key
        self._headers = request_headers(key, self._extra, self._base)
        self._redact = Redactor(*secrets_of(key, self._extra, url=self._base))

    def _take(self, key: str | None) -> bool:
        """Send another key from now on; returns whether it is another."""
        if key is None or key == self._key:
            return False
        self._use(key)
        return True

    # ---- failures -----------------------------------------------------------------------------------------------

    async def _retried(self, path: str, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._tried(path, attempt)
        except ModelRequestError as refusal:
            # `matrix-graph serve` has a new key after each start of its engine.
            if refusal.status != 401 or not self._take(key_files.key_for(self._base)):
                raise
            return await self._tried(path, attempt)

    async def _tried(self, path: str, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            return await attempt()
        except ModelRequestError as refusal:
            raise await self._explained(path, refusal) from None
        except TryAgainError as failure:
            first: TryAgainError | None = failure

        async def again() -> T:
            # Tenacity's first try is the one that has failed already: a call that succeeds pays nothing for retrying,
            # and the clock of `give_up_after` starts at the failure, however long the request had run by then.
            nonlocal first
            if first is not None:
                failure, first = first, None
                raise failure
            return await attempt()

        waited = 0.0  # for the server; it does not count against the request's own time
        at_once = False  # the server was away before this try: how long the try then runs does not count either

        def enough(state: RetryCallState) -> bool:
            nonlocal waited
            if self._max_retries is not None and state.attempt_number > self._max_retries:
                return True
            if at_once:  # the clock starts again at this failure
                waited = state.seconds_since_start or 0.0
                return False
            return (state.seconds_since_start or 0.0) - waited + state.upcoming_sleep >= self._give_up_after

        async def recover(state: RetryCallState) -> None:
            nonlocal waited, at_once
            began = time.monotonic()
            at_once = await self._recover(state, self._give_up_after - (state.seconds_since_start or 0.0) + waited)
            waited += time.monotonic() - began

        async def sleep(seconds: float) -> None:
            await asyncio.sleep(0.0 if at_once else seconds)

        retrying = AsyncRetrying(
            sleep=sleep,
            retry=retry_if_exception_type(TryAgainError),
            wait=failures.pause,
            stop=enough,
            before_sleep=recover,
            reraise=True,
        )
        try:
            return await retrying(again)
        except ModelRequestError as refusal:
            raise await self._explained(path, refusal) from None
        except TryAgainError as last:
            tries, took = retrying.statistics["attempt_number"], retrying.statistics["delay_since_first_attempt"]
            raise ModelUnavailableError(
                f"{self._shown(path)} gave no usable answer in {tries} tries over {took:.1f} s; the last: {last}. "
                "Is the server running, and is this its address? Longer outages: raise give_up_after "
                f"(now {self._give_up_after:g} s).",
                status=last.status,
            ) from last.__cause__

    async def _recover(self, state: RetryCallState, left: float) -> bool:
        """Wait for a supervised server to be back, at most for the seconds that are left; whether to try at once."""
        failure = state.outcome.exception() if state.outcome else None
        if self._server is None or not isinstance(failure, TryAgainError) or not (failure.lost or failure.crowded):
            return False
        if isinstance(self._server, Lifeline):
            return await self._server.lost(reached=failure.reached)
        if failure.crowded:
            return False
        try:
            await self._server.wait_ready(max(left, 0.0))
        except (ServerError, TimeoutError) as error:
            raise ModelUnavailableError(f"{failure}, and the server did not come back: {error}") from error
        return False

    def _broken(self, error: Exception) -> TryAgainError | ModelAddressError:
        """The failure, to be raised out of the handler: the error's own repr may hold the request's headers."""
        failure = failures.of_connection(error, self._limits, self._redact, where=self.shown_url)
        failure.__cause__ = failures.cause(error)
        return failure

    def _refused(self, path: str, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Exception:
        told = headers or {}
        return failures.of_status(
            self._shown(path),
            status,
            failures.said_in(body, self._redact),
            seconds(told.get("Retry-After")),
            authorized=any(name.casefold() == "authorization" for name in self._headers),
            redirect=redirected(told.get("Location"), self._redact),
        )

    def _check_page(self, path: str, body: bytes) -> None:
        """Raise at a web page; from a server that has answered before, it is a fault that passes."""
        if not self._answered and is_page(body):
            raise ModelAddressError(page_instead(self._shown(path), 200, body, self._redact))

    async def _explained(self, path: str, refusal: ModelRequestError) -> ModelRequestError:
        """The refusal; for an HTTP 404 with the names that the server does serve."""
        if refusal.status != 404 or path == "models":
            return refusal
        try:
            names = await self._exchange("GET", "models", None, lambda got: [str(card["id"]) for card in got["data"]])
        except (ModelError, TryAgainError):
            advice = "It lists no models either: base_url should be the API's root, which usually ends in /v1."
        else:
            listed = self._redact.quote(", ".join(names)) if names else "nothing"
            advice = f"It serves: {listed}. Ask for one of these, or load the adapter first."
        return ModelRequestError(f"{refusal} {advice}", status=404)

    def _shown(self, path: str) -> str:
        return str(self.url(path))

    def _read(self, raw: bytes, read: Callable[[JSON], T]) -> T:
        try:
            item = read(decode(raw, self._redact))
            self._answered = True
            return item
        except _GARBAGE as error:
            what = f"HTTP 200 with garbage: {type(error).__name__}: {self._redact.quote(error)}"
        # Out of the handler: the error that quotes the garbage as it came is not to be shown as its context.
        raise TryAgainError(what, status=200)
