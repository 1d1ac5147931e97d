"""One question to the model: call it, validate the reply, ask once more if it cannot be used, record every call.

What always holds: a reply reaches the scene only through a parser; nothing that a model or its server does raises here,
it becomes a `Problem` in the answer (cancellation and LangGraph's own control flow pass through); and each call is
recorded with the exact messages sent and the exact completion received.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from langchain_core.language_models import BaseChatModel
from langgraph.errors import GraphBubbleUp
from pydantic import BaseModel, ValidationError

from matrix_graph.errors import ContextLengthError, CopiedError, ReplyError, UnfinishedThoughtError
from matrix_graph.models.complete import Sent, complete, name_of, require_answer, sampling_of
from matrix_graph.models.turn import Turn, clock
from matrix_graph.records import Purpose, clean

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

ChatMessage = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`, plain data so that checkpoints stay plain."""

_MOST_OBJECTS = 100
"""Braces that are tried as the beginning of a JSON object; prose has few, and each costs a parse."""

_SAID_OF: dict[type[ReplyError], str] = {
    CopiedError: "It took something from an example. Think of this question alone.",
    UnfinishedThoughtError: "There was no answer after your thoughts. Think briefly, then answer.",
}
"""What the model is told of a reply in the place of the error's own words."""

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
        temperature: sampling temperature; None leaves it to the server.
        schema: JSON schema of the reply; None asks for free text.
        again: the prompt of a second try, where it is another one; None takes `messages`.
        role: whose action or dialogue this is about.
        round: from 1; None outside the rounds.
        seconds: how long all tries together may take.
    """

    purpose: Purpose
    messages: Sequence[ChatMessage]
    parse: Callable[[str], T]
    max_tokens: int
    temperature: float | None
    schema: dict[str, Any] | None = None
    again: Sequence[ChatMessage] | None = None
    role: str | None = None
    round: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What came back.

    Attributes:
        value: the parsed reply; None if there was no usable one.
        text: the completion behind `value`, exactly as received, but for what was thought before it.
        messages: the messages behind `value`, as they were made; `calls` has them as sent.
        tokens: prompt and completion tokens of the last call, as counted by the server (0 if it told none), thoughts
            left out.
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
    until = None if question.seconds is None else clock() + question.seconds
    messages = list(question.messages)
    calls: list[dict[str, Any]] = []
    problem: dict[str, str] = {}
    tokens = 0
    asked = sampling_of(model, question.temperature, question.max_tokens, question.schema)
    about = {
        "matrix_graph_purpose": question.purpose,
        "matrix_graph_role": question.role or "",
        "matrix_graph_round": question.round or 0,
    }
    for _ in range(TRIES):
        call: dict[str, Any] = {
            "purpose": question.purpose,
            "role": question.role,
            "round": question.round,
            "messages": messages,
            "completion": "",
            "finish_reason": None,
            "model": name_of(model),
            "sampling": asked,
            "usage": {"input_tokens": 0, "output_tokens": 0},
            "seconds": 0.0,
            "error": None,
            "cut": [],
            "reasoning": None,
        }
        calls.append(call)
        turn = Turn(None if until is None else max(0.0, until - clock()))
        sent = Sent(messages, asked)
        started = time.monotonic()
        try:
            async with turn:
                started = time.monotonic()
                reply = await complete(
                    model,
                    messages,
                    name=question.purpose,
                    sampling=asked,
                    schema=question.schema,
                    metadata=about,
                    sent=sent,
                )
                turn.count(reply.input_tokens, reply.output_tokens)
        except GraphBubbleUp:
            raise
        except Exception as error:  # noqa: BLE001 - any model may stand here, and each raises types of its own
            late = ReplyError(f"No reply within the {question.seconds or 0:.0f} s that the scene had left.")
            call["seconds"] = time.monotonic() - started
            call["error"] = problem = describe(late if turn.expired else error)
            return Answer(None, "", messages, tokens, calls, problem, isinstance(error, ContextLengthError))
        finally:
            call["messages"], call["sampling"] = sent.messages, sent.sampling
        call["seconds"] = time.monotonic() - started
        text = reply.text
        call["completion"] = text
        call["reasoning"] = reply.reasoning
        call["finish_reason"] = reply.finish_reason
        call["cut"] = cut_at_limits(text, reply.finish_reason, question.schema)
        call["model"] = reply.model or call["model"]
        call["usage"] = {"input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens}
        tokens = reply.input_tokens + reply.spoken_tokens  # no dialogue goes on from what was thought
        try:
            require_answer(model, reply)
            return Answer(question.parse(text), text, messages, tokens, calls)
        except ReplyError as error:
            why = str(error)
            if call["finish_reason"] == "length" and not isinstance(error, UnfinishedThoughtError):
                why = f"Cut off after {sent.sampling.get('max_tokens', question.max_tokens)} tokens. {why}"
            call["error"] = problem = {"type": type(error).__name__, "message": why}
            # What was copied is not said again: a small model would copy it from there.
            messages = _ask_again(question, told_of(error, why))
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


def cut_at_limits(text: str, finish_reason: str | None, schema: dict[str, Any] | None) -> list[str]:
    """Name what of a completion ended at a limit.

    Args:
        text: the completion.
        finish_reason: the server's; "length" means that it ended at the limit of tokens.
        schema: the JSON schema that it was held to; None for free text.

    Returns:
        "reply" for the limit of tokens, and the path of each JSON string that is as long as its schema allows.
    """
    found = ["reply"] if finish_reason == "length" else []
    if schema is not None:
        with suppress(ValueError, RecursionError):
            found += _full_strings(json.loads(text), schema, "")
    return found


def _full_strings(value: Any, schema: Any, path: str) -> list[str]:
    if not isinstance(schema, dict):
        return []
    found: list[str] = []
    for branch in schema.get("anyOf", ()):
        found += _full_strings(value, branch, path)
    if isinstance(value, str):
        return [*found, path] if len(value) >= schema.get("maxLength", len(value) + 1) else found
    if isinstance(value, dict):
        for name, part in value.items():
            found += _full_strings(part, schema.get("properties", {}).get(name), f"{path}.{name}".lstrip("."))
    if isinstance(value, list):
        for number, part in enumerate(value):
            found += _full_strings(part, schema.get("items"), f"{path}[{number}]")
    return found


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


def told_of(error: ReplyError, why: str | None = None) -> str:
    """What the model is told of its unusable reply.

    Args:
        error: what was wrong with it.
        why: in which words; None: the error's own.
    """
    return _SAID_OF.get(type(error)) or why or str(error)


def _ask_again(question: Question[Any], why: str) -> list[ChatMessage]:
    # The unusable reply itself stays out of the prompt: it may be 100 kB long, and small models would repeat it.
    note = f"(Your last reply to this could not be used: {why[:500]})"
    if question.schema is not None:
        note += f"\nReply with one JSON object that fits this JSON schema:\n{json.dumps(question.schema)}"
    *before, last = question.again or question.messages
    return [*before, {**last, "content": f"{last['content']}\n\n{note}"}]


def of_reply(problem: dict[str, str]) -> bool:
    """Whether a call's problem lies in the model's reply, rather than in the server or in a limit."""
    kinds: list[type[ReplyError]] = [ReplyError, *ReplyError.__subclasses__()]
    return problem["type"] in {kind.__name__ for kind in kinds}
