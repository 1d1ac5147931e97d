"""What vLLM's log says to a person: how far the start has come, and what it died of.

What always holds: these functions only read lines; what does not look like vLLM's log gives no phase and no cause,
never an error.
"""

import re
from collections.abc import Sequence
from pathlib import Path

_PREFIX = re.compile(
    r"^(\(\w[\w-]* pid=\d+\) )?((INFO|WARNING|ERROR|DEBUG)\s+)?(\d\d-\d\d \d\d:\d\d:\d\d )?(\[[\w.]+:\d+\] ?)?"
)
_PHASES = (
    (re.compile(r"Resolved architecture"), "checking the settings"),
    (re.compile(r"Initializing a V\d LLM engine"), "starting the engine"),
    (re.compile(r"Starting to load model|Loading safetensors|Downloading"), "loading weights"),
    (re.compile(r"Loading weights took|Model loading took"), "weights loaded"),
    (re.compile(r"Compiling a graph|Dynamo bytecode|Capturing CUDA graph"), "compiling"),
    (re.compile(r"KV cache size|KV cache memory"), "warming up"),
    (re.compile(r"Starting vLLM|Application startup complete"), "opening the port"),
)
_TOLD = re.compile(r"\bINFO\s+\d\d-\d\d ")
_DULL = re.compile(
    r"\]\s*$|Route: |routes are|[█▄▀]|\brank\b|local_world_size|OpenMP|core ids"
    r"|_cpus?=|IR op|fusions|non-default"
    r"|Auto-prefetch|Scale-out|Detected the chat template|\[shutdown\]"
)
_CAUSE = re.compile(r"\b(\w+\.)*\w*(Error|Exception|Interrupt)\b: .")
_NOT_A_CAUSE = re.compile(r"Engine core initialization failed|cancelled|CancelledError|EngineDeadError|SystemExit")
_PORT_TAKEN = re.compile(r"address already in use|\[Errno (98|48)\]", re.IGNORECASE)
_HINTS = (
    (
        re.compile(
            r"out of memory|OutOfMemory|larger than (the )?available|No available memory|Free memory on device"
            r"|MemoryError|can't allocate memory|Cannot allocate memory|exceeds the available memory|not enough memory",
            re.IGNORECASE,
        ),
        "there is not enough memory. Use a smaller model, a lower `max_model_len`, on a CPU another `kv_cache_gib`, on "
        "a GPU another `gpu_memory_utilization`, or end what else uses the memory",
    ),
    (_PORT_TAKEN, "its port was taken by another process. Leave `port` unset to have a free one chosen"),
    (
        re.compile(r"No module named|cannot import name|undefined symbol|operator torchvision::nms"),
        "the installation of vLLM is broken. Install it anew in a fresh environment (`matrix-graph install-engine`)",
    ),
    (
        re.compile(r"401 Client Error|403 Client Error|gated repo|GatedRepoError", re.IGNORECASE),
        "the hub wants you to log in for this model. Accept its licence there and set HF_TOKEN, or give a model folder",
    ),
    (
        re.compile(r"RepositoryNotFound|not a valid model identifier|Can't load the configuration|couldn't connect to"),
        "the model could not be found or downloaded. Check the hub id and the network, or give a model folder",
    ),
    (
        re.compile(r"unrecognized arguments|invalid choice: |argument --"),
        "vLLM does not know one of its options. Check `extra_args` and vLLM's version",
    ),
    (
        re.compile(r"User-specified max_model_len"),
        "`max_model_len` is more than the model allows. Lower it",
    ),
)
_KILLED = (
    "it was killed (SIGKILL), which is mostly the system's answer to a lack of memory. Use a smaller model or a "
    "smaller cache, or end what else uses the memory"
)
SHOWN_LINES = 20
READ_LINES = 200
"""How many of the last lines are searched for the cause: vLLM prints it long before its last words."""


def plain(line: str) -> str:
    """Returns a log line without process name, level, time and source position, at most 120 characters."""
    return _PREFIX.sub("", line, count=1).strip()[:120]


def phase_of(line: str) -> str | None:
    """Returns the phase of the start that this line begins, in two or three words, or None."""
    return next((phase for pattern, phase in _PHASES if pattern.search(line)), None)


def is_telling(line: str) -> bool:
    """Returns whether the line says something to somebody who waits (banners, routes and warnings do not)."""
    return phase_of(line) is not None or bool(_TOLD.search(line) and not _DULL.search(line))


def port_was_taken(lines: Sequence[str]) -> bool:
    """Returns whether the server ended because another process had its port."""
    return any(_PORT_TAKEN.search(line) for line in lines)


def describe_exit(code: int | None) -> str:
    """Returns how a process ended, from its exit code (negative: the signal)."""
    if code is None:
        return "was still running"
    return f"was ended by signal {-code}" if code < 0 else f"exited with code {code}"


def explain(happened: str, *, code: int | None, lines: Sequence[str], log_path: Path) -> str:
    """Returns the message of a failed server: what happened, why as far as the log tells, and its last lines.

    Args:
        happened: the start of the sentence, such as "vLLM exited with code 1 while starting".
        code: its exit code (negative: the signal), None if it still ran.
        lines: the last lines of its log, oldest first, without secrets.
        log_path: where all of the log is.
    """
    hint = next((text for pattern, text in _HINTS if any(pattern.search(line) for line in lines)), None)
    if hint is None and code in (-9, 137):
        hint = _KILLED
    parts = [f"{happened}: {hint}." if hint else f"{happened}. Mend what its log says and start again."]
    causes = [line for line in lines if _CAUSE.search(line) and not _NOT_A_CAUSE.search(line)]
    if causes:
        parts.append(f"Cause: {plain(causes[-1])}")
    parts.append(f"Last lines of {log_path}:")
    parts += [f"    {line[:240]}" for line in lines[-SHOWN_LINES:]] or ["    (nothing was logged)"]
    return "\n".join(parts)
