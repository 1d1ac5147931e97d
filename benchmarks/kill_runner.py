"""What is lost, and what is done twice, if the runner is killed again and again?

    python benchmarks/kill_runner.py
    python benchmarks/kill_runner.py --scenes 60 --kills 6 --seed 3

`matrix-graph run` plays questions on a local server (`local_server.py`), gets SIGKILL at moments of chance (while it
starts, in the middle, while it writes), and is started again with the same command until it is through. Then:

- every question stands in traces.jsonl exactly once, every line is whole JSON;
- work done twice: the server counts how often each question was begun. No question was begun again whose trace was on
  the disk when the runner was killed, so that scenes played twice are at most those that were in flight at the kills.

Why the count can be trusted: it is the server's, which outlives the runner; what was in flight at a kill is the
questions that the server saw begin in that start less the lines that the start added, and is held against the limit
that the runner was given. The moments come from a seed, which is printed: the same seed chooses the same ones, as far
as a busy machine keeps time.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from _common import (
    Lines,
    Report,
    check_traces,
    heading,
    kill,
    local_server,
    parser,
    run_command,
    topical_question,
    write_questions,
)

_LOOK_SECONDS = 0.005
_STARTING_SECONDS = 3.0
"""In which a program starts, takes its lock and reads its folder."""
_AT_THE_START = 0.15
"""Share of the kills that come in these seconds, whatever has been done."""
_SETTLE_SECONDS = 0.3
"""In which the server reads what was on its way when the runner was killed."""
_STUCK_SECONDS = 120.0


@dataclass(frozen=True)
class Kill:
    """One start that was killed.

    Attributes:
        after: seconds since the start.
        done: traces on the disk, whole lines.
        torn: whether the last line was torn.
        in_flight: scenes that the start had begun and not kept.
        again: questions that it began although their trace had been on the disk when it was started.
    """

    after: float
    done: int
    torn: bool
    in_flight: int
    again: int


def drafts(url: str) -> Counter[str]:
    """How often each question was begun, as the server counts."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/drafts", timeout=30) as response:
        return Counter(json.load(response))


def kept(traces: Path) -> set[str]:
    """The questions of the whole lines; the torn end that a killed writer leaves is passed over."""
    if not traces.exists():
        return set()
    with traces.open("rb") as file:
        return {json.loads(line)["question"] for line in file if line.endswith(b"\n")}


def start_and_kill(command: list[str], url: str, traces: Path, log: Path, wanted: int, pause: float) -> Kill | None:
    """Start the run, and kill it a moment after it has kept so many traces; None: it came to its end before.

    Raises:
        SystemExit: it ended with an error, or nothing moves any more.
    """
    before, begun = kept(traces), drafts(url)
    lines = Lines(traces)
    began = moved = time.monotonic()
    count = lines.look()
    with log.open("ab") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        while lines.look() < wanted and process.poll() is None:
            if lines.count != count:
                count, moved = lines.count, time.monotonic()
            if time.monotonic() - moved > _STUCK_SECONDS:
                kill(process)
                raise SystemExit(
                    f"Nothing was kept for {_STUCK_SECONDS:g} s:\n{log.read_text(errors='replace')[-2000:]}"
                )
            time.sleep(_LOOK_SECONDS)
        time.sleep(pause)
        if process.poll() is not None:
            check_exit(process.returncode, log)
            return None
        kill(process)
    after = time.monotonic() - began
    time.sleep(_SETTLE_SECONDS)
    now, done = drafts(url) - begun, kept(traces)
    return Kill(
        after=after,
        done=len(done),
        torn=traces.exists() and not traces.read_bytes().endswith(b"\n") and traces.stat().st_size > 0,
        in_flight=len(now.keys() - (done - before)),
        again=len(now.keys() & before),
    )


def check_exit(code: int, log: Path) -> None:
    """See that a start that came to its end did so in order.

    Raises:
        SystemExit: it did not.
    """
    if code:
        raise SystemExit(f"A start ended with code {code}:\n{log.read_text(errors='replace')[-2000:]}")


def main() -> int:
    """Kill and count; returns the exit code."""
    made = parser(__doc__)
    made.add_argument("--scenes", type=int, default=200, help="questions (default: 200)")
    made.add_argument("--kills", type=int, default=20, help="how often the runner is killed (default: 20)")
    made.add_argument("--requests", type=int, default=8, help="requests in flight (default: 8)")
    made.add_argument("--delay", type=float, default=0.02, help="seconds that the server takes (default: 0.02)")
    made.add_argument("--seed", type=int, help="of the moments (default: a new one, printed)")
    options = made.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    chance = random.Random(seed)
    report = Report()
    heading(f"{options.scenes} scenes, {options.kills} kills, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="kill-runner-") as name, local_server(options.delay) as url:
        folder = Path(name)
        questions, out, log = folder / "questions.jsonl", folder / "run", folder / "log"
        traces = out / "traces.jsonl"
        asked = [topical_question(number) for number in range(options.scenes)]
        write_questions(questions, asked)
        command = run_command(questions, out, "--base-url", url, "--max-requests", str(options.requests))
        kills: list[Kill] = []
        done = 0
        while len(kills) < options.kills:
            # On average each start does its share of what is left; now and then one dies while it starts.
            left = options.scenes - done - 2 * options.requests
            more = chance.randint(1, max(1, 2 * left // (options.kills - len(kills) + 1)))
            pause = chance.uniform(0, 0.2)
            if left < 1 or chance.random() < _AT_THE_START:
                more, pause = 0, chance.uniform(0, _STARTING_SECONDS)
            killed = start_and_kill(command, url, traces, log, done + more, pause)
            if killed is None:
                break
            kills.append(killed)
            done = killed.done
            print(
                f"  killed after {killed.after:5.2f} s: {killed.done:3d} done, {killed.in_flight:3d} in flight"
                f"{', a line torn' if killed.torn else ''}",
                flush=True,
            )
        with log.open("ab") as output:
            check_exit(subprocess.run(command, stdout=output, stderr=output, check=False).returncode, log)
        begun = drafts(url)
        limit = json.loads((out / "summary.json").read_text(encoding="utf-8"))["limits"]["scenes"]
        heading("What came of it")
        report.check("kills", len(kills), at_least=options.kills, at_most=options.kills)
        check_traces(report, asked, traces)
    in_flight = sum(killed.in_flight for killed in kills)
    report.say("lines that a kill tore and the next start mended", sum(killed.torn for killed in kills))
    report.check("begun again although kept", sum(killed.again for killed in kills), at_most=0)
    report.check("most scenes in flight at a kill", max((one.in_flight for one in kills), default=0), at_most=limit)
    report.say("scenes in flight at the kills", in_flight)
    report.check("scenes played again", begun.total() - len(begun), at_most=in_flight)
    return report.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
