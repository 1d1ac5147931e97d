"""Folders with models: where prepared ones are kept, and whether a folder is a whole model.

What always holds: nothing is loaded and nothing is changed; files are looked at by their names, and an index is read.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from matrix_graph.errors import PrerequisiteError, ServerError
from matrix_graph.models.serving.weights import pickled_weights

_ANOTHER = "Name one that can be written by the environment variable MATRIX_GRAPH_CACHE."


def cache_directory() -> Path:
    """Returns where this package keeps what can be made again: `$MATRIX_GRAPH_CACHE`, else `matrix_graph` in the
    user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`). The folder may not exist yet.

    Raises:
        PrerequisiteError: nothing names one, and this user has no home.
    """
    try:
        return _cache_directory()
    except RuntimeError as error:  # what `Path.home` and `expanduser` raise
        raise PrerequisiteError(f"There is no cache folder, since this user has no home folder. {_ANOTHER}") from error


@contextmanager
def told_if_not_writable(folder: Path) -> Iterator[None]:
    """Tells what to do if a folder of the cache cannot be made or written within.

    Raises:
        PrerequisiteError: it cannot.
    """
    try:
        yield
    except OSError as error:
        raise PrerequisiteError(
            f"The cache folder {folder} cannot be made or written: {error.strerror or error}. {_ANOTHER}"
        ) from error


def writable_home(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns what to change in a child's environment whose home cannot be written: one in our cache takes its place.

    vLLM, PyTorch and Triton all keep caches under the home, each in a folder of its own. What the hub's cache holds
    already is still found.
    """
    if "HOME" not in environment:
        return {}
    home = Path(environment["HOME"])
    try:
        (home / ".cache").mkdir(exist_ok=True)
        if os.access(home / ".cache", os.W_OK | os.X_OK):
            return {}
    except OSError:
        pass
    own = cache_directory() / "home"
    with told_if_not_writable(own):
        own.mkdir(parents=True, exist_ok=True, mode=0o700)
    hub = home / ".cache" / "huggingface"
    return {"HOME": str(own), **({"HF_HOME": str(hub)} if "HF_HOME" not in environment and hub.is_dir() else {})}


def _cache_directory() -> Path:
    if own := os.environ.get("MATRIX_GRAPH_CACHE"):
        return Path(own).expanduser()
    if common := os.environ.get("XDG_CACHE_HOME"):
        return Path(common).expanduser() / "matrix_graph"
    return Path.home() / ".cache" / "matrix_graph"


def check_model_folder(path_or_id: str) -> Path | None:
    """Checks a folder or hub id before anything slow is started with it; `resolve_model` takes bundled names, too.

    Args:
        path_or_id: a folder, or a hub id such as "org/name". What looks like a path or is an existing folder counts as
            a folder; everything else is left to vLLM as a hub id.

    Returns:
        The folder with `~` expanded, or None for a hub id.

    Raises:
        ServerError: the folder is missing or no model for vLLM; says what is missing in it.
    """
    folder = Path(path_or_id).expanduser()
    path_like = path_or_id.startswith((".", "~", "/")) or path_or_id.count("/") > 1 or "\\" in path_or_id
    if not path_like and not folder.exists():
        return None
    what_to_do = (
        "Give a Hugging Face model folder, a hub id such as org/name, a bundled model such as bundled:1.5b, or no "
        "model for the smallest bundled one."
    )
    if not folder.exists():
        raise ServerError(f"The model folder {folder} does not exist. {what_to_do}")
    if not folder.is_dir():
        raise ServerError(f"{folder} is a file, not a model folder. {what_to_do}")
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise ServerError(
            f"{folder} is a LoRA adapter, not a model. Give its base model as the model and this folder as an adapter."
        )
    if not any(folder.glob("*.safetensors")) and (pickled := pickled_weights(folder)):
        raise ServerError(
            f"{folder} has its weights as pickles ({pickled[0]}), which may run code when they are loaded. Where you "
            "trust it, load it with transformers and save it again: `save_pretrained` writes safetensors."
        )
    if missing := missing_parts(folder):
        raise ServerError(f"{folder} is not a whole model: it has no {', no '.join(missing)}. {what_to_do}")
    return folder


def missing_parts(folder: Path) -> list[str]:
    """Returns what a folder lacks to be a whole model, in words; empty if nothing."""
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any(folder.glob("*.safetensors")):
        missing.append("weights (*.safetensors)")
    for index in folder.glob("*.safetensors.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        missing += sorted(shard for shard in shards if not (folder / shard).is_file())
    if not any(any(folder.glob(name)) for name in ("tokenizer*", "vocab.json", "tekken.json", "*.tiktoken")):
        missing.append("tokenizer (tokenizer.json or another vocabulary)")
    return missing


def is_whole(folder: Path) -> bool:
    """Returns whether a folder exists and is a whole model."""
    return folder.is_dir() and not missing_parts(folder)
