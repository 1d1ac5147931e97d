"""LangChain messages to OpenAI chat JSON and back, the shape that vLLM speaks.

What always holds: text passes to the letter in both directions, but for what the model thought before it, which stands
apart (LangChain shows it as a reasoning block) and is never sent back; usage is reported exactly as the server counted
it; a tool call whose arguments are no JSON becomes an invalid tool call, not an exception.
"""

import json
from collections.abc import Sequence
from typing import Any, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    convert_to_openai_messages,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk
from langchain_core.output_parsers.openai_tools import make_invalid_tool_call, parse_tool_call
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from matrix_graph.models.client.server_numbers import count
from matrix_graph.models.client.strings import name_in, strict_json
from matrix_graph.models.known import Known
from matrix_graph.models.thoughts import ThoughtStream, field_of, joined, parted

JSON = dict[str, Any]

PROVIDER = "vllm"

_NOT_SENT = {"reasoning", "thinking", "tool_call", "invalid_tool_call", "function_call", "server_tool_call"}
"""Content blocks of an assistant message that are not text to send: reasoning stays out, tool calls have a field."""

REASONING = "reasoning_content"
"""The key of `additional_kwargs` from which LangChain makes its standard reasoning block."""
_MOST_CHOICES = 1000
"""Of one reply. Each is a message to be made, and the event loop waits meanwhile."""

_PLAIN_ROLES = {SystemMessage: "system", HumanMessage: "user", AIMessage: "assistant"}


def encode_messages(messages: Sequence[BaseMessage]) -> list[JSON]:
    """Messages as the `messages` list of a chat completion request.

    Args:
        messages: any LangChain messages; content is text, or a list of content blocks (text, images, audio, files).

    Returns:
        One dict each, `{"role", "content", ...}`. Plain text stays as it is, to the letter.

    Raises:
        ValueError: a message or content block that the OpenAI format has no place for.
    """
    return [_encode(message) for message in messages]


def _encode(message: BaseMessage) -> JSON:
    role = _PLAIN_ROLES.get(type(message))
    content = message.content
    # The usual case by hand: the general converter costs ten times as much.
    if (
        role is not None
        and isinstance(content, str)
        and not message.name
        and message.additional_kwargs.keys() <= {REASONING}
        and not (isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls))
    ):
        return {"role": role, "content": content}
    if isinstance(message, AIMessage):
        if isinstance(content, list):
            kept = [block for block in content if isinstance(block, str) or block.get("type") not in _NOT_SENT]
            message = message.model_copy(update={"content": kept})
        encoded = convert_to_openai_messages(message)
        for call in message.invalid_tool_calls:
            # Sent as it came, or the tool message that answers it would refer to nothing.
            function = {"name": call["name"] or "", "arguments": call["args"] or ""}
            encoded.setdefault("tool_calls", []).append({"type": "function", "id": call["id"], "function": function})
        return encoded
    return convert_to_openai_messages(message)


def decode_reply(body: JSON, known: Known | None = None) -> ChatResult:
    """The body of a chat completion as LangChain's result.

    Args:
        body: the JSON object that `/v1/chat/completions` answers with.
        known: what is known of the model; learns whether it thinks.

    Returns:
        One generation for each choice. Usage stands at the first, so that sums over messages are right.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: the body has another shape.
    """
    choices = body["choices"]
    if not isinstance(choices, list) or not choices:
        raise ValueError("no choices in the reply")
    if len(choices) > _MOST_CHOICES:
        raise ValueError(f"{len(choices)} choices in the reply")
    usage = _usage(body.get("usage"))
    known = known or Known()
    generations: list[ChatGeneration] = []
    for choice in choices:
        raw = choice["message"]
        content = raw.get("content")
        if content is not None and not isinstance(content, str):
            raise TypeError(f"content is a {type(content).__name__}, not text")
        calls, invalid = _tool_calls(raw.get("tool_calls") or ())
        told = field_of(raw)
        parts = parted(content or "", unopened=known.unopened and not told, cut=choice.get("finish_reason") == "length")
        thought = joined(told, parts.thought)
        known.met(thought, unopened=parts.unopened)
        message = AIMessage(
            content=parts.text,
            additional_kwargs={REASONING: thought} if thought else {},
            id=name_in(body.get("id")),
            usage_metadata=None if generations else usage,
            response_metadata=_metadata(body, choice),
            tool_calls=calls,
            invalid_tool_calls=invalid,
        )
        generations.append(ChatGeneration(message=message))
    return ChatResult(generations=generations)


class EventReader:
    """Reads the server-sent events of one streamed chat completion.

    Args:
        known: what is known of the model; learns whether it thinks.
    """

    def __init__(self, known: Known | None = None) -> None:
        self._known = known or Known()
        self._begin(None)

    def read(self, event: JSON) -> ChatGenerationChunk | None:
        """One event as LangChain's chunk.

        Returns:
            The chunk; None if the event carries nothing (the first one names the role only). The one with the usage is
            the last: `stream_options.include_usage` makes the server send it.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: the event has another shape.
        """
        choices = event["choices"]
        if (id := name_in(event.get("id"))) != self._id:
            self._begin(id)  # a request that was sent once more begins anew
        if not choices:
            usage = _usage(event.get("usage"))
            if usage is None:
                return None
            return ChatGenerationChunk(
                message=AIMessageChunk(
                    content="", id=name_in(event.get("id")), usage_metadata=usage, chunk_position="last"
                )
            )
        choice = choices[0]
        delta = choice.get("delta") or {}
        finished = choice.get("finish_reason")
        text, thought = self._parted(delta, finished)
        calls = [_tool_call_chunk(call) for call in delta.get("tool_calls") or ()]
        if not text and not thought and not calls and not finished:
            return None
        return ChatGenerationChunk(
            message=AIMessageChunk(
                content=text,
                additional_kwargs={REASONING: thought} if thought else {},
                id=name_in(event.get("id")),
                tool_call_chunks=calls,
                # Only once: LangChain joins the metadata of chunks, and would write the model's name several times.
                response_metadata=_metadata(event, choice) if finished else {},
            )
        )

    def rest(self) -> ChatGenerationChunk | None:
        """What is still held back where the stream ended without saying why."""
        text, thought = self._thoughts.end(cut=False)
        if not text and not thought:
            return None
        kept = {REASONING: thought} if thought else {}
        return ChatGenerationChunk(message=AIMessageChunk(content=text, additional_kwargs=kept, id=self._id))

    def _begin(self, id: str | None) -> None:
        self._id = id
        self._thoughts = ThoughtStream(unopened=self._known.unopened)
        self._began = False

    def _parted(self, delta: JSON, finished: str | None) -> tuple[str, str]:
        told = field_of(delta)
        if told and not self._began:
            self._thoughts = ThoughtStream()  # this server tells thoughts apart by itself
        content = delta.get("content") or ""
        self._began = self._began or bool(content or told)
        text, thought = self._thoughts.feed(content)
        if finished:
            rest = self._thoughts.end(cut=finished == "length")
            text, thought = text + rest.text, thought + rest.thought
        self._known.met(told or thought, unopened=self._thoughts.unopened)
        return text, told + thought


def as_chunk(result: ChatResult) -> ChatGenerationChunk:
    """A whole reply as the one chunk of a stream."""
    message = result.generations[0].message
    assert isinstance(message, AIMessage)  # as `decode_reply` has it
    return ChatGenerationChunk(
        message=AIMessageChunk(
            content=message.content,
            additional_kwargs=message.additional_kwargs,
            id=message.id,
            response_metadata=message.response_metadata,
            usage_metadata=message.usage_metadata,
            tool_calls=message.tool_calls,
            invalid_tool_calls=message.invalid_tool_calls,
            chunk_position="last",
        )
    )


def _metadata(body: JSON, choice: JSON) -> JSON:
    metadata = {
        "finish_reason": name_in(choice.get("finish_reason")),
        "model_name": name_in(body.get("model")),
        "model_provider": PROVIDER,
    }
    if isinstance(choice.get("logprobs"), dict) and choice["logprobs"]:
        metadata["logprobs"] = choice["logprobs"]
    return metadata


def _usage(usage: JSON | None) -> UsageMetadata | None:
    """The tokens of a call; None where the server told none, or what cannot be."""
    if not usage:
        return None
    read, written = count(usage["prompt_tokens"]), count(usage.get("completion_tokens") or 0)
    if read is None or written is None:
        return None
    total = count(usage.get("total_tokens"))
    found = UsageMetadata(
        input_tokens=read, output_tokens=written, total_tokens=read + written if total is None else total
    )
    cached = count((usage.get("prompt_tokens_details") or {}).get("cached_tokens"))
    if cached is not None:
        found["input_token_details"] = InputTokenDetails(cache_read=cached)
    return found


def _tool_calls(raw: Sequence[JSON]) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for call in raw:
        try:
            parsed = parse_tool_call(call, return_id=True)
            if parsed is None or not isinstance(parsed["args"], dict):
                raise OutputParserException("The arguments are no JSON object.")
            if isinstance(written := call["function"]["arguments"], str) and written.strip():
                parsed["args"] = strict_json(written)
            calls.append(cast(ToolCall, parsed))
        except (ValueError, RecursionError) as error:  # LangChain's OutputParserException is a ValueError
            invalid.append(make_invalid_tool_call(call, str(error)))
    return calls, invalid


def _tool_call_chunk(call: JSON) -> ToolCallChunk:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return tool_call_chunk(name=function.get("name"), args=arguments, id=call.get("id"), index=call["index"])
