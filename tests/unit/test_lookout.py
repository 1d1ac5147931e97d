"""Whether a server counts as away: by several requests in a row, and by what came of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest

from matrix_graph.batch import lookout
from matrix_graph.errors import ModelRequestError, ModelUnavailableError
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.traffic import Unserving

OK = None


def unavailable(status: int | None, cause: Exception | None = None) -> ModelUnavailableError:
    error = ModelUnavailableError(f"HTTP {status}", status=status)
    error.__cause__ = cause
    return error


def refused() -> ModelUnavailableError:
    key: Any = None
    return unavailable(None, aiohttp.ClientConnectorError(key, ConnectionRefusedError(111, "refused")))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lookout, "_FIRST_PAUSE", 0.0)
    yield


def probed(monkeypatch: pytest.MonkeyPatch, reply: Callable[[], Exception | None]) -> tuple[str | None, int]:
    """What a probe finds, and after how many requests."""
    asked = 0

    async def acomplete(*_: Any) -> None:
        nonlocal asked
        asked += 1
        if (error := reply()) is not None:
            raise error

    monkeypatch.setattr(ChatVLLM, "acomplete", acomplete)
    monkeypatch.setattr("aiohttp.ClientConnectorError.__str__", lambda self: "connection refused")
    probe = lookout.probe_of(ChatVLLM(model="m"))
    assert probe is not None
    return asyncio.run(probe()), asked


@pytest.mark.parametrize(
    "answer", [OK, ModelRequestError("no", status=400), ModelRequestError("no", status=401), unavailable(200)]
)
def test_whatever_is_no_failure_of_the_server_is_a_sign_of_life(
    monkeypatch: pytest.MonkeyPatch, answer: Exception | None
) -> None:
    assert probed(monkeypatch, lambda: answer) == (None, 1)


@pytest.mark.parametrize("status", [500, 503, 429, None])
def test_one_failure_is_no_absence(monkeypatch: pytest.MonkeyPatch, status: int | None) -> None:
    answers = [unavailable(status)] * (lookout._LOOKS - 1) + [OK]
    assert probed(monkeypatch, lambda: answers.pop(0)) == (None, lookout._LOOKS)


@pytest.mark.parametrize(
    ("status", "lives"), [(500, True), (429, True), (502, False), (503, False), (504, False), (None, False)]
)
def test_failures_in_a_row_are_one(monkeypatch: pytest.MonkeyPatch, status: int | None, lives: bool) -> None:
    wrong, asked = probed(monkeypatch, lambda: unavailable(status))
    assert wrong == f"HTTP {status}" and asked == lookout._LOOKS
    assert isinstance(wrong, Unserving) == lives


def test_nobody_listening_is_one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, asked = probed(monkeypatch, refused)
    assert wrong == "connection refused" and asked == 1 and not isinstance(wrong, Unserving)
    answers = [unavailable(500), unavailable(500), refused()]
    wrong, asked = probed(monkeypatch, lambda: answers.pop(0))
    assert asked == 3 and not isinstance(wrong, Unserving)


def test_time_outs_are_not_waited_for_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "_PROBE_SECONDS", -1.0)
    assert probed(monkeypatch, lambda: unavailable(None)) == ("HTTP None", 2)


def test_a_server_that_fails_a_fifth_of_all_requests_is_never_away(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    monkeypatch.setattr(lookout, "_LONGEST_PAUSE", 0.0)
    for _ in range(300):
        found, _ = probed(monkeypatch, lambda: unavailable(500) if chance.random() < 0.2 else OK)
        assert found is None
