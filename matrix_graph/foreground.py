"""The shared vLLM server in the foreground, as `matrix-graph serve` runs it, until it is stopped or fails for good.

Its key is shown nowhere: it is kept in a file that only this user can read, and that is gone with the server.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

from matrix_graph.config import Settings
from matrix_graph.errors import ServerError
from matrix_graph.live import safe
from matrix_graph.models.client import key_files, own_servers
from matrix_graph.models.client.own_servers import OwnServer
from matrix_graph.models.server import VLLMServer


def serve_until_stopped(settings: Settings, *, as_json: bool) -> None:
    """Start the server, say how to use it, and watch it until this process is interrupted.

    Args:
        settings: which model, and how it is served.
        as_json: say it as one JSON object: base_url, model, adapters, key_file, log.

    Raises:
        ServerError: the server cannot be started, or died for good; holds the last lines of its log.
        PrerequisiteError: vLLM is not installed; holds the command.
    """
    console = Console(stderr=True)
    status = console.status("starting vLLM")
    moving = console.is_terminal

    def tell(line: str) -> None:
        if moving:
            status.update(Text(safe(line)))  # the engine's words: in them "[...]" is not markup
        else:
            typer.echo(safe(line), err=True)

    with (
        status,
        VLLMServer(settings.model, config=settings.server, on_status=lambda line: tell(f"vLLM: {line}")) as server,
    ):
        try:
            with _key_file(server) as key_file:
                # What a status line redirects would reach the terminal only. It is not started again: a Ctrl-C in the
                # midst of its start, which people are now told to give, would break rich.
                moving = False
                status.stop()
                _announce(server, key_file, as_json)
                tell("serving; Ctrl-C stops it")
                _until_it_fails(server)
        finally:
            tell("stopping vLLM")


@contextmanager
def _key_file(server: VLLMServer) -> Iterator[Path]:
    """A file with the server's key that only this user can read; gone while the server is, and new when it is back."""
    base_url = server.base_url

    def keep(url: str, own: OwnServer) -> None:
        if not base_url.startswith(f"{url}/"):
            return
        if own.key is None:
            key_files.remove_key(base_url)
            return
        with suppress(OSError):  # told below, where it is tried first
            key_files.write_key(base_url, own.key)

    end = own_servers.watch(keep)
    try:
        try:
            path = key_files.write_key(base_url, server.api_key)
        except OSError as error:
            raise ServerError(
                f"The key cannot be kept in {key_files.key_file(base_url)}: {error}. Name another folder: "
                "MATRIX_GRAPH_CACHE."
            ) from error
        yield path
    finally:
        end()
        key_files.remove_key(base_url)


def _announce(server: VLLMServer, key_file: Path, as_json: bool) -> None:
    base_url, model, log = server.base_url, server.model_name, server.log_path
    adapters = {name: str(folder) for name, folder in server.adapters().items()}
    if as_json:
        line = json.dumps(
            {"base_url": base_url, "model": model, "adapters": adapters, "key_file": str(key_file), "log": str(log)}
        )
    else:
        names = f" with the adapters {', '.join(adapters)}" if adapters else ""
        line = (
            f"serving {model}{names} at {base_url}\nlog: {log}\nIn another terminal:\n"
            f'  export MATRIX_GRAPH_BASE_URL={base_url} VLLM_API_KEY="$(cat {shlex.quote(str(key_file))})"\n'
            '  matrix-graph rehearse "How do I ...?"'
        )
        if server.config.enable_lora:
            line += "\n  matrix-graph adapters load NAME=DIR"
    typer.echo(safe(line))
    sys.stdout.flush()


def _until_it_fails(server: VLLMServer) -> NoReturn:
    while True:
        time.sleep(1)
        if not server.running:
            asyncio.run(server.wait_ready(None))  # raises when the server is given up, with the last lines of its log
