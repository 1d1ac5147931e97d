"""The model that gets an adapter: what must be installed for it, its tokenizer, its weights, and who it is.

What always holds: weights are loaded from safetensors, pickles are refused, no code of a model's folder is run,
and a model that is a folder needs no network.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, Literal

from matrix_graph.errors import PrerequisiteError
from matrix_graph.models.serving.weights import fingerprint
from matrix_graph.train.base_name import base_name
from matrix_graph.train.errors import TrainingError
from matrix_graph.train.recipe import Recipe
from matrix_graph.train.record import BaseModelAccount
from matrix_graph.train.rows import file_sha256

MODULES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate")
_WEIGHTS = ("*.safetensors",)


def require_extra() -> None:
    """Check that everything that training needs is installed; imports nothing of it.

    Raises:
        PrerequisiteError: something is missing; holds the command.
    """
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise PrerequisiteError(
            f'Training needs {", ".join(missing)}, not installed here: run `pip install "matrix-graph[train]"` '
            "(without a GPU run `matrix-graph install-engine` before, which brings the small build of torch)."
        )


def quiet_libraries(path: str) -> None:
    """Keep the libraries from telling the network and the terminal what they do. Before they are imported."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if Path(path).is_absolute():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def load_tokenizer(path: str) -> Any:
    """The model's tokenizer, with a padding token.

    Raises:
        TrainingError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, ImportError) as error:
        raise TrainingError(f"The tokenizer of {path} cannot be loaded: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def chosen_quantization(recipe: Recipe) -> Literal["4bit", "none"]:
    """How the base weights are held on this machine.

    Raises:
        PrerequisiteError: 4 bits without a GPU, or without bitsandbytes.
    """
    import torch

    gpu = torch.cuda.is_available()
    if recipe.quantization == "none" or (recipe.quantization == "auto" and not gpu):
        return "none"
    if not gpu:
        raise PrerequisiteError(
            "The recipe holds the base weights in 4 bits, which needs an NVIDIA GPU. Set `quantization: none`."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise PrerequisiteError(
            "The recipe holds the base weights in 4 bits, which needs bitsandbytes: run `pip install bitsandbytes`, or "
            "set `quantization: none`."
        )
    return "4bit"


def load_model(path: str, quantization: Literal["4bit", "none"]) -> Any:
    """The base model, frozen by who adds the adapter: bfloat16 on a GPU that has it, else float32.

    Raises:
        TrainingError: it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    number = torch.bfloat16 if bfloat16_here() else torch.float32
    options: dict[str, Any] = {"dtype": number, "use_safetensors": True}
    if quantization == "4bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=number,
        )
        options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    try:
        return AutoModelForCausalLM.from_pretrained(path, **options)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise TrainingError(f"The model {path} cannot be loaded: {error}") from error


def bfloat16_here() -> bool:
    """Whether this machine trains in bfloat16: a GPU that has it does; a CPU that has it is rare, and slow without."""
    import torch

    return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def account_of(path: str, model: Any) -> BaseModelAccount:
    """Who the base model is: its name, and hashes of its weights.

    Args:
        path: a folder, or a hub id whose files are in the hub's cache by now.
        model: the loaded model.
    """
    folder, named = Path(path), base_name(path)
    revision = named.revision
    if not folder.is_absolute():
        from huggingface_hub import try_to_load_from_cache

        revision = getattr(model.config, "_commit_hash", None)
        config = try_to_load_from_cache(path, "config.json", revision=revision)
        if not isinstance(config, str):
            return BaseModelAccount(name=path, load_as=path, revision=revision, fingerprint=None, files={})
        folder = Path(config).parent
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern) if file.is_file()})
    return BaseModelAccount(
        name=named.name,
        load_as=named.load_as,
        revision=revision,
        fingerprint=fingerprint(folder),
        files={file.name: file_sha256(file) for file in files},
    )
