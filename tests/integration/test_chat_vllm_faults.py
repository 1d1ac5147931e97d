"""ChatVLLM when things go wrong: each HTTP status, dropped and hanging connections, garbage, servers that come back."""

import asyncio
import logging
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk

from matrix_graph.errors import (
    ConfigError,
    ContextLengthError,
    ModelError,
    ModelRequestError,
    ModelUnavailableError,
    ServerError,
)
from matrix_graph.models.chat_vllm import ChatVLLM
from tests.integration.model_server import Fault, ModelServer

KEY = "a-very-secret-key"


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as started:
        yield started


def client(server: ModelServer, /, **options: Any) -> ChatVLLM:
    return ChatVLLM(**{"base_url": server.base_url, "model": "fake-model", "give_up_after": 5, **options})


PASSING = [
    Fault(status=500),
    Fault(status=502, body=b"<html>Bad gateway</html>"),
    Fault(status=503, body={"detail": "starting"}),
    Fault(status=429),
    Fault(status=408),
    Fault(drop=True),
    Fault(garbage=b""),
    Fault(garbage=b"{\"choices\": ["),
    Fault(garbage=b"[]"),
    Fault(garbage=b"{}"),
    Fault(garbage=b'{"choices": []}'),
    Fault(garbage=b'{"choices": [{"message": {"content": 7}}]}'),
    Fault(garbage=b"\xff\xfe\x00"),
    Fault(garbage=b"[" * 100_000),
]  # fmt: skip


@pytest.mark.parametrize("fault", PASSING, ids=repr)
async def test_what_may_heal_is_tried_again(server: ModelServer, fault: Fault) -> None:
    server.fail_first(2, fault)
    assert (await client(server).ainvoke("hi")).text
    assert len(server.calls) == 3
    assert server.bodies[0] == server.bodies[2]


@pytest.mark.parametrize(
    "fault", [Fault(status=500), Fault(drop=True), Fault(status=429), Fault(garbage=b"")], ids=repr
)
async def test_streams_are_tried_again_before_their_first_piece(server: ModelServer, fault: Fault) -> None:
    server.fail_first(2, fault)
    pieces = [piece async for piece in client(server).astream("hi")]
    assert pieces and len(server.calls) == 3


@pytest.mark.parametrize("events", [0, 1])
async def test_streams_that_break_before_any_text_are_tried_again(server: ModelServer, events: int) -> None:
    server.fail_first(1, Fault(drop_after=events))  # the first event names the role only
    assert [piece async for piece in client(server).astream("hi")]
    assert len(server.calls) == 2


async def test_streams_that_break_later_raise_and_do_not_start_over(server: ModelServer) -> None:
    server.fail_first(1, Fault(drop_after=3))
    seen: list[AIMessageChunk] = []
    with pytest.raises(ModelUnavailableError, match="broke off after 2 pieces"):
        async for piece in client(server).astream("hi"):
            seen.append(piece)
    assert len(seen) == 2 and len(server.calls) == 1


async def test_a_time_out_is_tried_again(server: ModelServer) -> None:
    server.fail_first(1, Fault(hang=30))
    started = time.monotonic()
    assert (await client(server, timeout=0.5).ainvoke("hi")).text
    assert time.monotonic() - started < 3


async def test_giving_up_says_where_what_and_how_often(server: ModelServer) -> None:
    server.fail_first(100, Fault(status=503, body="no room"))
    started = time.monotonic()
    with pytest.raises(ModelUnavailableError) as caught:
        await client(server, give_up_after=1.0).ainvoke("hi")
    assert time.monotonic() - started < 2
    said = str(caught.value)
    assert server.base_url in said and "HTTP 503: no room" in said and "give_up_after" in said
    assert f"in {len(server.calls)} tries" in said and len(server.calls) > 1


async def test_connection_refused_names_the_address(server: ModelServer) -> None:
    server.stop()
    with pytest.raises(ModelUnavailableError, match=server.base_url):
        await client(server, give_up_after=0.3).ainvoke("hi")


@pytest.mark.parametrize(("retries", "calls"), [(0, 1), (2, 3)])
async def test_max_retries(server: ModelServer, retries: int, calls: int) -> None:
    server.fail_first(100, Fault(status=500))
    with pytest.raises(ModelUnavailableError):
        await client(server, max_retries=retries).ainvoke("hi")
    assert len(server.calls) == calls


async def test_retry_after_is_honoured(server: ModelServer) -> None:
    server.fail_first(1, Fault(status=429, headers={"Retry-After": "1.5"}))
    started = time.monotonic()
    await client(server).ainvoke("hi")
    assert 1.5 <= time.monotonic() - started < 2.5


async def test_retry_after_as_a_date(server: ModelServer) -> None:
    when = datetime.now(UTC) + timedelta(seconds=3)
    server.fail_first(1, Fault(status=503, headers={"Retry-After": format_datetime(when, usegmt=True)}))
    started = time.monotonic()
    await client(server).ainvoke("hi")
    assert 1.5 <= time.monotonic() - started < 4.5


async def test_a_retry_after_beyond_the_patience_gives_up_at_once(server: ModelServer) -> None:
    server.fail_first(9, Fault(status=429, headers={"Retry-After": "3600"}))
    started = time.monotonic()
    with pytest.raises(ModelUnavailableError, match="HTTP 429"):
        await client(server).ainvoke("hi")
    assert time.monotonic() - started < 1 and len(server.calls) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422, 307])
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_are_never_tried_again(server: ModelServer, status: int, stream: bool) -> None:
    server.fail_first(1, Fault(status=status, body="this is wrong", headers={"Location": "/elsewhere"}))
    with pytest.raises(ModelRequestError, match="this is wrong") as caught:
        if stream:
            _ = [piece async for piece in client(server).astream("hi")]
        else:
            await client(server).ainvoke("hi")
    assert caught.value.status == status and len(server.calls) == 1
    assert not isinstance(caught.value, ContextLengthError)


async def test_an_unknown_model_names_the_served_ones(server: ModelServer) -> None:
    server.adapters["rehearsed"] = "/somewhere"
    with pytest.raises(ModelRequestError, match=r"`nobody` does not exist.*fake-model, rehearsed") as caught:
        await client(server, model="nobody").ainvoke("hi")
    assert caught.value.status == 404


async def test_a_base_url_without_v1(server: ModelServer) -> None:
    with pytest.raises(ModelRequestError, match="usually ends in /v1"):
        await client(server, base_url=server.base_url.removesuffix("/v1")).ainvoke("hi")


async def test_a_server_restarted_with_another_model_is_asked_again(server: ModelServer) -> None:
    model = client(server, model=None)
    await model.ainvoke("hi")
    server.models = ["new-model"]
    with pytest.raises(ModelRequestError, match="new-model"):
        await model.ainvoke("hi")
    assert (await model.ainvoke("hi")).response_metadata["model_name"] == "new-model"


async def test_a_server_without_models(server: ModelServer) -> None:
    server.models = []
    with pytest.raises(ModelRequestError, match="lists no model"):
        await client(server, model=None).ainvoke("hi")


@pytest.mark.parametrize(
    "said",
    [
        None,  # the server's own words, as vLLM's
        "Input length (9000) exceeds model's maximum context length (8192).",
        "max_tokens is too large; max_model_len is 8192",
    ],
)
async def test_too_long_a_context(server: ModelServer, said: str | None) -> None:
    if said is not None:
        server.fail_first(1, Fault(status=400, body=said))
    with pytest.raises(ContextLengthError, match="Shorten the prompt") as caught:
        await client(server).ainvoke("word " * 9000)
    assert caught.value.status == 400


async def test_a_missing_or_wrong_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with ModelServer(api_key=KEY) as server:
        with pytest.raises(ModelRequestError, match="VLLM_API_KEY") as caught:
            await client(server, api_key="wrong-" + KEY).ainvoke("hi")
        assert caught.value.status == 401
        assert (await client(server, api_key=KEY).ainvoke("hi")).text
        assert server.calls[-1].headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in caplog.text


async def test_a_key_that_the_server_echoes_is_blotted_out(server: ModelServer) -> None:
    server.fail_first(1, Fault(status=401, body=f"Incorrect API key provided: {KEY}"))
    with pytest.raises(ModelRequestError) as caught:
        await client(server, api_key=KEY).ainvoke("hi")
    assert KEY not in str(caught.value) and "***" in str(caught.value)


@pytest.mark.parametrize("fault", [Fault(drop=True), Fault(status=400), Fault(garbage=b"{"), Fault(hang=9)], ids=repr)
async def test_no_error_in_the_chain_shows_the_key(server: ModelServer, fault: Fault) -> None:
    server.fail_first(9, fault)
    with pytest.raises(ModelError) as caught:
        await client(server, api_key=KEY, give_up_after=0, timeout=0.3).ainvoke("hi")
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in repr(error) + str(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "", "http://"])
def test_a_bad_base_url(url: str) -> None:
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:8000/v1"):
        ChatVLLM(base_url=url)


# ---- a supervised server --------------------------------------------------------------------------------------------


class Supervisor:
    """Brings a stopped fake server back when waited for."""

    def __init__(self, server: ModelServer, error: Exception | None = None) -> None:
        self.server = server
        self.error = error
        self.waits: list[float] = []

    async def wait_ready(self, timeout: float) -> None:  # noqa: ASYNC109
        self.waits.append(timeout)
        if self.error is not None:
            raise self.error
        await asyncio.sleep(0.2)
        if not self.server._thread.is_alive():
            self.server.__enter__()


async def test_calls_survive_a_server_that_is_restarted() -> None:
    server = ModelServer()
    with server:
        supervisor = Supervisor(server)
        model = client(server, server=supervisor, give_up_after=20)
        server.delay = 1.0
        tasks = [asyncio.create_task(model.ainvoke(f"q {number}")) for number in range(4)]
        await asyncio.sleep(0.5)
        server.delay = 0.0
        server.stop()
        texts = {message.text for message in await asyncio.gather(*tasks)}
    assert len(texts) == 4 and supervisor.waits and max(supervisor.waits) <= 20


@pytest.mark.parametrize("away", [True, False])
async def test_how_long_a_call_ran_before_its_server_died_does_not_count(server: ModelServer, away: bool) -> None:
    class Waiting:
        async def lost(self, *, reached: bool) -> bool:
            assert reached
            return away

    model = client(server, server=Waiting(), give_up_after=0.3)
    server.fail_first(4, Fault(hang=0.4))
    if away:
        assert (await model.ainvoke("hi")).text and len(server.calls) == 5
    else:  # it is the call's own failure each time
        with pytest.raises(ModelUnavailableError, match="in 2 tries"):
            await model.ainvoke("hi")


async def test_a_server_that_does_not_come_back(server: ModelServer) -> None:
    server.fail_first(9, Fault(drop=True))
    model = client(server, server=Supervisor(server, ServerError("it died 5 times in 60 s")))
    with pytest.raises(ModelUnavailableError, match="did not come back: it died 5 times"):
        await model.ainvoke("hi")


async def test_busy_is_not_lost(server: ModelServer) -> None:
    supervisor = Supervisor(server)
    server.fail_first(1, Fault(status=429))
    await client(server, server=supervisor).ainvoke("hi")
    assert not supervisor.waits
    server.fail_first(1, Fault(status=500))
    await client(server, server=supervisor).ainvoke("hi")
    assert len(supervisor.waits) == 1


def test_patience_depends_on_the_server() -> None:
    assert ChatVLLM().give_up_after == 30
    assert ChatVLLM(server=object()).give_up_after == 600
    assert ChatVLLM(server=object(), give_up_after=1).give_up_after == 1


# ---- cancellation while waiting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault(hang=30), Fault(status=429, headers={"Retry-After": "4"})], ids=repr)
async def test_cancellation_passes_at_once(server: ModelServer, fault: Fault) -> None:
    server.fail_first(5, fault)
    task = asyncio.create_task(client(server).ainvoke("hi"))
    await asyncio.sleep(0.3)
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 0.5 and len(server.calls) == 1


# ---- the whole process ----------------------------------------------------------------------------------------------


def run_script(server: ModelServer, script: str) -> str:
    """Run a script in a fresh interpreter where every warning is an error; it must leave nothing on stderr."""
    code = textwrap.dedent(
        f"""
        import asyncio, os, signal, sys, threading, time
        from matrix_graph.models.chat_vllm import ChatVLLM
        from matrix_graph.models.loop import run_sync
        model = ChatVLLM(base_url={server.base_url!r}, model="fake-model", give_up_after=5)
        """
    ) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    # asyncio's debug mode also tells what took longer than a tenth of a second, as anything may on a busy machine.
    left = re.sub(r"^Executing <.*> took \d+\.\d+ seconds\n", "", done.stderr, flags=re.MULTILINE)
    assert left == "" and done.returncode == 0, done.stderr
    return done.stdout


SCRIPTS = {
    "sync": "print(model.invoke('hi').text)",
    "async": "print(asyncio.run(model.ainvoke('hi')).text)",
    "both": "model.invoke('hi'); asyncio.run(model.ainvoke('hi')); print(model.invoke('hi').text)",
    "streams": "[0 for _ in model.stream('hi')]; next(iter(model.stream('hi'))); print('ok')",
    "stream left": """
        async def main():
            async for _ in model.astream('hi'):
                break
        asyncio.run(main()); print('ok')
    """,
    "loop closed by hand": """
        loop = asyncio.new_event_loop()
        loop.run_until_complete(model.ainvoke('hi'))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close(); print(asyncio.run(model.ainvoke('hi')).text)
    """,
    "cancelled": """
        async def main():
            task = asyncio.create_task(model.ainvoke('hi')); await asyncio.sleep(0); task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        asyncio.run(main()); print('ok')
    """,
    "fork": """
        model.invoke('hi')
        child = os.fork()
        if not child:
            try:
                model.invoke('from the child'); os._exit(0)
            except BaseException as error:
                print(error, file=sys.stderr); os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        print(model.invoke('hi').text)
    """,
    "fork inside async": """
        async def main():
            await model.ainvoke('hi')
            child = os.fork()
            if not child:
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            print((await model.ainvoke('hi')).text)
        asyncio.run(main())
    """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_warning_is_left_behind(server: ModelServer, name: str) -> None:
    assert run_script(server, SCRIPTS[name]).strip()


def test_ctrl_c_cancels_the_call(server: ModelServer) -> None:
    server.delay = 30
    started = time.monotonic()
    out = run_script(
        server,
        """
        threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            model.invoke('hi')
        except KeyboardInterrupt:
            print('interrupted')
        """,
    )
    assert out.strip() == "interrupted" and time.monotonic() - started < 15
    time.sleep(0.2)
    assert server.calls[-1].cancelled
