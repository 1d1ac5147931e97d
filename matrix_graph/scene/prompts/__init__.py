"""The prompts, as files beside this module: one a speaker, in sections headed `=== name ===`.

A section is filled once with `string.Template`, so that text from people or models is never interpolated twice.
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
        prompt: file name without its ending, such as "role".
        section: the section's heading; where several have it, the first.
        values: what the section's `$names` stand for, all of them.

    Returns:
        The text without a trailing newline.
    """
    template = next(text for heading, text in _sections(prompt) if heading == section)
    return template.substitute({name: str(value) for name, value in values.items()})


def opening(prompt: str, **values: object) -> list[dict[str, str]]:
    """The system message of a prompt and its worked examples as chat turns.

    Args:
        prompt: file name without its ending.
        values: what the `$names` of the system section stand for.

    Returns:
        Messages `{"role", "content"}`, the system message first.
    """
    messages = []
    for heading, template in _sections(prompt):
        if heading == "system":
            messages.append({"role": heading, "content": template.substitute({k: str(v) for k, v in values.items()})})
        elif heading in ("user", "assistant"):
            messages.append({"role": heading, "content": template.template})
    return messages


@cache
def digest() -> str:
    """A short hash of all prompt files, recorded in traces: other prompts, other scenes."""
    texts = [f"{name}\n{_read(name)}" for name in ("cast", "modulator", "reflect", "revise", "role")]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


@cache
def _sections(prompt: str) -> tuple[tuple[str, Template], ...]:
    _, *parts = _HEADING.split(_read(prompt))
    return tuple((parts[i], Template(parts[i + 1].rstrip("\n"))) for i in range(0, len(parts), 2))


def _read(prompt: str) -> str:
    return files(__package__).joinpath(f"{prompt}.md").read_text(encoding="utf-8")
