"""Long cells in CSV: the standard library's limit of a cell is one for the whole process.

What always holds: the limit is as it was whenever nobody reads.
"""

from __future__ import annotations

import csv
import threading

_LONGEST_CELL = 2**31 - 1
"""Characters; the most that csv takes on every platform."""


class LongCells:
    """Raises csv's limit of a cell, which is one for the whole process, while any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = csv.field_size_limit(max(_LONGEST_CELL, csv.field_size_limit()))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                csv.field_size_limit(self._before)


LONG_CELLS = LongCells()
"""Enter it around each read."""
