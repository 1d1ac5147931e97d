"""Whether an answer speaks of the scene that it comes from.

Why: small models retell what was played, or repeat their instructions, where a better answer is asked for. What always
holds: what stands in the question or in the draft may stand in the answer, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from matrix_graph.scene.copying import words_of
from matrix_graph.scene.people import is_general

_RUN = 7
"""Words in a row that two texts do not share by chance."""
_PRONOUNS = frozenset(
    {"i", "me", "you", "he", "she", "they", "we", "ich", "du", "sie", "er", "je", "tu", "yo", "我", "你"}
)
"""Names that a text cannot be told to speak of."""


def mention_of_scene(answer: str, *, ego: str, names: Sequence[str], told: str, own: str) -> str | None:
    """Find what an answer says of the scene.

    Args:
        answer: the answer.
        ego: the name of the one who asked, in whatever case it stands there.
        names: of the people of the scene; what only says what somebody is, such as "Teacher", is not counted.
        told: what the model was told of the scene, and its instructions.
        own: question and draft, which the answer may repeat.

    Returns:
        What it mentions, as a sentence; None if nothing.
    """
    if ego.casefold() not in _PRONOUNS and _names(ego, answer, re.IGNORECASE) and not _names(ego, own, re.IGNORECASE):
        return f"It speaks of {ego!r}, who is the one that asked; write to this person."
    for name in names:
        if (
            name[:1].isupper()
            and not is_general(name)
            and _names(name, answer)
            and not _names(name, own, re.IGNORECASE)
        ):
            return f"It speaks of {name!r}, a person of the scene, whom the one that asked does not know."
    shared = (_runs(answer) & _runs(told)) - _runs(own)
    return f"It repeats what it was told: {min(shared)!r}." if shared else None


def _names(name: str, text: str, flags: re.RegexFlag = re.NOFLAG) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, flags) is not None


def _runs(text: str) -> set[str]:
    words = words_of(text)
    return {" ".join(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1)}
