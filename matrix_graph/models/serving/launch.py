"""How a vLLM server is started: its settings, and the command line, environment and port that follow from them.

What always holds: the API key goes by the environment, never by the command line, which every user of the machine can
read; nothing but `/health` is answered without it; the server listens on this machine alone unless told otherwise; no
usage statistics are sent.
"""

import importlib.util
import json
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from matrix_graph.errors import ServerError
from matrix_graph.models.engine import Accelerator
from matrix_graph.models.memory import memory_bytes
from matrix_graph.models.serving import guard
from matrix_graph.models.serving.owned_options import check_extra_args
from matrix_graph.models.serving.weights import layer_matrices

CPU_CONTEXT_TOKENS = 4096
"""The longest context that is taken by default on a CPU, where the cache is small and long prompts take minutes."""

_FEW_CORES = 2
"""Of so few, vLLM's CPU build shall use all for the model."""
_LEAST_CACHE_GIB, _MOST_CACHE_GIB = 2, 16
_KEPT_LOGS = 20


class ServerConfig(BaseModel):
    """Settings of a vLLM server of our own. The defaults fit the machine; hardly anything needs setting."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="Address to listen on. The default is reachable from this machine only.")
    port: int | None = Field(None, ge=1, le=65535, description="TCP port; None chooses a free one.")
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Further names by which clients may call the server, such as a reverse proxy's. Addresses in "
        "numbers, localhost and this machine's name are allowed anyway; others are refused, since a web page may have "
        "made them up.",
    )
    max_model_len: int | None = Field(
        None,
        ge=16,
        description="Context in tokens, prompt and reply together; None is the model's, on a CPU at most 4096.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Number format of the weights; auto is the model's own, on a CPU bfloat16."
    )
    start_timeout: float = Field(600.0, gt=0, description="Seconds until a server that is not ready counts as failed.")
    stop_timeout: float = Field(20.0, gt=0, description="Seconds to end by itself before it is killed.")
    max_restarts: int = Field(5, ge=0, description="Restarts in succession after a death, before giving up.")
    restart_backoff: float = Field(1.0, ge=0, description="Seconds before the first restart; doubles up to 60.")
    stable_after: float = Field(
        600.0, ge=0, description="Seconds of good health after which restarts count from 0 again."
    )
    health_interval: float = Field(2.0, gt=0, description="Seconds between two looks at the server's health.")
    unhealthy_after: float = Field(
        60.0, gt=0, description="Seconds without an answer after which a server that still runs is restarted."
    )
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Share of the GPU's memory to use, 0 to 1; None is vLLM's default. GPU only."
    )
    kv_cache_gib: int | None = Field(
        None,
        ge=1,
        description="Memory for the key-value cache in GiB; None is a quarter of the machine's, 2 to 16. CPU only.",
    )
    enable_lora: bool = Field(True, description="Whether adapters can be loaded.")
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = Field(
        16, description="Highest rank of an adapter; vLLM takes these values only."
    )
    adapters: dict[str, Path] = Field(
        default_factory=dict, description="LoRA adapters to load at the start: name for requests -> folder."
    )
    extra_args: tuple[str, ...] = Field((), description="Further options for vLLM, one word an item; they come last.")
    log_path: Path | None = Field(None, description="Log file, appended to; None is a new one in the cache's `logs`.")
    command: tuple[str, ...] | None = Field(
        None, description="The program to start in place of vLLM, one word an item; vLLM's options follow it."
    )

    @field_validator("extra_args")
    @classmethod
    def _nothing_that_is_ours(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_extra_args(value)
        return value


def served_name(model: str) -> str:
    """Returns the name under which requests name the model: a folder's last part, a hub id as it is."""
    return Path(model).name if Path(model).is_absolute() else model


def server_command(config: ServerConfig, *, model: str, port: int, device: Accelerator) -> list[str]:
    """Returns the argv that starts the server.

    Args:
        config: the settings.
        model: an absolute folder, or a hub id.
        port: the TCP port.
        device: what the installed vLLM runs on.
    """
    options = ["--served-model-name", served_name(model), "--host", config.host, "--port", str(port)]
    # On by default today, but everything here is built on it. The access log would fill the disk with polls.
    options += ["--enable-prefix-caching", "--disable-uvicorn-access-log"]
    options += ["--middleware", guard.MIDDLEWARE, "--disable-fastapi-docs"]
    dtype = "bfloat16" if device == "cpu" and config.dtype == "auto" else config.dtype
    options += ["--dtype", dtype]
    context = config.max_model_len
    if device == "cpu":
        # The smallest blocks that its attention takes, since only whole ones are found in the prefix cache; the default
        # is 128 tokens.
        options += ["--enforce-eager", "--block-size", "32"]
        context = context or min(CPU_CONTEXT_TOKENS, _model_context(model) or CPU_CONTEXT_TOKENS)
    elif config.gpu_memory_utilization is not None:
        options += ["--gpu-memory-utilization", str(config.gpu_memory_utilization)]
    if context is not None:
        options += ["--max-model-len", str(context)]
    if config.enable_lora:
        options += ["--enable-lora", "--max-lora-rank", str(config.max_lora_rank)]
        matrices = layer_matrices(Path(model)) if device == "cpu" else []
        if matrices:
            # With the output matrix among them, vLLM's CPU build would compute an adapter's share of every logit, used
            # or not (64 requests in flight kept a third of their throughput), and would die of `prompt_logprobs`.
            options += ["--lora-target-modules", *matrices]
    if config.command is not None:
        return [*config.command, "--model", model, *options, *config.extra_args]
    return [*_vllm(model), *options, *config.extra_args]


def server_environment(
    config: ServerConfig, *, local_model: bool, api_key: str, device: Accelerator, base: Mapping[str, str]
) -> dict[str, str]:
    """Returns the whole environment of the server.

    Args:
        config: the settings.
        local_model: whether the model is a folder; then vLLM has nothing to ask the hub.
        api_key: the key that requests must bear.
        device: what the installed vLLM runs on.
        base: the environment to start from, such as `os.environ`.
    """
    environment = {
        **base,
        guard.KEY_VARIABLE: api_key,
        guard.HOSTS_VARIABLE: ",".join((config.host, *config.allowed_hosts)),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if device == "cpu":
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(config.kv_cache_gib or usual_cache_gib(memory_bytes()))
        if (os.cpu_count() or 1) <= _FEW_CORES:
            # vLLM keeps one core free for everything but the model, which on so few is half of them or more.
            environment.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    if local_model:
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def usual_cache_gib(memory: int) -> int:
    """Returns the GiB of key-value cache for a machine with so many bytes of memory.

    A quarter of it: the weights, what the engine computes with, and other programs need the rest. Scenes in flight hit
    the prefix cache only as long as it has room for all their dialogues.
    """
    return max(_LEAST_CACHE_GIB, min(_MOST_CACHE_GIB, memory // 4 // 2**30))


def new_log_path(folder: Path) -> Path:
    """Returns a log file's path, new for each call, in `folder`, where only the newest logs are kept."""
    logs = sorted(folder.glob("vllm-*.log"))
    for old in logs[: max(0, len(logs) - _KEPT_LOGS + 1)]:
        with suppress(OSError):  # one that cannot be written is told of when the log is opened
            old.unlink()
    return folder / f"vllm-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}-{secrets.token_hex(2)}.log"


def free_port(host: str) -> int:
    """Returns a TCP port that was free a moment ago.

    Raises:
        ServerError: `host` is no address of this machine.
    """
    return _bind(host, 0)


def require_free_port(host: str, port: int) -> None:
    """Checks the port before a minute is spent on a start that cannot succeed.

    Raises:
        ServerError: the port is taken, or `host` is no address of this machine.
    """
    _bind(host, port)


def _bind(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vLLM does: a port just left is free
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerError(
                f"Port {port} on {host} cannot be used ({error.strerror}). End the process that has it, set another "
                "`port`, or leave it unset to have a free one chosen."
            ) from error
        return int(probe.getsockname()[1])


def _vllm(model: str) -> list[str]:
    """The module works in every build; newer ones may drop it for the `serve` command, which the CPU build breaks."""
    spec = importlib.util.find_spec("vllm")
    folders = list(spec.submodule_search_locations or []) if spec else []
    # -P: no file in the current folder may pass for one of vLLM's modules.
    if folders and not any(Path(folder, "entrypoints/openai/api_server.py").is_file() for folder in folders):
        return [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", "serve", model]
    return [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", model]


def _model_context(model: str) -> int | None:
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    return found if isinstance(found, int) else None
