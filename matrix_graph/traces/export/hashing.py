"""SHA-256 of a long stream, taken beside the work: hashing would cost as much as all the rest of an export."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import IO

_BATCH = 1 << 19
"""Bytes. Python's lock is let go once a batch; with small batches the threads would wait for each other."""


class Digest:
    """A SHA-256 that a thread of its own computes, batch by batch; two batches are held in memory, used in turns.

    The batches' memory is the same all along: memory that is new each time costs more than what is done with it. What
    is longer than a batch is hashed where it stands.

    Args:
        file: what is hashed is also written to it, in order, by the same thread.
    """

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self._digest = hashlib.sha256()
        self._file = file
        self._filling, self._taken = bytearray(_BATCH), bytearray(_BATCH)
        self._size = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._running: Future[None] | None = None

    def update(self, content: bytes) -> None:
        """Add bytes to what is hashed.

        Raises:
            OSError: what was added before could not be written.
        """
        if len(content) > _BATCH - self._size:
            self._hand_over()
        if len(content) > _BATCH:
            self._wait()
            self._running = self._pool.submit(self._take, content)
            return
        end = self._size + len(content)
        self._filling[self._size : end] = content
        self._size = end

    def hexdigest(self) -> str:
        """The digest of all that was added, which is all written then; nothing can be added after it.

        Raises:
            OSError: something could not be written.
        """
        self._hand_over()
        self._wait()
        self._pool.shutdown()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Forget what has not been taken yet, and wait until the file is left alone."""
        self._size = 0
        with suppress(OSError):
            self._wait()
        self._pool.shutdown()

    def _hand_over(self) -> None:
        self._wait()
        if not self._size:
            return
        self._filling, self._taken = self._taken, self._filling
        content = memoryview(self._taken)[: self._size]
        self._size = 0
        self._running = self._pool.submit(self._take, content)

    def _take(self, content: bytes | memoryview) -> None:
        self._digest.update(content)
        if self._file is not None:
            self._file.write(content)

    def _wait(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            running.result()
