"""Settings, and how they come together: options over environment over YAML file over defaults.

`SceneConfig` is all that decides how a scene is played; it is recorded in every trace. `Settings` adds what only the
command line needs: which model, which server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from matrix_graph.errors import ConfigError
from matrix_graph.models.client.headers import HEADERS_VARIABLE, checked_key, parsed_headers
from matrix_graph.models.client.request import MAX_THINKING_TOKENS, check_request
from matrix_graph.models.server import ServerConfig
from matrix_graph.models.thoughts import Thinking, fixed_request

ENV_PREFIX = "MATRIX_GRAPH_"

LONGEST_ANSWER = 1536
"""Tokens of a draft or a revision at most, where neither the settings nor the model say otherwise."""
UNKNOWN_CONTEXT_LENGTH = 32_768
"""Tokens of context, where neither the settings nor the server nor the model tells."""
ROUNDS_TO_REACT = 2
"""Rounds after the last step of the plan: a call to the police and their coming take two."""


class SceneConfig(BaseModel):
    """How a scene is played, and its limits.

    The defaults follow the paper's observation that quality saturates at about four people and a dozen interactions
    (MATRIX, arXiv 2402.05699, section 5). What is played is sampled as the model's makers advise; what is judged is
    sampled near 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    roles: int = Field(default=3, ge=1, le=50, description="How many other people join the ego in a generated cast.")
    steps: int = Field(default=3, ge=1, le=50, description="The most steps of a generated plan.")
    max_rounds: int | None = Field(
        default=None, ge=1, description="The most rounds; null allows two rounds more than `steps`, to react."
    )
    modulator: Literal["full", "plausible_all", "everyone_sees", "off"] = Field(
        default="full",
        description='For ablations, what the modulator does: "plausible_all" rejects nothing, "everyone_sees" has '
        'everybody observe every accepted action, "off" asks no modulator: every action happens, everybody sees it, no '
        "object changes, no consequence is told, and reflection judges by the actions alone.",
    )
    temperature: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="Sampling temperature of draft, cast, roles and revision (ChatVLLM); null: the server's default.",
    )
    judge_temperature: float = Field(
        default=0.1, ge=0, le=2, description="Sampling temperature of judgements, reflection, summaries and checks."
    )
    max_answer_tokens: int | None = Field(
        default=None,
        ge=1,
        description="The longest draft or revision, in tokens; null: 1,536, of the small bundled models 512.",
    )
    max_action_tokens: int = Field(default=192, ge=16, description="The longest action call, in tokens.")
    max_judgement_tokens: int = Field(default=512, ge=64, description="The longest judgement call, in tokens.")
    max_reflection_tokens: int = Field(
        default=640, ge=32, description="The longest reflection and the longest summary of a dialogue, in tokens."
    )
    max_calls: int = Field(default=500, ge=6, description="The most model calls of one scene, repeats included.")
    max_output_tokens: int = Field(
        default=100_000, ge=256, description="The most generated tokens of one scene, thoughts left out."
    )
    max_seconds: float = Field(default=3600.0, gt=0, description="The longest a scene may take, in seconds.")
    max_player_seconds: float = Field(
        default=120.0,
        gt=0,
        description="The longest that a runnable may take over a role's action, in seconds.",
    )
    context_length: int | None = Field(
        default=None,
        ge=512,
        description=f"The model's context in tokens; null asks the model, else assumes {UNKNOWN_CONTEXT_LENGTH:,}.",
    )

    @property
    def rounds(self) -> int:
        """The most rounds that this configuration plays."""
        return self.max_rounds if self.max_rounds is not None else self.steps + ROUNDS_TO_REACT

    @property
    def max_cast_tokens(self) -> int:
        """Room for a cast of the configured size, in tokens."""
        return 512 + 160 * (self.roles + 1) + 64 * self.steps


class Settings(BaseSettings):
    """Everything the command line can be told, from `--config FILE.yaml`, `MATRIX_GRAPH_*` variables and options."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", env_ignore_empty=True, extra="forbid"
    )

    model: str | None = Field(
        default=None, description="Model folder, hub id, or bundled:135m (also null), bundled:0.5b, bundled:1.5b."
    )
    base_url: str | None = Field(
        default=None, description="An OpenAI-compatible server that already runs; null starts vLLM on 127.0.0.1."
    )
    api_key: SecretStr | None = Field(default=None, description="Key of the server at `base_url`; environment only.")
    headers: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default={},
        description="Headers for every request to `base_url` and to a judge elsewhere, such as a gateway asks for; "
        "shown nowhere. In the environment a JSON object, or lines `Name: value`.",
    )
    thinking: Thinking = Field(
        default="auto",
        description="Whether the model thinks before it answers: on and off tell its chat template so "
        "(enable_thinking); auto leaves it to the model, and finds out from its replies.",
    )
    max_thinking_tokens: int = Field(
        default=MAX_THINKING_TOKENS,
        ge=0,
        description="Tokens by which every limit of a reply grows for a model that thinks; at most half its context.",
    )
    request: dict[str, Any] = Field(
        default={},
        description="More fields of every request to the model, such as chat_template_kwargs, top_p or top_k.",
    )
    scene: SceneConfig = SceneConfig()
    server: ServerConfig = ServerConfig()

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            checked_key(value.get_secret_value(), f"{ENV_PREFIX}API_KEY")
        return value

    @field_validator("headers", mode="before")
    @classmethod
    def _parse_headers(cls, value: object) -> dict[str, SecretStr]:
        return parsed_headers(value, f"headers ({HEADERS_VARIABLE}, or the config file)")

    @property
    def connection(self) -> dict[str, Any]:
        """What `ChatVLLM` is given besides model and address, for a server that already runs."""
        key = {"api_key": self.api_key} if self.api_key else {}
        return {**key, "default_headers": self.headers}

    @field_validator("request")
    @classmethod
    def _check_request(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_request(value)

    @property
    def of_the_model(self) -> dict[str, Any]:
        """The fields of `ChatVLLM` that say how it is asked, as far as they were set."""
        names = ("thinking", "max_thinking_tokens", "request")
        return {name: getattr(self, name) for name in names if name in self.model_fields_set}

    @property
    def fixed_request(self) -> dict[str, Any]:
        """As `ChatVLLM.fixed_request`."""
        return fixed_request(self.thinking, self.request)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options first, then the environment, then the YAML file that `load_settings` names."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


def load_settings(file: Path | None = None, **options: Any) -> Settings:
    """Settings from a YAML file, the environment and options; the later win.

    Args:
        file: YAML mapping with the fields of `Settings`; None reads no file.
        options: fields of `Settings`; None means not given. `scene` and `server` take mappings of single settings.

    Raises:
        ConfigError: unreadable file, unknown setting or value out of range; names each with what is allowed.
    """
    if file is not None:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"The config file {file} cannot be read: {error}") from error
        if content is not None and not isinstance(content, dict):
            raise ConfigError(f"The config file {file} holds a {type(content).__name__}; it must be a mapping.")
        wrong = [key for key in content or {} if not isinstance(key, str)]
        if wrong:
            raise ConfigError(f"The config file {file} has the key {wrong[0]!r}; settings have names.")
        if any(key.casefold() == "api_key" for key in content or {}):
            raise ConfigError(f"{file} holds an api_key; keys are taken from {ENV_PREFIX}API_KEY alone.")

    class FromFile(Settings):
        model_config = SettingsConfigDict(yaml_file=file, yaml_file_encoding="utf-8")

    given = {name: value for name, value in options.items() if value is not None}
    try:
        return FromFile(**given)
    except (ValidationError, SettingsError) as error:
        where = f" (from options, {ENV_PREFIX}* variables and {file or 'no config file'})"
        raise ConfigError(f"Settings that cannot be used{where}:\n{explain(error)}") from error


def explain(error: ValidationError | SettingsError) -> str:
    """One line per wrong setting: its name, what came, and what is allowed."""
    if not isinstance(error, ValidationError):
        return f"  {error}"
    lines = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"])
        hidden = item["type"] in ("extra_forbidden", "missing") or "api_key" in name or "extra_args" in name
        value = "" if hidden else f" (got {item['input']!r})"
        message = _unknown(item["loc"]) if item["type"] == "extra_forbidden" else item["msg"]
        lines.append(f"  {name}: {message}{value}")
    return "\n".join(lines)


_OF_A_REQUEST = frozenset(
    {
        "chat_template_kwargs",
        "extra_body",
        "frequency_penalty",
        "logit_bias",
        "min_p",
        "presence_penalty",
        "reasoning_effort",
        "repetition_penalty",
        "seed",
        "top_k",
        "top_p",
    }
)
"""Fields of the request that people look for among the settings."""


def _unknown(place: tuple[int | str, ...]) -> str:
    name = str(place[-1]) if place else ""
    if name in _OF_A_REQUEST:
        return f"no such setting; fields of the request stand under `request`, as request: {{{name}: ...}}"
    if len(place) > 1 and name in ("thinking", "max_thinking_tokens", "request"):
        return f"no such setting here; `{name}` stands beside `scene`, not in it"
    return "no such setting"
