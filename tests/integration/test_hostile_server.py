"""ChatVLLM, the small requests beside it and whole commands against servers that mean no good, over real HTTP."""

import asyncio
import gzip
import json
import logging
import random
import socket
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from matrix_graph import SceneConfig, run_batch
from matrix_graph.errors import MatrixGraphError, ModelError, ModelRequestError, ModelUnavailableError, ServerError
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.client.metrics import fetch_metrics
from matrix_graph.models.serving.endpoint import Endpoint
from matrix_graph.scene.graph import create_scene
from tests.integration.model_server import Fault, ModelServer, unreliable

KEY = "sk-MYSECRETKEY-0123456789"


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as started:
        yield started


class Hostile(ModelServer):
    """Answers every request in its own way."""

    def __init__(self, answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> None:
        super().__init__()
        self._answer_all = answer

    @web.middleware
    async def _gate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        return await self._answer_all(request)


def client(server: ModelServer, /, **options: Any) -> ChatVLLM:
    fields = {"base_url": server.base_url, "model": "fake-model", "api_key": KEY, "give_up_after": 0, "timeout": 5}
    return ChatVLLM(**{**fields, **options})


def endpoint(server: ModelServer) -> Endpoint:
    return Endpoint("127.0.0.1", server.port, api_key=KEY)


# ---- waits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "header",
    ["nan", "inf", "-5", "1" + "0" * 20, "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
     "Fri, 31 Dec 9999 23:59:59 -99999999999"],
)  # fmt: skip
async def test_no_retry_after_outlasts_the_patience(server: ModelServer, status: int, header: str) -> None:
    server.fail_first(99, Fault(status=status, headers={"Retry-After": header}))
    began = time.monotonic()
    tasks = [asyncio.create_task(client(server, give_up_after=0.5).ainvoke("hi")) for _ in range(3)]
    await asyncio.sleep(0.1)
    ticked = time.monotonic()
    await asyncio.sleep(0.1)  # other timers of the loop go on
    assert time.monotonic() - ticked < 2
    for done in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(done, ModelUnavailableError) and done.status == status
    assert time.monotonic() - began < 5


# ---- the key --------------------------------------------------------------------------------------------------------


def chain(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield repr(error) + str(error)
        error = error.__cause__ or error.__context__


def echoing(request: web.Request) -> str:
    return "\n".join(f"{name}: {value}" for name, value in request.headers.items())


ECHOES = {
    "200 text": lambda said: web.Response(text=said),
    "200 json": lambda said: web.json_response({"echo": said}),
    "200 far": lambda said: web.Response(text="x" * 460 + said),
    "401": lambda said: web.json_response({"error": {"message": said}}, status=401),
    "400 far": lambda said: web.Response(text="x" * 420 + said, status=400),
    "500": lambda said: web.Response(text=said, status=500),
    "302": lambda said: web.Response(text=said, status=302, headers={"Location": "/"}),
    "content": lambda said: web.json_response({"choices": [{"message": {"content": said}}], "model": said, "id": said}),
    "usage": lambda said: web.json_response({"choices": [{"message": {"content": [said]}}], "usage": said}),
    "event": lambda said: web.Response(text=f"data: {json.dumps({'error': {'message': said}})}\n\n"),
    "event 200": lambda said: web.Response(
        text=f"data: {json.dumps({'choices': [{'delta': {'content': said}}]})}\n\ndata: [DONE]\n\n"
    ),
    "broken event": lambda said: web.Response(text=f"data: {said!r}\n\n"),
    "header": lambda said: web.Response(headers={"Content-Encoding": "gzip"}, body=said.encode()),
}


@contextmanager
def echo(kind: str) -> Iterator[ModelServer]:
    async def answer(request: web.Request) -> web.Response:
        return ECHOES[kind](echoing(request))

    with Hostile(answer) as server:
        yield server


@pytest.mark.parametrize("kind", ECHOES)
async def test_a_server_that_echoes_the_headers_tells_nobody_the_key(kind: str) -> None:
    with echo(kind) as server:
        shown: list[str] = []
        model = client(server)
        tries = [
            model.ainvoke("hi"),
            model.bind(stream=False).ainvoke("hi"),
            client(server, streaming=True).ainvoke("hi"),
            model.aserved_names(),
            model.acount_tokens("hi"),
        ]
        for task in tries:
            try:
                shown.append(repr(await task))
            except ModelError as error:
                shown += chain(error)
        for call in (
            lambda: endpoint(server).served(5),
            lambda: endpoint(server).load_adapter("a", Path("/a")),
            lambda: endpoint(server).metrics(5),
        ):
            try:
                shown.append(repr(call()))
            except ServerError as error:
                shown += chain(error)
        assert not [text for text in shown if "SECRET" in text or "0123456" in text]


async def test_a_redirect_takes_the_key_nowhere() -> None:
    with ModelServer() as other:
        there = f"http://localhost:{other.port}"

        async def away(_: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": there + "/v1/models"})

        with Hostile(away) as redirecting:
            with pytest.raises(ServerError, match="HTTP 307"):
                endpoint(redirecting).served(5)
            assert endpoint(redirecting).models(5) is None and endpoint(redirecting).health(5) == 307
            assert await fetch_metrics(redirecting.base_url, KEY, 5) is None
            with pytest.raises(ModelRequestError, match="not followed"):
                await client(redirecting).ainvoke("hi")
        assert not other.requests


# ---- sizes and shapes -----------------------------------------------------------------------------------------------


def bomb(encoding: str) -> bytes:
    inside = b'{"x": "' + b"a" * (80 * 1024 * 1024) + b'", "choices": [{"message": {"content": "x"}}]}'
    return gzip.compress(inside, 9) if encoding == "gzip" else zlib.compress(inside, 9)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("status", [200, 400])
async def test_what_is_packed_has_a_limit_unpacked(encoding: str, status: int) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=packed, status=status, headers={"Content-Encoding": encoding})

    packed = bomb(encoding)
    assert len(packed) < 200_000
    with Hostile(answer) as hostile, pytest.raises(ModelError) as caught:
        await client(hostile, timeout=30).ainvoke("hi")
    assert ("longer than 33,554,432 bytes" in str(caught.value)) == (status == 200)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("start", [b"data: ", b'data: {"choices": [{"delta": {"content": "'])
async def test_an_endless_event_is_cut_off(start: bytes) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(start)
        while True:
            await response.write(b"a" * 1024 * 1024)

    with Hostile(answer) as hostile, pytest.raises(ModelUnavailableError, match="a line of the stream is longer"):
        async for _ in client(hostile, timeout=60).astream("hi"):
            pass


@pytest.mark.parametrize(
    "body",
    [b"[" * 200_000, b'{"choices": ' + b"[" * 200_000 + b"}", b'{"a":' * 900 + b"1" + b"}" * 900,
     b'{"choices": [{"message": {"content": "\\ud800"}, "x": ' + b"9" * 5000 + b"}]}"],
)  # fmt: skip
async def test_nesting_and_digits_without_end_are_garbage(server: ModelServer, body: bytes) -> None:
    server.fail_first(9, Fault(garbage=body))
    with pytest.raises(ModelUnavailableError, match="garbage") as caught:
        await client(server).ainvoke("hi")
    assert caught.value.status == 200


@pytest.mark.parametrize(
    "body", [b"", b"data: [DONE]\n\n", b'data: {"choices": []}\n\ndata: [DONE]\n\n', b": nothing\n\n"]
)
async def test_a_stream_without_a_reply_is_garbage(server: ModelServer, body: bytes) -> None:
    server.fail_first(1, Fault(garbage=body))
    with pytest.raises(ModelUnavailableError, match="stream"):
        await client(server, streaming=True).ainvoke("hi")
    server.fail_first(1, Fault(garbage=body))
    assert (await client(server, streaming=True, give_up_after=5).ainvoke("hi")).text


async def test_thousands_of_choices_are_garbage(server: ModelServer) -> None:
    server.fail_first(1, Fault(garbage=b'{"choices": [' + b'{"message": {"content": "x"}},' * 50_000 + b"{}]}"))
    with pytest.raises(ModelUnavailableError, match="50001 choices"):
        await client(server).ainvoke("hi")


async def test_half_a_character_in_a_name_ends_nothing(server: ModelServer) -> None:
    def reply(_: Any) -> Fault:
        body = (
            rb'{"choices": [{"message": {"content": "he\udfffllo"}, "finish_reason": "\ud800"}], "model": "m\ud800", '
        )
        return Fault(garbage=body + rb'"id": "\udc00"}')

    server.reply = reply
    message = await client(server).ainvoke("hi")
    assert message.content == "he\ufffdllo" and message.id == "\ufffd"
    assert message.response_metadata["model_name"] == "m\ufffd"
    assert message.response_metadata["finish_reason"] == "\ufffd"
    scene = await create_scene(client(server)).compile().ainvoke({"question": "How?"})
    assert json.dumps(scene["calls"], ensure_ascii=False).encode()


class Dripping(threading.Thread):
    """Answers a byte at a time, and never comes to an end."""

    def __init__(self, start: bytes) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self._start_with = start

    def run(self) -> None:
        connection, _ = self.listener.accept()
        with connection, self.listener:
            connection.recv(65536)
            connection.sendall(self._start_with)
            try:
                while True:
                    connection.sendall(b"a")
                    time.sleep(0.05)
            except OSError:
                pass


@pytest.mark.parametrize(
    "start",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
)
def test_a_deadline_holds_for_the_whole_answer(start: bytes) -> None:
    slow = Dripping(start)
    slow.start()
    began = time.monotonic()
    assert Endpoint("127.0.0.1", slow.port, api_key="").health(0.7) is None
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nxx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nxx",
        b"HTTP/1.1 \xff\xfe\r\n\r\n",
        b"Authorization: Bearer " + KEY.encode() + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000,
        b"",
    ],
)
def test_an_answer_that_is_not_http_is_no_list_of_models(answer: bytes) -> None:
    for ask in ("models", "served", "metrics", "health"):
        listener = socket.create_server(("127.0.0.1", 0))

        def serve(listener: socket.socket = listener) -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        place = Endpoint("127.0.0.1", listener.getsockname()[1], api_key=KEY)
        with listener:
            try:
                found = getattr(place, ask)(3)
            except ServerError as error:
                assert not [text for text in chain(error) if KEY in text]
            else:
                assert not found or found == 200


# ---- whatever comes -------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, 0, -1, 7, 2**70, 10**400, 1.5, float("nan"), float("inf"), "", "x", "\ud800", "\0", "9" * 30, [], [[]],
    {}, {"a": {"b": []}}, [None], "Bearer " + KEY, {"message": KEY}, "[" * 3000, '{"a": [' * 300,
]  # fmt: skip

MESSAGE: dict[str, Any] = {
    "role": "assistant", "content": "hello", "reasoning": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
}  # fmt: skip
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}}
BODY: dict[str, Any] = {
    "id": "x", "model": "m", "usage": USAGE, "count": 3, "data": [{"id": "m", "max_model_len": 8192}],
    "choices": [{"index": 0, "message": MESSAGE, "logprobs": {"content": []}, "finish_reason": "stop"}],
}  # fmt: skip
EVENTS: list[dict[str, Any]] = [
    {"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"content": "he"}, "finish_reason": None}]},
    {"id": "x", "choices": [{"delta": {"tool_calls": [{"index": 0, **MESSAGE["tool_calls"][0]}]}}]},
    {"id": "x", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": USAGE},
    {"error": {"message": "no", "code": 500}},
]


def mutated(value: Any, chance: random.Random, rate: float) -> Any:
    """`value` with parts of it gone, doubled, or in another's place."""
    if chance.random() < rate:
        return chance.choice(ODD)
    if isinstance(value, dict):
        changed = {name: mutated(item, chance, rate) for name, item in value.items() if chance.random() > rate / 2}
        return changed | (
            {chance.choice(["error", "\ud800", "usage"]): chance.choice(ODD)} if chance.random() < rate else {}
        )
    if isinstance(value, list):
        return [mutated(item, chance, rate) for item in value for _ in range(chance.choice([1, 1, 1, 1, 0, 2]))]
    return value


def damaged(raw: bytes, chance: random.Random) -> bytes:
    """`raw` with bytes of it changed, or cut."""
    if chance.random() < 0.7:
        return raw
    at = chance.randrange(len(raw) + 1)
    return (
        raw[:at]
        + chance.choice([b"", b"\xff", b"\0", b"\xed\xa0\x80", b"\n", b"[" * 999])
        + raw[at + chance.randrange(3) :]
    )


def hostile_answer(chance: random.Random) -> tuple[int, dict[str, str], bytes, bytes]:
    """A status, headers, a body and a stream."""
    rate = chance.choice([0.02, 0.1, 0.3])
    body = damaged(json.dumps(mutated(BODY, chance, rate)).encode(), chance)
    events = [f"data: {json.dumps(mutated(event, chance, rate))}\n\n".encode() for event in EVENTS]
    chance.shuffle(events)
    stream = damaged(b"".join(events) + chance.choice([b"data: [DONE]\n\n", b""]), chance)
    status = chance.choice([200] * 8 + [201, 204, 304, 307, 400, 404, 418, 429, 500, 503, 599])
    headers = {"Content-Type": chance.choice(["application/json", "text/html", "x", "text/plain; charset=\u00e9"])}
    if chance.random() < 0.1:
        headers["Content-Encoding"] = chance.choice(["gzip", "deflate", "br", "zstd", "what"])
    if chance.random() < 0.2:
        headers["Retry-After"] = chance.choice(["nan", "-inf", "1e9", "Mon, 01 Jan 0001 00:00:00 +9999", "\u00e9"])
    return status, headers, body, stream


async def test_of_hundreds_of_mutated_replies_none_raises_what_is_not_promised() -> None:
    chance = random.Random(18)
    answers: list[tuple[int, dict[str, str], bytes, bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        wants = await request.json() if request.can_read_body else {}
        status, headers, body, stream = answers[0]
        return web.Response(status=status, headers=headers, body=stream if wants.get("stream") else body)

    serializer = JsonPlusSerializer()
    usable = 0
    with Hostile(answer) as hostile:
        model, streaming = client(hostile), client(hostile, streaming=True)
        for number in range(400):
            answers[:] = [hostile_answer(chance)]
            for ask in (model.ainvoke, streaming.ainvoke, *([_names, _tokens] if number % 4 == 0 else [])):
                try:
                    got = await (ask(model) if ask in (_names, _tokens) else ask("hi"))  # type: ignore[operator]
                except MatrixGraphError as error:
                    assert str(error).encode() and len(str(error)) < 3000 and KEY not in "".join(chain(error))
                else:
                    usable += 1
                    assert KEY not in repr(got)
                    if hasattr(got, "model_dump") and not got.invalid_tool_calls:
                        assert serializer.dumps_typed(got)
                        assert json.dumps(got.model_dump(exclude={"tool_calls"}), ensure_ascii=False).encode()
    assert usable > 50


async def _names(model: ChatVLLM) -> list[str]:
    return await model.aserved_names()


async def _tokens(model: ChatVLLM) -> int:
    return await model.acount_tokens("hi")


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["HTTP 500", "HTTP 503", "dropped", "mixed"])
async def test_a_server_that_fails_now_and_then_is_alive(
    server: ModelServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "matrix_graph.batch")
    faults = {"HTTP 500": [Fault(500)], "HTTP 503": [Fault(503)], "dropped": [Fault(drop=True)]}
    faults["mixed"] = [fault for some in faults.values() for fault in some] + [Fault(502), Fault(429)]
    nonsense, chance = unreliable(0.0, 0.5, 6), random.Random(6)
    server.reply = lambda body: chance.choice(faults[kind]) if chance.random() < 0.2 else nonsense(body)
    questions = [f"What is {number}?" for number in range(12)]
    settings = SceneConfig(roles=1, steps=1)
    model = ChatVLLM(base_url=server.base_url, model="fake-model")
    traces = [trace async for trace in run_batch(questions, model, config=settings, max_requests=8)]
    assert sorted(trace.question for trace in traces) == sorted(questions)
    failed = {trace.error.type for trace in traces if trace.error is not None}
    assert failed <= {"ReplyError"}, "of nonsense in a reply, never of a server that lives"
    assert not [line for line in caplog.messages if "away" in line or "set aside" in line]
