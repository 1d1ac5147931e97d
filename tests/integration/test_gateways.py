"""What stands between client and server in companies: proxies, gateways with headers, sign-in pages, private CAs."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from typer.testing import CliRunner

from matrix_graph import ChatVLLM, Rehearsal
from matrix_graph.batch.lookout import counters_of
from matrix_graph.cli import app
from matrix_graph.config import load_settings
from matrix_graph.connect import connected_model
from matrix_graph.errors import ModelAddressError, ModelRequestError, ModelUnavailableError, ServerError
from matrix_graph.evaluate.adapters import load_adapters
from matrix_graph.evaluate.embedding import ServerEmbedder
from matrix_graph.models.client import key_files
from matrix_graph.models.serving.endpoint import Endpoint
from tests.integration.model_server import ModelServer

SECRET = "tenant-5f2a91c7"
SIGN_IN = (
    b"<!doctype html>\n<html><head><title>Sign in \xe2\x80\x93 Example &amp; Co</title></head><body>form</body></html>"
)
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
Answer = Callable[[web.Request], web.StreamResponse | None]


class Gateway(ModelServer):
    """A server behind a gateway: `answer` may answer in its place. `seen` has the headers of every request."""

    def __init__(self, answer: Answer = lambda request: None, **options: Any) -> None:
        super().__init__(**options)
        self.answer = answer
        self.seen: list[tuple[str, dict[str, str]]] = []

    @web.middleware
    async def _gate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.seen.append((request.path, dict(request.headers)))
        return self.answer(request) or await super()._gate(request, handler)  # type: ignore[operator]


def tenant(request: web.Request) -> web.Response | None:
    if request.headers.get("X-Tenant") == SECRET:
        return None
    return web.json_response({"error": {"message": "Missing header X-Tenant"}}, status=401)


def page(request: web.Request) -> web.Response:
    return web.Response(body=SIGN_IN, content_type="text/html")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, "MATRIX_GRAPH_HEADERS", "VLLM_API_KEY", "MATRIX_GRAPH_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# ---- headers --------------------------------------------------------------------------------------------------------


async def test_headers_reach_every_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MATRIX_GRAPH_HEADERS", f"X-Tenant: {SECRET}")
    with Gateway(tenant, metrics="vllm:prompt_tokens_total 5\n") as server:
        async with connected_model(load_settings(base_url=server.base_url), lambda line: None) as model:
            result = await Rehearsal(model).ainvoke("How do I say no?")
            assert [piece async for piece in model.astream("hi")]
            await model.acount_tokens("hi")
            assert await counters_of(model) == {"prompt_tokens": 5.0}
            with pytest.raises(ServerError, match="does not exist"):
                await load_adapters(model, {"kind": tmp_path / "none"})
        with pytest.raises(ModelRequestError):
            await ServerEmbedder(server.base_url, "m").aembed_documents(["a"])
    assert result["status"] in ("finished", "blocked")
    assert {"/v1/models", "/v1/chat/completions", "/tokenize", "/metrics", "/v1/embeddings"} <= {
        path for path, _ in server.seen
    }
    assert all(headers.get("X-Tenant") == SECRET for _, headers in server.seen)
    assert SECRET not in result["trace"].model_dump_json()


def test_headers_reach_the_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"headers: {{X-Tenant: {SECRET}}}\n")
    with Gateway(tenant) as server:
        for command in (["adapters"], ["rehearse", "How do I say no?", "--out", str(tmp_path / "out")]):
            done = CliRunner().invoke(app, [*command, "--base-url", server.base_url, "--config", str(file)])
            assert done.exit_code == 0, done.output
    kept = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert kept and not any(SECRET in text for text in kept) and SECRET not in done.output


@pytest.mark.parametrize("key", [None, "some-key"])
async def test_a_missing_header_is_named_and_the_key_only_where_none_was_sent(key: str | None) -> None:
    with Gateway(tenant) as server:
        model = ChatVLLM(base_url=server.base_url, api_key=key, default_headers={"X-Other": "7"})  # type: ignore[arg-type]
        with pytest.raises(ModelRequestError, match="Missing header X-Tenant") as caught:
            await model.ainvoke("hi")
        endpoint = Endpoint("127.0.0.1", server.port, api_key=key or "")
        with pytest.raises(ServerError, match="Missing header X-Tenant") as refused:
            await asyncio.to_thread(endpoint.served, 5.0)
    for said in (str(caught.value), str(refused.value)):
        assert "MATRIX_GRAPH_HEADERS" in said and "default_headers" in said
        assert ("VLLM_API_KEY" in said) is (key is None)


async def test_a_header_that_the_server_echoes_is_blotted_out() -> None:
    def echo(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": f"bad headers {dict(request.headers)}"}}, status=400)

    with Gateway(echo) as server:
        model = ChatVLLM(
            base_url=server.base_url,
            model="m",
            api_key="a-very-secret-key",  # type: ignore[arg-type]
            default_headers={"X-Tenant": f"Token {SECRET}"},  # type: ignore[arg-type]
        )
        with pytest.raises(ModelRequestError, match="bad headers") as caught:
            await model.ainvoke("hi")
    assert SECRET not in str(caught.value) and "a-very-secret-key" not in str(caught.value)


async def test_a_login_in_the_address_goes_out_with_every_request(tmp_path: Path) -> None:
    login = f"Basic {b64encode(b'me:pass-word-7').decode()}"

    def asks(request: web.Request) -> web.Response | None:
        return None if request.headers.get("Authorization") == login else web.Response(status=401)

    with Gateway(asks, metrics="vllm:prompt_tokens_total 5\n") as server:
        for password, answered in (("pass-word-7", True), ("pass-word-8", False)):
            url = f"http://me:{password}@127.0.0.1:{server.port}/v1"
            model = ChatVLLM(base_url=url, api_key="a-key")  # type: ignore[arg-type]
            endpoint = Endpoint("127.0.0.1", server.port, api_key="a-key", url=url.removesuffix("/v1"))
            assert await counters_of(model) == ({"prompt_tokens": 5.0} if answered else {})
            if answered:
                assert (await model.ainvoke("hi")).text
                assert [one.name for one in await asyncio.to_thread(endpoint.served, 5.0)] == ["fake-model"]
                continue
            with pytest.raises(ModelRequestError) as caught:
                await model.ainvoke("hi")
            with pytest.raises(ServerError) as refused:
                await asyncio.to_thread(endpoint.served, 5.0)
            assert not any(password in str(error.value) for error in (caught, refused))


async def test_the_key_of_a_server_that_was_started_again_is_read_for_its_metrics_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asks(request: web.Request) -> web.Response | None:
        return None if request.headers.get("Authorization") == "Bearer new-key" else web.Response(status=401)

    with Gateway(asks, metrics="vllm:prompt_tokens_total 5\n") as server:
        model = ChatVLLM(base_url=server.base_url, api_key="old-key")  # type: ignore[arg-type]
        assert await counters_of(model) == {} and len(server.seen) == 1
        monkeypatch.setattr(key_files, "key_for", lambda url: "new-key")
        assert await counters_of(model) == {"prompt_tokens": 5.0} and len(server.seen) == 3


async def test_a_gateway_without_a_list_of_models_is_asked_for_it_once() -> None:
    def unlisted(request: web.Request) -> web.Response | None:
        return web.Response(status=404) if request.path == "/v1/models" else None

    with Gateway(unlisted) as server:
        model = ChatVLLM(base_url=server.base_url, model="fake-model", thinking="on", max_tokens=16)
        for _ in range(3):
            await model.ainvoke("hi")
    assert [body["max_tokens"] for body in server.bodies] == [16 + 4096] * 3
    assert [path for path, _ in server.seen].count("/v1/models") == 1


# ---- pages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [None, "some-model"])
async def test_a_sign_in_page_is_told_as_one(named: str | None) -> None:
    with Gateway(page) as server:
        settings = load_settings(base_url=server.base_url, model=named)
        model = ChatVLLM(base_url=server.base_url, model="m", give_up_after=5)
        for call in (
            connected_model(settings, lambda line: None).__aenter__(),
            model.ainvoke("hi"),
            anext(model.astream("hi")),
        ):
            count = len(server.seen)
            with pytest.raises(ModelAddressError, match="web page") as caught:
                await call
            said = str(caught.value)
            assert '"Sign in – Example & Co"' in said and "sign in first" in said and "base_url" in said
            assert "<" not in said and "Start it" not in said and len(server.seen) == count + 1
        with pytest.raises(ServerError, match="Sign in – Example & Co"):
            await asyncio.to_thread(Endpoint("127.0.0.1", server.port, api_key="").served, 5.0)


@pytest.mark.parametrize("status", [401, 403, 404, 503])
async def test_a_page_with_another_status_is_told_by_its_title(status: int) -> None:
    def refused(request: web.Request) -> web.Response:
        return web.Response(body=SIGN_IN, content_type="text/html", status=status)

    errors = (ModelRequestError, ModelUnavailableError)
    with Gateway(refused) as server, pytest.raises(errors, match=f"HTTP {status}: a web page") as caught:
        await ChatVLLM(base_url=server.base_url, model="m", give_up_after=0).ainvoke("hi")
    assert "Sign in" in str(caught.value) and "<" not in str(caught.value)


async def test_a_redirect_to_a_sign_in_page() -> None:
    def away(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "https://sso.example.com/login?state=s3cr3t"})

    with Gateway(away) as server:
        with pytest.raises(ModelRequestError, match="a page to sign in") as caught:
            await ChatVLLM(base_url=server.base_url, model="m").ainvoke("hi")
        with pytest.raises(ServerError, match=r"lists no models \(HTTP 302\)\. .* a page to sign in") as listed:
            await asyncio.to_thread(Endpoint("127.0.0.1", server.port, api_key="").served, 5.0)
    for said in (str(caught.value), str(listed.value)):
        assert "https://sso.example.com/login" in said and "s3cr3t" not in said


async def test_another_redirect_names_the_final_address() -> None:
    def away(request: web.Request) -> web.Response:
        return web.Response(status=308, headers={"Location": "https://models.example.com/v1/chat/completions"})

    with Gateway(away) as server, pytest.raises(ModelRequestError, match=r"it names https://models\.example\.com/v1"):
        await ChatVLLM(base_url=server.base_url, model="m").ainvoke("hi")


@pytest.mark.parametrize("location", ["http://[half", "https://models.example.com:port/v1", "http://a:99999/"])
async def test_a_redirect_to_no_address_is_a_refusal_like_others(location: str) -> None:
    def away(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": location})

    with Gateway(away) as server:
        for call in (ChatVLLM(base_url=server.base_url, model="m").ainvoke, ChatVLLM(base_url=server.base_url).ainvoke):
            with pytest.raises(ModelRequestError, match="set base_url to the final address"):
                await call("hi")
        with pytest.raises(ServerError, match="set base_url to the final address"):
            await asyncio.to_thread(Endpoint("127.0.0.1", server.port, api_key="").served, 5.0)


async def test_no_beginning_of_a_secret_is_left_where_a_title_or_an_address_is_cut() -> None:
    def titled(request: web.Request) -> web.Response:
        title = f"{'x ' * 37}{SECRET}"
        return web.Response(body=f"<html><title>{title}</title></html>".encode(), content_type="text/html")

    def away(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": f"http://a.example/{'x/' * 89}{SECRET}"})

    for answer, error in ((titled, ModelAddressError), (away, ModelRequestError)):
        with Gateway(answer) as server, pytest.raises(error) as caught:
            model = ChatVLLM(base_url=server.base_url, model="m", default_headers={"X-Tenant": SECRET})  # type: ignore[arg-type]
            await model.ainvoke("hi")
        assert SECRET[:4] not in str(caught.value)


# ---- certificates ---------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not installed")
    key, file = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(file),
         "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return file, key


@contextmanager
def served(handle: Callable[[web.Request], Awaitable[web.StreamResponse]], secure: Any = None) -> Iterator[int]:
    """An app of one handler in a thread; its port."""
    loop, ports, stopping = asyncio.new_event_loop(), [], asyncio.Event()
    ready = threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(_app(handle), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=secure).start()
        ports.append(runner.addresses[0][1])
        ready.set()
        await stopping.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(10)
        loop.close()


def _app(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.Application:
    made = web.Application(client_max_size=1 << 28)
    made.router.add_route("*", "/{path:.*}", handle)
    return made


async def test_an_untrusted_certificate_names_the_variable_that_mends_it(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "owned_by": "x"}]})

    secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    secure.load_cert_chain(*certificate)
    with served(models, secure) as port:
        url = f"https://127.0.0.1:{port}/v1"
        with pytest.raises(ModelAddressError, match="SSL_CERT_FILE") as caught:
            await ChatVLLM(base_url=url, give_up_after=60).aserved_names()
        assert "certificate is not trusted" in str(caught.value) and "The server runs" in str(caught.value)
        with pytest.raises(ModelAddressError, match="SSL_CERT_FILE") as caught:
            await connected_model(load_settings(base_url=url), lambda line: None).__aenter__()
        assert "Start it" not in str(caught.value)
        endpoint = Endpoint("127.0.0.1", port, api_key="", url=f"https://127.0.0.1:{port}")
        with pytest.raises(ServerError, match="SSL_CERT_FILE"):
            await asyncio.to_thread(endpoint.served, 5.0)


# ---- proxies --------------------------------------------------------------------------------------------------------


async def test_the_environments_proxy_leads_to_every_part_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    relayed: list[str] = []
    with ModelServer(metrics="vllm:prompt_tokens_total 5\n") as server:

        async def relay(request: web.Request) -> web.Response:
            relayed.append(f"{request.headers['Host']} {request.path}")
            assert request.headers["Proxy-Authorization"].startswith("Basic ")
            url = f"http://127.0.0.1:{server.port}{request.path}"
            async with (
                ClientSession() as session,
                session.request(request.method, url, data=await request.read()) as answer,
            ):
                return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

        with served(relay) as port:
            monkeypatch.setenv("HTTP_PROXY", f"http://user:pass-word@127.0.0.1:{port}")
            model = ChatVLLM(base_url="http://models.internal:8000/v1", give_up_after=5)
            assert (await model.ainvoke("hi")).text
            assert [piece async for piece in model.astream("hi")]
            assert await counters_of(model) == {"prompt_tokens": 5.0}
            endpoint = Endpoint("models.internal", 8000, api_key="")
            assert await asyncio.to_thread(endpoint.models, 5.0) == ["fake-model"]
            assert await asyncio.to_thread(endpoint.metrics, 5.0) == {"prompt_tokens": 5.0}
            assert len(relayed) == 6 and {line.split()[0] for line in relayed} == {"models.internal:8000"}
            own = ChatVLLM(base_url=server.base_url)
            assert (await own.ainvoke("hi")).text
            assert await asyncio.to_thread(Endpoint("localhost", server.port, api_key="").health, 5.0) == 200
            assert len(relayed) == 6
        monkeypatch.setenv("NO_PROXY", "models.internal")
        with pytest.raises(ModelUnavailableError, match=r"Cannot connect to host models\.internal"):
            await ChatVLLM(base_url="http://models.internal:8000/v1", give_up_after=0).ainvoke("hi")


async def test_a_proxy_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:pass-word@127.0.0.1:9")
    model = ChatVLLM(base_url="http://models.internal/v1", model="m", give_up_after=0)
    with pytest.raises(ModelUnavailableError, match="the proxy that the environment names") as caught:
        await model.ainvoke("hi")
    assert "pass-word" not in str(caught.value)
