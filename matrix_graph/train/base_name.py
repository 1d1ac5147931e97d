"""By which name a base model is known elsewhere: an adapter goes to other machines, the base model's folder does not.

What always holds: a name tells nothing of the machine that trained on it, no folder above the model's own. A name of
the hub is given only to what is from there: a model that was made out of another has that one's name in its files too,
and an adapter that loaded onto it would be wrong without a word.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_graph.files import read_object
from matrix_graph.models.bundled import BUNDLED

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class BaseName:
    """What a base model is called.

    Attributes:
        name: a hub id, or the last part of a folder.
        load_as: what `--model` takes for it on any machine, a hub id or a bundled model; None: only its folder.
        revision: the hub's commit, where the folder tells it.
    """

    name: str
    load_as: str | None
    revision: str | None = None


def base_name(path: str) -> BaseName:
    """The name of a base model.

    Args:
        path: an absolute folder, or a hub id.
    """
    folder = Path(path)
    if not folder.is_absolute():
        return BaseName(path, path)
    for model in BUNDLED.values():
        if folder == model.folder.resolve():
            return BaseName(model.name, model.source)
    # A snapshot in the hub's cache: models--ORG--NAME/snapshots/COMMIT
    kind, *parts = folder.parent.parent.name.split("--")
    if folder.parent.name == "snapshots" and kind == "models" and 1 <= len(parts) <= 2:
        hub_id = "/".join(parts)
        return BaseName(hub_id, hub_id, folder.name)
    return BaseName(_own_hub_id(folder) or folder.name, None)


def without_private_path(adapter: Path, name: str) -> None:
    """Have an adapter's `adapter_config.json` name its base model by a name, not by a folder.

    Args:
        adapter: a folder as PEFT writes it.
        name: of the base model.

    Raises:
        OSError: it cannot be written.
    """
    path = adapter / _ADAPTER_CONFIG
    config = read_object(path)
    if config is not None and config.get("base_model_name_or_path") != name:
        path.write_text(json.dumps({**config, "base_model_name_or_path": name}, indent=2, sort_keys=True), "utf-8")


def _own_hub_id(folder: Path) -> str | None:
    """The hub id in a model's configuration; only if its last part is the folder's name, else it may be a parent's."""
    told: Any = (read_object(folder / "config.json") or {}).get("_name_or_path")
    if not isinstance(told, str) or not _HUB_ID.fullmatch(told):
        return None
    return told if told.partition("/")[2].casefold() == folder.name.casefold() else None
