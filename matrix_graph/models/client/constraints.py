"""How a request says what its reply must be: one schema, choice or regular expression in the forms of many servers.

Callers of `ChatVLLM` say it in one way, vLLM's `structured_outputs`. What always holds: whatever form it is sent in,
the reply that the caller reads is the one that this form would have brought.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from matrix_graph.errors import ConfigError

JSON = dict[str, Any]
Form = Literal["structured_outputs", "response_format", "json_object", "guided"]
"""vLLM since 0.10.2; OpenAI, vLLM, SGLang, llama.cpp, Ollama and LM Studio; older llama.cpp; vLLM before 0.11."""

VLLM_ORDER: tuple[Form, ...] = ("structured_outputs", "response_format", "guided", "json_object")
ORDER: tuple[Form, ...] = ("response_format", "json_object", "structured_outputs", "guided")

WORDS: dict[Form, str] = {
    "structured_outputs": r"structured_outputs",
    "response_format": r"response_format|json_schema",
    "json_object": r"response_format|json_object",
    "guided": r"guided_\w+",
}
"""How a server that refuses a form names it."""

WRAPPING_TOKENS = 32
"""Room for the object around a choice, in tokens."""
_AROUND = "value"
_KINDS = ("json", "choice", "regex")


@dataclass(frozen=True, slots=True)
class Phrase:
    """A constraint in one form.

    Attributes:
        fields: of the request, in the place of `structured_outputs`.
        wrapped: whether the reply is an object around the choice or match.
    """

    fields: JSON
    wrapped: bool = False


def kind_of(constraint: Any) -> str | None:
    """ "json", "choice" or "regex"; None for what vLLM alone can be told, such as a grammar."""
    if not isinstance(constraint, dict):
        return None
    return next((kind for kind in _KINDS if constraint.get(kind) is not None), None)


def phrased(constraint: JSON, form: Form, *, strict: bool) -> Phrase:
    """A constraint in the form that a server takes.

    Args:
        constraint: as `structured_outputs` has it, of a kind that `kind_of` knows.
        form: how it is to be said.
        strict: whether `response_format` asks for OpenAI's strict decoding.

    Raises:
        ConfigError: the JSON schema is not an object.
    """
    kind = kind_of(constraint)
    if form == "structured_outputs" or kind is None:
        return Phrase({"structured_outputs": constraint})
    if form == "guided":
        return Phrase({f"guided_{kind}": constraint[kind]})
    schema = _schema(constraint, kind)
    if form == "json_object":
        return Phrase({"response_format": {"type": "json_object", "schema": schema}}, kind != "json")
    named = {"name": _name(schema), "schema": schema, "strict": strict}
    return Phrase({"response_format": {"type": "json_schema", "json_schema": named}}, kind != "json")


def unwrapped(text: str) -> str:
    """The choice or match in the object around it; the text itself where it is not such an object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    inner = value.get(_AROUND) if isinstance(value, dict) else None
    return inner if isinstance(inner, str) else text


def is_held(text: str, constraint: JSON, *, wrapped: bool) -> bool:
    """Whether a whole reply keeps to a constraint, as far as that shows at a glance.

    Args:
        text: as it came, without what the model thought aloud.
        constraint: as `structured_outputs` has it.
        wrapped: as in `Phrase`.
    """
    text = text.strip()
    kind = kind_of(constraint)
    if wrapped:
        inner = unwrapped(text)
        return inner != text and _fits(inner, constraint, kind)
    return _fits(text, constraint, kind)


def _fits(text: str, constraint: JSON, kind: str | None) -> bool:
    if kind == "choice":
        return text in constraint["choice"]
    if kind == "regex":
        try:
            return re.fullmatch(str(constraint["regex"]), text) is not None
        except re.error:
            return True  # a pattern of another dialect
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    schema = _schema(constraint, "json")
    if schema.get("type") != "object":
        return True
    return isinstance(value, dict) and all(name in value for name in schema.get("required", ()))


def _schema(constraint: JSON, kind: str) -> JSON:
    given = constraint[kind]
    if kind == "json":
        try:
            schema = json.loads(given) if isinstance(given, str) else given
        except ValueError:
            schema = None
        if not isinstance(schema, dict):
            raise ConfigError(f"structured_outputs has the JSON schema {given!r}; give an object, or its JSON text.")
        return schema
    inner = {"enum": list(given)} if kind == "choice" else {"pattern": f"^({given})$"}
    return {
        "type": "object",
        "properties": {_AROUND: {"type": "string", **inner}},
        "required": [_AROUND],
        "additionalProperties": False,
    }


def _name(schema: JSON) -> str:
    """A name as OpenAI allows it: up to 64 letters, digits, underscores and hyphens."""
    title = schema.get("title")
    return re.sub(r"[^A-Za-z0-9_-]+", "_", title)[:64] if isinstance(title, str) and title else "reply"
