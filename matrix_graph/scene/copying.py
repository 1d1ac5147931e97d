"""Whether a reply takes something from the worked examples of its prompt.

Small models do: they play the example's people in place of the question's. What always holds: a text that the scene
itself brought up (the question names the same person, say) is not a copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from matrix_graph.errors import CopiedError
from matrix_graph.scene.prompts import examples

_SHORTEST = 4
"""Words of a text that is told from others by its wording; shorter ones occur by chance."""
_SAME = 0.8
"""Share of words in common from which two texts count as the same."""
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_NAME = re.compile(r"\b[^\W\d_]\w{3,}\b")


def refuse_copies(prompt: str, reply: object, own: str) -> None:
    """Refuse a reply that takes names or whole texts from a worked example.

    Args:
        prompt: whose examples, as `prompts.examples` takes it.
        reply: as it came out of JSON: mappings, lists and strings.
        own: what the scene itself brought up; a text that stands in it is not a copy.

    Raises:
        CopiedError: says what was copied.
    """
    found = copied_from(examples(prompt), reply, own)
    if found is not None:
        raise CopiedError(f"{found}; think of the question alone.")


def copied_from(shown: Sequence[object], reply: object, own: str) -> str | None:
    """Find a name or a whole text in a reply that stands in a worked example.

    Args:
        shown: the examples, as they come out of JSON.
        reply: likewise.
        own: what the scene itself brought up; a text that stands in it is not a copy.

    Returns:
        What is copied, as the beginning of a sentence; None if nothing is.
    """
    texts = [text for example in shown for text in _texts(example)]
    names = _names_of(shown)
    known = own.casefold()
    for text in _texts(reply):
        for name in names:
            if name.casefold() not in known and re.search(rf"\b{re.escape(name)}\b", text):
                return f"{text[:80]!r} takes {name} from the example"
        if text.casefold() not in known and any(same_words(text, other) for other in texts):
            return f"{text[:80]!r} is taken from the example"
    return None


def same_words(one: str, other: str, shortest: int = _SHORTEST) -> bool:
    """Whether two texts say the same in nearly the same words; case and punctuation do not count.

    Args:
        one: any text.
        other: the text to compare it with.
        shortest: words that both must have, unless they are equal to the letter.
    """
    first, second = words_of(one), words_of(other)
    if min(len(first), len(second)) < shortest:
        return False
    if first == second:
        return True
    a, b = set(first), set(second)
    return len(a & b) / len(a | b) >= _SAME


def words_of(text: str) -> list[str]:
    """The words of a text, casefolded."""
    return [word.casefold() for word in _WORD.findall(text)]


def _names_of(shown: Sequence[object]) -> list[str]:
    """The names of the people in the examples, each word of them that begins with a capital letter."""
    people = [example.get("people", ()) for example in shown if isinstance(example, dict)]
    return [word for names in people for name in names for word in _NAME.findall(str(name)) if word[0].isupper()]


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
