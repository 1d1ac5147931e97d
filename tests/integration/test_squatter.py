"""Another process takes the port of a model server of our own: it gets neither key nor prompt, whenever it comes."""

import asyncio
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from matrix_graph import ChatVLLM, SceneConfig, run_batch
from matrix_graph.errors import ModelUnavailableError, ServerError
from matrix_graph.models.client import key_files, listeners, own_servers
from matrix_graph.models.client.metrics import fetch_metrics
from matrix_graph.models.server import ServerConfig, VLLMServer
from matrix_graph.models.serving.endpoint import Endpoint
from tests.integration.test_server import eventually

FOLDER = Path(__file__).parent
STUB, ENGINE = FOLDER / "stub_engine.py", FOLDER / "engine.py"


class Squatter:
    """Listens on a port in this process, which is none of the server's, and keeps all that it is sent."""

    def __init__(self, port: int) -> None:
        self.received = received = bytearray()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(0.5)
                try:
                    while data := self.request.recv(65536):
                        received.extend(data)
                        self.request.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"data":[]}')
                except OSError:
                    pass

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def leave(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def squat(port: int, seconds: float = 15.0) -> Squatter:
    """Take a port as soon as it can be had."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return Squatter(port)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def port_of(server: VLLMServer) -> int:
    return int(server.base_url.split(":")[2].split("/")[0])


def config(script: Path, *options: object, **settings: Any) -> ServerConfig:
    return ServerConfig(
        command=(sys.executable, str(script), *map(str, options)),
        **{"stop_timeout": 4, "start_timeout": 60, "health_interval": 0.1, "enable_lora": False, **settings},
    )


def client(server: VLLMServer, key: str, /, **fields: Any) -> ChatVLLM:
    return ChatVLLM(base_url=server.base_url, api_key=SecretStr(key), model=server.model_name, **fields)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIX_GRAPH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[VLLMServer]:
    """A server that answers and can be killed; it waits a little before it comes back."""
    settings = config(ENGINE, "--engine-folder", tmp_path, restart_backoff=0.4, max_restarts=50)
    with VLLMServer("stub/model", config=settings) as server:
        yield server


def kill(folder: Path) -> None:
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)


def test_this_system_tells_who_listens() -> None:
    assert listeners.supported()
    with socket.socket(socket.AF_INET6) as everywhere, socket.socket() as here:
        everywhere.bind(("::", 0))
        everywhere.listen()
        port, inode = everywhere.getsockname()[1], os.fstat(everywhere.fileno()).st_ino
        assert listeners.at("127.0.0.1", port) == listeners.at("::1", port) == {inode}
        here.bind(("127.0.0.1", 0))
        assert listeners.at("127.0.0.1", here.getsockname()[1]) == set()  # it has the port, and does not listen
        here.listen()
        assert listeners.at("127.0.0.1", here.getsockname()[1]) == {os.fstat(here.fileno()).st_ino}
        assert listeners.at("127.0.0.2", here.getsockname()[1]) == set()
        assert listeners.held_by([os.getpid(), 1 << 30], {inode, 1}) == {inode}


def test_squatter_before_the_server_listens_gets_nothing_and_another_port_is_taken() -> None:
    server = VLLMServer("stub/model", config=config(STUB, "--stub-start-seconds", 1.5))
    starting = threading.Thread(target=server.start)
    starting.start()
    assert eventually(lambda: "base_url='http" in repr(server))
    taken = port_of(server)
    squatter = squat(taken)
    starting.join()
    try:
        assert server.healthy and port_of(server) != taken
        time.sleep(0.3)  # a few looks at its health
        assert squatter.received == b""
    finally:
        server.stop()
        squatter.leave()


def test_squatter_on_the_users_port_is_told() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = VLLMServer("stub/model", config=config(STUB, "--stub-start-seconds", 3, port=port))
    squatters: list[Squatter] = []
    watching = threading.Thread(
        target=lambda: eventually(lambda: server.running, 30) and squatters.append(squat(port)), daemon=True
    )
    watching.start()
    with pytest.raises(ServerError, match=f"Port {port} on 127.0.0.1 was taken by another process.*set another `port`"):
        server.start()
    watching.join()
    assert squatters[0].received == b"" and not server.running
    squatters[0].leave()


async def test_squatter_after_a_death_gets_nothing_and_the_key_is_another_afterwards(
    engine: VLLMServer, tmp_path: Path
) -> None:
    key, url = engine.api_key, engine.base_url
    model = client(engine, key, give_up_after=0.2)
    assert (await model.ainvoke("hello")).text
    await asyncio.to_thread(kill, tmp_path)
    squatter = await asyncio.to_thread(squat, port_of(engine))
    try:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            with pytest.raises(ModelUnavailableError, match=r"is away|another process"):
                await model.ainvoke("a private question")
            with pytest.raises(ServerError):
                await asyncio.to_thread(engine.metrics)
            assert await fetch_metrics(url, key, 5) is None
        assert squatter.received == b"" and not engine.healthy
    finally:
        squatter.leave()
    await engine.wait_ready(30)
    assert engine.base_url == url and engine.api_key != key
    assert (await model.ainvoke("hello")).text, "it follows, with the old key in its field"
    assert (await client(engine, engine.api_key).ainvoke("hello")).text
    wrong = client(engine, "wrong", give_up_after=0.2)
    with pytest.raises(Exception, match="401"):
        await wrong.ainvoke("hello")


async def test_scenes_of_workers_follow_a_new_key(engine: VLLMServer, tmp_path: Path) -> None:
    model = client(engine, engine.api_key, server=engine)
    keys = {engine.api_key}
    statuses = []
    async for trace in run_batch(
        [f"How do I open door {n}?" for n in range(8)],
        model,
        config=SceneConfig(roles=1, steps=1),
        max_requests=4,
        workers=2,
    ):
        statuses.append(trace.status)
        if len(statuses) == 2:
            await asyncio.to_thread(kill, tmp_path)
        keys.add(engine.api_key)
    assert statuses == ["finished"] * 8
    assert engine.restarts == 1 and len(keys) == 2


def test_a_stopped_server_is_forgotten(engine: VLLMServer) -> None:
    url = engine.base_url
    assert own_servers.find(url) is not None
    assert own_servers.find(url.replace("127.0.0.1", "localhost")) is not None
    assert own_servers.find(url.replace("127.0.0.1", "192.0.2.1")) is None
    engine.stop()
    assert own_servers.find(url) is None and own_servers.problem("127.0.0.1", port_of(engine), None) is None


async def test_another_program_reads_the_new_key_from_its_file(
    engine: VLLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_servers, "_known", {})  # as in another program
    model = client(engine, "the-key-before-the-restart", give_up_after=0.2)
    with pytest.raises(Exception, match="401"):
        await model.ainvoke("hello")
    path = key_files.write_key(engine.base_url, engine.api_key)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert (await model.ainvoke("hello")).text
    old = Endpoint("127.0.0.1", port_of(engine), api_key="the-key-before-the-restart")
    assert [one.name for one in await asyncio.to_thread(old.served, 5.0)] == await model.aserved_names()
    assert await asyncio.to_thread(old.models, 5.0) is None  # this asks whether it is the server of the very key
    key_files.remove_key(engine.base_url)
    assert key_files.key_for(engine.base_url) is None
