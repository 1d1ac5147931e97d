"""Whether a LoRA adapter fits a server, told before the server is asked.

Why: vLLM finds out while it loads, in words for its developers, and takes some that do not fit at all: another model's
of the same shape. What always holds: only headers and small files are read; pickled weights are refused; what cannot be
told from them is left to vLLM, which refuses it and goes on.
"""

import json
import re
from pathlib import Path
from typing import Any

from matrix_graph.errors import ServerError
from matrix_graph.models.serving.weights import (
    Fingerprint,
    WeightsError,
    fingerprint,
    model_shapes,
    pickled_weights,
    read_header,
)

_SAFE = "adapter_model.safetensors"
_TRAINED = "Give a folder that `matrix-graph train` or PEFT's `save_pretrained` has written."
_SERVE_ITS_OWN = "Serve the model that it was trained on."
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")
_NAME_LENGTH = 200


def check_adapter_name(name: str, served: str) -> None:
    """Checks the name that requests are to use.

    Args:
        name: the adapter's.
        served: the base model's.

    Raises:
        ServerError: it is empty, too long, holds control characters, or is the base model's.
    """
    if not name.strip() or len(name) > _NAME_LENGTH or not name.isprintable():
        raise ServerError(
            f"{name[:_NAME_LENGTH]!r} is no name for an adapter. Give 1 to {_NAME_LENGTH} printable characters."
        )
    if name == served:
        raise ServerError(f"The adapter's name {name!r} is the base model's. Give it another, to tell them apart.")


def check_adapter_folder(
    folder: Path, *, max_rank: int | None, base: Path | None = None, layers_only: bool = False
) -> Path:
    """Checks a LoRA adapter before the server is asked to load it.

    Args:
        folder: an adapter as PEFT saves it.
        max_rank: the highest rank that the server was started for; None: not known.
        base: the folder of the model that the server runs; None: it is no folder.
        layers_only: whether the server adapts nothing outside of the model's layers, neither embeddings nor output.

    Returns:
        The absolute folder.

    Raises:
        ServerError: it does not exist, is no LoRA adapter that vLLM takes, is damaged, its rank is too high, or it was
            trained on another model.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise ServerError(f"The adapter folder {folder} does not exist. {_TRAINED}")
    config = _config(folder)
    if config.get("peft_type") != "LORA":
        raise ServerError(f"{folder} is an adapter of the kind {config.get('peft_type')!r}; vLLM takes LORA alone.")
    for setting, usual in (("use_dora", False), ("modules_to_save", None), ("bias", "none")):
        if config.get(setting, usual) not in (usual, None, []):
            raise ServerError(
                f"The adapter {folder} has {setting} = {config[setting]!r}, which vLLM does not take. Train it without."
            )
    rank = _rank(folder, config)
    if max_rank is not None and rank > max_rank:
        raise ServerError(
            f"The adapter {folder} has rank {rank}, the server takes at most {max_rank}. Start it with "
            f"`max_lora_rank` {rank} or more."
        )
    if not (folder / _SAFE).is_file():
        if pickled := pickled_weights(folder):
            raise ServerError(
                f"The adapter {folder} has its weights as a pickle ({pickled[0]}), which may run code when it is "
                "loaded. Where you trust it, load it with PEFT and save it again: `save_pretrained` writes safetensors."
            )
        raise ServerError(f"{folder} has no weights ({_SAFE}). {_TRAINED}")
    # Quantized weights, and those of old models that are stored turned around, have shapes of their own.
    comparable = base is not None and not _quantized(base) and not config.get("fan_in_fan_out")
    _check_weights(folder, None if config.get("rank_pattern") else rank, base if comparable else None)
    if layers_only:
        _check_layers(folder)
    if base is not None:
        _check_fingerprint(folder, base)
    return folder


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ServerError(f"{folder} has no readable adapter_config.json ({error}). {_TRAINED}") from error
    if not isinstance(config, dict):
        raise ServerError(f"{folder} has no readable adapter_config.json (no JSON object). {_TRAINED}")
    return config


def _rank(folder: Path, config: dict[str, Any]) -> int:
    patterns = config.get("rank_pattern") or {}
    given = [config.get("r"), *(patterns.values() if isinstance(patterns, dict) else [None])]
    ranks = [rank for rank in given if type(rank) is int and rank > 0]
    if len(ranks) < len(given):
        raise ServerError(f"{folder} has an adapter_config.json whose rank `r` is {given[0]!r}. {_TRAINED}")
    return max(ranks)


def _check_weights(folder: Path, rank: int | None, base: Path | None) -> None:
    try:
        tensors = read_header(folder / _SAFE)
    except WeightsError as error:
        raise ServerError(f"The adapter {folder} is damaged: {error}. Train it again, or copy it again.") from error
    except OSError as error:
        raise ServerError(f"The adapter {folder} cannot be read: {error.strerror}.") from error
    found = {name: match for name in tensors if (match := _TENSOR.fullmatch(name))}
    if not found:
        raise ServerError(f"The adapter {folder} holds no LoRA weights: no tensor is named lora_A or lora_B.")
    shapes = model_shapes(base) if base is not None else {}
    layers = {match["layer"] for match in found.values()}
    known = {layer for layer in layers if f"{layer}.weight" in shapes}
    for name, match in found.items():
        shape = tensors[name].shape
        inner, outer = (0, 1) if match["side"] == "A" else (1, 0)
        if len(shape) != 2 or (rank is not None and shape[inner] != rank):
            raise ServerError(
                f"The adapter {folder} is damaged: {name} has the shape {shape}, and adapter_config.json says "
                f"rank {rank}."
            )
        wanted = shapes.get(f"{match['layer']}.weight", ())
        # Of the base model's [out, in], A goes with in and B with out.
        if len(wanted) == 2 and shape[outer] != wanted[outer]:
            raise ServerError(
                f"The adapter {folder} was trained on another model: {match['layer']} has {shape[outer]} values on one "
                f"side in it, {wanted[outer]} in {base}. {_SERVE_ITS_OWN}"
            )
    if known and known != layers:
        missing = min(layers - known)
        if ".experts" not in missing:
            raise ServerError(
                f"The adapter {folder} was trained on another model: {base} has no layer {missing}. {_SERVE_ITS_OWN}"
            )


def _check_layers(folder: Path) -> None:
    matches = [_TENSOR.match(name) for name in read_header(folder / _SAFE)]
    outside = [match["layer"] for match in matches if match and not re.search(r"\.\d+\.", match["layer"])]
    if outside:
        raise ServerError(
            f"The adapter {folder} changes {outside[0]}, which vLLM's CPU build is not started for here: it would cost "
            "every request most of its speed. Train one of the layers alone, as `target_modules='all-linear'` does."
        )


def _check_fingerprint(folder: Path, base: Path) -> None:
    try:
        model = json.loads((folder / "training.json").read_bytes())["model"]
        trained_on = Fingerprint.model_validate(model["fingerprint"])
    except (OSError, ValueError, LookupError, TypeError):
        return  # no training of ours
    served = fingerprint(base)
    # Of another layout nothing follows: the same model may be stored in another number format.
    if served is not None and served.layout == trained_on.layout and served.content != trained_on.content:
        raise ServerError(
            f"The adapter {folder} was trained on another model: {str(model.get('name'))!r} of its training.json has "
            f"the same shape as {base} and other weights. {_SERVE_ITS_OWN}"
        )


def _quantized(base: Path) -> bool:
    try:
        return "quantization_config" in json.loads((base / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
