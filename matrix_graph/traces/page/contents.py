"""What the report holds of a trace: a row of the list, the text that the search reads, the scene, the exact messages.

Why apart: a trace repeats every message in each call that came after it, so that it is far longer than what
it says. What always holds: nothing that the page shows is lost or changed, texts least of all; each message stands once
in its block; and whatever a trace holds becomes JSON that every browser reads the same way (no NaN, no whole numbers
beyond 2**53, which is why free settings travel as text).
"""

from __future__ import annotations

import json
import math
from typing import Any

from matrix_graph.records import Call, Trace

JSON = dict[str, Any]

LONGEST_QUESTION = 300
"""Characters of a question in the list."""
LONGEST_SEARCHED = 20_000
"""Characters of each text that the search reads, so that a few giant texts cannot make it slow."""


def list_row(trace: Trace, *, source: int, block: int, place: int) -> JSON:
    """What the list shows of a scene, and what it filters and sorts by.

    Args:
        trace: of any status.
        source: number of the folder that it comes from.
        block: number of the block in which its scene stands.
        place: position in that block.
    """
    return {
        "id": trace.id,
        "source": source,
        "block": block,
        "place": place,
        "question": trace.question[:LONGEST_QUESTION],
        "status": trace.status,
        "revised": trace.revised,
        "rounds": max((event.round for event in trace.events), default=0),
        "people": len(trace.cast.roles) if trace.cast else 0,
        "actions": len(trace.events),
        "rejected": sum(not event.plausible for event in trace.events),
        "failures": len(trace.failures),
        "calls": len(trace.calls),
        "input": trace.usage.input_tokens,
        "output": trace.usage.output_tokens,
        "seconds": _finite(trace.seconds),
        "created": trace.created_at.isoformat(),
        "parent": trace.parent.id if trace.parent else None,
        "cut": trace.cut,
        "refused": trace.check is not None and not trace.check.passed,
    }


def searched_text(trace: Trace) -> str:
    """What the search reads of a scene: id, question, roles, answer; each up to `LONGEST_SEARCHED` characters."""
    names = "\n".join(role.name for role in trace.cast.roles) if trace.cast else ""
    texts = (trace.id, trace.question, names, trace.answer or "")
    return "\n".join(text[:LONGEST_SEARCHED] for text in texts)


def scene_of(trace: Trace) -> JSON:
    """The scene as the page draws it: all of the trace but the words of its calls."""
    kept = trace.model_dump(exclude={"calls", "settings", "created_at", "schema_version", *(trace.model_extra or {})})
    return {
        **kept,
        "seconds": _finite(trace.seconds),
        "created_at": trace.created_at.isoformat(),
        "cut": trace.cut,
        "settings": {name: _text(value) for name, value in trace.settings.items()},
        "calls": [_call(call) for call in trace.calls],
    }


def _call(call: Call) -> JSON:
    return {
        "purpose": call.purpose,
        "role": call.role,
        "round": call.round,
        "finish_reason": call.finish_reason,
        "model": call.model,
        "input": call.usage.input_tokens,
        "output": call.usage.output_tokens,
        "seconds": _finite(call.seconds),
        "error": call.error.model_dump() if call.error else None,
        "author": call.author,
        "taken_over": call.taken_over,
        "cut": call.cut,
    }


class Words:
    """The exact words of the calls of some scenes, each text once.

    Args:
        thoughts: whether what the model thought before it replied is among them.
    """

    def __init__(self, *, thoughts: bool = True) -> None:
        self._thoughts = thoughts
        self._numbers: dict[str, int] = {}
        self._scenes: list[list[JSON]] = []
        self.size = 0
        """Characters of all the texts."""

    def add(self, trace: Trace) -> None:
        """Take in the calls of one scene."""
        self._scenes.append(
            [
                {
                    "messages": [[message.role, self._number(message.content)] for message in call.messages],
                    "completion": self._number(call.completion),
                    "reasoning": self._number(call.reasoning) if call.reasoning and self._thoughts else None,
                    "sampling": self._number(_text(call.sampling)),
                }
                for call in trace.calls
            ]
        )

    def content(self) -> JSON:
        """`texts`, and `scenes`: a list of calls each, whose texts are numbers in `texts`."""
        # In alphabetical order, prompts that begin alike are neighbours: that is what makes the block small.
        texts = sorted(self._numbers)
        place = {self._numbers[text]: position for position, text in enumerate(texts)}
        return {
            "texts": texts,
            "scenes": [
                [
                    {
                        "messages": [[role, place[number]] for role, number in call["messages"]],
                        "completion": place[call["completion"]],
                        "reasoning": None if call["reasoning"] is None else place[call["reasoning"]],
                        "sampling": place[call["sampling"]],
                    }
                    for call in scene
                ]
                for scene in self._scenes
            ],
        }

    def _number(self, text: str) -> int:
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = len(self._numbers)
            self.size += len(text)
        return number


def to_json(value: Any) -> bytes:
    """JSON in ASCII, so that lone surrogates come through as they are."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _text(value: Any) -> str:
    """A free value as people read it. As text it is exact, which a large whole number would not be in a browser."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2, default=str)


def _finite(seconds: float) -> float | None:
    return round(seconds, 3) if math.isfinite(seconds) else None
