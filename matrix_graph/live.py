"""A scene as people watch it: colours and a live footer on a terminal, plain lines in a pipe.

Both show the events that `Rehearsal.astream` yields. What stands in them was written by a model, so that it is shown as
text alone: no markup, no control characters.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from matrix_graph.records import Trace

Event = dict[str, Any]

_SIDE_BY_SIDE = 100
"""Columns from which draft and answer stand side by side."""
_MOST_COMPARED = 5000
"""Words and spaces; comparing takes time quadratic in them."""
# Control characters, and those that turn the direction of text around: a terminal must not obey a model.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class View(Protocol):
    """Something that shows a scene; a context manager around its run."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the show."""

    def status(self, line: str) -> None:
        """Show what is being waited for."""

    def show(self, event: Event) -> None:
        """Show one event of the scene."""


def view_for(console: Console) -> View:
    """The view that fits where the output goes."""
    return TerminalView(console) if console.is_terminal else LineView(console)


def safe(text: str) -> str:
    """The text without characters that a terminal would obey."""
    return _UNSAFE.sub("\ufffd", text)


class LineView:
    """Plain lines, each whole in itself, for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def status(self, line: str) -> None:
        """One line."""
        self._line(f"[{line}]")

    def show(self, event: Event) -> None:
        """One or more lines."""
        for line in _lines(event):
            self._line(line)

    def _line(self, line: str) -> None:
        self._console.print(" ".join(safe(line).split()), markup=False, highlight=False, soft_wrap=True, emoji=False)


def _lines(event: Event) -> list[str]:
    kind = event["type"]
    if kind == "question":
        return [f"question: {event['question']}"]
    if kind == "draft":
        return [f"draft{' (given)' if event['given'] else ''}: {event['draft']}"]
    if kind == "cast":
        cast = event["cast"]
        return [
            *(
                f"role: {role['name']}{' (ego)' if role['name'] == cast['ego'] else ''}: {role['traits']}; "
                f"wants: {role['goal']}"
                for role in cast["roles"]
            ),
            *(f"object: {thing['name']}: {thing['state']}" for thing in cast["objects"]),
            *(f"plan {number}: {step}" for number, step in enumerate(cast["plan"], 1)),
        ]
    if kind == "event":
        head = f"round {event['round']}: {event['role']}: {event['action']}"
        if not event["plausible"]:
            return [f"{head} -- REJECTED: {event['reason']}"]
        lines = [f"{head} -- seen by: {', '.join(event['observers']) or 'nobody'}"]
        lines += [f"  {c['object']}: {c['before']} -> {c['after']}" for c in event["changes"]]
        return [*lines, *([f"  consequence: {event['consequence']}"] if event["consequence"] else [])]
    if kind == "failure":
        return [f"round {event['round']}: {event['purpose']} of {event['role']} failed: {event['error']['message']}"]
    if kind == "reflection":
        verdict = "the draft should be revised" if event["revise"] else "nothing speaks against the draft"
        return [f"reflection: {verdict}{': ' + event['lesson'] if event['lesson'] else ''}"]
    if kind == "result":
        trace: Trace = event["trace"]
        answer = f"answer: {trace.answer}" if trace.revised else "answer: the draft, unchanged"
        return [_summary(trace) if trace.error else answer, *([] if trace.error else [_summary(trace)])]
    return []


class TerminalView:
    """Colours, and a footer with the objects' states and what is being waited for."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._objects: dict[str, str] = {}
        self._round = 0
        self._waiting = "starting"
        self._since = time.monotonic()
        self._live = Live(get_renderable=self._footer, console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def status(self, line: str) -> None:
        """In the footer."""
        self._waiting = line

    def show(self, event: Event) -> None:
        """Above the footer."""
        shown = _SHOWN.get(event["type"])
        if shown is not None:
            for renderable in shown(self, event):
                self._console.print(renderable)

    def _footer(self) -> RenderableType:
        waiting = Spinner("dots", Text(f"{safe(self._waiting)}  {time.monotonic() - self._since:.0f} s", style="dim"))
        if not self._objects:
            return waiting
        states = Text("  ").join(
            Text.assemble((safe(name), "bold yellow"), (f" {safe(state)}", "yellow"))
            for name, state in self._objects.items()
        )
        return Group(states, waiting)

    def _question(self, event: Event) -> list[RenderableType]:
        self._waiting = "the model drafts its answer"
        return [Panel(Text(safe(event["question"])), title="Question", title_align="left", border_style="cyan")]

    def _draft(self, event: Event) -> list[RenderableType]:
        self._waiting = "the scene is cast"
        title = "Draft (given)" if event["given"] else "Draft"
        return [Panel(Text(safe(event["draft"]), style="dim"), title=title, title_align="left", border_style="dim")]

    def _cast(self, event: Event) -> list[RenderableType]:
        cast = event["cast"]
        self._objects = {thing["name"]: thing["state"] for thing in cast["objects"]}
        self._waiting = "round 1"
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
        for heading in ("Role", "Traits", "Goal"):
            table.add_column(heading, overflow="fold")
        for role in cast["roles"]:
            ego = role["name"] == cast["ego"]
            name = Text(safe(role["name"]) + (" (ego)" if ego else ""), style="bold cyan" if ego else "bold")
            table.add_row(name, Text(safe(role["traits"])), Text(safe(role["goal"])))
        lines: list[RenderableType] = [Rule("Cast", align="left", style="dim"), table]
        for thing, state in self._objects.items():
            lines.append(Text.assemble((safe(thing), "bold yellow"), f": {safe(state)}"))
        for number, step in enumerate(cast["plan"], 1):
            lines.append(Text.assemble((f"plan {number}  ", "cyan"), safe(step)))
        return lines

    def _action(self, event: Event) -> list[RenderableType]:
        self._waiting = f"round {event['round']}: the modulator judges"
        return []

    def _event(self, event: Event) -> list[RenderableType]:
        lines: list[RenderableType] = []
        if event["round"] != self._round:
            self._round = event["round"]
            lines.append(Rule(f"Round {self._round}", align="left", style="dim"))
        self._waiting = f"round {self._round + 1}: the roles act"
        role, action = safe(event["role"]), safe(event["action"])
        if not event["plausible"]:
            lines.append(Text.assemble(("✗ ", "red"), (role, "bold"), "  ", (action, "strike red")))
            return [*lines, Padding(Text(f"rejected: {safe(event['reason'])}", style="red"), (0, 0, 0, 4))]
        lines.append(Text.assemble(("✓ ", "green"), (role, "bold"), "  ", action))
        seen = ", ".join(safe(name) for name in event["observers"]) or "nobody"
        lines.append(Padding(Text(f"seen by {seen}", style="dim"), (0, 0, 0, 4)))
        for change in event["changes"]:
            self._objects[change["object"]] = change["after"]
            change_line = f"{safe(change['object'])}: {safe(change['before'])} → {safe(change['after'])}"
            lines.append(Padding(Text(change_line, style="yellow"), (0, 0, 0, 4)))
        if event["consequence"]:
            lines.append(Padding(Text(f"⇒ {safe(event['consequence'])}", style="magenta"), (0, 0, 0, 4)))
        return lines

    def _failure(self, event: Event) -> list[RenderableType]:
        text = f"! {safe(event['role'] or '')}: {event['purpose']} failed: {safe(event['error']['message'])}"
        return [Text(text, style="red")]

    def _reflection(self, event: Event) -> list[RenderableType]:
        self._waiting = "the answer is revised"
        lines: list[RenderableType] = [Rule("Reflection", align="left", style="dim")]
        if event["lesson"]:
            lines.append(Text(safe(event["lesson"])))
        verdict = "The draft should be revised." if event["revise"] else "Nothing speaks against the draft."
        return [*lines, Text(verdict, style="bold yellow" if event["revise"] else "bold green")]

    def _result(self, event: Event) -> list[RenderableType]:
        trace: Trace = event["trace"]
        self._objects = {}
        self._waiting = "done"
        if trace.error:
            return [Text(_summary(trace), style="bold red")]
        if not trace.revised:
            return [Text("The answer is the draft, unchanged.", style="bold green"), Text(_summary(trace), style="dim")]
        before, after = _compared(safe(trace.draft or ""), safe(trace.answer or ""))
        panels: list[RenderableType] = [
            Panel(before, title="Draft", title_align="left", border_style="dim"),
            Panel(after, title="Answer", title_align="left", border_style="green"),
        ]
        if self._console.width >= _SIDE_BY_SIDE:
            half = self._console.width // 2 - 1
            panels = [Columns(panels, width=half, padding=(0, 1))]
        return [*panels, Text(_summary(trace), style="dim")]


_SHOWN: dict[str, Callable[[TerminalView, Event], list[RenderableType]]] = {
    "question": TerminalView._question,
    "draft": TerminalView._draft,
    "cast": TerminalView._cast,
    "action": TerminalView._action,
    "event": TerminalView._event,
    "failure": TerminalView._failure,
    "reflection": TerminalView._reflection,
    "result": TerminalView._result,
}


def _summary(trace: Trace) -> str:
    if trace.error:
        return f"failed: {trace.error.type}: {safe(trace.error.message)}"
    rejected = sum(not event.plausible for event in trace.events)
    return (
        f"{trace.status} after {max((event.round for event in trace.events), default=0)} rounds: "
        f"{len(trace.events)} actions, {rejected} rejected, {len(trace.calls)} calls, "
        f"{trace.usage.input_tokens} + {trace.usage.output_tokens} tokens, {trace.seconds:.1f} s"
    )


def _compared(draft: str, answer: str) -> tuple[Text, Text]:
    """Draft and answer, word by word: what fell away in red, what is new in green."""
    old, new = re.split(r"(\s+)", draft), re.split(r"(\s+)", answer)
    if max(len(old), len(new)) > _MOST_COMPARED:
        return Text(draft), Text(answer)
    before, after = Text(), Text()
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        before.append("".join(old[a:b]), style="" if tag == "equal" else "red")
        after.append("".join(new[c:d]), style="" if tag == "equal" else "green")
    return before, after
