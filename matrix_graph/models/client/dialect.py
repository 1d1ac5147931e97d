"""What one server takes and what it refuses, found out once and shared by all calls of this process.

Why: "OpenAI-compatible" leaves open how a schema is named, which field limits the reply, and whether an unknown field
is refused or passed over in silence. What always holds: a request is sent in the form that is known to be taken; a form
is given up only if the server refuses it by name and takes another, or if it visibly does not keep to it; a server that
holds replies to no schema is warned of once, and its calls go on.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from matrix_graph.errors import ContextLengthError, ModelRequestError
from matrix_graph.models.client.constraints import (
    ORDER,
    VLLM_ORDER,
    WORDS,
    WRAPPING_TOKENS,
    Form,
    is_held,
    kind_of,
    phrased,
    unwrapped,
)

if TYPE_CHECKING:
    from matrix_graph.models.client.http import HTTPClient
from matrix_graph.models.thoughts import FIELDS, field_of, joined, parted

JSON = dict[str, Any]
T = TypeVar("T")

_FIRST_SECONDS = 1.0
"""For how long other calls let a server's first one go ahead. A refusal comes at once; what takes longer was taken."""
_OPTIONAL = ("stream_options", "temperature", "top_p", "stop")
"""Fields that a request can do without."""
_UNKNOWN = re.compile(
    r"unrecogni[sz]ed|unknown|unsupported|unexpected|extra[ _](?:inputs?|fields?|forbidden)|not (?:be )?(?:supported|"
    r"permitted|allowed|recogni[sz]ed)|(?:does not|doesn't) support",
    re.IGNORECASE,
)
"""How servers say that they do not have a field, or not this value of it."""
_STRICT = re.compile(r"\bstrict\b|invalid schema|additionalProperties", re.IGNORECASE)
_ABOUT_ONE_SCHEMA = re.compile(
    r"invalid (?:json )?schema|schema (?:is )?(?:invalid|error)|grammar|keyword", re.IGNORECASE
)

_HOLDS_NONE = (
    "holds replies to no JSON schema: it refuses or passes over every form of asking for one. Scenes go on, with more "
    "replies that have to be asked for again"
)

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class KnownServer:
    """A server, whatever models it has.

    Attributes:
        vllm: whether it is a vLLM; None: nobody has asked.
        told: what it was warned of already.
    """

    vllm: bool | None = None
    told: set[str] = field(default_factory=set)


_lock = threading.Lock()
_servers: dict[str, KnownServer] = {}
_dialects: dict[tuple[str, str], Dialect] = {}


def server_at(base_url: str) -> KnownServer:
    """What this process knows of the server at an address."""
    with _lock:
        return _servers.setdefault(base_url.rstrip("/"), KnownServer())


def dialect_of(base_url: str, model: str) -> Dialect:
    """What this process knows of one model at an address. A gateway's models may differ."""
    key = (base_url.rstrip("/"), model)
    found = _dialects.get(key)
    if found is not None:
        return found
    known = server_at(base_url)
    with _lock:
        return _dialects.setdefault(key, Dialect(known))


def forget(base_url: str, model: str) -> None:
    """Find out again what a model that is gone takes, and whether its server is a vLLM: it may be another one now."""
    server_at(base_url).vllm = None
    with _lock:
        _dialects.pop((base_url.rstrip("/"), model), None)


def note_cards(base_url: str, cards: list[JSON]) -> None:
    """Take from the list of models whether the server is a vLLM, as the owner of its models says."""
    # Where no owner is named, only vLLM and SGLang tell `max_model_len`, and SGLang names itself as the owner.
    server_at(base_url).vllm = any(
        card.get("owned_by") == "vllm" or ("owned_by" not in card and "max_model_len" in card) for card in cards
    )


@dataclass(frozen=True, slots=True)
class _Request:
    """A request as it is sent.

    Attributes:
        payload: its body.
        constraint: what the reply must be; None: any text.
        form: how the body says so; None: not at all.
        wrapped: as in `constraints.Phrase`.
        strict: whether OpenAI's strict decoding is asked for.
        warnings: what is to be said of the server once it has answered.
    """

    payload: JSON
    constraint: JSON | None
    form: Form | None
    wrapped: bool
    strict: bool
    warnings: tuple[str, ...]


class Dialect:
    """How one model of one server is spoken to.

    What is known are facts such as "refuses response_format" or "ignores guided", which only grow: so it does not
    matter in which order calls find them out.
    """

    def __init__(self, server: KnownServer) -> None:
        """Args: the server. Nothing is asked yet."""
        self._server = server
        self._facts: frozenset[str] = frozenset()
        self._proven: set[Form] = set()
        self._settled: set[bool] = set()
        self._finding: dict[bool, tuple[Future[None], float]] = {}

    async def post(self, client: HTTPClient, path: str, payload: JSON, read: Callable[[JSON], T]) -> T:
        """POST a request in the server's dialect; arguments, result and errors are those of `HTTPClient.post`."""
        async with self._turn(client, payload):
            facts, first, passing = self._facts, None, False
            while True:
                request = self._phrased(client, payload, facts)
                try:
                    result = await client.post(path, request.payload, lambda body: read(self._heard(body, request)))  # noqa: B023
                except ModelRequestError as refusal:
                    facts, passing = self._refused(facts, passing, refusal, first, request)
                    first = first or refusal
                else:
                    self._learn(client, request, facts, passing)
                    return result

    async def stream(
        self, client: HTTPClient, path: str, payload: JSON, read: Callable[[JSON], T | None]
    ) -> AsyncGenerator[T, None]:
        """Stream a request in the server's dialect; arguments, items and errors are those of `HTTPClient.stream`."""
        facts, first, passing = self._facts, None, False
        while True:
            request = self._phrased(client, payload, facts)
            items = client.stream(path, request.payload, read)
            begun = False
            try:
                async for item in items:
                    if not begun:
                        begun = True
                        self._learn(client, request, facts, passing)
                    yield item
                return
            except ModelRequestError as refusal:
                if begun:
                    raise
                facts, passing = self._refused(facts, passing, refusal, first, request)
                first = first or refusal
            finally:
                await items.aclose()

    async def wraps(self, client: HTTPClient, payload: JSON) -> bool:
        """Whether the reply will come as an object around what was asked for, so that its pieces mean nothing."""
        await self._look(client, payload)
        return self._phrased(client, payload, self._facts).wrapped

    # ---- what is sent -------------------------------------------------------------------------------------------

    def _phrased(self, client: HTTPClient, payload: JSON, facts: frozenset[str]) -> _Request:
        left_out = [name for name in _OPTIONAL if name in payload and f"refuses {name}" in facts]
        body = {name: value for name, value in payload.items() if name not in left_out}
        warnings = [f"does not take the {name} of this request, which is left out from now on" for name in left_out]
        constraint = payload.get("structured_outputs")
        form: Form | None = None
        wrapped = False
        strict = "refuses strict" not in facts
        if constraint is not None:
            body.pop("structured_outputs", None)
            # What vLLM alone can be told, or what stands beside a format of the caller's own, goes out as it came.
            plain = kind_of(constraint) is None or "response_format" in body
            form = "structured_outputs" if plain else self._form(facts)
            if form is None or f"ignores {form}" in facts:
                warnings.append(_HOLDS_NONE)
            if form is not None:
                phrase = phrased(constraint, form, strict=strict)
                body |= phrase.fields
                wrapped = phrase.wrapped
            if plain:
                constraint = None
        if wrapped and isinstance(body.get("max_tokens"), int):
            body["max_tokens"] += WRAPPING_TOKENS
        if "refuses max_tokens" in facts and "max_tokens" in body:
            body["max_completion_tokens"] = body.pop("max_tokens")
        return _Request(body, constraint, form, wrapped, strict, tuple(warnings))

    def _form(self, facts: frozenset[str]) -> Form | None:
        """The form to use; None: the server refuses all of them."""
        order = VLLM_ORDER if self._server.vllm else ORDER
        taken = [form for form in order if f"refuses {form}" not in facts]
        held = (form for form in taken if f"ignores {form}" not in facts)
        return next(held, taken[0] if taken else None)

    def _tell(self, client: HTTPClient, what: str) -> None:
        """Warn of a server, once."""
        with _lock:
            if what in self._server.told:
                return
            self._server.told.add(what)
        _log.warning("The server at %s %s.", client.shown_url, what)

    # ---- what comes back ----------------------------------------------------------------------------------------

    def _heard(self, body: JSON, request: _Request) -> JSON:
        """The reply as it was asked for; whether the server keeps to the form shows by the way."""
        if request.constraint is None:
            return body
        choices = body.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            message = choice.get("message") if isinstance(choice, dict) else None
            text = message.get("content") if isinstance(message, dict) else None
            if not isinstance(message, dict) or not isinstance(text, str):
                continue
            parts = parted(text)  # what is thought aloud is held to no schema
            if choice.get("finish_reason") == "stop" and parts.text.strip() and not request.payload.get("stop"):
                self._weigh(parts.text, request)
            if request.wrapped and parts.text.strip():
                message["content"] = unwrapped(parts.text)
                if parts.thought:
                    message[FIELDS[0]] = joined(field_of(message), parts.thought)
        return body

    def _weigh(self, text: str, request: _Request) -> None:
        form = request.form
        if form is None or form in self._proven or request.constraint is None:
            return
        if is_held(text, request.constraint, wrapped=request.wrapped):
            self._proven.add(form)
        else:
            self._add(frozenset({f"ignores {form}"}))

    def _refused(
        self,
        facts: frozenset[str],
        passing: bool,
        refusal: ModelRequestError,
        first: ModelRequestError | None,
        request: _Request,
    ) -> tuple[frozenset[str], bool]:
        """The facts with which to ask again, and whether they hold for this call alone.

        Raises:
            ModelRequestError: the refusal has another cause; or every form was refused, and the first is raised.
        """
        said = str(refusal).partition(" answered HTTP ")[2]
        fact = None if isinstance(refusal, ContextLengthError) else _fact(refusal.status, said, request)
        if fact is None:
            # Without any form it is still refused: then forms were not what was wrong.
            raise first if first is not None and request.form is None and request.constraint is not None else refusal
        if fact in facts:
            raise first or refusal
        about_one = fact.removeprefix("refuses ") in WORDS and _ABOUT_ONE_SCHEMA.search(said) is not None
        return facts | {fact} | self._facts, passing or about_one

    def _learn(self, client: HTTPClient, request: _Request, facts: frozenset[str], passing: bool) -> None:
        """Remember what has just proved true: with these facts the server answered."""
        for what in request.warnings:
            self._tell(client, what)
        if not passing and not facts <= self._facts:
            self._add(facts)

    def _add(self, facts: frozenset[str]) -> None:
        with _lock:
            self._facts |= facts

    # ---- who finds out ------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _turn(self, client: HTTPClient, payload: JSON) -> AsyncIterator[None]:
        """Let the first call of a kind go ahead for a moment, so that one call finds out, and not all at once."""
        kind = payload.get("structured_outputs") is not None
        if kind in self._settled or self._server.vllm:  # of a vLLM it is known what it takes
            yield
            return
        own: Future[None] | None = None
        with _lock:
            ahead, until = self._finding.get(kind, (None, 0.0))
            if ahead is None:
                own = Future()
                self._finding[kind] = own, time.monotonic() + _FIRST_SECONDS
        if ahead is not None and (left := until - time.monotonic()) > 0:
            await asyncio.wait([asyncio.wrap_future(ahead)], timeout=left)
        try:
            if own is not None:
                await self._look(client, payload)
                if self._server.vllm:
                    self._let_go(kind, own)
            yield
            self._settled.add(kind)
        finally:
            if own is not None:
                self._let_go(kind, own)

    def _let_go(self, kind: bool, own: Future[None]) -> None:
        with _lock:
            if self._finding.get(kind, (None, 0.0))[0] is own:
                del self._finding[kind]
        if not own.done():
            own.set_result(None)

    async def _look(self, client: HTTPClient, payload: JSON) -> None:
        """Find out whether the server is a vLLM, if that makes a difference."""
        if self._server.vllm is None and payload.get("structured_outputs") is not None:
            cards = await client.glance("models", lambda body: [dict(card) for card in body["data"]])
            if cards is not None:
                note_cards(client.base_url, cards)


def _fact(status: int, said: str, request: _Request) -> str | None:
    """What a refusal tells of the server; None if it has another cause."""
    if status not in (400, 422):
        return None
    if "max_tokens" in request.payload and re.search(r"\bmax_completion_tokens\b", said):
        return "refuses max_tokens"
    if request.form is not None and request.constraint is not None and re.search(WORDS[request.form], said):
        if request.form == "response_format" and request.strict and _STRICT.search(said):
            return "refuses strict"
        return f"refuses {request.form}"
    if _UNKNOWN.search(said):
        for name in _OPTIONAL:
            if name in request.payload and re.search(rf"(?<![\w.]){name}\b", said):
                return f"refuses {name}"
    return None
