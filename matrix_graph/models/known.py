"""What was found out about a model from its replies: whether it thinks, and whether it takes a system message.

Why for the whole process: copies of a model, and models made anew for the same server, need not find it out again. What
always holds: it says how to ask, never what was asked; what a new process does not know, it finds out.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False, slots=True)
class Known:
    """What is known of one model.

    Attributes:
        thinks: whether it was met thinking before it answers.
        unopened: whether its thoughts have no opening tag, since the chat template writes it.
        folds: whether it refuses a system message.
    """

    thinks: bool = False
    unopened: bool = False
    folds: bool = False

    def met(self, thought: str | None, *, unopened: bool = False) -> None:
        """Learn from a reply."""
        if thought:
            self.thinks = True
        if unopened:
            self.unopened = True


_MOST = 1024
_served: dict[tuple[str, str], Known] = {}
_objects: dict[int, tuple[weakref.ref[Any], Known]] = {}


def known_of_served(base_url: str, name: str) -> Known:
    """What is known of a model by the name that a server serves it under."""
    key = base_url.rstrip("/"), name
    if key not in _served and len(_served) >= _MOST:
        _served.clear()
    return _served.setdefault(key, Known())


def known_of_object(model: Any) -> Known:
    """What is known of a model of another kind, as long as it lives."""
    held = _objects.get(id(model))
    if held is not None and held[0]() is model:
        return held[1]
    place = id(model)

    def forget(_: object) -> None:
        _objects.pop(place, None)

    known = Known()
    try:
        _objects[place] = (weakref.ref(model, forget), known)
    except TypeError:  # it cannot be watched, so that it is found out each time
        return known
    return known
