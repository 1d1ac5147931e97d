"""Fakes of the servers that people run beside vLLM: each takes, refuses and passes over what the real one does.

By their documentation of `/v1/chat/completions`: vLLM (OpenAI-compatible server, structured outputs), SGLang (OpenAI
APIs, structured outputs), llama.cpp (tools/server/README), Ollama (OpenAI compatibility), LM Studio (OpenAI
compatibility, structured output). Beside them some that are met behind gateways. Fields that a server does not document
have no effect on its replies, and are kept in `undocumented`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.integration.model_server import Call, ModelServer
from tests.integration.random_reply import JSON, random_reply

_CORE = frozenset(
    {"model", "messages", "temperature", "top_p", "max_tokens", "stop", "stream", "seed", "presence_penalty",
     "frequency_penalty"}
)  # fmt: skip
_OPENAI = _CORE | {
    "max_completion_tokens", "stream_options", "response_format", "tools", "tool_choice", "n", "logprobs",
    "top_logprobs", "user", "logit_bias",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What a server takes.

    Attributes:
        owner: of its models, as it lists them.
        fields: that have an effect.
        formats: types of `response_format` that have an effect.
        tells_length: whether it lists the model's context length.
        refuses_others: whether an undocumented field is an HTTP 400.
        refused_format: what it says to another type of `response_format`; None: it passes that over.
        refused_fields: field -> what it says to it.
    """

    owner: str
    fields: frozenset[str]
    formats: frozenset[str] = frozenset({"text", "json_object", "json_schema"})
    tells_length: bool = False
    refuses_others: bool = False
    refused_format: str | None = None
    refused_fields: dict[str, str] = field(default_factory=dict)


KINDS = {
    "vLLM": Kind("vllm", _OPENAI | {"structured_outputs", "top_k", "chat_template_kwargs"}, tells_length=True),
    "SGLang": Kind("sglang", _OPENAI | {"regex", "ebnf", "top_k", "chat_template_kwargs"}, tells_length=True),
    "llama.cpp": Kind(
        "llamacpp",
        _OPENAI | {"grammar", "json_schema", "top_k", "chat_template_kwargs"},
        refused_format='response_format type must be one of "text" or "json_object" or "json_schema", but got: {}',
    ),
    "Ollama": Kind("library", _CORE | {"response_format", "stream_options", "tools", "reasoning_effort"}),
    "LM Studio": Kind(
        "organization_owner",
        _CORE | {"response_format", "tools", "top_k", "logit_bias", "repeat_penalty"},
        formats=frozenset({"text", "json_schema"}),
        refused_format="'response_format.type' must be 'json_schema' or 'text'",
    ),
}
"""The servers that the README names."""

MORE = {
    "OpenAI": Kind("openai", _OPENAI, refuses_others=True),
    "OpenAI, reasoning": Kind(
        "openai",
        _OPENAI - {"max_tokens"},
        refuses_others=True,
        refused_fields={
            "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            "temperature": "Unsupported value: 'temperature' does not support 0.1 with this model. Only the default "
            "(1) value is supported.",
        },
    ),
    "vLLM before structured_outputs": Kind("vllm", _OPENAI | {"guided_json", "guided_choice"}, tells_length=True),
    "vLLM that forbids extras": Kind("vllm", _OPENAI, tells_length=True, refuses_others=True),
    "llama.cpp before json_schema": Kind(
        "llamacpp",
        _OPENAI,
        formats=frozenset({"text", "json_object"}),
        refused_format='response_format type must be one of "text" or "json_object", but got: {}',
    ),
    "guided_json alone": Kind("someone", _CORE | {"guided_json", "guided_choice", "guided_regex"}, refuses_others=True),
}
"""Others that hold replies to a schema."""

IGNORES = Kind("someone", _CORE)
REFUSES = Kind("someone", _CORE, refuses_others=True)
"""Two that hold replies to none."""


class StrictServer(ModelServer):
    """A server of one kind; a context manager.

    Where no schema is in effect, its model writes prose; asked for JSON in words, it fences it and adds words around.

    Attributes:
        undocumented: fields that were sent and have no effect here.
        refusals: what was refused, in order.
    """

    def __init__(self, kind: Kind, **options: Any) -> None:
        super().__init__(reply=self._prose, **options)
        self.kind = kind
        self.undocumented: set[str] = set()
        self.refusals: list[str] = []

    async def _models(self, _: web.Request) -> web.Response:
        length = {"max_model_len": self.max_model_len} if self.kind.tells_length else {}
        cards = [{"id": name, "object": "model", "owned_by": self.kind.owner, **length} for name in self.models]
        return web.json_response({"object": "list", "data": cards})

    async def _answer(self, request: web.Request, call: Call) -> web.StreamResponse:
        sent, kind = call.body, self.kind
        if (refusal := self._refusal(sent)) is not None:
            self.refusals.append(refusal)
            # LM Studio's shape; OpenAI's is what `ModelServer` answers with.
            return (
                web.json_response({"error": refusal}, status=400)
                if kind is KINDS["LM Studio"]
                else self._error(400, refusal)
            )
        self.undocumented |= sent.keys() - kind.fields
        call.body = _understood(sent, kind)
        try:
            return await super()._answer(request, call)
        finally:
            call.body = sent

    def _refusal(self, body: JSON) -> str | None:
        for name, said in self.kind.refused_fields.items():
            if name in body and not (name == "temperature" and body[name] == 1):
                return said
        others = sorted(body.keys() - self.kind.fields)
        if others and self.kind.refuses_others:
            if self.kind.owner == "vllm":
                return str(
                    [
                        {"type": "extra_forbidden", "loc": ("body", name), "msg": "Extra inputs are not permitted"}
                        for name in others
                    ]
                )
            return f"Unrecognized request argument supplied: {', '.join(others)}"
        wanted = (body.get("response_format") or {}).get("type", "text")
        if "response_format" in self.kind.fields and wanted not in self.kind.formats:
            return None if self.kind.refused_format is None else self.kind.refused_format.format(wanted)
        return None

    def _prose(self, body: JSON) -> str | None:
        asked = str(body["messages"][-1]["content"])
        if body.get("structured_outputs") or body.get("response_format") or "fits this JSON schema:\n" not in asked:
            return None
        schema = json.loads(asked.split("fits this JSON schema:\n", 1)[1])
        value = random_reply({**body, "structured_outputs": {"json": schema}}, self.seed, self.true).text
        return f"Sure, here it is:\n```json\n{value}\n```\nLet me know if you need anything else."


def _understood(body: JSON, kind: Kind) -> JSON:
    """The request as the server reads it, in the form that `random_reply` keeps to."""
    read = {name: value for name, value in body.items() if name in kind.fields}
    format = read.get("response_format") or {}
    if format.get("type") not in kind.formats:
        read.pop("response_format", None)
    elif format["type"] == "json_object" and "schema" in format:
        read |= {"structured_outputs": {"json": format["schema"]}}
        del read["response_format"]
    for name in [name for name in read if name.startswith("guided_")]:
        read["structured_outputs"] = {name.removeprefix("guided_"): read.pop(name)}
    if "regex" in read:
        read["structured_outputs"] = {"regex": read.pop("regex")}
    return read
