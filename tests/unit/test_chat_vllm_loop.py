"""The background event loop behind synchronous calls."""

import asyncio
import contextvars
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from matrix_graph.models.loop import iterate_sync, run_sync

marker: contextvars.ContextVar[str] = contextvars.ContextVar("marker", default="unset")


async def echo(value: str) -> str:
    await asyncio.sleep(0)
    return value


def test_results_and_errors_come_back() -> None:
    assert run_sync(echo("hi")) == "hi"

    async def fails() -> None:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        run_sync(fails())
    assert run_sync(echo("still there")) == "still there"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), StopAsyncIteration()])
def test_errors_that_would_end_a_loop_reach_the_caller_only(error: BaseException) -> None:
    async def ends() -> None:
        raise error

    with pytest.raises(type(error)):
        run_sync(ends())
    assert run_sync(echo("still there")) == "still there"


def test_one_loop_for_all() -> None:
    async def where() -> tuple[int, int]:
        return threading.get_ident(), id(asyncio.get_running_loop())

    with ThreadPoolExecutor(8) as pool:
        places = set(pool.map(lambda _: run_sync(where()), range(50)))
    assert len(places) == 1 and threading.get_ident() not in {thread for thread, _ in places}


def test_context_variables_reach_the_coroutine_and_stay_there() -> None:
    async def read() -> str:
        before = marker.get()
        marker.set("changed inside")
        return before

    marker.set("from the caller")
    assert run_sync(read()) == "from the caller"
    assert marker.get() == "from the caller"

    def threaded() -> str:
        marker.set("from a thread")
        return run_sync(read())

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(threaded).result() == "from a thread"


async def test_inside_another_running_loop() -> None:
    assert run_sync(echo("hi")) == "hi"


def test_inside_the_loop_itself_does_not_deadlock() -> None:
    async def outer() -> str:
        marker.set("outer")

        async def inner() -> str:
            # Once more, and through another thread: by now nobody may wait for the background loop.
            here = await asyncio.to_thread(run_sync, echo("deep"))
            with ThreadPoolExecutor(1) as pool:
                return here + pool.submit(run_sync, echo("er")).result() + run_sync(echo(" ")) + marker.get()

        return run_sync(inner())

    assert run_sync(outer()) == "deeper outer"


def test_errors_from_inside_the_loop_itself() -> None:
    async def fails() -> None:
        raise ValueError("inside")

    async def outer() -> None:
        run_sync(fails())

    with pytest.raises(ValueError, match="inside"):
        run_sync(outer())


def test_an_interrupted_caller_cancels_its_coroutine() -> None:
    seen: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.05)
            seen.append("cleaned up")

    started = time.monotonic()
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run_sync(waits())
    assert seen == ["cleaned up"] and time.monotonic() - started < 3


def test_iteration_is_lazy_and_closes_what_is_left_early() -> None:
    seen: list[str] = []

    async def count() -> AsyncIterator[int]:
        try:
            for number in range(100):
                seen.append(f"made {number}")
                yield number
        finally:
            seen.append("closed")

    items = iterate_sync(count())
    assert next(items) == 0 and seen == ["made 0"]
    items.close()  # type: ignore[attr-defined]
    assert seen == ["made 0", "closed"]
    assert list(iterate_sync(count())) == list(range(100))


def test_iteration_passes_errors_and_empty_sources() -> None:
    async def fails() -> AsyncIterator[int]:
        yield 1
        raise ValueError("half way")

    items = iterate_sync(fails())
    assert next(items) == 1
    with pytest.raises(ValueError, match="half way"):
        next(items)

    async def nothing() -> AsyncIterator[int]:
        return
        yield 1

    assert list(iterate_sync(nothing())) == []


def test_iteration_inside_the_loop_itself() -> None:
    async def count() -> AsyncIterator[int]:
        for number in range(3):
            yield number

    async def outer() -> list[int]:
        return list(iterate_sync(count()))

    assert run_sync(outer()) == [0, 1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_starts_its_own() -> None:
    run_sync(echo("parent"))
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if run_sync(echo("child")) == "child" else 1)
        except BaseException:  # noqa: BLE001 - a child must not run the rest of the tests
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert run_sync(echo("parent")) == "parent"
