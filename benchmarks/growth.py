"""Does a run of ten thousand scenes grow: in memory, in time per scene, on the disk?

    python benchmarks/growth.py
    python benchmarks/growth.py --scenes 1500

`matrix-graph run` is started as a process of its own, as people start it, against a local server that answers after 20
ms (`local_server.py`), and looked at from outside, several times a second: the most memory it ever held (VmHWM), its
processor time, both with its worker processes if it has any, and how many traces are on the disk.

memory  the peak until the last scene minus the peak until a tenth of them (at 10,000 scenes: until 1,000)
time    per scene in the last tenth against the first tenth; both without the scenes that build up and run down the load
        (as many as are in flight at most), and each the median of five chunks. What counts is processor time, since on
        a shared machine the time on the clock is the neighbours' as well; that is printed, too. Even processor time
        moves with them, so that a tenth must take long: of fewer than some thousand scenes the ratio says little.
disk    what traces.jsonl holds beyond the messages and completions themselves (as JSON strings), per scene of 25 calls

Why it is fair: both ends are measured in one and the same process, on questions of the same kind, in one run. The local
server's replies depend on the request alone, so that the scenes at the end are like those at the beginning.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from _common import (
    Lines,
    Report,
    heading,
    local_server,
    parser,
    process_use,
    run_command,
    topical_question,
    write_questions,
)

_LOOK_SECONDS = 0.2
_CHUNKS = 5
_MEGABYTE = 1_000_000
_TYPICAL_CALLS = 25
_MOST_GROWTH = 100.0
"""Megabytes."""
_MOST_SLOWER = 1.10
_MOST_DISK = 40.0
"""Kilobytes per scene of 25 calls beyond the messages."""


@dataclass(frozen=True)
class Look:
    """How the run stood at one moment.

    Attributes:
        clock: seconds since it was started.
        scenes: traces on the disk.
        peak: the most memory that it ever held, in bytes.
        now: the memory that it holds, in bytes.
        cpu: its processor time, in seconds.
    """

    clock: float
    scenes: int
    peak: int
    now: int
    cpu: float


def watch(command: list[str], traces: Path, log: Path) -> list[Look]:
    """Start the run and look at it until it ends.

    Raises:
        SystemExit: it failed.
    """
    looks: list[Look] = []
    lines = Lines(traces)
    began = told = time.monotonic()
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            while process.poll() is None:
                use = process_use(process.pid, with_family=True)
                if use is not None:
                    clock = time.monotonic() - began
                    looks.append(Look(clock, lines.look(), use.peak, use.now, use.cpu))
                if looks and time.monotonic() - told > 30:
                    told = time.monotonic()
                    print(f"  {looks[-1].scenes:6,} scenes, {looks[-1].now / _MEGABYTE:5.0f} MB", flush=True)
                time.sleep(_LOOK_SECONDS)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise SystemExit(f"The run ended with code {process.returncode}:\n{log.read_text(errors='replace')[-2000:]}")
    return looks


def peak_until(looks: list[Look], scenes: int) -> int:
    """The most memory that was held until so many scenes were done, in bytes."""
    return next((look.peak for look in looks if look.scenes >= scenes), looks[-1].peak)


def at_scene(looks: list[Look], scene: float, name: str) -> float:
    """`cpu` or `clock` when so many scenes were done, between two looks in proportion."""
    for before, after in pairwise(looks):
        if before.scenes <= scene <= after.scenes and after.scenes > before.scenes:
            part = (scene - before.scenes) / (after.scenes - before.scenes)
            start = float(getattr(before, name))
            return start + part * (float(getattr(after, name)) - start)
    return float(getattr(looks[-1], name))


def per_scene(looks: list[Look], first: int, last: int, name: str) -> float:
    """Milliseconds of `cpu` or `clock` per scene from one scene to another: the median of a few chunks."""
    edges = [first + n * (last - first) / _CHUNKS for n in range(_CHUNKS + 1)]
    return median(
        1000 * (at_scene(looks, end, name) - at_scene(looks, start, name)) / (end - start)
        for start, end in pairwise(edges)
    )


@dataclass
class Disk:
    """What the traces take: their bytes, and those of the messages and completions in them."""

    scenes: int = 0
    calls: int = 0
    whole: int = 0
    texts: int = 0


def disk_use(traces: Path) -> Disk:
    """Measure every trace."""
    disk = Disk()
    with traces.open("rb") as file:
        for line in file:
            trace = json.loads(line)
            disk.scenes += 1
            disk.calls += len(trace["calls"])
            disk.whole += len(line)
            for call in trace["calls"]:
                for text in (*(message["content"] for message in call["messages"]), call["completion"]):
                    disk.texts += len(json.dumps(text, ensure_ascii=False).encode())
    return disk


def main() -> int:
    """Measure; returns the exit code."""
    made = parser(__doc__)
    made.add_argument(
        "--scenes", type=int, default=10_000, help="questions (default: 10000; about 200 kB of disk each)"
    )
    made.add_argument("--delay", type=float, default=0.02, help="seconds that the server takes (default: 0.02)")
    made.add_argument("--requests", type=int, default=64, help="requests in flight (default: 64)")
    options = made.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="growth-") as name, local_server(options.delay) as url:
        folder = Path(name)
        questions, out = folder / "questions.jsonl", folder / "run"
        write_questions(questions, map(topical_question, range(options.scenes)))
        more = ("--base-url", url, "--max-requests", str(options.requests))
        looks = watch(run_command(questions, out, *more), out / "traces.jsonl", folder / "log")
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        in_flight = summary["limits"]["scenes"]
        disk = disk_use(out / "traces.jsonl")
    heading(f"{disk.scenes:,} scenes, {options.requests} requests in flight, {looks[-1].clock:.0f} s")
    report.check("questions with a trace", disk.scenes, at_least=options.scenes, at_most=options.scenes)
    tenth = options.scenes // 10
    early, late = peak_until(looks, tenth) / _MEGABYTE, looks[-1].peak / _MEGABYTE
    report.say(f"peak memory until {tenth:,} scenes", early, "MB")
    report.say(f"peak memory until {options.scenes:,} scenes", late, "MB")
    report.check("growth of the peak", late - early, "MB", at_most=_MOST_GROWTH)
    first = (in_flight, in_flight + tenth)
    last = (options.scenes - in_flight - tenth, options.scenes - in_flight)
    times = {field: [per_scene(looks, *chunk, field) for chunk in (first, last)] for field in ("cpu", "clock")}
    for field, what in (("cpu", "processor time"), ("clock", "time on the clock")):
        report.say(f"{what} per scene, first tenth", times[field][0], "ms")
        report.say(f"{what} per scene, last tenth", times[field][1], "ms")
    tenths = [in_flight + n * (options.scenes - 2 * in_flight) / 10 for n in range(11)]
    each = [per_scene(looks, int(start), int(end), "cpu") for start, end in pairwise(tenths)]
    report.say("processor time per scene by tenths, ms", " ".join(f"{milliseconds:.1f}" for milliseconds in each))
    report.check("last / first tenth, processor time", times["cpu"][1] / times["cpu"][0], at_most=_MOST_SLOWER)
    report.say("last / first tenth, time on the clock", times["clock"][1] / times["clock"][0])
    calls = disk.calls / disk.scenes
    report.say("calls per scene", calls)
    report.say("disk per scene", disk.whole / disk.scenes / 1000, "kB")
    report.say("of it messages and completions", disk.texts / disk.scenes / 1000, "kB")
    beyond = (disk.whole - disk.texts) / disk.scenes / 1000
    report.check(
        f"disk beyond these, per scene of {_TYPICAL_CALLS} calls",
        beyond * _TYPICAL_CALLS / calls,
        "kB",
        at_most=_MOST_DISK,
    )
    return report.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
