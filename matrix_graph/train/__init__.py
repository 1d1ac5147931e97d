"""From rows to an adapter: LoRA with PEFT through TRL, with the loss on what the assistant says and on nothing else.

Why not TRL's own command: most chat templates do not mark what the assistant says, so that a loss on the assistant
alone either fails or falls on everything. What always holds: the tokens that are learnt are those that a server would
have to generate (`masks`); no row is cut off; importing this package imports neither torch nor TRL.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matrix_graph.train.errors import TrainingError
    from matrix_graph.train.recipe import Recipe, load_recipe
    from matrix_graph.train.record import TrainingRecord, read_record
    from matrix_graph.train.run import train_adapter

__all__ = ["Recipe", "TrainingError", "TrainingRecord", "load_recipe", "read_record", "train_adapter"]

_HOMES = {
    "Recipe": "recipe",
    "TrainingError": "errors",
    "TrainingRecord": "record",
    "load_recipe": "recipe",
    "read_record": "record",
    "train_adapter": "run",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
