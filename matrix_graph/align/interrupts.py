"""Stopping an alignment: Ctrl-C in a stage that has much in flight, and how the command says so afterwards."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from matrix_graph.batch.jobs import StoppedError
from matrix_graph.interrupts import interrupts

T = TypeVar("T")


class AlignStoppedError(StoppedError):
    """The alignment was stopped on request; the same command goes on.

    Attributes:
        signal: number of the signal that stopped it.
    """

    def __init__(self, message: str, *, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


@contextmanager
def interruptible(drain: Callable[[], None], stop: Callable[[], None], say: Callable[[str], None]) -> Iterator[None]:
    """SIGINT or SIGTERM once drains, twice stops.

    Raises:
        AlignStoppedError: what was stopped so has ended before its end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread alone
        return
    with interrupts(drain, stop, say) as received:
        try:
            yield
        except StoppedError as error:
            raise AlignStoppedError(str(error), signal=received[0] if received else 15) from error
        if received:  # what was in flight was all that there was left
            raise AlignStoppedError("It was stopped on request.", signal=received[0])


def run_here(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    with ThreadPoolExecutor(1, "align") as pool:
        return pool.submit(lambda: asyncio.run(work())).result()
