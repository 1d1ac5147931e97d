"""The prompts of the methods that are compared, as files beside this module: one a method, in `=== sections ===`.

What always holds: a section is filled once with `string.Template`, so that text from people or models is never
interpolated twice; worked examples are chat turns and hold no placeholders. All of them were written for this package;
the papers' own wordings are not repeated.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from string import Template

_HEADING = re.compile(r"^=== (\w+) ===\n", re.MULTILINE)


def fill(prompt: str, section: str, **values: object) -> str:
    """One section of a prompt, filled.

    Args:
        prompt: file name without its ending, such as "debate".
        section: the section's heading; where several have it, the first.
        values: what the section's `$names` stand for, all of them.

    Returns:
        The text without a trailing newline.
    """
    template = next(text for heading, text in _sections(prompt) if heading == section)
    return template.substitute({name: str(value) for name, value in values.items()})


def opening(prompt: str) -> list[dict[str, str]]:
    """The system message of a prompt, if it has one, and its worked examples as chat turns."""
    return [
        {"role": heading, "content": template.template}
        for heading, template in _sections(prompt)
        if heading in ("system", "user", "assistant")
    ]


def entries(prompt: str, section: str) -> list[str]:
    """The lines of a section, each an entry of a list."""
    return [line.removeprefix("- ") for line in fill(prompt, section).splitlines() if line.strip()]


@cache
def digest(prompt: str) -> str:
    """A short hash of a prompt file, recorded with each answer: other prompts, other answers."""
    return hashlib.sha256(_read(prompt).encode()).hexdigest()[:12]


@cache
def _sections(prompt: str) -> tuple[tuple[str, Template], ...]:
    _, *parts = _HEADING.split(_read(prompt))
    return tuple((parts[i], Template(parts[i + 1].rstrip("\n"))) for i in range(0, len(parts), 2))


def _read(prompt: str) -> str:
    return files(__package__).joinpath(f"{prompt}.md").read_text(encoding="utf-8")
