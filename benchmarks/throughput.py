"""Does this program keep a model server busy, and what does a scene cost beside the released MATRIX code's way?

    python benchmarks/throughput.py QUESTIONS.jsonl
    python benchmarks/throughput.py QUESTIONS.jsonl --base-url http://127.0.0.1:8000/v1 --model NAME --scenes 400

Three things are played on the same server, one after the other:

run      `Batch` with 3 roles and 4 steps into a fresh folder; every request is recorded, in the order in which they
         were sent.
ceiling  the same requests, byte for byte and in the same order, flat: as many in flight, no graph, bare aiohttp. No
         program could get more out of the server with these requests and this many in flight.
serial   scenes as the released MATRIX code plays them: its number of calls (10+2R) + 1 + 3(P-1) + 4N + floor(E/3) +
         min(4, floor(E/9)) + 4 with R = 3, P = 4, E = P-1+N, one call in flight. N is the mean number of reactions in
         the scenes of the run, so that both sides play the same amount.

Generated tokens per second come from the server's own /metrics, read each second, over the steady state: from when the
number in flight first reached its limit until it last was at 95% of it. Before that the load builds up, after it
nothing is left that could fill the places. The same rule holds for run and ceiling. A long run is all steady state; so
its scenes per hour are the steady tokens per second by the tokens of a scene.

Why it is fair: no phase profits from the cache that another one filled, since each has its own `cache_salt` (vLLM keeps
prefixes of different salts apart; if the server refuses the field, that is said). Recording costs our side some 30
microseconds a call. The serial side takes prompts of the same kinds and lengths, with the same token limits, from the
run's own records; where it is open what a call of the released code is like, the cheapest kind stands for it; its
fixed sleeps (about 8 s a scene), its waits for locks and its repeated questions are left out, in its favour. It asks
for no JSON schemas, so its replies are as long as the model makes them, within the same limits. What it would take if
our schemas cut them short, which it never had, is printed as well.

Last, why prompts hit the cache: the prompts of a few scenes are sent once more, as they were and with what is new put
first, the same text in another order; the hit rate of both is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean
from typing import Any

from _common import (
    Recording,
    Report,
    add_model_options,
    heading,
    parser,
    questions_from,
    recorded,
    send_flat,
    with_fields,
)
from pydantic import SecretStr

from matrix_graph import ChatVLLM, Rehearsal, SceneConfig, Trace, VLLMServer
from matrix_graph.batch import lookout
from matrix_graph.batch.runner import Batch
from matrix_graph.connect import as_needed
from matrix_graph.errors import ModelRequestError
from matrix_graph.models.client.wire import encode
from matrix_graph.models.server import ServerConfig
from matrix_graph.records import Call, Event

ROLES, STEPS = 3, 4
CONFIG = SceneConfig(roles=ROLES, steps=STEPS)
LEAST_SCENES = 64
"""Scenes that must end in the steady state for it to say anything."""
_POLL_SECONDS = 1.0
_TELL_SECONDS = 60.0

Counters = dict[str, float]


# ---- what the server counts ---------------------------------------------------------------------------------------


@dataclass
class Phase:
    """What the server did while something was played.

    Attributes:
        polls: moments (`time.monotonic()`) and the server's counters then.
        recording: the requests.
    """

    polls: list[tuple[float, Counters]] = field(default_factory=list)
    recording: Recording = field(default_factory=Recording)

    def at(self, moment: float, name: str) -> float:
        """A counter at a moment, between two polls in proportion."""
        before = self.polls[0]
        for after in self.polls:
            if after[0] >= moment:
                span = after[0] - before[0]
                part = (moment - before[0]) / span if span > 0 else 0.0
                return before[1].get(name, 0.0) + part * (after[1].get(name, 0.0) - before[1].get(name, 0.0))
            before = after
        return before[1].get(name, 0.0)

    def grown(self, name: str) -> float | None:
        """By how much a counter grew; None if the server does not have it."""
        last = self.polls[-1][1].get(name)
        return None if last is None else last - self.polls[0][1].get(name, 0.0)

    def tokens(self, window: tuple[float, float]) -> float:
        """Tokens generated in a span of time."""
        return self.at(window[1], "generation_tokens") - self.at(window[0], "generation_tokens")

    def drift(self, window: tuple[float, float]) -> str:
        """Tokens per second in the first and the second half of a span."""
        middle = sum(window) / 2
        halves = [self.tokens(half) / (half[1] - half[0]) for half in ((window[0], middle), (middle, window[1]))]
        return f"{halves[0]:.0f} then {halves[1]:.0f}"


@asynccontextmanager
async def watched(model: ChatVLLM) -> AsyncIterator[Phase]:
    """Read the server's counters at the beginning, each second and at the end."""
    phase = Phase()

    async def look() -> None:
        asked = time.monotonic()
        if counters := await lookout.counters_of(model):
            phase.polls.append(((asked + time.monotonic()) / 2, counters))

    async def keep_looking() -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            await look()

    await look()
    if not phase.polls:
        raise SystemExit(f"{model.base_url} has no /metrics page; this benchmark needs a vLLM server.")
    looking = asyncio.create_task(keep_looking())
    try:
        yield phase
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await look()


class Salts:
    """A cache of its own for each phase, if the server can do that."""

    def __init__(self, accepted: bool) -> None:
        self._accepted = accepted
        self._run = secrets.token_hex(4)

    def named(self, name: str) -> dict[str, str | None]:
        """The request's field for a phase; its value None takes the field out."""
        return {"cache_salt": f"{name}-{self._run}" if self._accepted else None}

    def model(self, model: ChatVLLM, name: str) -> ChatVLLM:
        """The model for a phase."""
        return model.model_copy(update={"extra_body": self.named(name)}) if self._accepted else model


async def salts_for(model: ChatVLLM) -> Salts:
    """Whether the server takes `cache_salt`."""
    try:
        await model.ainvoke("Hello", max_tokens=1, extra_body={"cache_salt": secrets.token_hex(4)})
    except ModelRequestError as error:
        print(f"cache_salt is refused ({error}): later phases find the earlier ones' prefixes in the cache")
        return Salts(False)
    return Salts(True)


# ---- run and ceiling ------------------------------------------------------------------------------------------------


@dataclass
class Played:
    """Some scenes of the run, and the same requests flat.

    Attributes:
        traces: the scenes.
        seconds: from the first request to the last reply.
        run: what the server did for the scenes.
        ended: when each scene ended, `time.monotonic()`.
        flat: what the server did for the same requests flat.
    """

    traces: list[Trace]
    seconds: float
    run: Phase
    ended: list[float]
    flat: Phase


async def play(model: ChatVLLM, questions: list[str], limit: int, salts: Salts, part: int) -> Played:
    """Play scenes, then send their requests again flat."""
    ended: list[float] = []
    traces: list[Trace] = []
    began = told = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder, recorded() as recording:
        async with watched(model) as run:
            batch = Batch(questions, salts.model(model, f"run-{part}"), out=folder, config=CONFIG, max_requests=limit)
            async with batch:
                async for played in batch.play():
                    ended.append(time.monotonic())
                    traces.append(played.trace)
                    if ended[-1] - told >= _TELL_SECONDS:
                        told = ended[-1]
                        print(f"  {len(traces)} of {len(questions)} scenes after {told - began:.0f} s", flush=True)
    seconds = time.monotonic() - began
    print(f"  all after {seconds:.0f} s; now their {len(recording.sent)} requests flat", flush=True)
    run.recording = recording
    bodies = [with_fields(sent.body, salts.named(f"flat-{part}")) for sent in recording.sent if sent.failed is None]
    async with watched(model) as flat:
        flat.recording = await send_flat(model.base_url, _key(model), bodies, limit)
    return Played(traces, seconds, run, ended, flat)


def compare(report: Report, parts: list[Played], limit: int) -> float:
    """Print run and ceiling side by side; returns the run's generated tokens per second in its steady state."""
    sums = {"run": [0.0, 0.0], "flat": [0.0, 0.0]}
    ended = 0
    for number, played in enumerate(parts, 1):
        for name, phase in (("run", played.run), ("flat", played.flat)):
            window = phase.recording.steady(limit)
            sums[name][0] += phase.tokens(window)
            sums[name][1] += window[1] - window[0]
            note = f"{name}, part {number}: tokens per second in the two halves of its steady state"
            report.say(note, phase.drift(window))
            report.say(f"{name}, part {number}: requests in flight on average", phase.recording.busy(window))
            if name == "run":
                ended += sum(window[0] <= moment <= window[1] for moment in played.ended)
    speeds = {name: tokens / seconds for name, (tokens, seconds) in sums.items()}
    report.say("requests in flight", limit)
    report.say("steady state of the run", sums["run"][1], "s")
    report.say("steady state of the ceiling", sums["flat"][1], "s")
    report.check("scenes that ended in the run's steady state", ended, at_least=LEAST_SCENES)
    report.say("run: generated tokens per second", speeds["run"])
    report.say("ceiling: generated tokens per second", speeds["flat"])
    report.check("run / ceiling", speeds["run"] / speeds["flat"], at_least=0.90)
    return speeds["run"]


def describe(report: Report, parts: list[Played]) -> None:
    """Print what the scenes of the run were like."""
    traces = [trace for played in parts for trace in played.traces]
    calls = [call for trace in traces for call in trace.calls]
    actions = sum(len(trace.events) for trace in traces)
    report.say("scenes", len(traces))
    report.say("failed", sum(trace.status == "failed" for trace in traces))
    report.say("blocked", sum(trace.status == "blocked" for trace in traces))
    report.say("replies that were cut off", sum(call.finish_reason == "length" for call in calls))
    report.say("replies that could not be used", sum(call.error is not None for call in calls))
    report.say("calls per scene", len(calls) / len(traces))
    report.say("prompt tokens per scene", fmean(trace.usage.input_tokens for trace in traces))
    report.say("generated tokens per scene", fmean(trace.usage.output_tokens for trace in traces))
    report.say("judged actions per scene", actions / len(traces))
    report.check("calls per judged action", len(calls) / max(1, actions), at_most=2.5)
    hits = [played.run.grown("prefix_cache_hits") for played in parts]
    queries = [played.run.grown("prefix_cache_queries") for played in parts]
    asked = sum(value or 0.0 for value in queries)
    rate = sum(value or 0.0 for value in hits) / asked if asked else None
    report.check("share of prompt tokens from the prefix cache", rate, at_least=0.60)


# ---- the released code's way ------------------------------------------------------------------------------------


def released_calls(steps: int, reactions: int) -> list[tuple[str, int, list[str]]]:
    """The calls of a scene of the released code: what for, how many, and which purposes of ours stand for them.

    Of several calls the purposes take turns. Set-up is one draft, one cast and then short calls only, although the
    released code asks for each person's traits and for the plan in calls of their own, with room for long replies.
    """
    judged = steps - 1 + reactions
    short = 10 + 2 * ROLES - 2
    return [
        ("the draft", 1, ["draft"]),
        ("who is there", 1, ["cast"]),
        ("the rest of the set-up", short, ["act"]),
        ("the first step", 1, ["act"]),
        ("further steps", 3 * (steps - 1), ["act", "judge", "judge"]),
        ("reactions", 4 * reactions, ["act", "act", "judge", "judge"]),
        ("summaries of memory", judged // 3, ["recap"]),
        ("summaries of what went wrong", min(4, judged // 9), ["reflect"]),
        ("reflection and revision", 4, ["reflect", "reflect", "reflect", "revise"]),
    ]


def released_scene(trace: Trace, traces: list[Trace], calls: list[tuple[str, int, list[str]]]) -> list[bytes]:
    """The requests of one scene of the released code, taken from one of our scenes, from others what that one lacks."""
    taken: dict[str, Iterator[Call]] = {}

    def next_call(purpose: str) -> Call:
        if purpose not in taken:
            taken[purpose] = cycle(_calls_of([trace], purpose) or _calls_of(traces, purpose))
        return next(taken[purpose])

    requests = []
    for _, count, purposes in calls:
        requests += [request_of(next_call(purpose)) for purpose in islice(cycle(purposes), count)]
    return requests


def _calls_of(traces: list[Trace], purpose: str) -> list[Call]:
    """The calls of a purpose; where there are none, of the purpose that is most like it."""
    like = {"recap": "reflect", "reflect": "judge", "revise": "draft"}
    found = [call for trace in traces for call in trace.calls if call.purpose == purpose]
    return found or _calls_of(traces, like[purpose])


def request_of(call: Call) -> bytes:
    """A recorded call as a request again."""
    messages = [{"role": message.role, "content": message.content} for message in call.messages]
    return encode({**call.sampling, "model": call.model, "messages": messages})


def reactions_of(trace: Trace) -> int:
    """Judged actions that were no steps of the ego's plan."""
    return len(trace.events) - steps_of(trace)


def steps_of(trace: Trace) -> int:
    """Judged steps of the ego's plan; what the ego does once the plan is over is a reaction."""

    def by_ego(event: Event) -> bool:
        return trace.cast is not None and event.role == trace.cast.ego

    return min(sum(by_ego(event) for event in trace.events), len(trace.cast.plan) if trace.cast else 0)


async def serially(
    report: Report, model: ChatVLLM, parts: list[Played], salts: Salts, scenes: int, speed: float
) -> None:
    """Play scenes the released code's way, and print how ours compare."""
    traces = [trace for played in parts for trace in played.traces]
    played_out = [trace for trace in traces if trace.status != "failed" and trace.events]
    reactions = fmean(reactions_of(trace) for trace in played_out)
    calls = released_calls(STEPS, round(reactions))
    number = sum(count for _, count, _ in calls)
    nearest = sorted(played_out, key=lambda trace: abs(reactions_of(trace) - reactions))[:scenes]
    steps = fmean(steps_of(trace) for trace in played_out)
    report.say("plan steps per scene of ours, blocked ones included", steps)
    report.say("reactions per scene of ours (N)", reactions)
    report.say("calls per scene of the released code", number)
    for what, count, purposes in calls:
        print(f"    {count:3d}  {what}: like ours for {', '.join(dict.fromkeys(purposes))}")
    generated = fmean(trace.usage.output_tokens for trace in traces)
    ours = 3600 * speed / generated
    report.say("ours: scenes per hour, steady state", ours)
    report.say("ours: scenes per hour, first request to last reply", 3600 * len(traces) / sum(p.seconds for p in parts))
    seconds = {}
    for name, fields in {"free": {"structured_outputs": None}, "held to our schemas": {}}.items():
        salt = salts.named(f"serial, {name}")
        began = time.monotonic()
        async with watched(model) as phase:
            for trace in nearest:
                bodies = [with_fields(body, {**salt, **fields}) for body in released_scene(trace, traces, calls)]
                await send_flat(model.base_url, _key(model), bodies, 1)
        seconds[name] = (time.monotonic() - began) / len(nearest)
        report.say(f"serial, {name}: prompt tokens per scene", (phase.grown("prompt_tokens") or 0.0) / len(nearest))
        report.say(
            f"serial, {name}: generated tokens per scene", (phase.grown("generation_tokens") or 0.0) / len(nearest)
        )
        report.say(f"serial, {name}: seconds per scene", seconds[name])
        report.say(f"serial, {name}: scenes per hour", 3600 / seconds[name])
    ratio = ours * seconds["free"] / 3600
    report.check("ours / serial, scenes per hour", ratio, at_least=30.0)
    taken = sum(count for _, count, _ in released_calls(round(steps), round(reactions)))
    report.say("ours / serial, had it taken only as many steps as ours", ratio * taken / number)
    report.say("ours / serial held to our schemas", ours * seconds["held to our schemas"] / 3600)


# ---- why prompts hit the cache ----------------------------------------------------------------------------------


async def show_order(report: Report, model: ChatVLLM, parts: list[Played], salts: Salts, scenes: int) -> None:
    """Print the hit rate of the same prompts as they were sent, and with what is new put first."""
    traces = [trace for trace in parts[0].traces if trace.status != "failed"][:scenes]
    brief: dict[str, Any] = {"max_tokens": 1, "structured_outputs": None}
    sent = [with_fields(request_of(call), brief) for trace in traces for call in trace.calls]
    turned = [with_fields(request_of(_new_first(call)), brief) for trace in traces for call in trace.calls]
    for name, bodies in (("as they were sent", sent), ("with what is new put first", turned)):
        salt = salts.named(f"order-{len(name)}")
        async with watched(model) as phase:
            await send_flat(model.base_url, _key(model), [with_fields(body, salt) for body in bodies], 1)
        hits, queries = phase.grown("prefix_cache_hits"), phase.grown("prefix_cache_queries")
        rate = (hits or 0.0) / queries if queries else None
        report.say(f"cache hits of {len(traces)} scenes' prompts {name}", "unknown" if rate is None else rate)


def _new_first(call: Call) -> Call:
    """The same prompt with its first and last text exchanged."""
    messages = list(call.messages)
    first, last = messages[0], messages[-1]
    messages[0] = first.model_copy(update={"content": last.content})
    messages[-1] = last.model_copy(update={"content": first.content})
    return call.model_copy(update={"messages": messages})


# ---- all of it --------------------------------------------------------------------------------------------------


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Play everything on one server, and print it."""
    server = None if options.base_url else VLLMServer(options.model, config=as_needed(ServerConfig()), on_status=print)
    async with server or nullcontext():
        if server is None:
            model = ChatVLLM(base_url=options.base_url, model=options.model)
        else:
            key = SecretStr(server.api_key)
            model = ChatVLLM(base_url=server.base_url, api_key=key, model=server.model_name, server=server)
        limit = options.requests or await lookout.requests_for(model)
        questions = questions_from(options.questions, (options.scenes or limit + LEAST_SCENES) + 1)
        salts = await salts_for(model)
        await Rehearsal(salts.model(model, "warm-up"), config=CONFIG).ainvoke(questions.pop())
        heading(f"Run and ceiling: {len(questions)} scenes, {limit} requests in flight")
        parts = []
        for part in range(options.parts):
            chosen = questions[part * len(questions) // options.parts : (part + 1) * len(questions) // options.parts]
            parts.append(await play(model, chosen, limit, salts, part))
        describe(report, parts)
        speed = compare(report, parts, limit)
        if options.order_scenes:
            heading("Why prompts hit the cache")
            await show_order(report, model, parts, salts, options.order_scenes)
        if options.serial_scenes:
            heading(f"The released code's way: {options.serial_scenes} scenes, one call in flight")
            await serially(report, model, parts, salts, options.serial_scenes, speed)


def _key(model: ChatVLLM) -> str | None:
    return model.api_key.get_secret_value() if model.api_key else None


def main() -> int:
    """Measure; returns the exit code."""
    made = parser(__doc__)
    made.add_argument("questions", type=Path, metavar="QUESTIONS.jsonl", help='rows with a "question"')
    made.add_argument(
        "--scenes", type=int, help=f"scenes of the run (default: {LEAST_SCENES} more than requests in flight)"
    )
    made.add_argument("--requests", type=int, help="requests in flight (default: what `matrix-graph run` would take)")
    made.add_argument(
        "--parts", type=int, default=1, help="run and ceiling take turns so often, against drift (default: 1)"
    )
    made.add_argument(
        "--serial-scenes", type=int, default=2, help="scenes the released code's way; 0: none (default: 2)"
    )
    made.add_argument(
        "--order-scenes", type=int, default=4, help="scenes whose prompts are turned; 0: none (default: 4)"
    )
    add_model_options(made)
    options = made.parse_args()
    if not options.questions.is_file():
        made.error(f"{options.questions} is no file")
    report = Report()
    asyncio.run(measure(options, report))
    return report.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
