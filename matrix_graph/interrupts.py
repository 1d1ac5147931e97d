"""Stopping long work: one signal drains it, a second stops it at once."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupts(
    drain: Callable[[], None], stop: Callable[[], None], say: Callable[[str], None], *, what: str = "scenes"
) -> Iterator[list[int]]:
    """In the main thread, while an event loop runs: SIGINT or SIGTERM once drains, twice stops.

    Args:
        drain: nothing new is to begin; what is in flight finishes.
        stop: everything is to end now.
        say: takes a line for people.
        what: there is much of, in the plural.

    Yields:
        The numbers of the signals that came, in their order; it grows.
    """
    received: list[int] = []

    def come(number: int) -> None:
        received.append(number)
        name = signal.Signals(number).name
        if len(received) == 1:
            say(f"{name}: no new {what} begin; those in flight finish first. Once more stops at once.")
            drain()
        else:
            say(f"{name} again: stopping at once. What was in flight is done again by the next run.")
            stop()

    if sys.platform == "win32":  # an event loop takes none there; Ctrl-C stops at once
        yield received
        return
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, come, number)
    try:
        yield received
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
