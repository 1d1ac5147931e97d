"""A model server that answers at once, for benchmarks that measure what surrounds the model.

    python benchmarks/local_server.py --port 8001 --delay 0.02

It speaks as much of vLLM's HTTP as a run needs: chat completions under any of a scene's JSON schemas, the list of
models, `/metrics`. Why not the fake server of the tests: that one checks what it is sent and invents fitting replies
for any schema, which takes five times as long as a scene's own share of a call, so that it would be measured itself.

What always holds: a reply depends on the request alone, so that the same questions make the same scenes in every run; a
scene has about 25 calls. `GET /drafts` tells how often each question was begun, which a benchmark that kills the runner
can learn from nobody else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import zlib
from collections import Counter
from typing import Any

JSON = dict[str, Any]

MODEL = "local-model"
CONTEXT = 32_768
CACHE_TOKENS = 65_536
"""What a run takes for its default of 64 requests in flight."""
_CHARACTERS_PER_TOKEN = 4

_NAMES = ("Ada", "Bela", "Chen", "Dina", "Emil", "Fatma", "Goran", "Hilde", "Ines", "Jonas")
_PROSE = (
    "the neighbour waits at the door and asks whether the letter came late while a friend keeps the key and tells the "
    "others that nobody was hurt but that the money should be back in the drawer before the evening is over"
)
_WORDS = _PROSE.split()
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


class Replies:
    """What the model says, and what the server has counted."""

    def __init__(self) -> None:
        self.drafts: Counter[str] = Counter()
        self.calls = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0

    def completion(self, raw: bytes) -> JSON:
        """The body that answers a chat request."""
        body: JSON = json.loads(raw)
        chance = zlib.crc32(raw)
        text = self._text(body, chance)
        read = max(1, sum(len(message["content"]) for message in body["messages"]) // _CHARACTERS_PER_TOKEN)
        written = max(1, len(text) // _CHARACTERS_PER_TOKEN)
        return {
            "id": f"chatcmpl-{chance:08x}",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "tool_calls": []},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        }

    def count(self, reply: JSON) -> None:
        """A reply goes out."""
        self.calls += 1
        self.prompt_tokens += reply["usage"]["prompt_tokens"]
        self.generation_tokens += reply["usage"]["completion_tokens"]

    def metrics(self) -> str:
        """The page that vLLM shows of the same."""
        return (
            f"vllm:prompt_tokens_total {self.prompt_tokens}\n"
            f"vllm:generation_tokens_total {self.generation_tokens}\n"
            f"vllm:request_success_total {self.calls}\n"
            f'vllm:cache_config_info{{engine="0",kv_cache_size_tokens="{CACHE_TOKENS}"}} 1\n'
        )

    def _text(self, body: JSON, chance: int) -> str:
        messages = body["messages"]
        schema = (body.get("structured_outputs") or {}).get("json")
        if schema is None:
            if messages[0]["role"] != "system":
                self.drafts[messages[-1]["content"]] += 1
            return _sentence(chance, 900)  # a draft, a revision, or a summary
        fields = schema["properties"]
        if "action" in fields:
            return json.dumps({"action": _sentence(chance, 110)})
        if "plausible" in fields:
            return json.dumps(_judgement(fields, chance))
        if "lesson" in fields:
            return json.dumps(_reflection(fields, chance))
        if "people" in fields:
            return json.dumps(_cast(fields, chance))
        if "instead" in fields:
            return json.dumps({name: _sentence(chance + n, 120) for n, name in enumerate(fields)})
        # One word of a choice: what an answer does, or which of two is better.
        return json.dumps({name: field["enum"][chance % len(field["enum"])] for name, field in fields.items()})


def _cast(fields: JSON, chance: int) -> JSON:
    number = fields["people"]["minItems"]
    people = [_NAMES[(chance + n) % len(_NAMES)] + (f" {n}" if n >= len(_NAMES) else "") for n in range(number)]
    return {
        "situation": _sentence(chance, 120),
        "people": people,
        "roles": [
            {
                "who": _sentence(chance + 2 * n, 40),
                "traits": _sentence(chance + n, 50),
                "goal": _sentence(chance - n, 50),
            }
            for n in range(number)
        ],
        "objects": [{"name": "letter", "state": "on the table"}, {"name": "key", "state": "in the drawer"}],
        "plan": [_sentence(chance + n, 90) for n in range(fields["plan"]["maxItems"])],
    }


def _reflection(fields: JSON, chance: int) -> JSON:
    effects = [name for name in fields if "items" in fields[name]]
    told: dict[str, list[JSON]] = {effect: [] for effect in effects}
    for n, name in enumerate(fields[effects[0]]["items"]["properties"]["name"]["enum"]):
        if position := (chance + n) % (len(effects) + 1):  # of every so-manieth nothing is told
            told[effects[position - 1]].append({"name": name, "how": _sentence(chance + n, 60)})
    return {
        **told,
        "lesson": _sentence(chance, 150),
        "verdict": fields["verdict"]["enum"][-1],
    }


def _judgement(fields: JSON, chance: int) -> JSON:
    others = list(fields["notices"]["properties"])
    things = fields["changes"].get("items", {}).get("properties", {}).get("object", {}).get("enum", [])
    changed = [{"object": things[0], "after": _sentence(chance, 40)}] if things and chance % 3 == 0 else []
    notices = {name: "sees" if chance >> (8 + n) & 1 else "no" for n, name in enumerate(others)}
    return {
        "reason": _sentence(chance, 90),
        "plausible": chance % 16 != 0,
        "notices": notices,
        "seen": _sentence(chance, 70),
        "changes": changed,
        "consequence": _sentence(chance, 80) if chance % 2 else None,
        "hurt": others[:1] if chance % 4 == 1 else [],
    }


def _sentence(chance: int, length: int) -> str:
    """Words up to so many characters; which, is up to chance."""
    start = chance % len(_WORDS)
    words = (_WORDS[start:] + _WORDS[:start]) * (1 + length // 150)
    return f"{chance % 100_000} {' '.join(words)}"[:length].strip()


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, one request after the other, bodies with a Content-Length."""

    def __init__(self, replies: Replies, delay: float) -> None:
        self._replies = replies
        self._delay = delay
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end])
            length = _LENGTH.search(head)
            until = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < until:
                return
            body = bytes(self._received[end + 4 : until])
            del self._received[:until]
            self._answer(head.split(b" ", 2)[1].decode(), body)

    def _answer(self, path: str, body: bytes) -> None:
        if path.endswith("/chat/completions"):
            completion = self._replies.completion(body)
            if self._delay:
                asyncio.get_running_loop().call_later(self._delay, self._complete, completion)
            else:
                self._complete(completion)
            return
        if path.endswith("/models"):
            reply = json.dumps({"data": [{"id": MODEL, "object": "model", "max_model_len": CONTEXT}]}).encode()
        elif path == "/metrics":
            reply = self._replies.metrics().encode()
        elif path == "/drafts":
            reply = json.dumps(self._replies.drafts).encode()
        else:
            reply = b"{}"
        self._send(reply)

    def _complete(self, completion: JSON) -> None:
        self._replies.count(completion)
        self._send(json.dumps(completion).encode())

    def _send(self, reply: bytes) -> None:
        if self._transport is not None:
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(reply)}\r\n\r\n"
            self._transport.write(head.encode() + reply)


async def _serve(port: int, delay: float) -> None:
    replies = Replies()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(replies, delay), "127.0.0.1", port, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until interrupted; the first line on standard output is the base URL."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0 (the default) takes a free one")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds until a reply (default: 0)")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.port, options.delay))


if __name__ == "__main__":
    main()
