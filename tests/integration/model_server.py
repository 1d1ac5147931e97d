"""A fake vLLM server: real HTTP, random replies, scripted faults.

Imitates what `/v1/chat/completions` (JSON and server-sent events), `/v1/models`, `/health`, `/tokenize` and
`/v1/load_lora_adapter` of vLLM answer, in a thread with its own event loop:

    with ModelServer(delay=0.05) as server:
        model = ChatVLLM(base_url=server.base_url)

Replies are random but a function of the request and the seed alone, so the order of arrival changes nothing. Every
generated string holds a word such as `tok004237591` that occurs in no other reply, so that a test can follow what one
role said into the prompts of others. A token is a word. As a process: `python model_server.py --port 8001 --delay 0.2`.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

if __name__ in ("__main__", "model_server"):  # in a process of its own, this folder is on the path, not the repository
    from random_reply import JSON, Reply, cut, digest, prompt_tokens, random_reply, tool_calls, words
else:
    from tests.integration.random_reply import JSON, Reply, cut, digest, prompt_tokens, random_reply, tool_calls, words


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong instead of a reply.

    Attributes:
        status: HTTP status of the answer (the other kinds of fault go before it).
        body: its body; a text becomes vLLM's error object, bytes and other values go out as they are.
        headers: more headers, such as Retry-After.
        drop: close the socket without an answer.
        drop_after: of a stream: close the socket after so many events.
        hang: seconds of silence; then the socket is closed.
        garbage: bytes sent as the body of an HTTP 200.
    """

    status: int = 500
    body: Any = "made to fail"
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    drop_after: int | None = None
    hang: float | None = None
    garbage: bytes | None = None


@dataclass
class Call:
    """One chat request: its body, headers and times (`time.monotonic`, seconds); `status` 0: it got no answer."""

    body: JSON
    headers: dict[str, str]
    started: float
    finished: float | None = None
    status: int = 0
    reply: str | None = None
    cancelled: bool = False


Hook = Callable[[JSON], "str | Reply | Fault | None"]


class ModelServer:
    """The server; a context manager.

    Args:
        delay: seconds each chat call takes, or a function of the request body.
        api_key: the bearer token to demand under `/v1`; None: none.
        reply: gives the reply to a request body: a text, a `Reply`, a `Fault`, or None for the random one.
        seed: of the random replies.
        true: the probability of `true` for booleans.
        models: the names served; requests for others get a 404.
        max_model_len: context length in tokens; longer prompts get a 400.
        port: 0 takes a free one, which it keeps when it is stopped and started again.
        metrics: the page at `/metrics`; None: there is none.
    """

    def __init__(
        self,
        *,
        delay: float | Callable[[JSON], float] = 0.0,
        api_key: str | None = None,
        reply: Hook | None = None,
        seed: int = 0,
        true: float = 0.5,
        models: tuple[str, ...] = ("fake-model",),
        max_model_len: int = 8192,
        port: int = 0,
        metrics: str | None = None,
    ) -> None:
        self.delay = delay
        self.api_key = api_key
        self.reply = reply
        self.seed = seed
        self.true = true
        self.models = list(models)
        self.adapters: dict[str, str] = {}
        self.max_model_len = max_model_len
        self.port = port
        self.metrics = metrics
        self.routes: list[web.RouteDef] = []
        self.healthy = True
        self.calls: list[Call] = []
        self.requests: list[tuple[str, str]] = []
        self.in_flight = 0
        self.peak_in_flight = 0
        self.connections = 0
        self._script: deque[Fault | Reply | str | None] = deque()

    # ---- for tests ----------------------------------------------------------------------------------------------

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def bodies(self) -> list[JSON]:
        """The body of every chat request, in order of arrival."""
        return [call.body for call in self.calls]

    def fail_first(self, count: int, fault: Fault) -> None:
        """The next `count` chat requests meet the fault."""
        self._script.extend([fault] * count)

    def script(self, *steps: "Fault | Reply | str | None") -> None:
        """What the next chat requests get, one each, before `reply` is asked again; None: the usual reply."""
        self._script.extend(steps)

    def reset(self) -> None:
        """Forget the calls and the script."""
        self.calls.clear()
        self.requests.clear()
        self._script.clear()
        self.peak_in_flight = self.in_flight

    def __enter__(self) -> "ModelServer":
        started: threading.Event = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve(started.set)), daemon=True)
        self._thread.start()
        if not started.wait(10):
            raise RuntimeError("the fake model server did not start in 10 s")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening and drop every connection; `with` does it too."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(10)

    # ---- the server ---------------------------------------------------------------------------------------------

    async def serve(self, started: Callable[[], object]) -> None:
        """Serve in the running event loop until `stop`."""
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=1 << 30, middlewares=[self._gate])
        app.router.add_routes(self.routes)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/v1/load_lora_adapter", self._load_adapter)
        app.router.add_post("/v1/unload_lora_adapter", self._unload_adapter)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True, backlog=1024)
        await site.start()
        self.port = runner.addresses[0][1]
        started()
        await self._stopping.wait()
        await runner.cleanup()

    @web.middleware
    async def _gate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        allowed = self.api_key is None or request.headers.get("Authorization") == f"Bearer {self.api_key}"
        if not allowed and request.path.startswith("/v1"):
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(status=404) if self.metrics is None else web.Response(text=self.metrics)

    async def _models(self, _: web.Request) -> web.Response:
        cards = [{"id": name, "object": "model", "max_model_len": self.max_model_len} for name in self.models]
        cards += [
            {"id": name, "object": "model", "max_model_len": None, "root": path, "parent": self.models[0]}
            for name, path in self.adapters.items()
        ]
        return web.json_response({"object": "list", "data": cards})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        count = len(words(body["prompt"])) if "prompt" in body else prompt_tokens(body)
        return web.json_response({"count": count, "max_model_len": self.max_model_len, "tokens": list(range(count))})

    async def _load_adapter(self, request: web.Request) -> web.Response:
        body = await request.json()
        if not body.get("lora_name") or not body.get("lora_path"):
            return self._error(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if body["lora_name"] in self.adapters and not body.get("load_inplace"):
            return self._error(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
        self.adapters[body["lora_name"]] = body["lora_path"]
        return web.Response(text=f"Success: LoRA adapter '{body['lora_name']}' added successfully.")

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        name = (await request.json()).get("lora_name")
        if name not in self.adapters:
            return self._error(404, f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        try:
            body = json.loads(raw.decode("utf-8"))  # strict: a client must not send what UTF-8 cannot hold
        except ValueError as error:
            return self._error(400, f"invalid request: {error}")
        call = Call(body, dict(request.headers), time.monotonic())
        self.calls.append(call)
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            response = await self._answer(request, call)
            call.status = response.status
            return response
        except asyncio.CancelledError:
            call.cancelled = True
            raise
        finally:
            self.in_flight -= 1
            call.finished = time.monotonic()

    async def _answer(self, request: web.Request, call: Call) -> web.StreamResponse:
        body = call.body
        step = self._script.popleft() if self._script else None
        if step is None and (refused := self._refused(body)) is not None:
            return refused
        delay = self.delay(body) if callable(self.delay) else self.delay
        if delay:
            await asyncio.sleep(delay)
        if step is None and self.reply is not None:
            step = self.reply(body)
        if step is None:
            step = random_reply(body, seed=self.seed, true=self.true)
        fault = step if isinstance(step, Fault) else None
        if fault is not None and fault.drop_after is None:
            return await self._fail(request, fault)
        reply = (
            Reply(step) if isinstance(step, str) else step if isinstance(step, Reply) else random_reply(body, self.seed)
        )
        reply = cut(reply, body.get("max_completion_tokens") or body.get("max_tokens"))
        call.reply = reply.text
        read, written = prompt_tokens(body), max(1, len(words(reply.text)) + len(reply.tool_calls))
        written += len(words(reply.reasoning))
        usage = {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": 0},
            **reply.usage,
        }
        head = {
            "id": f"chatcmpl-{digest(body, len(self.calls)):012d}",
            "created": int(time.time()),
            "model": body["model"],
        }
        if body.get("stream"):
            return await self._stream(request, body, reply, head, usage, fault)
        message: JSON = {"role": "assistant", "content": reply.text, "tool_calls": tool_calls(reply)}
        if reply.reasoning:
            message |= {"reasoning": reply.reasoning, "content": reply.text or None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}
        return web.json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    async def _stream(
        self, request: web.Request, body: JSON, reply: Reply, head: JSON, usage: JSON, fault: Fault | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        deltas: list[JSON] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning": piece} for piece in words(reply.reasoning)]
        deltas += [{"content": piece} for piece in re.findall(r"\s*\S+\s*$|\s*\S+|\s+", reply.text)]
        for index, call in enumerate(tool_calls(reply)):
            function = call["function"]
            deltas.append({"tool_calls": [{**call, "index": index, "function": {**function, "arguments": ""}}]})
            for piece in re.findall(r".{1,7}", function["arguments"], re.DOTALL):
                deltas.append({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        events: list[JSON] = [
            {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]} for delta in deltas
        ]
        events.append({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": reply.finish_reason}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            events.append({"choices": [], "usage": usage})
        for count, event in enumerate(events):
            if fault is not None and count == fault.drop_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            data = json.dumps({**head, "object": "chat.completion.chunk", **event}, ensure_ascii=False)
            await response.write(f"data: {data}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _refused(self, body: JSON) -> web.Response | None:
        """What vLLM would refuse."""
        if body.get("model") not in (*self.models, *self.adapters):
            return self._error(404, f"The model `{body.get('model')}` does not exist.", "NotFoundError")
        if body.get("stream_options") and not body.get("stream"):
            return self._error(400, "Stream options can only be defined when `stream=True`.")
        if (count := prompt_tokens(body)) > self.max_model_len:
            return self._error(
                400,
                f"This model's maximum context length is {self.max_model_len} tokens. However, your prompt contains "
                f"{count} input tokens, which exceeds this limit even without any output tokens. Please reduce the "
                "length of the input prompt.",
            )
        return None

    async def _fail(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault.hang is not None:
            await asyncio.sleep(fault.hang)
        if fault.drop or fault.hang is not None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault.garbage is not None:
            return web.Response(body=fault.garbage, content_type="application/json", headers=fault.headers)
        if isinstance(fault.body, str):
            response = self._error(fault.status, fault.body)
        elif isinstance(fault.body, bytes):
            response = web.Response(status=fault.status, body=fault.body)
        else:
            response = web.json_response(fault.body, status=fault.status)
        response.headers.update(fault.headers)
        return response

    @staticmethod
    def _error(status: int, message: str, kind: str = "BadRequestError") -> web.Response:
        error = {"message": message, "type": kind, "param": None, "code": status}
        return web.json_response({"error": error}, status=status)


NONSENSE = (
    "",
    "nonsense",
    "{",
    '{"plausible": 1e999, "reason": null}',
    '{"action": ' + "[" * 2000,
    "null",
    '{"roles": [[]], "plan": {"0": "\\ud800"}, "lesson": -1}',
    Fault(garbage=b""),
    Fault(garbage=b"<html>busy</html>"),
    Fault(garbage=b'{"choices": [{"message": {"content": 7}}]}'),
)
"""Replies that no one can use."""


def unreliable(fail: float, garbage: float, seed: int) -> Hook:
    """Replies of a server that lives, but fails now and then, at random.

    Args:
        fail: the share of requests that get an HTTP 500.
        garbage: the share of the others that get nonsense.
        seed: of the chance.
    """
    chance = random.Random(seed)

    def reply(_: JSON) -> "str | Fault | None":
        if chance.random() < fail:
            return Fault(500, "out of humour")
        return chance.choice(NONSENSE) if chance.random() < garbage else None

    return reply


def main() -> None:
    """Serve until interrupted; the first line on standard output is the base URL."""
    parser = argparse.ArgumentParser(description=str(main.__doc__))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--true", type=float, default=0.5)
    parser.add_argument("--api-key", default=None)
    parser.add_argument("--model", action="append", default=None)
    parser.add_argument("--fail", type=float, default=0.0, help="share of chat requests that get an HTTP 500")
    parser.add_argument("--garbage", type=float, default=0.0, help="share of the others that get nonsense")
    options = parser.parse_args()
    server = ModelServer(
        port=options.port, delay=options.delay, seed=options.seed, true=options.true, api_key=options.api_key,
        models=tuple(options.model or ("fake-model",)),
        reply=unreliable(options.fail, options.garbage, options.seed) if options.fail or options.garbage else None,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(server.serve(lambda: print(server.base_url, flush=True)))


if __name__ == "__main__":
    main()
