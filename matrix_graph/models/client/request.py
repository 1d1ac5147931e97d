"""Fields of a request that people set themselves: which of them there may be.

What always holds: a field that this package sets is refused with the setting to use in its place, so that nobody's
`messages`, `stream` or `n` changes what a reply means.
"""

from __future__ import annotations

import json
from typing import Any

MAX_THINKING_TOKENS = 4096
"""Tokens that a model may think, unless told otherwise."""

_OF_A_SCENE = "set scene.temperature and scene.judge_temperature"
_LIMITS = "set the scene's max_..._tokens, or max_thinking_tokens"
_OWNED = {
    **dict.fromkeys(("messages", "prompt", "stream", "stream_options", "n", "best_of"), "the package sets it"),
    **dict.fromkeys(
        ("structured_outputs", "response_format", "tools", "tool_choice", "functions", "function_call", "stop"),
        "the package sets it for each call",
    ),
    **dict.fromkeys(("logprobs", "top_logprobs", "prompt_logprobs", "echo"), "the package sets it"),
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), _LIMITS),
    "model": "set `model`",
    "temperature": _OF_A_SCENE,
    "extra_body": "write its fields themselves",
}


def check_request(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, if none is the package's own and all have a JSON form.

    Raises:
        ValueError: one is, or has none.
    """
    for name, value in fields.items():
        why = _OWNED.get(name) or (f"use structured_outputs instead of {name}" if name.startswith("guided_") else None)
        if why is not None:
            raise ValueError(f"{name} cannot be set as a field of the request: {why}")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} has no JSON form: {error}") from error
    kwargs = fields.get("chat_template_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise ValueError(f"chat_template_kwargs must be a mapping, such as {{enable_thinking: false}}; got {kwargs!r}")
    return fields
