"""One completion from any LangChain chat model, as plain data.

`ChatVLLM` gets a JSON schema natively. Any other chat model gets it through its own `with_structured_output`, or, if it
has none, is asked in plain words. What always holds: whoever listens (tracers, callbacks, streams of messages) hears of
every call. Where nobody listens, a call to `ChatVLLM` leaves out LangChain's callbacks and message objects, which cost
more than all the rest of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.globals import get_debug, get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config

from matrix_graph.errors import ReplyError
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.client.server_numbers import count
from matrix_graph.models.client.strings import name_in
from matrix_graph.records import clean


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model said.

    Attributes:
        text: to the letter, but for lone surrogates.
        finish_reason: the server's; None if it told none.
        model: the name that the server gives itself; None if it told none.
        input_tokens: as the server counted them; 0 if it told none.
        output_tokens: likewise.
    """

    text: str
    finish_reason: str | None
    model: str | None
    input_tokens: int
    output_tokens: int


async def complete(
    model: BaseChatModel,
    messages: list[dict[str, str]],
    *,
    name: str,
    sampling: Mapping[str, Any],
    schema: dict[str, Any] | None,
    metadata: Mapping[str, Any],
) -> Completion:
    """Ask the model once.

    Args:
        model: any LangChain chat model.
        messages: `{"role", "content"}` each.
        name: what the call is for; the name of its run for those who listen.
        sampling: as `sampling_of` gives it.
        schema: JSON schema of the reply; None asks for free text.
        metadata: of the run, for those who listen.

    Raises:
        ReplyError: the model returned something else than a message.
        Exception: whatever the model raises.
    """
    if isinstance(model, ChatVLLM) and _nobody_listens(model):
        return await model.acomplete(messages, read_completion, sampling)
    try:
        return _from_message(await _invoked(model, messages, name, sampling, schema, metadata))
    except Exception as error:
        # openai's parser raises on a reply that was cut off; the reply itself stands in the exception.
        completion: Any = getattr(error, "completion", None)
        if not getattr(completion, "choices", None):
            raise
        choice, used = completion.choices[0], getattr(completion, "usage", None)
        return Completion(
            clean(choice.message.content or ""),
            _text(choice.finish_reason),
            _text(completion.model),
            _count(getattr(used, "prompt_tokens", 0)),
            _count(getattr(used, "completion_tokens", 0)),
        )


def sampling_of(
    model: BaseChatModel, temperature: float | None, max_tokens: int, schema: dict[str, Any] | None
) -> dict[str, Any]:
    """The sampling settings that a call to this model carries, as they are recorded.

    Args:
        model: only `ChatVLLM` is told settings call by call; of others their own are given, as far as they can be read.
        temperature: for this call; None sends none, so that the model's or the server's own default holds.
        max_tokens: the longest reply.
        schema: JSON schema of the reply.
    """
    if isinstance(model, ChatVLLM):
        bound = {} if schema is None else {"structured_outputs": {"json": schema}}
        given = {} if temperature is None else {"temperature": temperature}
        return {**given, "max_tokens": max_tokens, **bound}
    sent = {name: getattr(model, name, None) for name in ("temperature", "top_p", "max_tokens")}
    return {name: value for name, value in sent.items() if isinstance(value, int | float)}


def name_of(model: BaseChatModel) -> str:
    """The name that a model goes by, until its server tells another."""
    for attribute in ("model_name", "model", "model_id"):
        name = getattr(model, attribute, None)
        if isinstance(name, str) and name:
            return name
    return type(model).__name__


def completion_text(message: AIMessage) -> str:
    """The text of a chat model's reply; of a tool call (structured output by function calling), its arguments."""
    text = str(message.text)
    if not text and message.tool_calls:
        text = json.dumps(message.tool_calls[0]["args"], ensure_ascii=False)
    return clean(text)


def read_completion(body: Mapping[str, Any]) -> Completion:
    """A chat completion's body as a `Completion`.

    Raises:
        LookupError, TypeError, AttributeError: the body has another shape.
    """
    choice = body["choices"][0]
    content = choice["message"].get("content")
    if content is not None and not isinstance(content, str):
        raise TypeError(f"content is a {type(content).__name__}, not text")
    usage = body.get("usage") or {}
    return Completion(
        clean(content or ""),
        _text(choice.get("finish_reason")),
        _text(body.get("model")),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def _nobody_listens(model: ChatVLLM) -> bool:
    # The graph's own run has asked LangChain who listens (handlers, LangSmith's tracing, streams of messages), and its
    # nodes inherit the answer. Outside of a run nobody has asked yet.
    config = var_child_runnable_config.get()
    callbacks = config.get("callbacks") if config else None
    return (
        isinstance(callbacks, BaseCallbackManager)
        and not callbacks.handlers
        and not callbacks.inheritable_handlers
        and not (model.callbacks or model.verbose or model.streaming or model.cache or model.rate_limiter)
        and type(model)._agenerate is ChatVLLM._agenerate
        and get_llm_cache() is None
        and not get_debug()
    )


async def _invoked(
    model: BaseChatModel,
    messages: list[dict[str, str]],
    name: str,
    sampling: Mapping[str, Any],
    schema: dict[str, Any] | None,
    metadata: Mapping[str, Any],
) -> AIMessage:
    # Not the bare name of a node: LangGraph would take the reply of a run that bears it for the node's own output.
    config: RunnableConfig = {"run_name": f"{name} call", "metadata": dict(metadata)}
    if isinstance(model, ChatVLLM):
        return await model.ainvoke(messages, config, **sampling)
    if schema is not None and type(model).with_structured_output is not BaseChatModel.with_structured_output:
        structured: Runnable[Any, Any] = model.with_structured_output(
            {"title": name, "description": f"The reply to {name}.", **schema}, include_raw=True
        )
        raw = (await structured.ainvoke(messages, config))["raw"]
        if not isinstance(raw, AIMessage):
            raise ReplyError(f"{type(model).__name__} returned a {type(raw).__name__}; an AIMessage is needed.")
        return raw
    return await model.ainvoke(messages, config)


def _from_message(message: AIMessage) -> Completion:
    usage: Any = message.usage_metadata or {}
    return Completion(
        completion_text(message),
        _text(message.response_metadata.get("finish_reason")),
        _text(message.response_metadata.get("model_name")),
        _count(usage.get("input_tokens")),
        _count(usage.get("output_tokens")),
    )


def _text(value: object) -> str | None:
    return name_in(value)


def _count(value: object) -> int:
    return count(value) or 0
