"""How a candidate asks its model: every call takes its turn in traffic, is recorded, and is asked once more if need be.

What always holds: an answer's cost is the sum of its exchanges; what is recorded is exactly what was sent and received;
no thought of a model is among it; exchanges stand in the order in which they began, whatever the order in which they
end.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel

from matrix_graph.errors import ReplyError
from matrix_graph.evaluate.records import Exchange
from matrix_graph.models.ask import TRIES, ChatMessage, describe, parse_text, told_of
from matrix_graph.models.complete import Completion, Sent, complete, name_of, require_answer, sampling_of
from matrix_graph.models.turn import Turn
from matrix_graph.records import Message, Problem, Trace, clean

T = TypeVar("T")


class Asker:
    """Asks one model on behalf of one candidate's answer to one question.

    Args:
        model: any LangChain chat model; a `ChatVLLM` that names an adapter asks the adapter.
        temperature: sampling temperature, unless a call has its own (`ChatVLLM`; others keep theirs); None sends none,
            so that the server's default holds.
        max_tokens: the longest reply, in tokens, unless a call has its own.

    Attributes:
        model: as given.
        exchanges: what was asked and answered so far.
        scene: the trace of a rehearsal, which holds the calls itself; None without one.
    """

    def __init__(self, model: BaseChatModel, *, temperature: float | None, max_tokens: int) -> None:
        self.model = model
        self.scene: Trace | None = None
        self._temperature, self._max_tokens = temperature, max_tokens
        self._kept: list[Exchange | None] = []

    @property
    def exchanges(self) -> list[Exchange]:
        """What was asked and answered so far, in the order in which it began; calls in flight left out."""
        return [exchange for exchange in self._kept if exchange is not None]

    @property
    def output_tokens(self) -> int:
        """Generated tokens so far, as the server counts them, calls whose reply could not be used included."""
        return sum(exchange.output_tokens for exchange in self.exchanges)

    async def ask(self, step: str, messages: Sequence[ChatMessage], *, max_tokens: int | None = None) -> str:
        """Ask for a text, to the letter.

        Raises:
            ReplyError: there is nothing in it, twice.
            Exception: whatever the model raises.
        """
        return await self.ask_for(step, messages, parse_text, max_tokens=max_tokens)

    async def ask_for(
        self,
        step: str,
        messages: Sequence[ChatMessage],
        parse: Callable[[str], T],
        *,
        schema: dict[str, Any] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> T:
        """Ask for something that a parser makes of the reply; a reply that it refuses is asked for once more.

        Args:
            step: what the call is for.
            messages: `{"role", "content"}` each.
            parse: takes the reply, raises `ReplyError` if it cannot be used.
            schema: JSON schema of the reply; None asks for free text.
            max_tokens: the longest reply.
            temperature: sampling temperature.

        Raises:
            ReplyError: the reply could not be used, twice.
            Exception: whatever the model raises.
        """
        sent = [{"role": message["role"], "content": clean(message["content"])} for message in messages]
        sampling = sampling_of(
            self.model,
            self._temperature if temperature is None else temperature,
            max_tokens or self._max_tokens,
            schema,
        )
        refusal: ReplyError | None = None
        for _ in range(TRIES):
            if refusal is not None:
                sent = _again(messages, schema, told_of(refusal))
            reply, place = await self._call(step, sent, sampling, schema)
            try:
                require_answer(self.model, reply)
                return parse(reply.text)
            except ReplyError as error:
                refusal = error
                exchange = self._kept[place]
                assert exchange is not None  # the call has ended
                self._kept[place] = exchange.model_copy(update={"error": Problem(**describe(error))})
        assert refusal is not None  # there is at least one try
        raise refusal

    async def _call(
        self, step: str, messages: list[ChatMessage], sampling: dict[str, Any], schema: dict[str, Any] | None
    ) -> tuple[Completion, int]:
        place = len(self._kept)
        self._kept.append(None)
        record: dict[str, Any] = {
            "step": step,
            "completion": "",
            "model": name_of(self.model),
        }
        about = {"matrix_graph_purpose": step, "matrix_graph_role": "", "matrix_graph_round": 0}
        turn = Turn(None)
        sent = Sent(messages, sampling)
        started = time.monotonic()
        try:
            async with turn:
                started = time.monotonic()
                reply = await complete(
                    self.model, messages, name=step, sampling=sampling, schema=schema, metadata=about, sent=sent
                )
                turn.count(reply.input_tokens, reply.output_tokens)
        except Exception as error:
            record["error"] = Problem(**describe(error))
            raise
        else:
            record |= {
                "completion": reply.text,
                "finish_reason": reply.finish_reason,
                "model": reply.model or record["model"],
                "input_tokens": reply.input_tokens,
                "output_tokens": reply.output_tokens,
            }
        finally:
            record["messages"] = [Message.model_validate(message) for message in sent.messages]
            record["sampling"] = sent.sampling
            self._kept[place] = Exchange(**record, seconds=time.monotonic() - started)
        return reply, place


async def together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run calls side by side and give their results in order; if one fails, the others end and its error is raised.

    Raises:
        Exception: the first error, as it came.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def user(text: str) -> list[ChatMessage]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def _again(messages: Sequence[ChatMessage], schema: dict[str, Any] | None, why: str) -> list[ChatMessage]:
    note = f"(Your last reply to this could not be used: {why[:500]})"
    if schema is not None:
        note += f"\nReply with one JSON object that fits this JSON schema:\n{json.dumps(schema)}"
    *before, last = ({"role": message["role"], "content": clean(message["content"])} for message in messages)
    return [*before, {**last, "content": f"{last['content']}\n\n{note}"}]
