"""Python's garbage collector in a process that plays thousands of scenes and does nothing else."""

from __future__ import annotations

import gc

_THRESHOLDS = (50_000, 20, 50)
"""Objects made before the youngest are looked through, and how many such times before the older and the oldest are."""


def collect_garbage_rarely() -> None:
    """Have the collector leave alone what was imported, and look through the rest less often.

    It looks for cycles, of which scenes make few; most of what they leave behind goes by itself. Unasked, it takes
    about a third of all CPU time of a run (`benchmarks/cpu_per_call.py --usual-garbage --profile`). It is set for
    the whole process, so that only processes of our own call this: the command `run` and its workers.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
