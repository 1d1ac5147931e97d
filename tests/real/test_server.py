"""The server with the real vLLM and real weights: it serves, comes back from death, keeps to itself, leaves nothing."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from matrix_graph.errors import ServerError
from matrix_graph.models.server import VLLMServer
from matrix_graph.models.serving._supervisor import descendants

LONG_PROMPT = "The rehearsal of an answer shows what it does to the people around. " * 40


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def ask(server: VLLMServer, text: str, model: str | None = None) -> str:
    body: dict[str, Any] = {
        "model": model or server.model_name,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 8,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{server.base_url}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return str(json.loads(response.read())["choices"][0]["message"]["content"])


def save_adapter(folder: Path, *, scale: float, width: int = 576) -> Path:
    """Writes a LoRA adapter of rank 8 on the first layer's query projection of the bundled model."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"})
    )
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    random = np.random.default_rng(0)
    weights = {
        f"{layer}.lora_A.weight": random.normal(size=(8, width)).astype(np.float32),
        f"{layer}.lora_B.weight": scale * random.normal(size=(width, 8)).astype(np.float32),
    }
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def test_serves_with_a_prefix_cache(server: VLLMServer) -> None:
    assert server.healthy and server.model_name == "SmolLM2-135M-Instruct"
    before = server.metrics()
    first, second = ask(server, LONG_PROMPT), ask(server, LONG_PROMPT)
    assert first and first == second
    after = server.metrics()
    assert after["prefix_cache_hits"] - before["prefix_cache_hits"] >= 256
    assert after["generation_tokens"] > before["generation_tokens"]


def test_key_is_in_no_command_line_and_not_in_the_log(server: VLLMServer) -> None:
    key = server.api_key.encode()
    seen = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert key not in entry.read_bytes()
            seen += 1
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert seen > 3
    assert key not in server.log_path.read_bytes()
    assert server.log_path.stat().st_size > 1000
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server.base_url}/models", timeout=10)


ROUTE = re.compile(r"Route: (\S+), Methods: ([A-Z, ]+)")


def routes(server: VLLMServer) -> set[tuple[str, str]]:
    """Every method and path that this vLLM has, as it logs them at its start."""
    found = {
        (method, re.sub(r"{.*?}", "name", path))
        for path, methods in ROUTE.findall(server.log_path.read_text(encoding="utf-8", errors="replace"))
        for method in methods.replace(" ", "").split(",")
    }
    return found | {("GET", path) for path in ("/docs", "/redoc", "/openapi.json", "/metrics", "/")}


def status(server: VLLMServer, method: str, path: str, **headers: str) -> int:
    body = json.dumps({"name": "x", "src": "/tmp", "model": server.model_name, "prompt": "x"}).encode()
    request = urllib.request.Request(
        server.base_url.removesuffix("/v1") + path,
        method=method,
        data=body if method == "POST" else None,
        headers={"Content-Type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_every_route_asks_for_the_key(server: VLLMServer) -> None:
    asked = routes(server)
    assert len(asked) > 20 and {("POST", "/invocations"), ("POST", "/adapters"), ("DELETE", "/adapters/name")} <= asked
    open_paths = {("GET", "/health"), ("HEAD", "/health")}
    refused = {route: status(server, *route) for route in asked - open_paths}
    assert set(refused.values()) == {401}, refused
    assert status(server, "POST", "/invocations", Authorization="Bearer wrong") == 401
    assert status(server, "GET", "/health") == 200


def test_pages_of_other_sites_are_refused_and_the_key_opens_all(server: VLLMServer) -> None:
    key = {"Authorization": f"Bearer {server.api_key}"}
    assert status(server, "GET", "/health", Host="rebound.evil.example") == 403
    assert status(server, "POST", "/tokenize", Origin="https://evil.example", **key) == 403
    assert status(server, "POST", "/tokenize", Host="rebound.evil.example", **key) == 403
    assert status(server, "POST", "/tokenize", **key) == 200
    assert status(server, "GET", "/metrics", **key) == 200
    assert status(server, "GET", "/docs", **key) == 404


def test_adapters_and_death_of_the_engine(server: VLLMServer, tmp_path: Path) -> None:
    base = ask(server, "Name a colour.")
    server.load_adapter("strong", save_adapter(tmp_path / "strong", scale=5.0))
    changed = ask(server, "Name a colour.", model="strong")
    assert changed != base
    with pytest.raises(ServerError, match="refused to load the adapter 'strong'"):
        server.load_adapter("strong", tmp_path / "strong")

    restarts, port, main, key = server.restarts, server.base_url, server.pid, server.api_key
    assert main is not None
    workers = descendants(main)
    engines = [pid for pid in workers if Path(f"/proc/{pid}/comm").read_text().startswith("VLLM::Engine")]
    assert len(engines) == 1
    os.kill(engines[0], signal.SIGKILL)
    until = time.monotonic() + 60
    while server.restarts == restarts and time.monotonic() < until:
        time.sleep(0.1)  # the API server says for a moment that all is well
    asyncio.run(server.wait_ready(240))

    assert server.restarts == restarts + 1 and server.base_url == port and server.pid != main
    assert server.api_key != key
    assert not any(alive(pid) for pid in [main, *workers])
    assert ask(server, "Name a colour.") == base
    assert ask(server, "Name a colour.", model="strong") == changed
    server.unload_adapter("strong")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(server, "Name a colour.", model="strong")


PROGRAM = """
import time
from matrix_graph.models.server import VLLMServer

with VLLMServer() as server:
    print(server.base_url.split(":")[2].split("/")[0], flush=True)
    time.sleep(600)
"""


def test_program_ended_by_sigterm_leaves_nothing() -> None:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    port = int(program.stdout.readline())
    processes = descendants(program.pid)
    assert len(processes) >= 4  # the supervisor, vLLM, its engine and a worker
    program.terminate()
    assert program.wait(timeout=10) == -signal.SIGTERM
    program.stdout.close()
    assert eventually(lambda: not any(alive(pid) for pid in processes), 30)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
