"""How much memory there is, of the machine or of the container that this process runs in.

What always holds: only small files of the system are read, and what a system does not tell is not guessed.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_USED = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}
_MEMINFO = Path("/proc/meminfo")


def memory_bytes() -> int:
    """Returns the memory that this process may use: the machine's, or its container's if that is less."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # there is no such file, or it says "max"
            sizes.append(int(limit.read_text()))
    return min(sizes)


def available_bytes() -> int | None:
    """Returns the memory that a new process could use now without swapping; None where the system does not tell.

    Files that the system only keeps at hand count as free, since it drops them when memory is asked for.
    """
    sizes = []
    with suppress(OSError):  # another system than Linux
        if found := re.search(r"^MemAvailable: +(\d+) kB", _MEMINFO.read_text(), re.MULTILINE):
            sizes.append(int(found[1]) * 1024)
    for limit in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError, LookupError):
            used = int(limit.with_name(_USED[limit.name]).read_text())
            stat = limit.with_name("memory.stat").read_text()
            files = re.search(r"^(?:total_)?inactive_file (\d+)", stat, re.MULTILINE)
            sizes.append(max(0, int(limit.read_text()) - used + (int(files[1]) if files else 0)))
    return min(sizes, default=None)
