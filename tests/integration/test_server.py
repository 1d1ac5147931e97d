"""The server's life with a stub in place of vLLM: real processes, real ports, real signals."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from matrix_graph.errors import ServerError
from matrix_graph.models.server import ServerConfig, VLLMServer

STUB = Path(__file__).with_name("stub_engine.py")
MODEL = "stub/model"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def port_of(server: VLLMServer) -> int:
    return int(server.base_url.split(":")[2].split("/")[0])


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def eventually(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def post(server: VLLMServer, path: str) -> None:
    request = urllib.request.Request(server.base_url.removesuffix("/v1") + path, method="POST", data=b"")
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except OSError:
        assert path.startswith("/die")  # the dead do not answer


def get(server: VLLMServer, path: str, key: str | None = None) -> Any:
    request = urllib.request.Request(server.base_url.removesuffix("/v1") + path)
    request.add_header("Authorization", f"Bearer {key or server.api_key}")
    with urllib.request.urlopen(request, timeout=5) as response:
        return json.loads(response.read())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIX_GRAPH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pids_file(tmp_path: Path) -> Iterator[Path]:
    """Where the stub writes its pids; whatever is left of them at the end of a failed test is killed."""
    path = tmp_path / "pids.json"
    yield path
    for pid in json.loads(path.read_text()) if path.exists() else []:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def config(*stub_options: object, **settings: Any) -> ServerConfig:
    return ServerConfig(
        command=(sys.executable, str(STUB), *(str(option) for option in stub_options)),
        **{"stop_timeout": 4, "start_timeout": 20, "health_interval": 0.1, "restart_backoff": 0.05, **settings},
    )


def pids(path: Path) -> list[int]:
    assert eventually(path.exists)
    found = json.loads(path.read_text())
    assert len(found) == 3
    return [int(pid) for pid in found]


# --- starting


def test_serves_from_start_to_stop_and_leaves_nothing(
    pids_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    lines: list[str] = []
    server = VLLMServer(
        MODEL, config=config("--stub-start-seconds", 0.3, "--stub-pids", pids_file), on_status=lines.append
    )
    with server as started:
        assert started is server and server.running and server.healthy
        assert server.model_name == MODEL
        assert server.base_url.startswith("http://127.0.0.1:")
        assert get(server, "/v1/models")["data"][0]["id"] == MODEL
        processes = pids(pids_file)
        assert server.pid == processes[0]
        assert all(alive(pid) for pid in processes)
    assert not server.running and not server.healthy and server.pid is None
    assert not any(alive(pid) for pid in processes)
    assert port_is_free(port_of(server))
    assert not list(scratch.iterdir())
    assert any("loading weights" in line for line in lines)
    assert lines[-1].endswith("ready")


def test_can_be_started_twice_and_again_after_stop() -> None:
    server = VLLMServer(MODEL, config=config())
    try:
        server.start()
        first = server.pid
        assert server.start().pid == first
        server.stop()
        server.stop()
        assert server.start().pid != first
    finally:
        server.stop()


def test_two_threads_that_start_it_get_one_server(pids_file: Path) -> None:
    server = VLLMServer(MODEL, config=config("--stub-start-seconds", 0.2))
    seen: list[int | None] = []
    threads = [threading.Thread(target=lambda: seen.append(server.start().pid)) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 4 and len(set(seen)) == 1
    finally:
        server.stop()


async def test_async_start_does_not_block_the_loop() -> None:
    server = VLLMServer(MODEL, config=config("--stub-start-seconds", 0.5))
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    heart = asyncio.create_task(beat())
    async with server:
        assert beats > 20
        assert server.healthy
    heart.cancel()
    assert not server.running


async def test_cancelled_async_start_leaves_nothing(pids_file: Path) -> None:
    server = VLLMServer(MODEL, config=config("--stub-start-seconds", 60, "--stub-pids", pids_file))
    starting = asyncio.create_task(server.astart())
    processes = await asyncio.to_thread(pids, pids_file)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not any(alive(pid) for pid in processes)


def test_is_not_usable_before_start() -> None:
    server = VLLMServer(MODEL, config=config())
    with pytest.raises(ServerError, match="not started"):
        _ = server.base_url
    with pytest.raises(ServerError, match="not started"):
        server.metrics()
    with pytest.raises(ServerError, match="not running"):
        asyncio.run(server.wait_ready(1))


def test_users_port_that_is_taken_is_told_before_anything_starts() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        began = time.monotonic()
        server = VLLMServer(MODEL, config=config(port=port))
        with pytest.raises(ServerError, match=f"Port {port} on 127.0.0.1"):
            server.start()
        assert time.monotonic() - began < 1
        assert not server.log_path.exists()


def test_chosen_port_that_got_taken_is_replaced(tmp_path: Path) -> None:
    memory = tmp_path / "taken"
    with VLLMServer(MODEL, config=config("--stub-taken-until", memory)) as server:
        assert str(port_of(server)) != memory.read_text()
        assert server.restarts == 0


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", 1, "not enough memory"),
        ("ValueError: 4 GiB KV cache is needed, larger than the available KV cache memory", 1, "not enough memory"),
        ("INFO loading", -9, "lack of memory"),
        ("api_server.py: error: unrecognized arguments: --nonsense", 2, "does not know one of its options"),
        ("ValueError: something else", 3, "exited with code 3 while starting"),
    ],
)
def test_death_at_the_start_says_why(text: str, code: int, said: str) -> None:
    server = VLLMServer(MODEL, config=config("--stub-die-with", text, "--stub-die-code", code, "--stub-print-key"))
    with pytest.raises(ServerError) as caught:
        server.start()
    message = str(caught.value)
    assert said in message
    assert text in message
    assert str(server.log_path) in message
    assert server.api_key not in message
    assert not server.running
    assert server.restarts == 0
    with pytest.raises(ServerError, match="while starting"):
        asyncio.run(server.wait_ready(1))


def test_start_deadline(pids_file: Path) -> None:
    server = VLLMServer(MODEL, config=config("--stub-start-seconds", 60, "--stub-pids", pids_file, start_timeout=1))
    with pytest.raises(ServerError, match=r"not ready after 1 s.*loading weights"):
        server.start()
    assert not any(alive(pid) for pid in pids(pids_file))


def test_command_that_does_not_exist(tmp_path: Path) -> None:
    server = VLLMServer(MODEL, config=ServerConfig(command=(str(tmp_path / "nothing"),), start_timeout=10))
    with pytest.raises(ServerError, match=r"exited with code 127(.|\n)*No such file"):
        server.start()


def test_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    server = VLLMServer(MODEL, config=config(log_path=tmp_path / "file" / "log"))
    with pytest.raises(ServerError, match="cannot be written"):
        server.start()


def test_a_display_that_fails_harms_nothing() -> None:
    def fail(line: str) -> None:
        raise RuntimeError(line)

    with VLLMServer(MODEL, config=config(), on_status=fail) as server:
        assert server.healthy


# --- the key


def test_key_is_in_no_command_line_log_or_repr(tmp_path: Path) -> None:
    environment = tmp_path / "environment.json"
    with VLLMServer(MODEL, config=config("--stub-print-key", "--stub-environment", environment)) as server:
        key = server.api_key
        seen = json.loads(environment.read_text())
        assert seen["VLLM_API_KEY"] == key
        assert seen["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == seen["VLLM_NO_USAGE_STATS"] == "1"
        assert eventually(lambda: "key=[hidden]" in server.log_path.read_text())
        assert key not in server.log_path.read_text()
        assert key not in repr(server)
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert key.encode() not in entry.read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(server, "/v1/models", key="another")
    assert VLLMServer(MODEL).api_key != key


# --- dying and coming back


def test_restarts_on_the_same_port_with_another_key(pids_file: Path) -> None:
    lines: list[str] = []
    with VLLMServer(MODEL, config=config("--stub-pids", pids_file), on_status=lines.append) as server:
        before, url, old, key = server.pid, server.base_url, pids(pids_file), server.api_key
        pids_file.unlink()
        post(server, "/die?code=7")
        asyncio.run(server.wait_ready(20))
        assert server.healthy and server.restarts == 1
        assert server.base_url == url and server.pid != before and server.api_key != key
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(server, "/v1/models", key=key)
        assert get(server, "/v1/models")["data"]
        assert not any(alive(pid) for pid in old)
        assert any("exited with code 7; restart 1 of 5" in line for line in lines)


@pytest.mark.parametrize(("fault", "said"), [("/sicken", "engine is dead"), ("/hang", "has not answered")])
def test_restarts_an_engine_that_is_dead_inside(fault: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matrix_graph.models.serving.watch._LOOK_SECONDS", 0.3)
    lines: list[str] = []
    with VLLMServer(MODEL, config=config(unhealthy_after=0.5), on_status=lines.append) as server:
        post(server, fault)
        asyncio.run(server.wait_ready(20))
        assert server.restarts == 1
        assert any(said in line for line in lines)


def test_restarts_after_its_supervisor_was_killed(pids_file: Path) -> None:
    with VLLMServer(MODEL, config=config("--stub-pids", pids_file)) as server:
        main, worker, _ = pids(pids_file)
        supervisor = int(Path(f"/proc/{main}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(supervisor, signal.SIGKILL)
        asyncio.run(server.wait_ready(20))
        assert server.restarts == 1 and server.pid != main
        assert eventually(lambda: not alive(main) and not alive(worker))


async def test_many_wait_for_one_restart() -> None:
    async with VLLMServer(MODEL, config=config("--stub-start-seconds", 0.3)) as server:
        await asyncio.to_thread(post, server, "/die")
        await asyncio.gather(*(server.wait_ready(20) for _ in range(200)))
        assert server.restarts == 1
        began = time.monotonic()
        await server.wait_ready(20)
        assert time.monotonic() - began < 1


async def test_wait_ready_has_a_limit() -> None:
    async with VLLMServer(MODEL, config=config(restart_backoff=30)) as server:
        await asyncio.to_thread(post, server, "/die")
        with pytest.raises(ServerError, match="not ready yet"):
            await server.wait_ready(0.5)


def test_gives_up_after_restarts_in_succession(tmp_path: Path) -> None:
    fail = tmp_path / "fail"
    server = VLLMServer(MODEL, config=config("--stub-fail-if", fail, max_restarts=2))
    with server:
        fail.touch()
        post(server, "/die")
        with pytest.raises(ServerError, match=r"given up after 2 restarts(.|\n)*the stub fails to start"):
            asyncio.run(server.wait_ready(20))
        assert server.restarts == 2
        assert not server.running
        with pytest.raises(ServerError, match="given up"):
            server.load_adapter("x", make_adapter(tmp_path / "x"))
        fail.unlink()
        assert server.start().healthy


def test_restarts_count_anew_after_good_health() -> None:
    with VLLMServer(MODEL, config=config(max_restarts=1, stable_after=0.3)) as server:
        for count in (1, 2):
            time.sleep(0.6)
            post(server, "/die")
            asyncio.run(server.wait_ready(20))
            assert server.restarts == count


def test_no_restart_if_none_is_wanted() -> None:
    with VLLMServer(MODEL, config=config(max_restarts=0)) as server:
        post(server, "/die")
        with pytest.raises(ServerError, match="given up after 0 restarts"):
            asyncio.run(server.wait_ready(20))


# --- adapters


def make_adapter(folder: Path, rank: int = 8) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
    shapes = {"A": [rank, 4], "B": [4, rank]}
    tensors = {
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight": {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [16 * rank * number, 16 * rank * (number + 1)],
        }
        for number, (side, shape) in enumerate(shapes.items())
    }
    header = json.dumps(tensors).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(32 * rank))
    return folder


def names(server: VLLMServer) -> list[str]:
    return [model["id"] for model in get(server, "/v1/models")["data"]]


def test_adapters_come_back_after_a_restart(tmp_path: Path) -> None:
    early, late, gone = (make_adapter(tmp_path / name) for name in ("early", "late", "gone"))
    with VLLMServer(MODEL, config=config(adapters={"early": early})) as server:
        server.load_adapter("late", late)
        asyncio.run(server.aload_adapter("gone", gone))
        assert names(server) == [MODEL, "early", "late", "gone"]
        server.unload_adapter("gone")
        assert server.adapters() == {"early": early, "late": late}
        post(server, "/die")
        asyncio.run(server.wait_ready(20))
        assert names(server) == [MODEL, "early", "late"]
        with pytest.raises(ServerError, match=r"refused to unload the adapter 'gone'.*cannot be found"):
            asyncio.run(server.aunload_adapter("gone"))


def test_adapter_that_is_refused(tmp_path: Path) -> None:
    refuse = tmp_path / "refuse"
    adapter = make_adapter(tmp_path / "adapter")
    lines: list[str] = []
    with VLLMServer(MODEL, config=config("--stub-refuse-if", refuse), on_status=lines.append) as server:
        server.load_adapter("a", adapter)
        refuse.touch()
        post(server, "/die")
        asyncio.run(server.wait_ready(20))
        assert server.adapters() == {}
        assert any("adapter a is lost" in line for line in lines)
        with pytest.raises(ServerError, match="wrong shape"):
            server.load_adapter("a", adapter)
    server = VLLMServer(MODEL, config=config("--stub-refuse-if", refuse, adapters={"a": adapter}))
    with pytest.raises(ServerError, match="wrong shape"):
        server.start()
    assert not server.running


def test_adapter_folders_are_checked_first(tmp_path: Path) -> None:
    with VLLMServer(MODEL, config=config()) as server:
        with pytest.raises(ServerError, match="does not exist"):
            server.load_adapter("a", tmp_path / "nothing")
        (tmp_path / "empty").mkdir()
        with pytest.raises(ServerError, match=r"no readable adapter_config\.json"):
            server.load_adapter("a", tmp_path / "empty")
        with pytest.raises(ServerError, match="rank 64, the server takes at most 16"):
            server.load_adapter("a", make_adapter(tmp_path / "big", rank=64))
        garbage = make_adapter(tmp_path / "garbage")
        (garbage / "adapter_model.safetensors").write_bytes(b"x" * 100)
        with pytest.raises(ServerError, match=r"damaged: adapter_model\.safetensors is no safetensors file"):
            server.load_adapter("a", garbage)
        with pytest.raises(ServerError, match="is the base model's"):
            server.load_adapter(MODEL, make_adapter(tmp_path / "named"))
        assert names(server) == [MODEL] and server.healthy
        bare = make_adapter(tmp_path / "bare")
        (bare / "adapter_model.safetensors").unlink()
        with pytest.raises(ServerError, match="no weights"):
            server.load_adapter("a", bare)
    with (
        VLLMServer(MODEL, config=config(enable_lora=False)) as server,
        pytest.raises(ServerError, match="started without adapters"),
    ):
        server.load_adapter("a", make_adapter(tmp_path / "fine"))


def test_metrics_are_summed() -> None:
    with VLLMServer(MODEL, config=config()) as server:
        assert server.metrics() == {"prefix_cache_hits": 3.0, "generation_tokens": 9.0}
    with pytest.raises(ServerError, match="gave no metrics"):
        server.metrics()


# --- ending, whatever ends the program


def test_ends_a_server_that_ignores_sigterm(pids_file: Path) -> None:
    with VLLMServer(MODEL, config=config("--stub-deaf", "--stub-pids", pids_file, stop_timeout=1)) as server:
        processes = pids(pids_file)
    assert not any(alive(pid) for pid in processes)
    assert port_is_free(port_of(server))


def test_exception_in_the_block_ends_it(pids_file: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"), VLLMServer(MODEL, config=config("--stub-pids", pids_file)):
        processes = pids(pids_file)
        raise RuntimeError("mine")
    assert not any(alive(pid) for pid in processes)


PROGRAM = """
    import os, signal, sys, time
    from matrix_graph.models.server import ServerConfig, VLLMServer

    settings = ServerConfig.model_validate_json(sys.argv[1])

    def ready(server):
        print(server.base_url.split(":")[2].split("/")[0], flush=True)
"""
BODIES = {
    "normal exit": "ready(VLLMServer('stub/model', config=settings).start())",
    "exception": "ready(VLLMServer('stub/model', config=settings).start())\nraise RuntimeError('on purpose')",
    "os._exit": "ready(VLLMServer('stub/model', config=settings).start())\nos._exit(3)",
    "waiting": "with VLLMServer('stub/model', config=settings) as server:\n    ready(server)\n    time.sleep(60)",
    "forked": """
server = VLLMServer('stub/model', config=settings).start()
if os.fork() == 0:
    time.sleep(60)
ready(server)
time.sleep(60)
""",
    "fork that exits": """
server = VLLMServer('stub/model', config=settings).start()
child = os.fork()
if child == 0:
    sys.exit()
os.waitpid(child, 0)
time.sleep(0.3)
assert server.healthy and server.restarts == 0
ready(server)
""",
    "starting": "print(0, flush=True)\nVLLMServer('stub/model', config=settings).start()",
}


class Program:
    def __init__(self, body: str, pids_file: Path, *stub_options: object) -> None:
        settings = config("--stub-pids", pids_file, *stub_options)
        script = textwrap.dedent(PROGRAM) + BODIES[body]
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, settings.model_dump_json()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=STUB.parents[2],
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline() or 0)
        self.pids = pids(pids_file)

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors

    def assert_nothing_is_left(self) -> None:
        assert eventually(lambda: not any(alive(pid) for pid in self.pids)), self.pids
        assert self.port == 0 or port_is_free(self.port)


@pytest.mark.parametrize(
    ("body", "code"), [("normal exit", 0), ("exception", 1), ("os._exit", 3), ("fork that exits", 0)]
)
def test_program_that_ends_leaves_nothing(body: str, code: int, pids_file: Path) -> None:
    program = Program(body, pids_file)
    returned, errors = program.end()
    assert returned == code, errors
    program.assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("body", ["waiting", "starting"])
def test_program_that_is_signalled_leaves_nothing(body: str, number: signal.Signals, pids_file: Path) -> None:
    program = Program(body, pids_file, *(["--stub-start-seconds", 60] if body == "starting" else []))
    program.process.send_signal(number)
    returned, errors = program.end()
    assert returned == -number or (number == signal.SIGINT and "KeyboardInterrupt" in errors)
    program.assert_nothing_is_left()


def test_ctrl_c_on_the_whole_foreground_group(pids_file: Path) -> None:
    program = Program("waiting", pids_file)
    os.killpg(program.process.pid, signal.SIGINT)
    _, errors = program.end()
    assert errors.count("KeyboardInterrupt") == 1  # the program's own; the server is not in its group
    program.assert_nothing_is_left()


def test_killed_program_whose_fork_lives_on_leaves_no_server(pids_file: Path) -> None:
    program = Program("forked", pids_file)
    program.process.kill()
    program.process.wait(timeout=5)
    try:
        program.assert_nothing_is_left()
    finally:
        os.killpg(program.process.pid, signal.SIGKILL)  # the fork
    program.end()


def test_killed_program_with_a_deaf_server_leaves_nothing(pids_file: Path) -> None:
    program = Program("waiting", pids_file, "--stub-deaf")
    program.process.kill()
    program.end()
    program.assert_nothing_is_left()
