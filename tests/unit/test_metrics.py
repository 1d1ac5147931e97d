"""The metrics page of a server: what vLLM writes is read to the number, and what anybody else writes does no harm."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler
from hypothesis import given
from hypothesis import strategies as st

from matrix_graph.models.client import pool
from matrix_graph.models.client.metrics import (
    CacheConfig,
    fetch_metrics,
    parse_cache_config,
    parse_counters,
    parse_gauges,
)

PAGE = """\
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{implementation="CPython",major="3"} 1.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a } model \\"of\\" mine"} 64.0
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 3.0
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="a } model"} 1.234567e+06
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7638e+09
vllm:external_prefix_cache_queries_total{engine="0",model_name="m"} 7.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 1e+06
vllm:prompt_tokens_total{engine="0",model_name="m"} 12.0
vllm:prompt_tokens_by_source_total{engine="0",source="local"} 99.0
vllm:generation_tokens_total{engine="0",model_name="m"} 34.0 1763800000000
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 5.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 2.0
vllm:request_generation_tokens_bucket{engine="0",le="1.0"} 8.0
"""
CACHE = (
    'vllm:cache_config_info{{_block_size_resolved="True",block_size="{block_size}",cache_dtype="auto",engine="{engine}",'
    'kv_cache_max_concurrency="{concurrency}",kv_cache_memory_bytes="None",kv_cache_size_tokens="{tokens}",'
    'mamba_block_size="None",num_cpu_blocks="None",num_gpu_blocks="{blocks}"}} 1.0\n'
)


def cache(*engines: dict[str, Any]) -> str:
    usual = {"block_size": 128, "tokens": 93184, "concurrency": 22.75, "blocks": 728}
    return "".join(CACHE.format(**{**usual, "engine": index, **engine}) for index, engine in enumerate(engines))


# --- counters and gauges


def test_the_page_of_one_engine() -> None:
    assert parse_counters(PAGE) == {
        "prefix_cache_queries": 1_234_567.0,
        "prefix_cache_hits": 1_000_000.0,
        "prompt_tokens": 12.0,
        "generation_tokens": 34.0,
        "requests": 7.0,
    }
    assert parse_gauges(PAGE) == {"requests_running": 64.0, "requests_waiting": 3.0}
    assert parse_cache_config(PAGE) is None


def test_engines_are_added_up() -> None:
    second = PAGE.replace('engine="0"', 'engine="1"')
    assert parse_counters(PAGE + second) == {key: 2 * value for key, value in parse_counters(PAGE).items()}
    assert parse_gauges(PAGE + second) == {"requests_running": 128.0, "requests_waiting": 6.0}


@pytest.mark.parametrize(
    "text", ["", "<html>not found</html>", "vllm:prompt_tokens_total", "vllm:prompt_tokens_total{"]
)
def test_other_pages_tell_nothing(text: str) -> None:
    assert (parse_counters(text), parse_gauges(text), parse_cache_config(text)) == ({}, {}, None)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "1e", "--3", "None", "1e400", "1e99"])
def test_what_is_no_count_is_passed_over(value: str) -> None:
    page = f'vllm:prompt_tokens_total{{engine="0"}} {value}\nvllm:prompt_tokens_total{{engine="1"}} 4\n'
    assert parse_counters(page) == {"prompt_tokens": 4.0}
    assert parse_cache_config(cache({"tokens": value, "blocks": value})) == CacheConfig(1, None, 22.75)


@given(st.lists(st.sampled_from(["vllm:prompt_tokens", "_total", *'{}=", \\\n10.ea'])).map("".join))
def test_whatever_comes_is_read_without_error(text: str) -> None:
    for page in (text, f"vllm:cache_config_info{text}", f'vllm:cache_config_info{{num_gpu_blocks="{text}"}} 1.0'):
        assert all(isinstance(value, float) for value in parse_counters(page).values())
        parse_gauges(page)
        parse_cache_config(page)


@pytest.mark.parametrize("filler", ["a", '"', "\\", '"a', '"\\"', 'a="b",', "{", " "])
def test_a_hostile_line_takes_no_time(filler: str) -> None:
    began = time.perf_counter()
    for begin, end in (("{", ""), ('{a="', "} 1"), ("{x", "} 1"), ('{a="', '"} 1')):
        parse_cache_config(f"vllm:cache_config_info{begin}{filler * 100_000}{end}")
    assert time.perf_counter() - began < 1


# --- the cache


def test_the_cache_of_one_engine() -> None:
    assert parse_cache_config(PAGE + cache({})) == CacheConfig(engines=1, tokens=93_184, max_concurrency=22.75)


def test_the_caches_of_engines_are_added_up() -> None:
    page = cache({"blocks": 1456}, {"blocks": 1456, "tokens": 93_000, "concurrency": 22.25})
    assert parse_cache_config(page) == CacheConfig(engines=2, tokens=186_184, max_concurrency=45.0)


def test_blocks_stand_in_for_tokens() -> None:
    """Each engine repeats the blocks of all."""
    unknown = {"tokens": None, "concurrency": None}
    assert parse_cache_config(cache(unknown)) == CacheConfig(1, 93_184, None)
    assert parse_cache_config(cache(unknown, unknown)) == CacheConfig(2, 93_184, None)
    assert parse_cache_config(cache({**unknown, "blocks": None})) == CacheConfig(1, None, None)
    assert parse_cache_config("vllm:cache_config_info 1.0\n") == CacheConfig(1, None, None)


# --- over HTTP, without a socket


class Wire(asyncio.Transport):
    """The far end of a connection: answers the request with the given pieces, then is silent or gone."""

    def __init__(self, connector: Connector, protocol: ResponseHandler) -> None:
        super().__init__()
        self._connector, self._protocol, self._closing = connector, protocol, False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._connector.sent += bytes(data)
        if self._connector.sent.endswith(b"\r\n\r\n"):
            loop = asyncio.get_running_loop()
            for piece in self._connector.answer:
                loop.call_soon(self._receive, piece)
            if self._connector.hangs_up:
                loop.call_soon(self.close)

    def _receive(self, piece: bytes) -> None:
        if not self._closing:
            self._protocol.data_received(piece)

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Connector(aiohttp.BaseConnector):
    """Real HTTP, up to where the socket would be."""

    def __init__(self, *answer: bytes, hangs_up: bool = False, refuses: bool = False) -> None:
        super().__init__()
        self.answer, self.hangs_up, self.refuses, self.sent = answer, hangs_up, refuses, b""

    async def _create_connection(self, *_: Any) -> ResponseHandler:
        if self.refuses:
            raise aiohttp.ClientConnectionError("nobody there")
        protocol = ResponseHandler(asyncio.get_running_loop())
        protocol.connection_made(Wire(self, protocol))
        return protocol


def answer(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


async def fetched(
    monkeypatch: pytest.MonkeyPatch, connector: Connector, *, key: str | None = None, url: str = "http://there:1/v1"
) -> str | None:
    async with aiohttp.ClientSession(connector=connector) as http:

        async def session() -> aiohttp.ClientSession:
            return http

        monkeypatch.setattr(pool, "session", session)
        return await fetch_metrics(url, key, 0.2)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://there:1/v1", "/metrics"),
        ("http://there:1/v1/", "/metrics"),
        ("http://there:1", "/metrics"),
        ("http://there:1/models/a/v1", "/models/a/metrics"),
    ],
)
async def test_the_page_lies_beside_the_api(monkeypatch: pytest.MonkeyPatch, url: str, path: str) -> None:
    whole = answer(PAGE.encode())
    connector = Connector(whole[:100], whole[100:300], whole[300:])
    assert await fetched(monkeypatch, connector, url=url) == PAGE
    assert connector.sent.startswith(f"GET {path} HTTP/1.1\r\nHost: there:1\r\n".encode())
    assert b"Authorization" not in connector.sent


async def test_the_key_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    connector = Connector(answer(b"x"))
    assert await fetched(monkeypatch, connector, key="secret") == "x"
    assert b"\r\nAuthorization: Bearer secret\r\n" in connector.sent


@pytest.mark.parametrize(
    "connector",
    [
        lambda: Connector(answer(b"no", "404 Not Found")),
        lambda: Connector(answer(b"", "302 Found", "Location: http://elsewhere/\r\n")),
        lambda: Connector(answer(b"", "500 Internal Server Error")),
        lambda: Connector(b"\x00\xffgarbage\r\n\r\n"),
        lambda: Connector(answer(PAGE.encode())[:-9], hangs_up=True),
        lambda: Connector(hangs_up=True),
        lambda: Connector(),
        lambda: Connector(refuses=True),
        lambda: Connector(answer(b"#" * (4 * 1024 * 1024 + 1))),
    ],
    ids=["404", "302", "500", "garbage", "half", "nothing", "silence", "refused", "huge"],
)
async def test_no_page_is_no_error(monkeypatch: pytest.MonkeyPatch, connector: Any) -> None:
    assert await fetched(monkeypatch, connector()) is None


async def test_an_address_that_is_none_and_bytes_that_are_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await fetched(monkeypatch, Connector(), url="nowhere") is None
    assert await fetched(monkeypatch, Connector(), key="k", url="http://user:word@there:1/v1") is None
    assert await fetched(monkeypatch, Connector(answer(b"a\xffb"))) == "a\ufffdb"
    assert await fetched(monkeypatch, Connector(answer(b"#" * (4 * 1024 * 1024)))) == "#" * (4 * 1024 * 1024)


async def test_cancellation_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await fetched(monkeypatch, Connector())
