"""What a vLLM server tells at `/metrics`, in Prometheus' text format: counters, gauges, the size of its cache.

Why apart from the server that we supervise: a batch may run on any server, and reads the same page. What always holds:
the page is read without trust, so that what is no number is passed over; a server without such a page is no error.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_COUNTERS = {
    "vllm:prefix_cache_queries": "prefix_cache_queries",
    "vllm:prefix_cache_hits": "prefix_cache_hits",
    "vllm:prompt_tokens": "prompt_tokens",
    "vllm:generation_tokens": "generation_tokens",
    "vllm:request_success": "requests",
}
_GAUGES = {
    "vllm:num_requests_running": "requests_running",
    "vllm:num_requests_waiting": "requests_waiting",
}
_CACHE = "vllm:cache_config_info"
_NAMES = "|".join(map(re.escape, (*_COUNTERS, *_GAUGES, _CACHE)))
# Possessive, so that a broken line costs no more time than a whole one.
_SAMPLE = re.compile(
    rf"^(?P<name>{_NAMES})(?:_total)?"
    r'(?:\{(?P<labels>(?:[^"}\n]++|"(?:[^"\\\n]++|\\.)*+")*+)\})?'
    r"[ \t]+(?P<value>[-+.\w]+)(?:[ \t]+-?\d+)?[ \t\r]*$",
    re.MULTILINE,
)
_LABEL = re.compile(r'\b(?P<name>\w++)="(?P<value>(?:[^"\\\n]++|\\.)*+)"')
_LONGEST = 4 * 1024 * 1024
"""Bytes of a page; a server of one engine has some 100,000."""
_UNBELIEVABLE = 1e18


@dataclass(frozen=True)
class CacheConfig:
    """What fits into a server's key-value cache, added up over its engines (data parallel).

    Attributes:
        engines: how many engines told it.
        tokens: tokens that fit; None: unknown.
        max_concurrency: requests of the model's full context length that fit at the same time; None: unknown.
    """

    engines: int
    tokens: int | None
    max_concurrency: float | None


def parse_counters(text: str) -> dict[str, float]:
    """The counters on a page since the server started, summed over engines; those that it does not have are absent.

    Keys: prefix_cache_queries and prefix_cache_hits (tokens), prompt_tokens, generation_tokens, requests (done).
    """
    return _summed(text, _COUNTERS)


def parse_gauges(text: str) -> dict[str, float]:
    """How busy the server is at this moment, summed over engines; what it does not tell is absent.

    Keys: requests_running (in the engine's batch), requests_waiting (for room in it).
    """
    return _summed(text, _GAUGES)


def parse_cache_config(text: str) -> CacheConfig | None:
    """What fits into the server's key-value cache; None: the page does not tell.

    Each engine tells its own `kv_cache_size_tokens` and `kv_cache_max_concurrency`. Where the former is missing, blocks
    times their size stand in for it; `num_gpu_blocks` is the sum over all engines already, repeated by each (vLLM's
    `EngineCoreClient`).
    """
    engines: dict[str, dict[str, str]] = {}
    for sample in _SAMPLE.finditer(text):
        if sample["name"] == _CACHE:
            labels = {label["name"]: label["value"] for label in _LABEL.finditer(sample["labels"] or "")}
            engines[labels.get("engine", "")] = labels
    if not engines:
        return None
    tokens = _added(_positive(labels.get("kv_cache_size_tokens")) for labels in engines.values())
    if tokens is None:
        sizes = [_product(labels.get("block_size"), labels.get("num_gpu_blocks")) for labels in engines.values()]
        tokens = max((size for size in sizes if size is not None), default=None)
    return CacheConfig(
        engines=len(engines),
        tokens=None if tokens is None else int(tokens),
        max_concurrency=_added(_positive(labels.get("kv_cache_max_concurrency")) for labels in engines.values()),
    )


async def fetch_metrics(
    base_url: str, key: str | None, seconds: float, headers: Mapping[str, str] | None = None
) -> str | None:
    """The page of a running server.

    Args:
        base_url: the API's root, usually ending in `/v1`; the page lies beside that.
        key: bearer token; None sends none.
        seconds: at most so long.
        headers: sent besides.

    Returns:
        The text; None if it cannot be had, for whatever reason: other servers than vLLM have none.
    """
    # Here, since the settings of a server of our own import this module, and reading traces needs no client.
    import aiohttp

    from matrix_graph.models.client import key_files, own_servers, pool
    from matrix_graph.models.client.headers import request_headers, without_login
    from matrix_graph.models.client.proxies import proxy_for

    key = own_servers.current_key(base_url, key)
    url = f"{without_login(base_url).rstrip('/').removesuffix('/v1')}/metrics"
    http = await pool.session()
    page = bytearray()
    try:
        async with http.get(
            url,
            headers=request_headers(key, headers or {}, base_url),
            timeout=aiohttp.ClientTimeout(total=seconds),
            allow_redirects=False,
            proxy=proxy_for(url),
        ) as response:
            if response.status == 401 and (newer := key_files.key_for(base_url)) not in (None, key):
                return await fetch_metrics(base_url, newer, seconds, headers)
            if response.status != 200:
                return None
            async for block in response.content.iter_any():
                page += block
                if len(page) > _LONGEST:
                    return None  # half a page would give wrong sums
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
    return page.decode("utf-8", "replace")


def _summed(text: str, keys: Mapping[str, str]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for sample in _SAMPLE.finditer(text):
        key, value = keys.get(sample["name"]), _number(sample["value"])
        if key is not None and value is not None:
            sums[key] = sums.get(key, 0.0) + value
    return sums


def _number(text: str | None) -> float | None:
    """What is no number ("None", "NaN") is unknown, and so is what no server can have counted."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < _UNBELIEVABLE else None


def _positive(text: str | None) -> float | None:
    value = _number(text)
    return value if value is not None and value > 0 else None


def _product(one: str | None, other: str | None) -> float | None:
    left, right = _positive(one), _positive(other)
    return None if left is None or right is None else left * right


def _added(values: Iterator[float | None]) -> float | None:
    """The sum; unknown if one of the values is."""
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total
