"""The fields of `ChatVLLM` and what follows from them: its identity for LangChain, its server and what that knows.

What always holds: a misspelt field is refused; a server and open connections are never serialised, and the key goes out
only as the name of its environment variable.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import BaseMessage
from langchain_core.utils import from_env, secret_from_env
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator, model_validator

from matrix_graph.errors import ModelError
from matrix_graph.models.client.headers import checked_key, headers_from_environment, parsed_headers, plain_headers
from matrix_graph.models.client.http import HTTPClient
from matrix_graph.models.client.messages import PROVIDER, encode_messages
from matrix_graph.models.client.request import MAX_THINKING_TOKENS, check_request
from matrix_graph.models.client.served import Served
from matrix_graph.models.client.server_numbers import count
from matrix_graph.models.known import Known, known_of_served
from matrix_graph.models.loop import run_sync
from matrix_graph.models.thoughts import KWARGS, Thinking, fixed_request, switched

JSON = dict[str, Any]

DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"
KEY_VARIABLE = "VLLM_API_KEY"

_CONNECTION = (
    "base_url", "api_key", "default_headers", "timeout", "connect_timeout", "give_up_after", "max_retries", "server",
)  # fmt: skip


class VLLMConnection(BaseChatModel):
    """A model on a vLLM server, known but not yet asked anything."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str | None = Field(
        default=None,
        description="Name of the served model or LoRA adapter; None or empty: the first that the server lists.",
    )
    base_url: str = Field(
        default_factory=from_env("MATRIX_GRAPH_BASE_URL", default=DEFAULT_BASE_URL),
        validate_default=True,
        description="Root of the API, with /v1. Default: the environment variable MATRIX_GRAPH_BASE_URL, then this "
        "machine's port 8000.",
    )
    api_key: SecretStr | None = Field(
        default_factory=secret_from_env(KEY_VARIABLE, default=None),
        repr=False,
        description="Bearer token; default: the environment variable VLLM_API_KEY. None: none is sent.",
        validate_default=True,
    )
    default_headers: dict[str, SecretStr] = Field(
        default_factory=headers_from_environment,
        repr=False,
        exclude=True,
        description="Headers for every request, such as a gateway asks for; shown nowhere and not serialised. Default: "
        "the environment variable MATRIX_GRAPH_HEADERS, a JSON object or lines `Name: value`.",
    )
    temperature: float | None = Field(
        default=None, ge=0, description="Sampling temperature; None: the server's default."
    )
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="Nucleus sampling mass; None: the server's default."
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="Longest reply, in tokens; None: until the model ends or its context is full."
    )
    stop: list[str] | None = Field(default=None, description="Texts that end the reply; None or empty: none.")
    timeout: float = Field(default=300.0, gt=0, description="Seconds for one try of one request, to its last byte.")
    connect_timeout: float = Field(default=10.0, gt=0, description="Seconds to connect.")
    give_up_after: float = Field(
        default=30.0,
        ge=0,
        description="Seconds after a call's first failure (connection lost, time-out, HTTP 429 or 5xx) in which it is "
        "tried again. Default: 30, or 600 if `server` is set.",
    )
    max_retries: int | None = Field(
        default=None, ge=0, description="Most further tries of one call; None: as many as `give_up_after` has room for."
    )
    streaming: bool = Field(
        default=False, description="Stream from the server even where the whole reply is asked for."
    )
    extra_body: JSON = Field(
        default_factory=dict, description="More fields of vLLM's request, such as top_k; sent with each call."
    )
    request: JSON = Field(
        default_factory=dict,
        description="As `extra_body`, which goes before it: more fields of the request, such as chat_template_kwargs, "
        "top_p or top_k. Fields that this package sets itself are refused.",
    )
    thinking: Thinking = Field(
        default="auto",
        description="Whether the model thinks before it answers. on and off tell the chat template so "
        "(enable_thinking); auto leaves it to the model, and finds out from its replies.",
    )
    max_thinking_tokens: int = Field(
        default=MAX_THINKING_TOKENS,
        ge=0,
        description="Tokens by which `max_tokens` grows for a model that thinks, but at most half of its context.",
    )
    server: Any = Field(
        default=None,
        exclude=True,
        repr=False,
        description="A supervised server with `async wait_ready(timeout)`, awaited after it was lost. Not serialised.",
    )

    _connection: tuple[tuple[object, ...], Served] | None = PrivateAttr(default=None)

    @field_validator("request")
    @classmethod
    def _check_request(cls, value: JSON) -> JSON:
        return check_request(value)

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        HTTPClient(value)
        return value.rstrip("/")

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            checked_key(value.get_secret_value(), f"api_key (or {KEY_VARIABLE})")
        return value

    @field_validator("default_headers", mode="before")
    @classmethod
    def _parse_headers(cls, value: object) -> dict[str, SecretStr]:
        return parsed_headers(value)

    @model_validator(mode="after")
    def _wait_longer_for_a_server(self) -> "VLLMConnection":
        if self.server is not None and "give_up_after" not in self.model_fields_set:
            self.give_up_after = 600.0
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """State for pickling: a running server and open connections stay here."""
        state = super().__getstate__()
        state["__dict__"] = {**state["__dict__"], "server": None}
        state["__pydantic_private__"] = {"_connection": None}
        return state

    # ---- what LangChain asks about a model ----------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "chat-vllm"

    @property
    def _identifying_params(self) -> JSON:
        return {
            "model": self.model or self._served().known_name,
            "base_url": self.base_url,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "extra_body": self.extra_body,
            "request": self.request,
            "thinking": self.thinking,
            "max_thinking_tokens": self.max_thinking_tokens,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider=PROVIDER,
            ls_model_type="chat",
            ls_model_name=kwargs.get("model") or self.model or self._served().known_name or "",
        )
        temperature = kwargs.get("temperature", self.temperature)
        max_tokens = kwargs.get("max_tokens", self.max_tokens)
        if temperature is not None:
            params["ls_temperature"] = temperature
        if max_tokens is not None:
            params["ls_max_tokens"] = max_tokens
        if stop or self.stop:
            params["ls_stop"] = stop or self.stop
        return params

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> JSON:
        # As LangChain's, less its detour over a deprecated method, which costs more than our whole request.
        return {**self._identifying_params, "_type": self._llm_type, "stop": stop or self.stop, **kwargs}

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """LangChain's `dumpd` and `load` work on it; the key goes out as the name of its environment variable."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Which environment variable holds which field."""
        return {"api_key": KEY_VARIABLE}

    @property
    def request_key(self) -> str | None:
        """The key as it is sent; None: none is."""
        return self.api_key.get_secret_value() if self.api_key else None

    @property
    def request_headers(self) -> dict[str, str]:
        """The headers that go with every request, as they are sent."""
        return plain_headers(self.default_headers)

    # ---- the server ---------------------------------------------------------------------------------------------

    def _served(self) -> Served:
        # A model's fields may be set at any time; what was built of them lives as long as they stay the same.
        fields = tuple(getattr(self, name) for name in _CONNECTION)
        if self._connection is None or fields != self._connection[0]:
            options = {name: getattr(self, name) for name in _CONNECTION[3:]}
            client = HTTPClient(self.base_url, key=self.request_key, headers=self.request_headers, **options)
            self._connection = (fields, Served(client))
        return self._connection[1]

    async def aserved_name(self) -> str:
        """The name that calls give as their model: the one that is set, else the first that the server lists.

        Raises:
            ModelError: the server cannot be reached, or lists none.
        """
        return self.model or await self._served().first_name()

    async def aserved_names(self) -> list[str]:
        """The names of models and adapters that the server lists at this moment.

        Raises:
            ModelError: the server cannot be reached, or refuses.
        """
        served = self._served()
        served.forget()
        return await served.names()

    async def acontext_length(self) -> int | None:
        """The longest prompt plus reply, in tokens, as the server tells; None if it does not. Asked once, then kept.

        Raises:
            ModelError: the server cannot be reached, or refuses.
        """
        return await self._served().context_length(self.model)

    def context_length(self) -> int | None:
        """As `acontext_length`, for synchronous callers."""
        return run_sync(self.acontext_length())

    # ---- thinking -----------------------------------------------------------------------------------------------

    def known(self, name: str | None = None) -> Known:
        """What was found out about the model from its replies.

        Args:
            name: by which the server serves it; None: as this object asks for it.
        """
        return known_of_served(self.base_url, name or self.model or self._served().known_name or "")

    @property
    def fixed_request(self) -> JSON:
        """The fields of each request that do not depend on the call: what was set here, thinking among it."""
        return fixed_request(self.thinking, self.request | self.extra_body)

    async def athinking_room(self, name: str | None = None) -> int:
        """The tokens by which limits grow: 0 unless the model thinks, by the settings or as it was found out.

        Args:
            name: as of `known`.
        """
        thinking = switched(self.thinking, self.request | self.extra_body)
        if thinking == "off" or (thinking == "auto" and not self.known(name).thinks):
            return 0
        context: int | None = None
        with suppress(ModelError):  # whether the server can be had is for the call itself to find out
            context = await self.acontext_length()
        return self.max_thinking_tokens if context is None else min(self.max_thinking_tokens, context // 2)

    async def acount_tokens(self, content: str | Sequence[BaseMessage]) -> int:
        """How many tokens a text, or a conversation in the model's chat template, has; counted by the server.

        Raises:
            ModelError: the server cannot be reached, or has no `/tokenize`, which is vLLM's own.
        """
        body: JSON = {"model": await self.aserved_name()}
        if not isinstance(content, str) and (kwargs := self.fixed_request.get(KWARGS)):
            body[KWARGS] = kwargs
        body |= {"prompt": content} if isinstance(content, str) else {"messages": encode_messages(content)}
        return await self._served().client.post("/tokenize", body, lambda got: _counted(got["count"]))

    def get_num_tokens(self, text: str) -> int:
        """The tokens of a text, counted by the server; raises as `acount_tokens` does."""
        return run_sync(self.acount_tokens(text))

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """The tokens of a conversation (without tools), counted by the server; raises as `acount_tokens` does."""
        return run_sync(self.acount_tokens(messages))


def _counted(value: Any) -> int:
    found = count(value)
    if found is None:
        raise ValueError(f"{value!r:.40} is no number of tokens")
    return found
