"""One question to the model: call it, validate the reply, ask once more if it cannot be used, record every call.

What always holds: a reply reaches the scene only through a parser; nothing that a model or its server does raises here,
it becomes a `Problem` in the answer (cancellation and LangGraph's own control flow pass through); and each call is
recorded with the exact messages sent and the exact completion received.

`ChatVLLM` gets the JSON schema natively. Any other chat model gets it through its own `with_structured_output`, or, if
it has none, is asked in plain words, and its reply is searched for the JSON object.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.errors import GraphBubbleUp
from pydantic import BaseModel, ValidationError

from matrix_graph.errors import ContextLengthError, ReplyError
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.records import Purpose, clean

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

ChatMessage = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`, plain data so that checkpoints stay plain."""

_MOST_OBJECTS = 100
"""Braces that are tried as the beginning of a JSON object; prose has few, and each costs a parse."""

TRIES = 2
"""A reply that cannot be used is asked for once more, then the failure is recorded."""


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """What to ask, and how to tell whether the reply can be used.

    Attributes:
        purpose: what the call is for.
        messages: the prompt, ending with a user message.
        parse: takes the completion, returns the value, raises `ReplyError` if it cannot be used.
        max_tokens: the longest reply, in tokens.
        temperature: sampling temperature.
        schema: JSON schema of the reply; None asks for free text.
        role: whose action or dialogue this is about.
        round: from 1; None outside the rounds.
        seconds: how long all tries together may take.
    """

    purpose: Purpose
    messages: Sequence[ChatMessage]
    parse: Callable[[str], T]
    max_tokens: int
    temperature: float
    schema: dict[str, Any] | None = None
    role: str | None = None
    round: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What came back.

    Attributes:
        value: the parsed reply; None if there was no usable one.
        text: the completion behind `value`, exactly as received.
        messages: the messages behind `value`, exactly as sent.
        tokens: prompt and completion tokens of the last call, as counted by the server (0 if it told none).
        calls: a plain record of every call, fit for `records.Call`.
        problem: `{"type", "message"}` if there was no usable reply.
        too_long: the prompt outgrew the model's context.
    """

    value: T | None
    text: str
    messages: list[ChatMessage]
    tokens: int
    calls: list[dict[str, Any]]
    problem: dict[str, str] | None = None
    too_long: bool = False


async def ask(model: BaseChatModel, question: Question[T]) -> Answer[T]:
    """Ask the model, at most `TRIES` times until the reply can be used.

    Args:
        model: any LangChain chat model.
        question: what to ask.

    Returns:
        The answer; it never raises for what the model or the server does.
    """
    deadline = None if question.seconds is None else time.monotonic() + question.seconds
    messages = list(question.messages)
    calls: list[dict[str, Any]] = []
    problem: dict[str, str] = {}
    tokens = 0
    for _ in range(TRIES):
        started = time.monotonic()
        call: dict[str, Any] = {
            "purpose": question.purpose,
            "role": question.role,
            "round": question.round,
            "messages": messages,
            "completion": "",
            "finish_reason": None,
            "model": _name(model),
            "sampling": _sampling(model, question),
            "usage": {"input_tokens": 0, "output_tokens": 0},
            "seconds": 0.0,
            "error": None,
        }
        calls.append(call)
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - started)):
                message = await _received(model, messages, question)
        except GraphBubbleUp:
            raise
        except Exception as error:  # noqa: BLE001 - any model may stand here, and each raises types of its own
            if isinstance(error, TimeoutError) and deadline is not None and time.monotonic() >= deadline:
                error = ReplyError(f"No reply within the {question.seconds:.0f} s that the scene had left.")
            call["seconds"] = time.monotonic() - started
            call["error"] = problem = describe(error)
            return Answer(None, "", messages, tokens, calls, problem, isinstance(error, ContextLengthError))
        call["seconds"] = time.monotonic() - started
        text = completion_text(message)
        usage: Any = message.usage_metadata or {}
        call["completion"] = text
        call["finish_reason"] = _text(message.response_metadata.get("finish_reason"))
        call["model"] = _text(message.response_metadata.get("model_name")) or call["model"]
        call["usage"] = {name: max(0, int(usage.get(name) or 0)) for name in ("input_tokens", "output_tokens")}
        tokens = call["usage"]["input_tokens"] + call["usage"]["output_tokens"]
        try:
            return Answer(question.parse(text), text, messages, tokens, calls)
        except ReplyError as error:
            why = str(error)
            if call["finish_reason"] == "length":
                why = f"Cut off after {question.max_tokens} tokens. {why}"
            call["error"] = problem = {"type": type(error).__name__, "message": why}
            messages = _ask_again(question, why)
    return Answer(None, "", messages, tokens, calls, problem)


def parse_json(reply: type[M]) -> Callable[[str], M]:
    """A parser that turns a completion into `reply`, also when the JSON object stands in other text.

    Returns:
        A function of the completion that raises `ReplyError` with what is wrong, by field.
    """

    def parse(text: str) -> M:
        start, end = text.find("{"), text.rfind("}")
        if start < 0 or end < start:
            raise ReplyError("The reply holds no JSON object." if text.strip() else "The reply is empty.")
        try:
            return reply.model_validate_json(text[start : end + 1])
        except ValidationError as error:
            for candidate in _objects_in(text):
                with suppress(ValidationError):
                    return reply.model_validate_json(candidate)
            wrong = "; ".join(
                f"{'.'.join(str(part) for part in item['loc']) or 'JSON'}: {item['msg']}"
                for item in error.errors(include_url=False, include_input=False, include_context=False)[:5]
            )
            raise ReplyError(f"The reply does not fit: {wrong}.") from None

    return parse


def _objects_in(text: str) -> list[str]:
    """The JSON objects that stand in a text, the last one first: what a model thinks aloud comes before its reply."""
    decoder = json.JSONDecoder()
    found: list[str] = []
    start = text.find("{")
    for _ in range(_MOST_OBJECTS):
        if start < 0:
            break
        try:
            _, end = decoder.raw_decode(text, start)
            found.append(text[start:end])
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)
    return found[::-1]


def parse_text(text: str) -> str:
    """The completion itself, to the letter.

    Raises:
        ReplyError: there is nothing in it.
    """
    if not text.strip():
        raise ReplyError("The reply is empty.")
    return text


def describe(error: BaseException) -> dict[str, str]:
    """An exception as plain data: its type's name and its message."""
    return {"type": type(error).__name__, "message": clean(str(error)) or type(error).__name__}


def completion_text(message: AIMessage) -> str:
    """The text of a chat model's reply; of a tool call (structured output by function calling), its arguments."""
    text = str(message.text)
    if not text and message.tool_calls:
        text = json.dumps(message.tool_calls[0]["args"], ensure_ascii=False)
    return clean(text)


def _ask_again(question: Question[Any], why: str) -> list[ChatMessage]:
    # The unusable reply itself stays out of the prompt: it may be 100 kB long, and small models would repeat it.
    note = f"(Your last reply to this could not be used: {why[:500]})"
    if question.schema is not None:
        note += f"\nReply with one JSON object that fits this JSON schema:\n{json.dumps(question.schema)}"
    *before, last = question.messages
    return [*before, {**last, "content": f"{last['content']}\n\n{note}"}]


async def _received(model: BaseChatModel, messages: list[ChatMessage], question: Question[Any]) -> AIMessage:
    try:
        return await _invoke(model, messages, question)
    except Exception as error:
        # openai's parser raises on a reply that was cut off; the reply itself stands in the exception.
        completion: Any = getattr(error, "completion", None)
        choices = getattr(completion, "choices", None)
        if not choices:
            raise
        used = getattr(completion, "usage", None)
        read, written = (int(getattr(used, name, 0) or 0) for name in ("prompt_tokens", "completion_tokens"))
        return AIMessage(
            content=choices[0].message.content or "",
            response_metadata={"finish_reason": choices[0].finish_reason, "model_name": completion.model},
            usage_metadata={"input_tokens": read, "output_tokens": written, "total_tokens": read + written},
        )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


async def _invoke(model: BaseChatModel, messages: list[ChatMessage], question: Question[Any]) -> AIMessage:
    config: RunnableConfig = {
        "run_name": question.purpose,
        "metadata": {
            "matrix_graph_purpose": question.purpose,
            "matrix_graph_role": question.role or "",
            "matrix_graph_round": question.round or 0,
        },
    }
    if isinstance(model, ChatVLLM):
        return await model.ainvoke(messages, config, **_sampling(model, question))
    if question.schema is not None and type(model).with_structured_output is not BaseChatModel.with_structured_output:
        structured: Runnable[Any, Any] = model.with_structured_output(
            {"title": question.purpose, "description": f"The reply to {question.purpose}.", **question.schema},
            include_raw=True,
        )
        reply = await structured.ainvoke(messages, config)
        raw = reply["raw"]
        if not isinstance(raw, AIMessage):
            raise ReplyError(f"{type(model).__name__} returned a {type(raw).__name__}; an AIMessage is needed.")
        return raw
    return await model.ainvoke(messages, config)


def _name(model: BaseChatModel) -> str:
    for attribute in ("model_name", "model", "model_id"):
        name = getattr(model, attribute, None)
        if isinstance(name, str) and name:
            return name
    return type(model).__name__


def _sampling(model: BaseChatModel, question: Question[Any]) -> dict[str, Any]:
    if isinstance(model, ChatVLLM):
        sampling = {"temperature": question.temperature, "max_tokens": question.max_tokens}
        bound = {} if question.schema is None else {"structured_outputs": {"json": question.schema}}
        return {**sampling, **bound}
    sent = {name: getattr(model, name, None) for name in ("temperature", "top_p", "max_tokens")}
    return {name: value for name, value in sent.items() if isinstance(value, int | float)}
