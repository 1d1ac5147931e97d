"""What does an export cost beside reading the traces: per row, and in memory, as the traces grow more?

    python benchmarks/export.py
    python benchmarks/export.py --traces 10000 --scene-traces 2000

Traces of 25 calls are made from a few that stand in this script as templates, each with words of its own, and come to
the process that exports them through a pipe, so that a hundred thousand of them need no disk. Three processes read the
same traces one after the other: one only parses them (`read_traces`, the library's own way), one exports the answers,
one answers and everything said in the scenes; duplicates are looked for as they are by default.

time    processor time of the thread that reads, exports and writes, which neighbours on the machine change little;
        hashes of input and output are taken by threads beside it, and the time of all together is printed, too
memory  the most that the process ever held (VmHWM)

Why it is fair: all processes read the same bytes, through the same pipe, in one run, in turns, and each figure is the
median of several turns where the traces are 10,000 or fewer. What the export reads is all validated, as by
`read_traces`.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from statistics import median
from typing import Any

from _common import Report, heading, parser

_CALLS = 25
_WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "s", "t", "nd", "st", "lla", "rro")]
_MARK = "0000000000"
_FEW_ENOUGH = 10_000
_LEAST_SPEED = 0.5
_MOST_SLOWER = 1.2
_MOST_GROWTH = 32.0
"""Megabytes; the cache of what was seen fills up to half of it."""

_CHILD = """
import json, resource, sys, time
from pathlib import Path
what, pipe, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
from matrix_graph.traces.export import ExportOptions, Include, export_runs
from matrix_graph.traces.store import read_traces
began, all_began = time.thread_time(), time.process_time()
if what == "parse":
    rows = sum(1 for _ in read_traces(pipe))
else:
    parts = None if what == "answers" else frozenset({Include.answers, Include.simulation})
    rows = export_runs([pipe], out, ExportOptions(parts=parts), card=False).rows
used, all_used = time.thread_time() - began, time.process_time() - all_began
peak = int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1000
print(json.dumps({"rows": rows, "seconds": used, "all": all_used, "peak": peak}))
"""


def text(draw: random.Random, words: int) -> str:
    """So many words that mean nothing, some of them with the mark that makes a trace its own."""
    return " ".join(
        f"{draw.choice(_WORDS)}{_MARK}" if draw.random() < 0.6 else draw.choice(_WORDS) for _ in range(words)
    )


def template(seed: int) -> bytes:
    """A trace of 25 calls as the scenes leave it: four people, four rounds, growing dialogues."""
    draw = random.Random(seed)
    names = ["Asker", "Neighbour", "Sister", "Officer"]
    calls: list[dict[str, Any]] = []

    def call(purpose: str, role: str | None, round: int | None, messages: list[dict[str, str]], words: int) -> str:
        said = json.dumps({"action": text(draw, words)}) if purpose in ("act", "judge") else text(draw, words)
        calls.append(
            {
                "purpose": purpose,
                "role": role,
                "round": round,
                "messages": list(messages),
                "completion": said,
                "finish_reason": "stop",
                "model": "m",
                "sampling": {"temperature": 0.2, "max_tokens": 256},
                "usage": {"input_tokens": 500, "output_tokens": 50},
                "seconds": 0.5,
                "error": None,
            }
        )
        return said

    def user(words: int) -> dict[str, str]:
        return {"role": "user", "content": text(draw, words)}

    question = text(draw, 15)
    draft = call("draft", None, None, [{"role": "user", "content": question}], 150)
    call("cast", None, None, [{"role": "system", "content": text(draw, 200)}, user(200)], 120)
    dialogues = {name: [{"role": "system", "content": text(draw, 150)}] for name in [*names, "modulator"]}
    for number in range(21):
        round, which = divmod(number, 5)
        name = [*names, "modulator"][which]
        chat = dialogues[name]
        chat.append(user(40))
        purpose = "judge" if name == "modulator" else "act"
        said = call(purpose, None if name == "modulator" else name, round + 1, chat, 25)
        chat.append({"role": "assistant", "content": said})
    call("reflect", None, None, [{"role": "system", "content": text(draw, 150)}, user(300)], 40)
    answer = call("revise", None, None, [{"role": "system", "content": text(draw, 100)}, user(400)], 150)
    assert len(calls) == _CALLS
    cast = {"ego": "Asker", "roles": [{"name": name} for name in names], "objects": [], "plan": [text(draw, 8)]}
    head = {"schema_version": 1, "id": f"t{_MARK}", "question": question, "draft": draft, "answer": answer}
    more = {"revised": True, "status": "finished", "error": None, "cast": cast, "events": [], "calls": calls}
    last = {"settings": {"roles": 3}, "usage": {}, "seconds": 9.5, "created_at": "2026-01-01T00:00:00Z"}
    return json.dumps({**head, **more, **last}).encode() + b"\n"


def feed(pipe: Path, lines: list[bytes], traces: int) -> None:
    """Write so many traces, each with a number of its own in the place of the mark."""
    with pipe.open("wb", buffering=1 << 20) as file:
        for number in range(traces):
            file.write(lines[number % len(lines)].replace(_MARK.encode(), b"%010d" % number))


def measure(what: str, folder: Path, lines: list[bytes], traces: int) -> dict[str, float]:
    """One process that reads so many traces: its rows, processor seconds, and peak in megabytes."""
    pipe, out = folder / "traces.jsonl", folder / "rows.jsonl"
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    thread = threading.Thread(target=feed, args=(pipe, lines, traces), daemon=True)
    thread.start()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, what, str(pipe), str(out)], capture_output=True, text=True, check=False
    )
    out.unlink(missing_ok=True)
    if done.returncode:
        raise SystemExit(f"{what}, {traces} traces:\n{done.stderr[-2000:]}")
    thread.join()
    found: dict[str, float] = json.loads(done.stdout)
    return found


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    """Each figure's median over the turns."""
    return {name: median(turn[name] for turn in turns) for name in turns[0]}


def main() -> int:
    """Measure; returns the exit code."""
    made = parser(__doc__)
    made.add_argument("--few", type=int, default=1_000, help="traces at the small end (default: 1000)")
    made.add_argument("--traces", type=int, default=100_000, help="traces at the large end, answers (default: 100000)")
    made.add_argument(
        "--scene-traces", type=int, default=10_000, help="the same with scenes; 60 kB of disk each (default: 10000)"
    )
    options = made.parse_args()
    report = Report()
    lines = [template(seed) for seed in range(50)]
    report.say("bytes a trace", sum(map(len, lines)) / len(lines) / 1000, "kB")
    with tempfile.TemporaryDirectory(prefix="export-") as name:
        folder = Path(name)
        for what, most in (("answers", options.traces), ("simulation", options.scene_traces)):
            heading(f"{what}: {options.few:,} and {most:,} traces")
            turns = 3 if most <= _FEW_ENOUGH else 1
            runs: dict[tuple[str, int], list[dict[str, float]]] = {}
            # The small ones before and after the large, since a shared machine is not as fast all along.
            for count, times in ((options.few, 3), (most, turns), (options.few, 3)):
                for _ in range(times):
                    for each in ("parse", what):
                        runs.setdefault((each, count), []).append(measure(each, folder, lines, count))
            parse, few = medians(runs["parse", options.few]), medians(runs[what, options.few])
            parse_many, many = medians(runs["parse", most]), medians(runs[what, most])
            report.say("rows", many["rows"])
            report.say("parsing alone", 1e6 * parse_many["seconds"] / most, "us a trace")
            report.say("export", 1e6 * many["seconds"] / most, "us a trace")
            report.say("export, all threads", 1e6 * many["all"] / most, "us a trace")
            for count, one, other in ((options.few, parse, few), (most, parse_many, many)):
                speed = one["seconds"] / other["seconds"]
                report.check(f"{what}: speed against parsing alone, {count:,}", speed, at_least=_LEAST_SPEED)
            slower = many["seconds"] / many["rows"] / (few["seconds"] / few["rows"])
            report.check(f"{what}: cost per row, many / few", slower, at_most=_MOST_SLOWER)
            both = slower / (parse_many["seconds"] / most / (parse["seconds"] / options.few))
            report.say(f"{what}: the same beside parsing, which a slower machine slows alike", both)
            report.say("peak memory, few", few["peak"], "MB")
            report.check(f"{what}: growth of the peak", many["peak"] - few["peak"], "MB", at_most=_MOST_GROWTH)
    return report.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
