"""From questions to a tuned model and a first comparison: five stages in one folder, each done once.

run -> export -> train -> serve -> compare. Each stage is what the command of its name does; here stands only what ties
them together: which are done, what each works on, where people look. What always holds: a stage that is done is not
done again; a stage that was broken off goes on where it stopped; what a stage made of other rows, weights or settings
than those that are there now is never taken for its work; importing this package imports neither torch nor a graph.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matrix_graph.align.options import AlignOptions
    from matrix_graph.align.record import AlignRecord, StageRecord, read_align_record
    from matrix_graph.align.runner import align

__all__ = ["AlignOptions", "AlignRecord", "StageRecord", "align", "read_align_record"]

_HOMES = {
    "AlignOptions": "options",
    "AlignRecord": "record",
    "StageRecord": "record",
    "align": "runner",
    "read_align_record": "record",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
