"""What safetensors files say without being loaded: names, shapes, and a fingerprint of the weights.

Why: whether an adapter fits a model can be told from a few kilobytes, before the server is asked. What always holds:
only headers and samples are read, nothing of them is executed, and sizes are checked before they are believed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

_LONGEST_HEADER = 100_000_000
"""Bytes; what the safetensors library takes at most."""
_SAMPLE = 4096
_MATRIX_SIDES = 2
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WEIGHTS = re.compile(r"(adapter_|pytorch_)?model|consolidated|weights")
"""How files of weights begin; others of the same endings are a trainer's (`optimizer.pt`, `training_args.bin`)."""
_IN_A_LAYER = re.compile(r"(?!.*\.experts\.).*\.\d+\.(?:.+\.)?(?P<matrix>[^.\d][^.]*)\.weight")
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


class WeightsError(ValueError):
    """A file that holds no tensors that can be read."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor stands in its file, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Fingerprint(BaseModel):
    """By which weights are told apart; the same however they are spread over files.

    Two models of the same `layout` and of different `content` are different models. Of different layouts nothing
    follows: the same model may be stored in another number format.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    layout: str = Field(description="SHA-256 of all names, number formats and shapes.")
    content: str = Field(description="SHA-256 of samples of every tensor.")


def pickled_weights(folder: Path) -> list[str]:
    """The names of the weights in a folder that are pickles, which may run code when they are loaded."""
    return sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES and _WEIGHTS.match(path.name))


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        WeightsError: it is none, or it is cut off.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise WeightsError(f"{path.name} is no safetensors file, or it is cut off")
        try:
            content = json.loads(file.read(length))
            tensors = {
                name: Tensor(
                    str(entry["dtype"]),
                    tuple(int(side) for side in entry["shape"]),
                    8 + length + int(entry["data_offsets"][0]),
                    8 + length + int(entry["data_offsets"][1]),
                )
                for name, entry in content.items()
                if name != "__metadata__"
            }
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise WeightsError(f"{path.name} is no safetensors file: its header cannot be read") from error
    for name, tensor in tensors.items():
        width = _BYTES.get(tensor.dtype)
        stored = tensor.end - tensor.start
        if min((*tensor.shape, 0)) < 0 or stored < 0 or tensor.start < 8 + length:
            raise WeightsError(f"{path.name} is damaged: the place of {name!r} makes no sense")
        if tensor.end > size:
            raise WeightsError(f"{path.name} is cut off: {name!r} ends at byte {tensor.end} of {size}")
        if width is not None and stored != width * math.prod(tensor.shape):
            raise WeightsError(f"{path.name} is damaged: {name!r} has {stored} bytes for the shape {tensor.shape}")
    return tensors


def model_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model folder; empty if its weights are not safetensors files that can be read."""
    return {name: tensor.shape for name, (_, tensor) in _model_tensors(folder).items()}


def layer_matrices(folder: Path) -> list[str]:
    """The last names of all matrices within the layers of a model folder, such as `q_proj`, in order and each once.

    What stands outside of the layers, embeddings and the output matrix, is not among them, nor are single experts.
    """
    matches = [
        _IN_A_LAYER.fullmatch(name) for name, shape in model_shapes(folder).items() if len(shape) == _MATRIX_SIDES
    ]
    return sorted({match["matrix"] for match in matches if match})


def fingerprint(folder: Path) -> Fingerprint | None:
    """The fingerprint of a model folder; None if its weights are not safetensors files that can be read."""
    tensors = _model_tensors(folder)
    if not tensors:
        return None
    layout, content = hashlib.sha256(), hashlib.sha256()
    for name in sorted(tensors):
        path, tensor = tensors[name]
        layout.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
        with path.open("rb") as file:
            for start in {tensor.start: 0, (tensor.start + tensor.end) // 2: 0}:
                file.seek(start)
                content.update(file.read(min(_SAMPLE, tensor.end - start)))
    return Fingerprint(layout=layout.hexdigest(), content=content.hexdigest())


def _model_tensors(folder: Path) -> dict[str, tuple[Path, Tensor]]:
    # A model folder may hold an adapter too, or the same weights in one file and in parts.
    parts = sorted(folder.glob("model-*-of-*.safetensors")) or sorted(folder.glob("model*.safetensors"))
    try:
        return {name: (path, tensor) for path in parts for name, tensor in read_header(path).items()}
    except (OSError, WeightsError):
        return {}
