"""SHA-256 of a long stream, taken beside the work: hashing would cost as much as all the rest of an export."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor

_BATCH = 1 << 19
"""Bytes. Python's lock is let go once a batch; with small batches the threads would wait for each other."""


class Digest:
    """A SHA-256 that a thread of its own computes, batch by batch; two batches are held in memory, used in turns.

    What is longer than a batch is hashed where it stands.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._filling, self._hashing = bytearray(_BATCH), bytearray(_BATCH)
        self._size = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._running: Future[None] | None = None

    def update(self, content: bytes) -> None:
        """Add bytes to what is hashed."""
        if len(content) > _BATCH - self._size:
            self._hand_over()
        if len(content) > _BATCH:
            self._wait()
            self._running = self._pool.submit(self._digest.update, content)
            return
        end = self._size + len(content)
        self._filling[self._size : end] = content
        self._size = end

    def hexdigest(self) -> str:
        """The digest of all that was added; nothing can be added after it."""
        self._hand_over()
        self._wait()
        self._pool.shutdown()
        return self._digest.hexdigest()

    def _hand_over(self) -> None:
        self._wait()
        if not self._size:
            return
        self._filling, self._hashing = self._hashing, self._filling
        self._running = self._pool.submit(self._digest.update, memoryview(self._hashing)[: self._size])
        self._size = 0

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()
