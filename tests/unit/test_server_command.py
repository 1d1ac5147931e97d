"""What a server is started with, and what its log is read for: no process, no port but for looking."""

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from matrix_graph.config import load_settings
from matrix_graph.errors import ConfigError, PrerequisiteError, ServerError
from matrix_graph.models import engine, memory
from matrix_graph.models.server import ServerConfig, VLLMServer
from matrix_graph.models.serving import engine_log, guard, launch
from matrix_graph.models.serving.endpoint import Endpoint
from matrix_graph.models.serving.launch import new_log_path, require_free_port, server_command, server_environment
from tests.unit.test_adapter import save


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def model_folder(folder: Path, **config: object) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


# --- command line and environment


def test_cpu_command(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "small", max_position_embeddings=8192)
    command = server_command(ServerConfig(), model=model, port=4321, device="cpu")
    assert command[0] == sys.executable
    assert option(command, "--model") == model
    assert option(command, "--served-model-name") == "small"
    assert option(command, "--host") == "127.0.0.1"
    assert option(command, "--port") == "4321"
    assert option(command, "--dtype") == "bfloat16"
    assert option(command, "--max-model-len") == "4096"
    assert option(command, "--max-lora-rank") == "16"
    assert {"--enforce-eager", "--enable-prefix-caching", "--enable-lora"} <= set(command)
    assert option(command, "--block-size") == "32"
    assert "--gpu-memory-utilization" not in command


def test_on_cpu_adapters_leave_the_output_matrix_alone(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "m")
    within = ["mlp.down_proj", "mlp.gate_proj", "self_attn.q_proj", "self_attn.v_proj"]
    names = ["model.embed_tokens", "lm_head", *(f"model.layers.{n}.{name}" for n in range(2) for name in within)]
    save(Path(model) / "model.safetensors", {f"{name}.weight": (4, 4) for name in names})
    command = server_command(ServerConfig(), model=model, port=1, device="cpu")
    matrices = ["down_proj", "gate_proj", "q_proj", "v_proj"]
    assert command[command.index("--lora-target-modules") + 1 :] == matrices
    assert "--lora-target-modules" not in server_command(ServerConfig(), model=model, port=1, device="cuda")
    without = server_command(ServerConfig(enable_lora=False), model=model, port=1, device="cpu")
    assert "--lora-target-modules" not in without


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"max_position_embeddings": 2048}, "2048"),
        ({"text_config": {"max_position_embeddings": 1024}}, "1024"),
        ({}, "4096"),
    ],
)
def test_cpu_context_is_the_models_if_that_is_less(tmp_path: Path, config: dict[str, object], tokens: str) -> None:
    command = server_command(ServerConfig(), model=model_folder(tmp_path / "m", **config), port=1, device="cpu")
    assert option(command, "--max-model-len") == tokens


def test_gpu_command_leaves_the_model_its_own_settings() -> None:
    command = server_command(ServerConfig(gpu_memory_utilization=0.5), model="org/name", port=1, device="cuda")
    assert option(command, "--served-model-name") == "org/name"
    assert option(command, "--dtype") == "auto"
    assert option(command, "--gpu-memory-utilization") == "0.5"
    assert "--max-model-len" not in command
    assert "--enforce-eager" not in command and "--block-size" not in command


def test_settings_and_extra_arguments_reach_the_command_line() -> None:
    config = ServerConfig(
        max_model_len=512, dtype="float32", enable_lora=False, extra_args=("--max-num-seqs", "4"), command=("a", "b")
    )
    command = server_command(config, model="org/name", port=1, device="cpu")
    assert command[:4] == ["a", "b", "--model", "org/name"]
    assert option(command, "--max-model-len") == "512"
    assert option(command, "--dtype") == "float32"
    assert command[-2:] == ["--max-num-seqs", "4"]
    assert "--enable-lora" not in command


def test_serve_command_is_used_where_the_module_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise SystemError('must not be imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    command = server_command(ServerConfig(), model="org/name", port=1, device="cuda")
    assert command[:6] == [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", "serve", "org/name"]
    (tmp_path / "vllm" / "entrypoints" / "openai").mkdir(parents=True)
    (tmp_path / "vllm" / "entrypoints" / "openai" / "api_server.py").write_text("")
    assert "vllm.entrypoints.openai.api_server" in server_command(ServerConfig(), model="m", port=1, device="cuda")


def test_environment_holds_the_key_and_keeps_the_users() -> None:
    environment = server_environment(
        ServerConfig(kv_cache_gib=3),
        local_model=True,
        api_key="k",
        device="cpu",
        base={"HOME": "/h", "VLLM_API_KEY": "u"},
    )
    assert environment["HOME"] == "/h"
    assert environment["VLLM_API_KEY"] == "k"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["VLLM_NO_USAGE_STATS"] == environment["DO_NOT_TRACK"] == "1"
    remote = server_environment(ServerConfig(), local_model=False, api_key="k", device="cuda", base={})
    assert "HF_HUB_OFFLINE" not in remote
    assert "VLLM_CPU_KVCACHE_SPACE" not in remote


@pytest.mark.parametrize(("memory_gib", "cache_gib"), [(4, 2), (24, 6), (1024, 16)])
def test_cache_is_a_quarter_of_the_memory(
    memory_gib: int, cache_gib: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(f"{memory_gib * 2**30}\n")
    monkeypatch.setattr(os, "sysconf", lambda name: 2**21)  # 4 TiB: the container has less
    monkeypatch.setattr(memory, "_CONTAINER_LIMITS", (limit, tmp_path / "none"))
    environment = server_environment(ServerConfig(), local_model=True, api_key="k", device="cpu", base={})
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == str(cache_gib)
    limit.write_text("max\n")
    assert memory.memory_bytes() == 2**42


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 0},
        {"port": 70000},
        {"start_timeout": 0},
        {"gpu_memory_utilization": 1.5},
        {"max_lora_rank": 17},
        {"unknown": 1},
    ],
)
def test_settings_that_cannot_be_used_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServerConfig.model_validate(wrong)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--api-key", "s3cret"), "--api-key .*makes its own key"),
        (("--api-key=s3cret",), "makes its own key"),
        (("--api_key=s3cret",), "makes its own key"),
        (("--api_key", "s3cret"), "makes its own key"),
        (("--api-ke", "s3cret"), "makes its own key"),
        (("--api_k=s3cret",), "makes its own key"),
        (("--api-key.x", "s3cret"), "makes its own key"),
        (("--api-key+", "s3cret"), "makes its own key"),
        (("--max-num-seqs", "4", "--ap", "s3cret"), "makes its own key"),
        (("--hf_token", "s3cret"), "HF_TOKEN"),
        (("--hf-to=s3cret",), "HF_TOKEN"),
        (("--host", "0.0.0.0"), "setting `host`"),
        (("--ho=0.0.0.0",), "setting `host`"),
        (("--port", "1"), "setting `port`"),
        (("--po", "1"), "setting `port`"),
        (("--uds=/tmp/s",), "`host` and `port`"),
        (("--middleware", "a.B"), "ask for its key"),
        (("--mid", "a.B"), "ask for its key"),
        (("--no_disable_fastapi_docs",), "leave it out"),
        (("--root-path=/x",), "put a proxy before it"),
        (("--ssl-keyf", "/x"), "put a proxy before it"),
        (("--served-model-name", "x"), "leave it out"),
        (("--config", "/does/not/exist.yaml"), "cannot be read"),
    ],
)
def test_options_of_the_servers_own_are_refused_in_every_spelling(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        ServerConfig(extra_args=words)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("line", ["api-key: s3cret", "api_key: [s3cret]", "ho: 0.0.0.0", "middleware: [a.B]", "{"])
@pytest.mark.parametrize("option", [("--config",), ("--conf",), None])
def test_options_of_the_servers_own_are_refused_in_a_file(tmp_path: Path, line: str, option: tuple[str] | None) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(f"max-num-seqs: 4\n{line}\n")
    words = (f"--config={file}",) if option is None else (*option, str(file))
    with pytest.raises(ValidationError, match=r"options\.yaml") as caught:
        ServerConfig(extra_args=words)
    assert "s3cret" not in str(caught.value)
    file.write_text("max-num-seqs: 4\n")
    assert ServerConfig(extra_args=words).extra_args == words


def test_options_that_only_look_alike_are_taken() -> None:
    words = (
        "--model-impl",
        "vllm",
        "--hf-token",
        "--hf-overrides",
        "{}",
        "--api-server-count=1",
        "--mm-x",
        "--",
        "-O3",
    )
    assert ServerConfig(extra_args=words).extra_args == words


def test_a_wrong_setting_is_not_quoted_to_whoever_reads_the_terminal() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(server={"extra_args": ["--api-key", "s3cret"]})
    assert "--api-key" in str(caught.value) and "s3cret" not in str(caught.value)


def test_the_door_is_there_whatever_is_started() -> None:
    for settings in (ServerConfig(), ServerConfig(command=("a",), extra_args=("--seed", "1"))):
        command = server_command(settings, model="org/name", port=1, device="cuda")
        assert option(command, "--middleware") == guard.MIDDLEWARE
        assert "--disable-fastapi-docs" in command
    module, _, name = guard.MIDDLEWARE.rpartition(".")
    assert getattr(importlib.import_module(module), name) is guard.RequireKey
    environment = server_environment(
        ServerConfig(host="::1", allowed_hosts=("a.example", "b")), local_model=True, api_key="k", device="cpu", base={}
    )
    assert environment[guard.KEY_VARIABLE] == "k"
    assert environment[guard.HOSTS_VARIABLE] == "::1,a.example,b"


def test_every_setting_is_described() -> None:
    for name, field in ServerConfig.model_fields.items():
        assert field.description, name


# --- ports, logs and addresses


def test_taken_port() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=f"Port {port}.*another `port`"):
            require_free_port("127.0.0.1", port)
    require_free_port("127.0.0.1", port)


def test_foreign_host() -> None:
    with pytest.raises(ServerError, match=r"192\.0\.2\.1"):
        launch.free_port("192.0.2.1")


def test_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"vllm-20200101-0000{number:02}-1-ab.log").touch()
    (tmp_path / "mine.log").touch()
    new_log_path(tmp_path).touch()
    logs = sorted(path.name for path in tmp_path.glob("vllm-*"))
    assert len(logs) == 20
    assert logs[0] == "vllm-20200101-000011-1-ab.log"
    assert (tmp_path / "mine.log").exists()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80/v1"),
        ("0.0.0.0", "http://127.0.0.1:80/v1"),
        ("::1", "http://[::1]:80/v1"),
        ("::", "http://[::1]:80/v1"),
    ],
)
def test_base_url(host: str, url: str) -> None:
    endpoint = Endpoint(host, 80, api_key="hush")
    assert endpoint.base_url == url
    assert "hush" not in repr(endpoint)


# --- what the log says


@pytest.mark.parametrize(
    ("line", "phase", "telling"),
    [
        (
            "(EngineCore pid=58) INFO 11-21 20:40:41 [core.py:133] Initializing a V1 LLM engine",
            "starting the engine",
            True,
        ),
        ("(Worker pid=5) INFO 11-21 20:40:49 [cpu.py:68] Starting to load model x...", "loading weights", True),
        ("(Worker pid=5) INFO 11-21 20:40:50 [d.py:501] Loading weights took 0.82 seconds", "weights loaded", True),
        ("(EngineCore pid=5) INFO 11-21 20:40:51 [k.py:2327] CPU KV cache size: 93,184 tokens", "warming up", True),
        ("(APIServer pid=5) INFO 11-21 20:40:58 [launcher.py:195] Route: /metrics, Methods: GET", None, False),
        ("(APIServer pid=5) WARNING 11-21 20:40:58 [x.py:1] Enforce eager set, disabling torch.compile", None, False),
        ("(APIServer pid=5798) INFO 11-21 20:40:24 [api_utils.py:347]   █▄█▀ █     █  model x", None, False),
        ("", None, False),
    ],
)
def test_lines_of_the_log(line: str, phase: str | None, telling: bool) -> None:
    assert engine_log.phase_of(line) == phase
    assert engine_log.is_telling(line) is telling


def test_plain_line() -> None:
    line = "(Worker pid=5915) INFO 11-21 20:40:50 [default_loader.py:501] Loading weights took 0.82 seconds"
    assert engine_log.plain(line) == "Loading weights took 0.82 seconds"
    assert engine_log.plain("Downloading shards: 50%") == "Downloading shards: 50%"
    assert len(engine_log.plain("x" * 1000)) == 120


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory", 1, "memory"),
        ("ValueError: No available memory for the cache blocks.", 1, "memory"),
        ("ValueError: Free memory on device cuda:0 (1/80 GiB) on startup is less than desired", 1, "memory"),
        ("nothing special", -9, "lack of memory"),
        ("OSError: [Errno 98] Address already in use", 1, "port was taken"),
        ("RuntimeError: operator torchvision::nms does not exist", 1, "installation of vLLM is broken"),
        ("OSError: You are trying to access a gated repo.", 1, "log in"),
        ("huggingface_hub.errors.RepositoryNotFoundError: 404", 1, "could not be found"),
        ("ValueError: User-specified max_model_len (9) is greater than the derived", 1, "Lower it"),
        ("nothing special", 1, "Mend what its log says"),
    ],
)
def test_explanations(line: str, code: int, said: str) -> None:
    message = engine_log.explain("vLLM ended", code=code, lines=["first", line], log_path=Path("a.log"))
    assert message.startswith("vLLM ended")
    assert said in message
    assert f"    {line}" in message
    assert "a.log" in message


def test_cause_is_found_above_the_last_words() -> None:
    lines = [
        "(EngineCore pid=1) ERROR 01-01 00:00:00 [core.py:9] ValueError: the real cause",
        *["  File x"] * 50,
        "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    message = engine_log.explain("vLLM ended", code=1, lines=lines, log_path=Path("a.log"))
    assert "Cause: ValueError: the real cause" in message
    assert message.count("File x") < 20


def test_nothing_logged() -> None:
    assert "nothing was logged" in engine_log.explain("vLLM ended", code=1, lines=[], log_path=Path("a.log"))


# --- prerequisites


def test_start_without_vllm_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "engine_installed", lambda: False)
    with pytest.raises(PrerequisiteError, match=r"install-engine|matrix-graph\[serve\]"):
        VLLMServer("org/name").start()


def test_start_with_a_folder_that_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "engine_installed", lambda: True)
    with pytest.raises(ServerError, match="not a whole model"):
        VLLMServer(tmp_path).start()


def test_import_is_light() -> None:
    script = (
        "import sys, matrix_graph.models.server\n"
        "heavy = {'torch', 'vllm', 'transformers', 'langgraph', 'langchain_core'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("cores", "given", "reserved"), [(2, {}, "0"), (16, {}, None), (2, {"VLLM_CPU_NUM_OF_RESERVED_CPU": "1"}, "1")]
)
def test_on_few_cores_none_is_kept_from_the_model(
    monkeypatch: pytest.MonkeyPatch, cores: int, given: dict[str, str], reserved: str | None
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    environment = server_environment(ServerConfig(), local_model=True, api_key="k", device="cpu", base=given)
    assert environment.get("VLLM_CPU_NUM_OF_RESERVED_CPU") == reserved
