"""Stands in for vLLM in tests: a real process with workers, an OpenAI-like port, vLLM's log, and faults on request.

    python stub_engine.py [--stub-...] --model M --served-model-name N --host H --port P [vLLM's options, ignored]

Faults while it runs: POST /die?code=N, /sicken (its health answers 503), /hang (its health answers no more).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

KEY = os.environ.get("VLLM_API_KEY", "")
SLEEPER = (
    "import signal, sys, time\nif sys.argv[1] == 'deaf': signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)"
)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    model = ""
    root = ""
    adapters: dict[str, str]
    refuse_adapters = False
    health = "well"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path == "/health":
            if self.server.health == "hanging":
                time.sleep(600)
            self.answer(200 if self.server.health == "well" else 503)
        elif self.path == "/metrics":
            self.answer(
                200,
                b'# HELP x\nvllm:prefix_cache_hits_total{engine="0"} 3.0\n'
                b'vllm:prefix_cache_hits_created{engine="0"} 1.7e9\n'
                b'vllm:generation_tokens_total{engine="0"} 4.0\nvllm:generation_tokens_total{engine="1"} 5e0\n',
            )
        elif not self.allowed():
            self.answer(401)
        elif self.path == "/v1/models":
            cards = [{"id": self.server.model, "root": self.server.root, "parent": None}]
            cards += [
                {"id": name, "root": path, "parent": self.server.model} for name, path in self.server.adapters.items()
            ]
            self.answer(200, json.dumps({"data": cards}).encode())
        else:
            self.answer(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlparse(self.path)
        if url.path == "/die":
            print("the stub was told to die", flush=True)
            os._exit(int(parse_qs(url.query).get("code", ["1"])[0]))
        elif url.path == "/sicken":
            self.server.health = "sick"
            self.answer(200)
        elif url.path == "/hang":
            self.server.health = "hanging"
            self.answer(200)
        elif not self.allowed():
            self.answer(401)
        elif url.path == "/v1/load_lora_adapter":
            request = json.loads(body)
            if self.server.refuse_adapters:
                self.refuse(f"Loading lora {request['lora_name']} failed: wrong shape")
            else:
                self.server.adapters[request["lora_name"]] = request["lora_path"]
                self.answer(200, b"Success")
        elif url.path == "/v1/unload_lora_adapter":
            name = json.loads(body)["lora_name"]
            if self.server.adapters.pop(name, None) is None:
                self.refuse(f"The lora adapter '{name}' cannot be found.")
            else:
                self.answer(200, b"Success")
        else:
            self.answer(404)

    def allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {KEY}"

    def refuse(self, message: str) -> None:
        self.answer(404, json.dumps({"error": {"message": message, "code": 404}}).encode())

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model")
    parser.add_argument("--served-model-name")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--stub-start-seconds", type=float, default=0.0)
    parser.add_argument("--stub-die-with", help="a text to print before dying at the start")
    parser.add_argument("--stub-die-code", type=int, default=1)
    parser.add_argument("--stub-fail-if", type=Path, help="die at the start while this file exists")
    parser.add_argument("--stub-taken-until", type=Path, help="say that the port is taken, once; this file remembers")
    parser.add_argument("--stub-refuse-if", type=Path, help="refuse adapters if this file exists at the start")
    parser.add_argument("--stub-print-key", action="store_true")
    parser.add_argument("--stub-deaf", action="store_true", help="ignore SIGTERM, here and in the workers")
    parser.add_argument("--stub-pids", type=Path, help="write the pids of this process and of its two workers")
    parser.add_argument("--stub-environment", type=Path, help="write the environment")
    options, _ = parser.parse_known_args()

    print("(APIServer pid=1) INFO 01-01 00:00:00 [core.py:1] Initializing a V1 LLM engine (v0) with config", flush=True)
    if options.stub_print_key:
        print(f"key={KEY} argv={sys.argv}", file=sys.stderr, flush=True)
    if options.stub_environment:
        options.stub_environment.write_text(json.dumps(dict(os.environ)))
    if options.stub_deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.stub_pids:
        worker = [sys.executable, "-c", SLEEPER, "deaf" if options.stub_deaf else "polite"]
        workers = [subprocess.Popen(worker), subprocess.Popen(worker, start_new_session=True)]
        partial = options.stub_pids.with_suffix(".partial")
        partial.write_text(json.dumps([os.getpid(), *(child.pid for child in workers)]))
        partial.rename(options.stub_pids)
    print("(Worker pid=1) INFO 01-01 00:00:00 [cpu.py:1] Starting to load model x...", flush=True)
    time.sleep(options.stub_start_seconds)
    if options.stub_taken_until and not options.stub_taken_until.exists():
        options.stub_taken_until.write_text(str(options.port))
        print("OSError: [Errno 98] Address already in use", flush=True)
        sys.exit(1)
    if options.stub_die_with is not None or (options.stub_fail_if and options.stub_fail_if.exists()):
        print(options.stub_die_with or "RuntimeError: the stub fails to start", flush=True)
        if options.stub_die_code < 0:
            os.kill(os.getpid(), -options.stub_die_code)
        os._exit(options.stub_die_code)
    server = Server((options.host, options.port), Handler)
    server.model = options.served_model_name
    server.root = options.model
    server.adapters = {}
    server.refuse_adapters = bool(options.stub_refuse_if and options.stub_refuse_if.exists())
    print("INFO:     Application startup complete.", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        time.sleep(600)


if __name__ == "__main__":
    main()
