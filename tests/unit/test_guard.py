"""Who comes through the door of a model server of our own."""

import asyncio
import json
from typing import Any

import pytest

from matrix_graph.models.serving.guard import HOSTS_VARIABLE, KEY_VARIABLE, RequireKey

KEY = "the-key"
ENVIRONMENT = {KEY_VARIABLE: KEY, HOSTS_VARIABLE: "127.0.0.1,proxy.example"}
WITH_KEY = {"host": "127.0.0.1:80", "authorization": f"Bearer {KEY}"}


def ask(
    method: str = "POST", path: str = "/invocations", kind: str = "http", **headers: str | list[str]
) -> tuple[int, list[Any]]:
    """The HTTP status (0: the application was reached) and all that was sent."""
    reached: list[str] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    fields = [
        (name.encode(), value.encode("latin-1"))
        for name, values in headers.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    scope = {"type": kind, "method": method, "path": path, "headers": fields}
    asyncio.run(RequireKey(app, ENVIRONMENT)(scope, receive, send))
    assert bool(reached) is not bool(sent)
    return (0 if reached else sent[0].get("status", -1)), sent


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/invocations"),
        ("POST", "/adapters"),
        ("DELETE", "/adapters/kind"),
        ("POST", "/tokenize"),
        ("POST", "/scale_elastic_ep"),
        ("GET", "/metrics"),
        ("GET", "/v1/models"),
        ("GET", "/docs"),
        ("GET", "/"),
        ("GET", "/health/"),
        ("GET", "//health"),
        ("GET", "/healthy"),
        ("POST", "/health"),
        ("OPTIONS", "/invocations"),
    ],
)
def test_every_path_but_health_asks_for_the_key(method: str, path: str) -> None:
    status, sent = ask(method, path, host="127.0.0.1:80")
    assert status == 401
    assert "key is missing or wrong" in json.loads(sent[1]["body"])["error"]["message"]
    assert ask(method, path, **WITH_KEY)[0] == 0


def test_health_asks_for_no_key_but_for_the_right_host() -> None:
    assert ask("GET", "/health", host="127.0.0.1:80")[0] == 0
    assert ask("HEAD", "/health", host="localhost")[0] == 0
    assert ask("GET", "/health", host="rebound.evil.example:80")[0] == 403


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", [f"Bearer {KEY}", "Bearer wrong"]],
)
def test_wrong_keys_are_refused(authorization: str | list[str]) -> None:
    assert ask(host="127.0.0.1", authorization=authorization)[0] == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "rebound.evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": ["127.0.0.1", "evil.example"]}, 403),
        ({"host": "proxy.example"}, 0),
        ({"host": "LOCALHOST:9000"}, 0),
        ({"host": "[::1]:80"}, 0),
        ({"host": "192.0.2.7:80"}, 0),
        ({"host": "localhost:80", "origin": "https://evil.example"}, 403),
        ({"host": "localhost:80", "origin": "http://localhost:3000"}, 403),
        ({"host": "localhost:80", "origin": "http://203.0.113.5"}, 403),
        ({"host": "localhost:80", "origin": "null"}, 403),
        ({"host": "localhost:80", "origin": "http://localhost:80"}, 0),
    ],
)
def test_foreign_hosts_and_origins_are_refused_even_with_the_key(headers: dict[str, Any], status: int) -> None:
    assert ask(authorization=f"Bearer {KEY}", **headers)[0] == status


def test_websockets_ask_for_the_key() -> None:
    status, sent = ask(path="/v1/realtime", kind="websocket", host="127.0.0.1")
    assert status == -1 and sent[0]["type"] == "websocket.close" and sent[0]["code"] == 1008
    assert ask(path="/health", kind="websocket", host="127.0.0.1")[0] == -1
    assert ask(path="/v1/realtime", kind="websocket", **WITH_KEY)[0] == 0


def test_start_and_end_of_the_application_pass() -> None:
    assert ask(kind="lifespan")[0] == 0


def test_without_a_key_the_server_does_not_start() -> None:
    with pytest.raises(ValueError, match="VLLM_API_KEY is not set"):
        RequireKey(None, {})  # type: ignore[arg-type]
