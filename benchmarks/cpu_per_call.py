"""How much of this program's own processor time does a model call take?

    python benchmarks/cpu_per_call.py
    python benchmarks/cpu_per_call.py --calls 5000 --profile

A model server of another process answers at once (`local_server.py`), so that what is left is what surrounds the model.
Measured side by side, in rounds that take turns so that a drift of the machine meets all alike:

bare         an aiohttp POST of the body and JSON both ways: less is not possible
ChatVLLM     `ChatVLLM.ainvoke`
ChatOpenAI   `langchain_openai.ChatOpenAI.ainvoke`, the client that people would take otherwise
whole run    what `matrix-graph run` does (`Batch`, into a folder): graph, client, validation, trace and disk, divided
             by the scenes' calls

Why it is fair: the first three send the very requests that a run has sent, schemas included, the whole run sends its
own of the same kind; all with as many in flight. All have Python's garbage collector set as `matrix-graph run` sets
it, which is good for each of them (`--usual-garbage` leaves it alone). Only this process counts, user and system time
of all its threads, and not the server. The median of the rounds is what counts; the first round of each warms up and
is left out. Milliseconds depend on the machine and on its neighbours, which is why the same bound is held as a ratio,
too: 1.2 ms where ChatOpenAI took 3.9.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from _common import Report, heading, local_server, parser, recorded, send_flat, topical_question

from matrix_graph import ChatVLLM
from matrix_graph.batch.process import collect_garbage_rarely
from matrix_graph.batch.runner import Batch
from matrix_graph.models.client.wire import JSON, decode

_CALLS_PER_SCENE = 27
"""Of the local server's scenes, to know how many make a round; the calls that are made are counted."""
_SAMPLE_SCENES = 40
_PROFILED_SCENES = 200
_MOST = 1.2
"""Milliseconds of processor time per call that the whole run may take."""
_CHAT_OPENAI = 3.9
"""Milliseconds that ChatOpenAI alone took where that figure was set: the ratio holds on slower machines, too."""


@dataclass
class Measured:
    """What one way of calling took, a value a round."""

    milliseconds: list[float] = field(default_factory=list)
    calls: int = 0
    seconds: float = 0.0

    async def round(self, play: Callable[[], Awaitable[int]], *, keep: bool) -> None:
        """Measure one round; `play` returns how many calls it made."""
        gc.collect()  # what the way before this one has left behind is not for this one to clear away
        used, began = time.process_time(), time.monotonic()
        calls = await play()
        used, took = time.process_time() - used, time.monotonic() - began
        if keep:
            self.milliseconds.append(1000 * used / calls)
            self.calls += calls
            self.seconds += took


class Ways:
    """The ways to call the server that are compared.

    Args:
        url: the server's base URL.
        requests: calls in flight.
        bodies: what the single calls send, as a run has sent them.
    """

    def __init__(self, url: str, requests: int, bodies: list[bytes]) -> None:
        self._url = url
        self._requests = requests
        self._bodies = bodies
        self._questions: Iterator[str] = (topical_question(number) for number in count(_SAMPLE_SCENES))
        self._model = ChatVLLM(base_url=url)
        self.scenes = 0

    async def bare(self, calls: int) -> int:
        """Bare aiohttp."""
        recording = await send_flat(self._url, None, self._some(calls), self._requests)
        return len(recording.sent)

    async def chat_vllm(self, calls: int) -> int:
        """`ChatVLLM.ainvoke`."""

        async def call(body: JSON) -> None:
            messages = body.pop("messages")
            await self._model.ainvoke(messages, **body)

        return await self._side_by_side(calls, call)

    async def chat_openai(self, calls: int) -> int:
        """`ChatOpenAI.ainvoke`."""
        from langchain_openai import ChatOpenAI
        from pydantic import SecretStr

        model = ChatOpenAI(base_url=self._url, api_key=SecretStr("none"), model="local-model", max_retries=0)

        async def call(body: JSON) -> None:
            known = {name: body[name] for name in ("temperature", "max_tokens")}
            extra = {name: body[name] for name in ("structured_outputs",) if name in body}
            await model.ainvoke(body["messages"], **known, extra_body=extra)

        return await self._side_by_side(calls, call)

    async def whole_run(self, calls: int) -> int:
        """`Batch` into a fresh folder, with new questions."""
        questions = [next(self._questions) for _ in range(max(1, calls // _CALLS_PER_SCENE))]
        made = await play(self._model, questions, self._requests)
        self.scenes += len(questions)
        return made

    def _some(self, calls: int) -> Iterator[bytes]:
        return (self._bodies[number % len(self._bodies)] for number in range(calls))

    async def _side_by_side(self, calls: int, call: Callable[[JSON], Awaitable[None]]) -> int:
        rest = self._some(calls)

        async def place() -> None:
            for body in rest:
                await call(decode(body))

        await asyncio.gather(*(place() for _ in range(self._requests)))
        return calls


async def play(model: ChatVLLM, questions: Iterable[str], requests: int) -> int:
    """Play questions into a fresh folder; returns the number of model calls.

    Raises:
        SystemExit: a scene failed, so that there is nothing to measure.
    """
    calls = 0
    with tempfile.TemporaryDirectory(prefix="cpu-per-call-") as folder:
        async with Batch(questions, model, out=folder, max_requests=requests) as batch:
            async for played in batch.play():
                if played.status == "failed":
                    raise SystemExit(f"A scene failed: {played.trace.error}")
                calls += played.calls
    return calls


async def measure(url: str, options: argparse.Namespace, report: Report) -> None:
    """Measure all ways in turn, and print them."""
    with recorded() as recording:
        sample = [topical_question(number) for number in range(_SAMPLE_SCENES)]
        await play(ChatVLLM(base_url=url), sample, options.requests)
    ways = Ways(url, options.requests, [sent.body for sent in recording.sent])
    chosen = {"bare aiohttp": ways.bare, "ChatVLLM.ainvoke": ways.chat_vllm}
    try:
        import langchain_openai  # noqa: F401
    except ImportError as error:
        print(f"ChatOpenAI is left out: {error}. pip install langchain-openai")
    else:
        chosen["ChatOpenAI.ainvoke"] = ways.chat_openai
    chosen["whole run"] = ways.whole_run
    measured = {name: Measured() for name in chosen}
    for number in range(options.rounds + 1):
        for name, way in chosen.items():
            # What is slow and only there for comparison needs fewer calls.
            calls = options.calls // options.rounds // (1 if name == "whole run" else 4)
            await measured[name].round(lambda way=way, calls=calls: way(calls), keep=number > 0)  # type: ignore[misc]
        ways.scenes = ways.scenes if number else 0
        print(f"  round {number} of {options.rounds} is done", flush=True)
    heading(f"Processor time per model call, {options.requests} requests in flight, median of {options.rounds} rounds")
    for name, result in measured.items():
        value = median(result.milliseconds)
        spread = f"ms   ({min(result.milliseconds):.2f} to {max(result.milliseconds):.2f}; {result.calls:,} calls)"
        if name == "whole run":
            report.check(name, value, "ms", at_most=_MOST)
        else:
            report.say(name, value, spread)
    run, bare = measured["whole run"], measured["bare aiohttp"]
    report.say("whole run: lowest round", min(run.milliseconds), "ms")
    report.say("whole run: highest round", max(run.milliseconds), f"ms   ({run.calls:,} calls)")
    report.say("whole run / bare aiohttp", median(run.milliseconds) / median(bare.milliseconds))
    if "ChatOpenAI.ainvoke" in measured:
        openai = median(measured["ChatOpenAI.ainvoke"].milliseconds)
        report.check("whole run / ChatOpenAI alone", median(run.milliseconds) / openai, at_most=_MOST / _CHAT_OPENAI)
    report.say("calls per scene", run.calls / ways.scenes)
    report.say("scenes per second that one process reaches", ways.scenes / run.seconds)


# ---- where the time goes ----------------------------------------------------------------------------------------

_LAYERS = {
    "the scene (matrix_graph/scene)": ("matrix_graph/scene/", "matrix_graph/compose/"),
    "LangGraph and langchain-core": ("langgraph/", "langchain_core/", "langsmith/"),
    "asking and validating (matrix_graph/models)": ("matrix_graph/models/ask.py", "matrix_graph/models/complete.py"),
    "the batch (matrix_graph/batch, traffic)": ("matrix_graph/batch/", "matrix_graph/models/traffic.py"),
    "the client (ChatVLLM)": ("matrix_graph/models/",),
    "aiohttp": ("aiohttp/", "yarl/", "multidict/"),
    "records and traces": ("matrix_graph/records.py", "matrix_graph/traces/", "pydantic/"),
    "JSON": ("/json/",),
    "asyncio and contextvars": ("/asyncio/", "selectors.py", "contextvars"),
}


async def collector_share(url: str, questions: list[str], requests: int) -> float:
    """The share of Python's garbage collector in the processor time, which a profile hides in whoever meets it."""
    spent = 0.0

    def clock(phase: str, info: dict[str, int]) -> None:
        nonlocal spent
        spent += time.thread_time() * (1 if phase == "stop" else -1)

    used = time.process_time()
    gc.callbacks.append(clock)
    try:
        await play(ChatVLLM(base_url=url), questions, requests)
    finally:
        gc.callbacks.remove(clock)
    return spent / (time.process_time() - used)


async def profiled(url: str, requests: int, report: Report) -> None:
    """Play once more under cProfile, and print which layer the time is spent in."""
    questions = [topical_question(number) for number in range(_PROFILED_SCENES)]
    collecting = await collector_share(url, questions, requests)
    profile = cProfile.Profile()
    profile.enable()
    await play(ChatVLLM(base_url=url), questions, requests)
    profile.disable()
    statistics: Any = pstats.Stats(profile)
    spent: Counter[str] = Counter()
    for (file, _, name), (_, _, own, _, callers) in statistics.stats.items():
        if file == "~":  # built-in: its time is its callers'
            for (caller, _, _), (_, _, part, _) in callers.items():
                spent[_layer(caller, name)] += part
        else:
            spent[_layer(file, name)] += own
    waiting = spent.pop("waiting", 0.0)
    heading(f"Where it goes (cProfile, which itself adds to small functions; {waiting:.1f} s of waiting left out)")
    total = spent.total()
    for layer, seconds in spent.most_common():
        report.say(f"share of {layer}", 100 * seconds / total, "%")
    report.say("share of the garbage collector, part of all these", 100 * collecting, "%")
    print("  the thread that writes to the disk is not in the profile, but in the figures above")
    print("\n  the functions with the most time of their own:")
    ranked = sorted(statistics.stats.items(), key=lambda item: -item[1][2])
    for (file, line, name), (_, calls, own, _, _) in ranked[:25]:
        print(f"    {100 * own / total:5.1f} % {calls:9,d} calls  {'/'.join(Path(file).parts[-3:])}:{line} {name}")


def _layer(file: str, name: str) -> str:
    if "poll" in name and "select" in f"{file}{name}":
        return "waiting"
    for layer, parts in _LAYERS.items():
        if any(part in file for part in parts):
            return layer
    return "the rest"


def main() -> int:
    """Measure; returns the exit code."""
    made = parser(__doc__)
    made.add_argument("--calls", type=int, default=20_000, help="calls of the whole run, all rounds (default: 20000)")
    made.add_argument("--requests", type=int, default=64, help="requests in flight (default: 64)")
    made.add_argument("--rounds", type=int, default=5, help="rounds that are measured (default: 5)")
    made.add_argument(
        "--usual-garbage",
        action="store_true",
        help="collect garbage as Python does by itself, and as `run_batch` in a program of yours does",
    )
    made.add_argument("--profile", action="store_true", help="then show which layer the time is spent in")
    options = made.parse_args()
    report = Report()
    with local_server() as url:
        if not options.usual_garbage:
            collect_garbage_rarely()
        asyncio.run(measure(url, options, report))
        if options.profile:
            asyncio.run(profiled(url, options.requests, report))
    return report.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
