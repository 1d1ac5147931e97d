"""The fields of `ChatVLLM` and what follows from them: its identity for LangChain, its server and what that knows.

What always holds: a misspelt field is refused; a server and open connections are never serialised, and the key goes out
only as the name of its environment variable.
"""

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import BaseMessage
from langchain_core.utils import from_env, secret_from_env
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator, model_validator

from matrix_graph.models.client.http import HTTPClient
from matrix_graph.models.client.messages import PROVIDER, encode_messages
from matrix_graph.models.client.served import Served
from matrix_graph.models.client.server_numbers import count
from matrix_graph.models.loop import run_sync

JSON = dict[str, Any]

DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"
KEY_VARIABLE = "VLLM_API_KEY"

_CONNECTION = ("base_url", "api_key", "timeout", "connect_timeout", "give_up_after", "max_retries", "server")


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
    server: Any = Field(
        default=None,
        exclude=True,
        repr=False,
        description="A supervised server with `async wait_ready(timeout)`, awaited after it was lost. Not serialised.",
    )

    _connection: tuple[tuple[object, ...], Served] | None = PrivateAttr(default=None)

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        HTTPClient(value)
        return value.rstrip("/")

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

    # ---- the server ---------------------------------------------------------------------------------------------

    def _served(self) -> Served:
        # A model's fields may be set at any time; what was built of them lives as long as they stay the same.
        fields = tuple(getattr(self, name) for name in _CONNECTION)
        if self._connection is None or fields != self._connection[0]:
            key = self.api_key.get_secret_value() if self.api_key else None
            options = {name: getattr(self, name) for name in _CONNECTION[2:]}
            self._connection = (fields, Served(HTTPClient(self.base_url, key=key, **options)))
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

    async def acount_tokens(self, content: str | Sequence[BaseMessage]) -> int:
        """How many tokens a text, or a conversation in the model's chat template, has; counted by the server.

        Raises:
            ModelError: the server cannot be reached, or has no `/tokenize`, which is vLLM's own.
        """
        body: JSON = {"model": await self.aserved_name()}
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
