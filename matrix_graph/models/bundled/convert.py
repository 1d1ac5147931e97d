"""A GGUF file becomes a Hugging Face folder, in a process of its own, so that the caller never imports torch.

    python -m matrix_graph.models.bundled.convert FILE.gguf FOLDER [--one-matrix]

What always holds: the folder's weights are bfloat16; with `--one-matrix` the matrix that input and output share is
stored once, and `tie_word_embeddings` in `config.json` says so.
"""

import sys
from pathlib import Path
from typing import Any

from matrix_graph.models.bundled.prepare import ONE_MATRIX


def convert(source: Path, target: Path, *, one_matrix: bool) -> None:
    """Unpacks a GGUF file into a Hugging Face folder.

    Args:
        source: the GGUF file.
        target: an existing folder.
        one_matrix: whether the model has one matrix for input and output, which the file may hold twice. Such a file
            holds two roundings of it, the output's the finer one, which is taken for both.

    Raises:
        OSError, ValueError, ImportError: as transformers does.
    """
    source.open("rb").close()  # before seconds are spent on the imports
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, object] = {"gguf_file": source.name, "dtype": torch.bfloat16}
    try:
        from transformers.utils.quantization_config import GgufConfig
    except ImportError:  # older versions always unpack
        pass
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(str(source.parent), **options)
    tokenizer.model_max_length = model.config.max_position_embeddings
    if one_matrix:
        share_matrix(model)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def share_matrix(model: Any) -> None:
    """Lets a loaded model take its output matrix for its input too, so that both are stored once."""
    model.get_input_embeddings().weight = model.get_output_embeddings().weight
    model.config.tie_word_embeddings = True
    model.tie_weights()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), one_matrix=ONE_MATRIX in sys.argv[3:])
