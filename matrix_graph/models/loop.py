"""The bridge from synchronous callers to asynchronous code: one background event loop for the process.

Why: `asyncio.run` for every call would throw the connection pool away each time. What always holds: the loop lives in
one daemon thread, starts at first use, is closed with everything on it at exit, and a forked child starts its own. The
caller gets the coroutine's result or exception, its context variables reach the coroutine, and Ctrl-C cancels it.
"""

import asyncio
import atexit
import contextlib
import contextvars
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_CLEANUP_SECONDS = 5.0
"""How long an interrupted caller waits for its coroutine to clean up, and the process at exit for the loop."""


class _Job(Generic[T]):
    """One coroutine handed to a loop in another thread, and the place where its outcome arrives."""

    def __init__(self, coro: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> None:
        self._coro = coro
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self.outcome: Future[T] = Future()

    def start(self) -> None:
        """Begin to run; called on the loop, in the context of the thread that handed the job in."""
        self._task = self._loop.create_task(self._settle())
        self._task.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[None]) -> None:
        if not self.outcome.done():  # cancelled before its first step
            self._coro.close()
            self.outcome.set_exception(asyncio.CancelledError())

    async def _settle(self) -> None:
        try:
            result = await self._coro
        except BaseException as error:  # noqa: BLE001 - SystemExit too belongs to the caller; here it would end the loop
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(result)

    def wait(self) -> T:
        """Block until the coroutine is done; an interrupted wait cancels it and lets it clean up first."""
        try:
            return self.outcome.result()
        except BaseException:
            if not self.outcome.done():
                self._loop.call_soon_threadsafe(self._cancel)
                with contextlib.suppress(TimeoutError):
                    self.outcome.exception(timeout=_CLEANUP_SECONDS)
            raise
        finally:
            self._task = None

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class _Background:
    """An event loop that runs in its own daemon thread until `stop`."""

    def __init__(self) -> None:
        self.blocked = 0
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, name="matrix-graph-loop", daemon=True)
        self._thread.start()
        self._loop, self._stopping = self._started.result()

    def _run(self) -> None:
        # Runner cancels what is left, closes the async generators (the HTTP pool is one), the executor and the loop.
        with asyncio.Runner() as runner:
            runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        stopping = asyncio.Event()
        self._started.set_result((asyncio.get_running_loop(), stopping))
        await stopping.wait()

    @property
    def is_here(self) -> bool:
        """Whether the caller runs in this loop's own thread."""
        return threading.get_ident() == self._thread.ident

    @property
    def alive(self) -> bool:
        """Whether work can still be handed in."""
        return self._thread.is_alive() and not self._stopping.is_set()

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run `coro` on the loop and wait for it in the calling thread."""
        job = _Job(coro, self._loop)
        self._loop.call_soon_threadsafe(job.start)  # runs it in a copy of the calling thread's context
        return job.wait()

    def stop(self) -> None:
        """End the loop and wait for its thread; a second call does nothing."""
        if self.alive and not self.is_here:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(timeout=_CLEANUP_SECONDS)


_lock = threading.Lock()
_background: _Background | None = None


def _shared() -> _Background:
    global _background
    with _lock:
        if _background is None or not _background.alive:
            _background = _Background()
        return _background


def _stop_at_exit() -> None:
    if _background is not None:
        _background.stop()


def _forget_after_fork() -> None:
    # The child has the parent's objects but none of its threads; the lock may have been held by one of them.
    global _lock, _background
    _lock = threading.Lock()
    _background = None


atexit.register(_stop_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def _run_apart(coro: Coroutine[Any, Any, T]) -> T:
    """Run `coro` to its end in a new thread with an event loop of its own."""
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            result = asyncio.run(coro)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(work,), name="matrix-graph-nested", daemon=True
    )
    thread.start()
    try:
        return outcome.result()
    finally:
        thread.join()


def run_sync(coro: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine from synchronous code and return its result.

    Works in any thread, also where an event loop is running (that loop stands still meanwhile, as with any blocking
    call). Called from code that itself runs on the background loop, it uses a fresh thread and loop: waiting for
    itself would never end.

    Args:
        coro: a coroutine that nobody has awaited. It sees the caller's context variables; what it sets stays with it.

    Returns:
        What the coroutine returns.

    Raises:
        BaseException: whatever the coroutine raises. KeyboardInterrupt in the caller cancels the coroutine, waits up to
            5 s for its clean-up, and goes on up.
    """
    background = _shared()
    if background.is_here:
        background.blocked += 1
        try:
            return _run_apart(coro)
        finally:
            background.blocked -= 1
    if background.blocked:  # whoever holds the loop up may be waiting for us
        return _run_apart(coro)
    return background.run(coro)


def iterate_sync(source: AsyncIterator[T]) -> Iterator[T]:
    """Go through an asynchronous iterator from synchronous code, one item at a time, as `run_sync` does.

    Args:
        source: the iterator; an async generator is closed when the caller stops early.

    Yields:
        Its items, each fetched when it is asked for.
    """
    background = _shared()
    if background.is_here or background.blocked:
        # Each step would run on a loop of its own, and the pooled connection belongs to the first: fetch all at once.
        async def collect() -> list[T]:
            return [item async for item in source]

        yield from run_sync(collect())
        return

    async def step() -> T | _End:
        try:
            return await anext(source)
        except StopAsyncIteration:
            return _END

    try:
        while not isinstance(item := background.run(step()), _End):
            yield item
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            background.run(close())


class _End:
    """Marks the end of an iteration, as StopAsyncIteration cannot cross a coroutine's border."""


_END = _End()
