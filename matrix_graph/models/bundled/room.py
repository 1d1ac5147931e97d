"""Whether there is room for a bundled model: on the disk and in memory, before minutes are spent on it.

What always holds: a message says what is there, what is needed, and what to do; where the system does not tell how much
there is, nothing is refused.
"""

import shutil
from pathlib import Path

from matrix_graph.errors import PrerequisiteError
from matrix_graph.models.bundled.catalog import SMALL, BundledModel
from matrix_graph.models.memory import available_bytes

_LEAST_CACHE_GIB = 2
_MARGIN = 100_000_000
"""Bytes: for what a disk has beside the files themselves."""


def disk_needed(model: BundledModel) -> int:
    """Returns the bytes that the preparation takes on the disk at its peak: the GGUF file and the folder, or earlier
    the file's pieces and the file."""
    return model.size + max(model.size, model.folder_bytes) + _MARGIN


def disk_message(model: BundledModel, place: Path) -> str:
    """Returns what to tell somebody whose disk is too small."""
    free = shutil.disk_usage(place).free
    return (
        f"{model.name} needs {_gb(disk_needed(model))} on the disk of {place} while it is prepared, and "
        f"{_gb(model.folder_bytes)} afterwards; {_gb(free)} are free. Free some, or name another place for it by the "
        "environment variable MATRIX_GRAPH_CACHE."
    )


def require_disk(model: BundledModel, place: Path) -> None:
    """Checks the disk before anything is downloaded.

    Args:
        model: what is going to be prepared.
        place: an existing folder on the disk in question.

    Raises:
        PrerequisiteError: too little is free.
    """
    if shutil.disk_usage(place).free < disk_needed(model):
        raise PrerequisiteError(disk_message(model, place))


def require_memory_to_convert(model: BundledModel) -> None:
    """Checks the memory before anything is downloaded.

    Raises:
        PrerequisiteError: too little is available.
    """
    available = available_bytes()
    if available is not None and available < model.convert_bytes:
        raise PrerequisiteError(
            f"To unpack {model.name} takes {_gb(model.convert_bytes)} of memory, and {_gb(available)} are available. "
            f"End what else uses the memory{_smaller(model)}."
        )


def require_memory_to_serve(model: BundledModel, cache_gib: int) -> None:
    """Checks the memory before vLLM's CPU build is started.

    Args:
        model: what is going to be served.
        cache_gib: the key-value cache, in GiB.

    Raises:
        PrerequisiteError: too little is available.
    """
    available = available_bytes()
    if available is None or model.serve_bytes is None:
        return
    needed = model.serve_bytes + cache_gib * 2**30
    if available >= needed:
        return
    fitting = (available - model.serve_bytes) // 2**30
    cache = f", set `kv_cache_gib` of the server to {fitting}" if fitting >= _LEAST_CACHE_GIB else ""
    raise PrerequisiteError(
        f"To serve {model.name} takes {_gb(needed)} of memory, of which {cache_gib} GiB are the key-value cache, and "
        f"{_gb(available)} are available. End what else uses the memory{cache}{_smaller(model)}."
    )


def _smaller(model: BundledModel) -> str:
    return "" if model.key == SMALL.key else f", or take a smaller model such as {SMALL.source}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
