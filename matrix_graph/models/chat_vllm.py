"""`ChatVLLM`: LangChain's chat model on vLLM's OpenAI-compatible server.

Why not the usual OpenAI client: it costs ten to forty times the CPU a call, waits without limit, drops an instance's
`extra_body` when a call brings its own, and leaks exceptions for truncated JSON. What always holds: synchronous calls
run on one background event loop, all calls of one loop share one pool, nothing is sent that nobody set (no `seed` above
all: vLLM's CPU build dies of it), and the key shows up nowhere.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable

from matrix_graph.errors import ConfigError, ModelRequestError
from matrix_graph.models import system_role
from matrix_graph.models.client.connection import VLLMConnection
from matrix_graph.models.client.dialect import dialect_of, forget
from matrix_graph.models.client.messages import EventReader, as_chunk, decode_reply, encode_messages
from matrix_graph.models.client.structured import Method, Schema, structured, structured_options
from matrix_graph.models.client.tools import ToolLike, tool_options
from matrix_graph.models.known import Known
from matrix_graph.models.loop import iterate_sync, run_sync
from matrix_graph.models.thoughts import KWARGS, template_kwargs

JSON = dict[str, Any]
T = TypeVar("T")

_CHAT = "chat/completions"
_SAMPLING = ("temperature", "top_p", "max_tokens")
_LOCAL = {"extra_body", "stream", "max_thinking_tokens", "ls_structured_output_format", "structured_output_format"}
"""Options that are not fields of the request."""


class ChatVLLM(VLLMConnection):
    """A chat model served by vLLM, or any server with an OpenAI-compatible API (SGLang, llama.cpp, Ollama, LM Studio).

    How a server wants schemas and limits named is found out at the first calls and shared by all models of the process.
    Where it does not know `structured_outputs`, they go out as `response_format` or what it does know.

    Per-call options, given to `invoke` and its kin or by `bind`, go before the fields below: `temperature`, `top_p`,
    `max_tokens`, `stop`, `model` (an adapter's name), `structured_outputs` (`{"json": schema}`, `{"choice": [...]}` or
    `{"regex": "..."}`), `tools`, `tool_choice`, `extra_body` (merged into the instance's), and any other field of
    vLLM's request, such as `top_k` or `seed`. `max_tokens` is the room for the answer: a model that thinks gets
    `max_thinking_tokens` besides (0 as an option of one call: none). What it thought stands apart, as LangChain's
    reasoning block. Where the chat template refuses a system message, its text goes in front of the first user turn.

    Example:
        >>> model = ChatVLLM(base_url="http://127.0.0.1:8000/v1", temperature=0.7, max_tokens=256)
        >>> model.invoke("Is it cold?", structured_outputs={"choice": ["yes", "no"]}).text  # doctest: +SKIP
        'yes'
    """

    # ---- calls --------------------------------------------------------------------------------------------------

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        payload = await self._payload(messages, stop, kwargs)
        known = self.known(payload["model"])
        return await self._posted(payload, lambda body: decode_reply(body, known))

    async def acomplete(
        self, messages: list[dict[str, str]], read: Callable[[JSON], T], options: Mapping[str, Any]
    ) -> T:
        """One completion without LangChain's callbacks and message objects, which cost more CPU than all the rest.

        Args:
            messages: `{"role", "content"}` each, sent as they are.
            read: makes the result of the reply's JSON object; LookupError, TypeError, ValueError or AttributeError
                means garbage, and the call is tried again.
            options: as of `ainvoke`.

        Raises:
            ModelError: as `ainvoke`.
        """
        payload = await self._payload([], None, dict(options))
        payload["messages"] = messages
        return await self._posted(payload, read)

    async def _posted(self, payload: JSON, read: Callable[[JSON], T]) -> T:
        client = self._served().client
        try:
            dialect = dialect_of(self.base_url, payload["model"])
            return await system_role.accepted(
                self.known(payload["model"]),
                payload["messages"],
                lambda messages: dialect.post(client, _CHAT, {**payload, "messages": messages}, read),
            )
        except ModelRequestError as error:
            if error.status == 404:
                forget(self.base_url, payload["model"])
                self._served().forget()  # the server may have been restarted with another model: ask again next time
            raise

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return run_sync(self._agenerate(messages, stop, **kwargs))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        payload = await self._payload(messages, stop, kwargs)
        payload |= {"stream": True, "stream_options": {"include_usage": True, **payload.get("stream_options", {})}}
        known = self.known(payload["model"])
        if await dialect_of(self.base_url, payload["model"]).wraps(self._served().client, payload):
            whole = {name: value for name, value in payload.items() if not name.startswith("stream")}
            chunk = as_chunk(await self._posted(whole, lambda body: decode_reply(body, known)))
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk
            return
        chunks = self._chunks(payload, known)
        try:
            async for chunk in chunks:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
        finally:
            await chunks.aclose()  # at once, not when the garbage is collected: the server stops generating then

    async def _chunks(self, payload: JSON, known: Known) -> AsyncGenerator[ChatGenerationChunk, None]:
        """The chunks of a stream, in the form of messages that the model takes."""
        client, reader = self._served().client, EventReader(known)
        dialect = dialect_of(self.base_url, payload["model"])

        async def begun(
            messages: list[JSON],
        ) -> tuple[ChatGenerationChunk | None, AsyncGenerator[ChatGenerationChunk, None]]:
            stream = dialect.stream(client, _CHAT, {**payload, "messages": messages}, reader.read)
            return await anext(stream, None), stream

        first, rest = await system_role.accepted(known, payload["messages"], begun)
        try:
            if first is not None:
                yield first
            async for chunk in rest:
                yield chunk
            if (held := reader.rest()) is not None:
                yield held
        finally:
            await rest.aclose()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in iterate_sync(self._astream(messages, stop, **kwargs)):
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _payload(self, messages: list[BaseMessage], stop: list[str] | None, options: JSON) -> JSON:
        """The request: fields, `request`, `extra_body`, per-call options, their `extra_body`; later ones win."""
        own = {name: getattr(self, name) for name in _SAMPLING} | {"stop": self.stop} | self.request | self.extra_body
        given = options | (options.get("extra_body") or {})
        if stop:
            given["stop"] = stop
        body = {name: value for name, value in (own | given).items() if value is not None and name not in _LOCAL}
        if not body.get("stop", True):
            del body["stop"]
        for name in body:
            if name.startswith("guided_"):
                kind = name.removeprefix("guided_")
                raise ConfigError(
                    f"{name} was given, which vLLM ignores without a word; pass structured_outputs={{{kind!r}: ...}}"
                )
        if not body.get("model"):
            body["model"] = await self.aserved_name()
        if kwargs := template_kwargs(self.thinking, body):
            body[KWARGS] = kwargs
        if "max_tokens" in body and options.get("max_thinking_tokens") != 0:
            body["max_tokens"] += await self.athinking_room(body["model"])
        body["messages"] = encode_messages(messages)
        return body

    # ---- tools and structured output ----------------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[ToolLike],
        *,
        tool_choice: str | bool | JSON | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools. The server needs `--enable-auto-tool-choice --tool-call-parser ...` for it.

        Args:
            tools: functions, LangChain tools, pydantic classes or OpenAI tool dicts.
            tool_choice: "auto", "none", "any"/"required"/True (it must call one), a tool's name, or OpenAI's dict.
            strict: whether arguments must fit the schema exactly, in OpenAI's sense.
            **kwargs: bound to each call.

        Raises:
            ConfigError: `tool_choice` names no such tool.
        """
        return self.bind(**tool_options(tools, tool_choice, strict), **kwargs)

    def with_structured_output(
        self,
        schema: Schema,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Replies as values of a schema.

        Args:
            schema: a pydantic class, a TypedDict class, a JSON schema or an OpenAI function dict.
            method: "json_schema": the decoding itself is held to the schema, so that only truncation can break it;
                "json_mode": to any JSON object, the prompt must name the fields; "function_calling": by a tool call,
                for which the server needs a tool parser.
            include_raw: return `{"raw": AIMessage, "parsed": value or None, "parsing_error": error or None}`, and raise
                nothing for a reply that does not parse.
            strict: True: no properties but the schema's, and all of them.
            **kwargs: bound to each call, such as `max_tokens`.

        Returns:
            A runnable that gives an instance for a pydantic class, else the plain JSON value.

        Raises:
            ConfigError: an unknown method, or no schema can be made of `schema`. The runnable itself raises
                `StructuredReplyError` (a ReplyError and an OutputParserException) unless `include_raw`.
        """
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        return structured(self.bind(**structured_options(schema, method, strict), **kwargs), schema, include_raw)
