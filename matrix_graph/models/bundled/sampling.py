"""How a prepared model is sampled where a request names nothing: its `generation_config.json`, which vLLM reads.

What always holds: the file is replaced as a whole; a temperature that stands there already, whoever wrote it, stays.
"""

import json
from pathlib import Path

from matrix_graph.files import read_object, replace_file
from matrix_graph.models.bundled.catalog import BundledModel

_FILE = "generation_config.json"
_CARD = "README.md"
_NOT_OURS = ("_from_model_config", "output_attentions", "output_hidden_states")


def write_sampling(folder: Path, model: BundledModel) -> None:
    """Writes sampling and special tokens into `generation_config.json`, and the card beside it.

    Raises:
        OSError: they cannot be written.
    """
    kept = {name: value for name, value in (read_object(folder / _FILE) or {}).items() if name not in _NOT_OURS}
    content = {**kept, **model.token_ids, "do_sample": True, **model.sampling}
    replace_file(folder / _CARD, model.card.encode(), sync=False)
    replace_file(folder / _FILE, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode(), sync=False)


def lacks_sampling(folder: Path, model: BundledModel) -> bool:
    """Returns whether an earlier version of this package made the folder of this model, without sampling defaults."""
    try:
        ours = model.sha256 in (folder / _CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return ours and "temperature" not in (read_object(folder / _FILE) or {})
