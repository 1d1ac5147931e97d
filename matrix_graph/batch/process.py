"""What is set for a whole process that plays thousands of scenes and does nothing else: garbage, and open files."""

from __future__ import annotations

import gc
import sys

if sys.platform != "win32":
    import resource

_THRESHOLDS = (50_000, 20, 50)
"""Objects made before the youngest are looked through, and how many such times before the older and the oldest are."""


_MOST_FILES = 65_536
_OTHER_FILES = 48
"""Files that a process has open besides its connections, at most."""


def most_open_connections() -> int:
    """How many connections the system allows this process at once."""
    if sys.platform == "win32":
        return _MOST_FILES
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (_MOST_FILES if allowed == resource.RLIM_INFINITY else allowed) - _OTHER_FILES)


def open_many_files() -> None:
    """Have the system allow this process as many open files as it ever would; many systems begin with 1,024."""
    if sys.platform == "win32":
        return
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if most == resource.RLIM_INFINITY else min(most, _MOST_FILES)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def collect_garbage_rarely() -> None:
    """Have the collector leave alone what was imported, and look through the rest less often.

    It looks for cycles, of which scenes make few; most of what they leave behind goes by itself. Unasked, it takes
    about a third of all CPU time of a run (`benchmarks/cpu_per_call.py --usual-garbage --profile`). It is set for
    the whole process, so that only processes of our own call this: the command `run` and its workers.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
