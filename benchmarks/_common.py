"""What the benchmarks share: figures with what they must reach, the local server, requests recorded and sent again.

What always holds: a figure that must be reached stands next to what was measured, and a script leaves with code 0 only
if all of them are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from matrix_graph.models.client.http import HTTPClient
from matrix_graph.models.client.wire import JSON, decode, encode

T = TypeVar("T")

_FOLDER = Path(__file__).parent
_TICKS = os.sysconf("SC_CLK_TCK")
_CHAT = "chat/completions"


# ---- figures ----------------------------------------------------------------------------------------------------


class Report:
    """The figures of one benchmark, printed as they come."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self._missed: list[str] = []

    def say(self, name: str, value: float | str, unit: str = "") -> None:
        """Print and keep a figure that nothing depends on."""
        self.figures[name] = value
        print(f"  {name:<58} {_shown(value):>12} {unit}".rstrip(), flush=True)

    def check(
        self,
        name: str,
        value: float | None,
        unit: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Print and keep a figure that must be reached; None: it could not be measured, which reaches nothing."""
        reached = (
            value is not None and (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        )
        bounds = [(">=", at_least), ("<=", at_most)] if at_least != at_most else [("=", at_least)]
        wanted = " and ".join(f"{sign} {_shown(bound)}" for sign, bound in bounds if bound is not None)
        shown = "unknown" if value is None else _shown(value)
        print(f"  {name:<58} {shown:>12} {unit:<10} must be {wanted:<12} {'ok' if reached else 'MISSED'}", flush=True)
        self.figures[name] = {"value": value, "unit": unit, "at_least": at_least, "at_most": at_most, "ok": reached}
        if not reached:
            self._missed.append(name)

    def finish(self, path: Path | None) -> int:
        """Say what came of it, keep the figures if a file is given; returns the exit code."""
        if path is not None:
            path.write_text(json.dumps(self.figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"MISSED: {'; '.join(self._missed)}" if self._missed else "ok: every figure is reached", flush=True)
        return 1 if self._missed else 0


def heading(text: str) -> None:
    """Print what the next lines are about."""
    print(f"\n{text}", flush=True)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring, with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="keep the figures there too, as one JSON object")
    return made


def add_model_options(made: argparse.ArgumentParser) -> None:
    """Which model server is measured."""
    made.add_argument("--base-url", metavar="URL", help="a vLLM server that already runs; its key is in VLLM_API_KEY")
    made.add_argument("--model", help="the served model; without --base-url a folder or hub id (default: the bundled)")


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"


# ---- questions --------------------------------------------------------------------------------------------------


def questions_from(path: Path, count: int, skip: int = 0) -> list[str]:
    """The first questions of a JSON lines file, each text once.

    Raises:
        SystemExit: the file has fewer.
    """
    found: dict[str, None] = {}
    with path.open(encoding="utf-8") as file:
        for row in file:
            if row.strip():
                found.setdefault(json.loads(row)["question"])
            if len(found) == skip + count:
                return list(found)[skip:]
    raise SystemExit(f"{path} has {len(found)} different questions; {skip + count} are needed. Lower --scenes.")


def topical_question(number: int) -> str:
    """A question for a server that does not read it, different for each number."""
    topics = ("a friend lies", "the rent is late", "a dog barks all night", "my boss shouts", "somebody copies my work")
    return f"What should I do when {topics[number % len(topics)]}? It is the {number}th time now."


def write_questions(path: Path, questions: Iterable[str]) -> None:
    """Write a JSON lines file of questions."""
    path.write_text("".join(json.dumps({"question": text}) + "\n" for text in questions), encoding="utf-8")


# ---- processes --------------------------------------------------------------------------------------------------


@contextmanager
def local_server(delay: float = 0.0) -> Iterator[str]:
    """`local_server.py` as a process of its own; gives its base URL."""
    command = [sys.executable, str(_FOLDER / "local_server.py"), "--delay", str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise SystemExit("benchmarks/local_server.py did not start; its error stands above.")
            yield url
        finally:
            process.terminate()


def run_command(questions: Path, out: Path, *options: str) -> list[str]:
    """The argv of `matrix-graph run`."""
    return [sys.executable, "-m", "matrix_graph.cli", "run", str(questions), "--out", str(out), *options]


@dataclass(frozen=True)
class ProcessUse:
    """What a process has used so far.

    Attributes:
        peak: the most memory that it ever held (resident), in bytes.
        now: what it holds at this moment, in bytes.
        cpu: seconds of processor time, user and system.
    """

    peak: int
    now: int
    cpu: float


def process_use(pid: int, *, with_family: bool = False) -> ProcessUse | None:
    """What a running process has used, from /proc; None: it has ended.

    Args:
        pid: the process.
        with_family: add up all that descend from it and still run.
    """
    members = [pid, *(child for child, _, _ in family(pid))] if with_family else [pid]
    uses = [_use_of(member) for member in members]
    if uses[0] is None:
        return None
    known = [use for use in uses if use is not None]
    return ProcessUse(sum(use.peak for use in known), sum(use.now for use in known), sum(use.cpu for use in known))


def _use_of(pid: int) -> ProcessUse | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        # The name, in parentheses, may hold spaces and parentheses itself.
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("Vm")}
    if "VmHWM" not in sizes:
        return None  # it has ended, and nobody has asked for its exit code yet
    return ProcessUse(sizes["VmHWM"], sizes["VmRSS"], (int(stat[11]) + int(stat[12])) / _TICKS)


def family(pid: int) -> list[tuple[int, int, str]]:
    """All running processes that descend from one, parents first: pid, parent, command line."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                # The name, in parentheses, may hold spaces and parentheses itself.
                parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(entry.name))
    found = []
    waiting = [pid]
    while waiting:
        parent_pid = waiting.pop(0)
        for child in children.get(parent_pid, []):
            with suppress(OSError):
                line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found.append((child, parent_pid, line))
            waiting.append(child)
    return found


def kill(process: subprocess.Popen[Any]) -> None:
    """SIGKILL to a process that was started here, and wait for its end."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def check_traces(report: Report, asked: Iterable[str], traces: Path) -> list[dict[str, Any]]:
    """Print whether every question has exactly one trace and every line is whole; returns the traces that can be read.

    Each trace without its calls, which would fill the memory.
    """
    broken = 0
    found: list[dict[str, Any]] = []
    with traces.open("rb") as file:
        for line in file:
            try:
                found.append({**json.loads(line), "calls": None})
                broken += not line.endswith(b"\n")
            except ValueError:
                broken += 1
    wanted = set(asked)
    times = Counter(str(trace["question"]) for trace in found)
    report.check("questions without a trace", len(wanted - times.keys()), at_most=0)
    report.check("questions with more than one", sum(number > 1 for number in times.values()), at_most=0)
    report.check("traces of no question", len(times.keys() - wanted), at_most=0)
    report.check("lines that are not whole JSON", broken, at_most=0)
    return found


class Lines:
    """How many whole lines a growing file has; reads only what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self.count = 0

    def look(self) -> int:
        """The whole lines that the file has now."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read)
                while block := file.read(1 << 20):
                    self._read += len(block)
                    self.count += block.count(b"\n")
        return self.count


# ---- requests ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Sent:
    """One chat request and what came of it.

    Attributes:
        body: as it was sent.
        began: when it was sent, `time.monotonic()`.
        ended: when its reply was there; None: not yet.
        failed: why there is no reply; None: there is one.
    """

    body: bytes
    began: float
    ended: float | None = None
    failed: str | None = None


@dataclass
class Recording:
    """Chat requests in the order in which they were sent, and how many were in flight when."""

    sent: list[Sent] = field(default_factory=list)

    def steady(self, limit: int, share: float = 0.95) -> tuple[float, float]:
        """From when the number in flight first reached its limit until it last was at nearly the limit.

        Args:
            limit: requests in flight at most.
            share: of the limit that counts as nearly.

        Returns:
            Both moments, `time.monotonic()`. Before the first the load builds up; after the last nothing is left that
            could fill the places of what ends.

        Raises:
            SystemExit: the limit was never reached.
        """
        moves = [(sent.began, 1) for sent in self.sent]
        moves += [(sent.ended, -1) for sent in self.sent if sent.ended is not None]
        first = last = None
        in_flight = most = 0
        for moment, move in sorted(moves):
            if move < 0 and in_flight >= limit * share and first is not None:
                last = moment
            in_flight += move
            most = max(most, in_flight)
            if in_flight >= limit and first is None:
                first = moment
        if first is None or last is None or last <= first:
            raise SystemExit(
                f"There is no steady state: {most} requests were in flight at most, the limit is {limit}. "
                "Raise --scenes or lower --requests."
            )
        return first, last

    def busy(self, window: tuple[float, float]) -> float:
        """How many requests were in flight on average in a span of time."""
        start, end = window
        spans = [(max(sent.began, start), min(sent.ended or end, end)) for sent in self.sent]
        return sum(max(0.0, until - since) for since, until in spans) / (end - start)


@contextmanager
def recorded() -> Iterator[Recording]:
    """Keep every chat request that goes through the package's client, bodies and times, without changing it.

    What is kept is the body as bytes, made a second time: that costs the measured side some 30 microseconds a call.
    """
    recording = Recording()
    post = HTTPClient.post

    async def keep(self: HTTPClient, path: str, payload: JSON, read: Callable[[JSON], T]) -> T:
        if path != _CHAT:
            return await post(self, path, payload, read)
        sent = Sent(encode(payload), time.monotonic())
        recording.sent.append(sent)
        try:
            return await post(self, path, payload, read)
        except BaseException as error:
            sent.failed = f"{type(error).__name__}: {error}"
            raise
        finally:
            sent.ended = time.monotonic()

    HTTPClient.post = keep  # type: ignore[method-assign]
    try:
        yield recording
    finally:
        HTTPClient.post = post  # type: ignore[method-assign]


async def send_flat(base_url: str, key: str | None, bodies: Iterable[bytes], in_flight: int) -> Recording:
    """Send requests in their order, so many in flight, on bare aiohttp: nothing but the server limits this.

    Raises:
        SystemExit: the server refused one.
    """
    recording = Recording()
    rest = iter(bodies)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    url = f"{base_url.rstrip('/')}/{_CHAT}"
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=1800)) as http:

        async def place() -> None:
            for body in rest:
                sent = Sent(body, time.monotonic())
                recording.sent.append(sent)
                async with http.post(url, data=body, headers=headers) as response:
                    raw = await response.read()
                sent.ended = time.monotonic()
                if response.status != 200:
                    raise SystemExit(f"{url} answered HTTP {response.status}: {raw[:500].decode(errors='replace')}")
                decode(raw)

        await asyncio.gather(*(place() for _ in range(in_flight)))
    return recording


def with_fields(body: bytes, fields: Mapping[str, Any]) -> bytes:
    """A request with other fields; None takes one out."""
    content = {**decode(body), **fields}
    return encode({name: value for name, value in content.items() if value is not None})
