"""Do scenes get through on a model? Rehearse questions from a file side by side, and count what came of them.

    python benchmarks/first_scenes.py QUESTIONS.jsonl --count 20
    python benchmarks/first_scenes.py QUESTIONS.jsonl --count 20 --base-url http://127.0.0.1:8000/v1 --model NAME

Rows need a "question". Without --base-url the small bundled model is served here. The counts say whether the machinery
runs; what a 135M model says in a scene is no measure of the method.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

from pydantic import SecretStr

from matrix_graph import ChatVLLM, Rehearsal, SceneConfig, Trace, VLLMServer
from matrix_graph.traces.store import append_trace


async def main() -> None:
    """Run the scenes and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--skip", type=int, default=0, help="rows to pass over first")
    parser.add_argument("--base-url")
    parser.add_argument("--model")
    parser.add_argument("--out", type=Path, default=Path("runs/first-scenes"))
    options = parser.parse_args()
    with options.questions.open(encoding="utf-8") as file:
        rows = islice(file, options.skip, options.skip + options.count)
        questions = [json.loads(row)["question"] for row in rows]
    server = None if options.base_url else VLLMServer(options.model, on_status=print)
    with server or nullcontext():
        if server is None:
            model = ChatVLLM(base_url=options.base_url, model=options.model)
        else:
            key = SecretStr(server.api_key)
            model = ChatVLLM(base_url=server.base_url, api_key=key, model=server.model_name, server=server)
        started = time.monotonic()
        rehearsal = Rehearsal(model, config=SceneConfig(roles=3, steps=4))
        results = await asyncio.gather(*(rehearsal.ainvoke(question) for question in questions))
        seconds = time.monotonic() - started
    traces = [result["trace"] for result in results]
    for trace in traces:
        append_trace(options.out, trace)
    report(traces, seconds)


def report(traces: list[Trace], seconds: float) -> None:
    """Print one line a count."""
    played = [trace for trace in traces if trace.cast is not None]
    actions = sum(len(trace.events) for trace in traces)
    calls = sum(len(trace.calls) for trace in traces)
    counts = {
        "scenes": len(traces),
        "finished or blocked": sum(trace.status != "failed" for trace in traces),
        "with 3 distinct roles beside the ego": sum(
            len({role.name for role in trace.cast.roles} - {trace.cast.ego}) >= 3 for trace in played if trace.cast
        ),
        "with a judged reaction": sum(
            any(trace.cast and event.role != trace.cast.ego for event in trace.events) for trace in played
        ),
        "with an object whose state is recorded": sum(bool(trace.object_states) for trace in played),
        "revised": sum(trace.revised for trace in traces),
        "judged actions": actions,
        "rejected actions": sum(not event.plausible for trace in traces for event in trace.events),
        "model calls": calls,
        "replies that could not be used": sum(call.error is not None for trace in traces for call in trace.calls),
    }
    for name, count in counts.items():
        print(f"{count:6d}  {name}")
    print(f"{calls / max(1, actions):6.2f}  model calls per judged action")
    print(f"{seconds:6.0f}  seconds (shared machines: no measure)")
    for trace in traces:
        if trace.error:
            print(f"failed: {trace.error.type}: {trace.error.message[:200]}")


if __name__ == "__main__":
    asyncio.run(main())
