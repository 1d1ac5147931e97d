"""How large is the report of 5,000 scenes, how long does it take to write, and how quickly does it answer in a browser?

The scenes are made up: 25 calls each, append-only dialogues, prompts about as long as a scene's, so that a trace is
as long as a real one. Each scene has words of its own, since repeated ones would pack far better than a model's.
Filters are timed within the page, from the key to the rows on the screen (layout included). Without playwright or
Chromium the browser's figures are left out, and what must be reached counts as missed.

    .venv/bin/python benchmarks/report.py
    .venv/bin/python benchmarks/report.py --scenes 500 --json report.json
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import Report, parser

from matrix_graph.records import Trace
from matrix_graph.traces.report import write_report
from matrix_graph.traces.store import FILE_NAME, read_traces, trace_line

_ROLES = ("Ada", "Bela", "Chen", "Dina")
_ROUNDS = 5
_FILTER = """([id, value]) => {
  const input = document.getElementById(id);
  const began = performance.now();
  if (input.type === 'checkbox') input.checked = value; else input.value = value;
  input.dispatchEvent(new Event('input', { bubbles: true }));
  document.getElementById('scenes').getBoundingClientRect();
  return performance.now() - began;
}"""
_FILTERS = (("q", "neighbour letter"), ("q", "n"), ("q", "zzz"), ("q", ""), ("status", "failed"), ("rejected", True))


def a_scene(number: int) -> Trace:
    """A scene of 25 calls; the same number gives the same scene."""
    chance = random.Random(number)
    vocabulary = [f"w{chance.getrandbits(20):05x}" for _ in range(300)] + ["neighbour", "letter", "money", "door"] * 40

    def words(count: int) -> str:
        return " ".join(chance.choices(vocabulary, k=count))

    def call(purpose: str, role: str | None, round: int | None, messages: list[Any], completion: str) -> dict[str, Any]:
        return {
            "purpose": purpose,
            "role": role,
            "round": round,
            "messages": list(messages),
            "completion": completion,
            "finish_reason": "stop",
            "model": "local",
            "sampling": {"temperature": 0.2, "max_tokens": 384},
            "usage": {"input_tokens": 400, "output_tokens": 60},
            "seconds": 1.0,
        }

    question, draft = f"How do I ask my neighbour about {words(15)}?", words(150)
    rules = {"role": "system", "content": "Judge the actions of a scene one by one. " * 90}
    judge: list[Any] = [rules, {"role": "user", "content": words(120)}]
    calls = [call("draft", None, None, [{"role": "user", "content": question}], draft)]
    calls.append(call("cast", None, None, [rules, {"role": "user", "content": draft}], words(90)))
    calls.append(call("reflect", None, None, [rules, {"role": "user", "content": draft}], words(60)))
    calls.append(call("revise", None, None, [{"role": "user", "content": question + draft}], words(150)))
    own: dict[str, list[Any]] = {name: [rules, {"role": "user", "content": words(60)}] for name in _ROLES}
    events = []
    for round in range(1, _ROUNDS + 1):
        for name in _ROLES[: 2 + round % 2]:
            action, reason = words(18), words(12)
            plausible = chance.random() < 0.85
            own[name] = [*own[name], {"role": "user", "content": words(25)}]
            calls.append(call("act", name, round, own[name], action))
            own[name] = [*own[name], {"role": "assistant", "content": action}]
            judge = [*judge, {"role": "user", "content": action}]
            calls.append(call("judge", name, round, judge, reason))
            judge = [*judge, {"role": "assistant", "content": reason}]
            events.append(
                {
                    "round": round,
                    "role": name,
                    "action": action,
                    "plausible": plausible,
                    "reason": reason,
                    "observers": [other for other in _ROLES if other != name][:2] if plausible else [],
                    "changes": [],
                    "consequence": words(12) if plausible else None,
                }
            )
    status = chance.choices(("finished", "blocked", "failed"), (90, 7, 3))[0]
    return Trace.model_validate(
        {
            "id": f"{chance.getrandbits(128):032x}",
            "question": question,
            "draft": draft,
            "answer": words(150),
            "revised": status != "failed" and chance.random() < 0.6,
            "status": status,
            "cast": {"ego": "Ada", "roles": [{"name": name, "traits": words(6), "goal": words(8)} for name in _ROLES]},
            "events": events,
            "calls": calls[:25],
            "settings": {"roles": 3, "steps": 4},
            "usage": {"input_tokens": 10_000, "output_tokens": 1_500},
            "seconds": 40.0,
            "created_at": "2026-01-02T03:04:05Z",
        }
    )


def main() -> int:
    """Measure and print; returns 0 only if every figure is reached."""
    made = parser(__doc__)
    made.add_argument("--scenes", type=int, default=5_000, help="how many scenes (default: 5,000)")
    arguments = made.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / FILE_NAME).open("wb") as file:
            for number in range(arguments.scenes):
                file.write(trace_line(a_scene(number)) + b"\n")
        report.say("scenes", arguments.scenes)
        report.say("traces", (folder / FILE_NAME).stat().st_size / 1e6, "MB")
        began = time.perf_counter()
        for _ in read_traces(folder):
            pass
        reading = time.perf_counter() - began
        report.say("reading them, which writing includes", reading, "s")
        for calls in (False, True):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            began = time.perf_counter()
            written = write_report([folder], folder / f"{calls}.html", calls=calls)
            took = time.perf_counter() - began
            kind = "with" if calls else "without"
            report.say(f"page {kind} calls", written.bytes / 1e6, "MB")
            report.say(f"writing it {kind} calls", took, "s")
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            report.check(f"memory that writing it took {kind} calls", grown, "MB", at_most=100)
        opened, slowest = in_the_browser(written.path)
        report.check("page opened, list on the screen", opened, "s", at_most=5)
        report.check("slowest filter, median of 9", slowest, "ms", at_most=200)
    return report.finish(arguments.json)


def in_the_browser(page_file: Path) -> tuple[float | None, float | None]:
    """Seconds until the list is there, and milliseconds of the slowest filter; None: there is no browser."""
    path = os.environ.get("MATRIX_GRAPH_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None, None
    if path is None:
        return None, None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        began = time.perf_counter()
        page.goto(page_file.as_uri(), wait_until="commit")
        page.wait_for_selector("#scenes > li")
        opened = time.perf_counter() - began
        page.wait_for_selector("html[data-ready=search]", timeout=60_000)
        slowest = 0.0
        for wanted in _FILTERS:
            times = sorted(page.evaluate(_FILTER, list(wanted)) for _ in range(9))
            slowest = max(slowest, times[4])
            page.evaluate(_FILTER, [wanted[0], False if wanted[1] is True else ""])
        browser.close()
    return opened, slowest


if __name__ == "__main__":
    sys.exit(main())
