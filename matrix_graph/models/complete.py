"""One completion from any LangChain chat model, as plain data.

`ChatVLLM` gets a JSON schema natively. Any other chat model gets it through its own `with_structured_output`, or, if it
has none, is asked in plain words. Of a wrapped one (a retry, a fallback) each chat model inside is asked so, and the
wrappers are around that. What always holds: whoever listens (tracers, callbacks, streams of messages) hears of
every call. Where nobody listens, a call to `ChatVLLM` leaves out LangChain's callbacks and message objects, which cost
more than all the rest of it. What the model thought stands apart from what it says, whatever model it is.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.globals import get_debug, get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, var_child_runnable_config

from matrix_graph.errors import ReplyError
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.client.server_numbers import count
from matrix_graph.models.client.strings import name_in
from matrix_graph.models.known import known_of_object
from matrix_graph.models.system_role import accepted, folded
from matrix_graph.models.thoughts import (
    FIELDS,
    field_of,
    joined,
    parted,
    require_spoken,
    spoken,
    spoken_tokens,
    switched,
)
from matrix_graph.models.wrapped import Options, WrappedChatModel, arranged, bound_inside, leaves
from matrix_graph.records import clean

_BOUND = "bound"
"""Under this name stands in the recorded settings what a wrapper binds."""
_RECORDED = (
    "model",
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
)
"""Bound options that are recorded; others, such as headers, may be secret."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model said.

    Attributes:
        text: to the letter, but for lone surrogates, and without thoughts.
        finish_reason: the server's; None if it told none.
        model: the name that the server gives itself; None if it told none.
        input_tokens: as the server counted them; 0 if it told none.
        output_tokens: likewise; thoughts are among them.
        reasoning: what it thought before; None if nothing is known of that.
        unopened: whether that had no opening tag.
    """

    text: str
    finish_reason: str | None
    model: str | None
    input_tokens: int
    output_tokens: int
    reasoning: str | None = None
    unopened: bool = False

    @property
    def spoken_tokens(self) -> int:
        """The tokens of the text alone."""
        return spoken_tokens(
            {"usage": {"output_tokens": self.output_tokens}, "completion": self.text, "reasoning": self.reasoning}
        )


@dataclass(slots=True)
class Sent:
    """A call as it was sent, which may differ from what was asked for: more room for a model that thinks, no system
    message for one that refuses it.

    Attributes:
        messages: `{"role", "content"}` each.
        sampling: sampling settings and further fields.
    """

    messages: list[dict[str, str]]
    sampling: dict[str, Any]


async def complete(
    model: BaseChatModel,
    messages: list[dict[str, str]],
    *,
    name: str,
    sampling: Mapping[str, Any],
    schema: dict[str, Any] | None,
    metadata: Mapping[str, Any],
    sent: Sent | None = None,
) -> Completion:
    """Ask the model once.

    Args:
        model: any LangChain chat model.
        messages: `{"role", "content"}` each.
        name: what the call is for; the name of its run for those who listen.
        sampling: as `sampling_of` gives it.
        schema: JSON schema of the reply; None asks for free text.
        metadata: of the run, for those who listen.
        sent: takes up what was sent, also where the call fails.

    Raises:
        ReplyError: the model returned something else than a message.
        Exception: whatever the model raises.
    """
    # Not the bare name of a node: LangGraph would take the reply of a run that bears it for the node's own output.
    config: RunnableConfig = {"run_name": f"{name} call", "metadata": dict(metadata)}
    call = _Call(name, {key: value for key, value in sampling.items() if key != _BOUND}, schema)
    sent = sent or Sent(messages, dict(sampling))
    if not isinstance(model, WrappedChatModel):
        return await _asked(model, messages, config, call, sent)

    def leaf(inner: BaseChatModel, options: Options) -> Runnable[Any, Any]:
        async def ask(messages: list[dict[str, str]], config: RunnableConfig) -> Completion:
            named: RunnableConfig = {**config, "run_name": f"{name} call"}
            return await _asked(inner, messages, named, call, sent, options)

        return _Leaf(ask)

    return cast(Completion, await arranged(model, leaf).ainvoke(messages, config))


@dataclass(frozen=True, slots=True)
class _Call:
    """What a call is for, how it is sampled, and what its reply must be."""

    name: str
    sampling: Mapping[str, Any]
    schema: dict[str, Any] | None


async def _asked(
    model: BaseChatModel,
    messages: list[dict[str, str]],
    config: RunnableConfig,
    call: _Call,
    sent: Sent,
    bound: Options | None = None,
) -> Completion:
    """Ask one chat model without wrappers; `bound` are the options that wrappers bound to it."""
    bound = bound or {}
    if isinstance(model, ChatVLLM):
        # Reckoned here rather than at the client, so that what is recorded is what is sent.
        options = {**call.sampling, **bound}
        if isinstance(options.get("max_tokens"), int) and options.get("max_thinking_tokens") != 0:
            room = await model.athinking_room(bound.get("model"))
            limit = {"max_tokens": options["max_tokens"] + room}
            sent.sampling = {**sent.sampling, **limit}
            options |= {**limit, **({"max_thinking_tokens": 0} if room else {})}
        try:
            if _nobody_listens(model, config):
                reply = await model.acomplete(messages, read_completion, options)
            else:
                reply = await _of_any(model, messages, config, replace(call, sampling=options), {})
        finally:
            known = model.known(bound.get("model"))  # a server may tell the model's name only once it is asked
            sent.messages = folded(messages) if known.folds else messages
    else:
        known = known_of_object(model)
        try:
            reply = await accepted(known, messages, lambda taken: _of_any(model, taken, config, call, bound))
        finally:
            sent.messages = folded(messages) if known.folds else messages
    # A schema holds the text itself: where it is enforced, nothing is thought before it.
    cut = reply.finish_reason == "length" and call.schema is None
    unopened = known.unopened or (_must_think(model) and not known.thinks)
    parts = parted(reply.text, unopened=unopened and reply.reasoning is None, cut=cut)
    thought = joined(reply.reasoning, parts.thought)
    known.met(thought, unopened=parts.unopened)
    return replace(reply, text=parts.text, reasoning=thought, unopened=parts.unopened)


def _must_think(model: BaseChatModel) -> bool:
    return isinstance(model, ChatVLLM) and switched(model.thinking, model.fixed_request) == "on"


def require_answer(model: BaseChatModel, reply: Completion) -> None:
    """See that a reply does not consist of thought alone.

    Raises:
        UnfinishedThoughtError: it does; says what to set.
    """
    require_spoken(reply.text, reply.reasoning, reply.output_tokens, _advice(model))


def _advice(model: BaseChatModel) -> str:
    model = _first(model)
    if not isinstance(model, ChatVLLM):
        return "Switch the model's reasoning off, or raise its own limit of tokens."
    room = f"`max_thinking_tokens` (now {model.max_thinking_tokens})"
    if switched(model.thinking, model.fixed_request) == "off":
        return f"It thinks though `thinking` is off: set `thinking: on`, which gives it {room}."
    return f"Set `thinking: off`, or raise {room}."


async def _of_any(
    model: BaseChatModel, messages: list[dict[str, str]], config: RunnableConfig, call: _Call, options: Options
) -> Completion:
    try:
        return _from_message(await _invoked(model, messages, config, call, options))
    except Exception as error:
        # openai's parser raises on a reply that was cut off; the reply itself stands in the exception.
        completion: Any = getattr(error, "completion", None)
        if not getattr(completion, "choices", None):
            raise
        choice, used = completion.choices[0], getattr(completion, "usage", None)
        return Completion(
            clean(choice.message.content or ""),
            name_in(choice.finish_reason),
            name_in(completion.model),
            count(getattr(used, "prompt_tokens", 0)) or 0,
            count(getattr(used, "completion_tokens", 0)) or 0,
            clean(_told_by(choice.message)) or None,
        )


def _told_by(message: Any) -> str:
    # A field that openai's own types do not have is an attribute all the same, and none of `vars`.
    return field_of({name: getattr(message, name, None) for name in FIELDS})


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
    if isinstance(model, WrappedChatModel):
        # Where one of several is told settings, all are recorded as if they were.
        own = sampling_of(_first(model), temperature, max_tokens, schema)
        options = {key: value for key, value in next(leaves(model))[1].items() if key in _RECORDED}
        return {**own, _BOUND: options} if options else own
    if isinstance(model, ChatVLLM):
        bound = {} if schema is None else {"structured_outputs": {"json": schema}}
        given = {} if temperature is None else {"temperature": temperature}
        own = {"top_p": model.top_p} if model.top_p is not None else {}
        return {**own, **model.fixed_request, **given, "max_tokens": max_tokens, **bound}
    sent = {name: getattr(model, name, None) for name in ("temperature", "top_p", "max_tokens")}
    return {name: value for name, value in sent.items() if isinstance(value, int | float)}


def request_settings(model: BaseChatModel) -> dict[str, Any]:
    """What was set of each request to a model, as `{"request": {...}}`, to be compared with that of earlier answers;
    empty if nothing was."""
    model = _first(model)
    fields = model.fixed_request if isinstance(model, ChatVLLM) else {}
    return {"request": fields} if fields else {}


def _first(model: BaseChatModel) -> BaseChatModel:
    """Of a wrapped model the one inside that is told settings call by call, else the one that is asked first."""
    inside = [leaf for leaf, _ in leaves(model)]
    return next((leaf for leaf in inside if isinstance(leaf, ChatVLLM)), inside[0])


def name_of(model: BaseChatModel) -> str:
    """The name that a model goes by, until its server tells another."""
    if isinstance(model, WrappedChatModel):
        inner, options = next(leaves(model))
        bound = options.get("model")
        return bound if isinstance(bound, str) and bound else name_of(inner)
    for attribute in ("model_name", "model", "model_id"):
        name = getattr(model, attribute, None)
        if isinstance(name, str) and name:
            return name
    return type(model).__name__


def completion_text(message: AIMessage) -> str:
    """The text of a chat model's reply without its thoughts; of a tool call (structured output by function calling),
    its arguments."""
    text = spoken(str(message.text))
    if not text and message.tool_calls:
        text = json.dumps(message.tool_calls[0]["args"], ensure_ascii=False)
    return clean(text)


def reasoning_of(message: AIMessage) -> str | None:
    """What a chat model thought before its reply, as LangChain shows it in a reasoning block, or as a field."""
    blocks = message.content if isinstance(message.content, list) else []
    told = [
        str(block.get("reasoning") or block.get("thinking") or "")
        for block in blocks
        if isinstance(block, dict) and block.get("type") in ("reasoning", "thinking")
    ]
    return joined(*told, field_of(message.additional_kwargs))


def read_completion(body: Mapping[str, Any]) -> Completion:
    """A chat completion's body as a `Completion`.

    Raises:
        LookupError, TypeError, AttributeError: the body has another shape.

    Thoughts in the text still stand there.
    """
    choice = body["choices"][0]
    content = choice["message"].get("content")
    if content is not None and not isinstance(content, str):
        raise TypeError(f"content is a {type(content).__name__}, not text")
    usage = body.get("usage") or {}
    return Completion(
        clean(content or ""),
        name_in(choice.get("finish_reason")),
        name_in(body.get("model")),
        count(usage.get("prompt_tokens")) or 0,
        count(usage.get("completion_tokens")) or 0,
        clean(field_of(choice["message"])) or None,
    )


class _Leaf(Runnable[Any, Any]):
    """What stands in the place of a chat model inside of its wrappers; asynchronous alone, as scenes are."""

    def __init__(self, ask: Callable[[list[dict[str, str]], RunnableConfig], Awaitable[Completion]]) -> None:
        self._ask = ask

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Completion:
        raise NotImplementedError("scenes ask their model asynchronously")

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Completion:
        return await self._ask(input, ensure_config(config))


def _nobody_listens(model: ChatVLLM, config: RunnableConfig) -> bool:
    # The graph's own run has asked LangChain who listens (handlers, LangSmith's tracing, streams of messages), and its
    # nodes inherit the answer. Outside of a run nobody has asked yet. Wrappers of the model may bring listeners, too.
    callbacks = config.get("callbacks") or (var_child_runnable_config.get() or {}).get("callbacks")
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
    config: RunnableConfig,
    call: _Call,
    options: Options,
) -> AIMessage:
    if isinstance(model, ChatVLLM):
        return await model.ainvoke(messages, config, **{**call.sampling, **options})
    if call.schema is not None and type(model).with_structured_output is not BaseChatModel.with_structured_output:
        structured: Runnable[Any, Any] = model.with_structured_output(
            {"title": call.name, "description": f"The reply to {call.name}.", **call.schema}, include_raw=True
        )
        raw = (await bound_inside(model, structured, options).ainvoke(messages, config))["raw"]
        if not isinstance(raw, AIMessage):
            raise ReplyError(f"{type(model).__name__} returned a {type(raw).__name__}; an AIMessage is needed.")
        return raw
    return await model.ainvoke(messages, config, **options)


def _from_message(message: AIMessage) -> Completion:
    usage: Any = message.usage_metadata or {}
    text = str(message.text)
    if message.tool_calls and not spoken(text).strip():
        text = completion_text(message)
    return Completion(
        clean(text),
        name_in(message.response_metadata.get("finish_reason")),
        name_in(message.response_metadata.get("model_name")),
        count(usage.get("input_tokens")) or 0,
        count(usage.get("output_tokens")) or 0,
        clean(reasoning_of(message) or "") or None,
    )
