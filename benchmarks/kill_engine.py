"""What becomes of the scenes if the engine is killed in the middle of a run, again and again?

    python benchmarks/kill_engine.py QUESTIONS.jsonl
    python benchmarks/kill_engine.py QUESTIONS.jsonl --scenes 16 --kills 2 --out runs/killed

`matrix-graph run` plays questions on a real vLLM server of its own. At moments spread over the run, told by the calls
that summary.json counts, a process of the engine gets SIGKILL: its core and its API server in turn. The run has to
notice, bring the engine back and go on with the scenes that were in flight. Then every question must have exactly one
trace, all of them finished or blocked, none failed and none set aside.

What is real here: the engine, the weights and the deaths; the run is the command that people start, and gets no hint.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _common import (
    Report,
    check_traces,
    family,
    heading,
    parser,
    process_use,
    questions_from,
    run_command,
    write_questions,
)

_LOOK_SECONDS = 0.5
_USUAL_CALLS = 16.0
"""Calls per scene, until the run itself tells more: rather too few, so that the last kill comes before the end."""
_PART = (0.5, 1.0)
"""Of an even share of the calls that are left, what a kill waits for, at least and at most."""


def engine_process(runner: int, name: str) -> int | None:
    """The pid of a process of the engine.

    Args:
        runner: the run's process.
        name: "core" or "API server".

    Returns:
        None while there is none, because the engine is being started for instance.
    """
    below = family(runner)
    # The server's supervisor has the server's command line in its own; its child is the API server.
    supervisors = {pid for pid, _, line in below if "_supervisor.py" in line}
    servers = [pid for pid, parent, _ in below if parent in supervisors]
    if not servers or name == "API server":
        return servers[0] if servers else None
    workers = [(pid, line) for pid, _, line in family(servers[0])]
    named = [pid for pid, line in workers if "EngineCore" in line]
    if named:
        return named[0]
    # Where vLLM cannot name its processes, the core is the one that holds the weights.
    sizes = {pid: use.now for pid, _ in workers if (use := process_use(pid)) is not None}
    return max(sizes, key=lambda pid: sizes[pid], default=None)


def summary_of(out: Path) -> dict[str, Any]:
    """The run's summary; empty while there is none."""
    try:
        content: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


class Killer:
    """Decides when the engine dies next, and sees to it.

    Args:
        out: the run's folder.
        scenes: questions of the run.
        kills: how often.
        chance: of the moments.
    """

    def __init__(self, out: Path, scenes: int, kills: int, chance: random.Random) -> None:
        self.done: list[str] = []
        self._out = out
        self._scenes = scenes
        self._kills = kills
        self._chance = chance
        self._calls_then = 0
        self._part = chance.uniform(*_PART)

    def look(self, runner: int) -> None:
        """Kill if it is time."""
        summary = summary_of(self._out)
        if not summary or len(self.done) == self._kills:
            return
        calls = summary["this_start"]["calls"]
        expected = self._scenes * max(summary["rates"]["calls_per_scene"] or 0.0, _USUAL_CALLS)
        share = max(expected - self._calls_then, self._scenes) / (self._kills - len(self.done) + 1)
        if calls < self._calls_then + share * self._part or summary["state"] != "running":
            return
        name = ("core", "API server")[len(self.done) % 2]
        pid = engine_process(runner, name)
        if pid is None:
            return
        os.kill(pid, signal.SIGKILL)
        self.done.append(name)
        self._calls_then, self._part = calls, self._chance.uniform(*_PART)
        questions = summary["questions"]
        print(
            f"  kill {len(self.done)}: the {name} (pid {pid}) after {calls} calls, {questions['done']} scenes done, "
            f"{questions['in_flight']} in flight",
            flush=True,
        )


@contextmanager
def folder_for(out: Path | None) -> Iterator[Path]:
    """The given folder, or one that is gone afterwards."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="kill-engine-") as name:
        yield Path(name)


def main() -> int:
    """Run, kill and count; returns the exit code."""
    made = parser(__doc__)
    made.add_argument("questions", type=Path, metavar="QUESTIONS.jsonl", help='rows with a "question"')
    made.add_argument("--scenes", type=int, default=64, help="questions of the run (default: 64)")
    made.add_argument("--kills", type=int, default=5, help="how often the engine is killed (default: 5)")
    made.add_argument("--seed", type=int, help="of the moments (default: a new one, printed)")
    made.add_argument("--model", help="model folder or hub id (default: the bundled model)")
    made.add_argument("--config", type=Path, metavar="FILE", help="settings of the run, as `matrix-graph run --config`")
    made.add_argument("--out", type=Path, help="keep the run's folder and its output here, which must be a new one")
    options = made.parse_args()
    if options.out is not None and options.out.exists() and any(options.out.iterdir()):
        made.error(f"{options.out} is not empty; name a new folder")
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    asked = questions_from(options.questions, options.scenes)
    report = Report()
    heading(f"{options.scenes} scenes, {options.kills} kills, seed {seed}")
    with folder_for(options.out) as folder:
        questions, out, log = folder / "questions.jsonl", folder / "run", folder / "log"
        write_questions(questions, asked)
        given = {"--model": options.model, "--config": options.config}
        more = [word for name, value in given.items() if value is not None for word in (name, str(value))]
        command = run_command(questions, out, *more)
        killer = Killer(out, options.scenes, options.kills, random.Random(seed))
        began = time.monotonic()
        with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
            try:
                while process.poll() is None:
                    killer.look(process.pid)
                    time.sleep(_LOOK_SECONDS)
            except BaseException:
                process.terminate()
                raise
        if process.returncode or not (out / "traces.jsonl").exists():
            print(log.read_text(errors="replace")[-3000:])
        if not (out / "traces.jsonl").exists():
            raise SystemExit("The run kept nothing; its output stands above.")
        heading(f"What came of it, after {time.monotonic() - began:.0f} s")
        report.check("kills", len(killer.done), at_least=options.kills, at_most=options.kills)
        report.check("exit code of the run", process.returncode, at_least=0, at_most=0)
        traces = check_traces(report, asked, out / "traces.jsonl")
        summary = summary_of(out)
    statuses = Counter(trace["status"] for trace in traces)
    report.check("scenes finished or blocked", statuses["finished"] + statuses["blocked"], at_least=options.scenes)
    report.say("of these blocked", statuses["blocked"])
    report.check("scenes that failed", statuses["failed"], at_most=0)
    report.check("questions set aside", summary["questions"]["set_aside"], at_most=0)
    report.say("restarts of the engine", summary["this_start"]["restarts"])
    report.say("seconds in which the server was away", summary["this_start"]["seconds_away"])
    for trace in traces:
        if trace["error"]:
            print(f"  failed: {trace['error']['type']}: {trace['error']['message'][:200]}")
    return report.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
