"""A scene as people watch it: colours and a live footer on a terminal, plain lines in a pipe.

Both show the events that `Rehearsal.astream` yields. What stands in them was written by a model, so that it is shown as
text alone: no markup, no control characters.
"""

from __future__ import annotations

import difflib
import re
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from matrix_graph.records import Trace, escaped

Event = dict[str, Any]

_SIDE_BY_SIDE = 100
"""Columns from which draft and answer stand side by side."""
_MOST_COMPARED = 5000
"""Words; comparing takes time quadratic in them."""
_MOST_OBJECTS = 8
"""Objects that the footer has room for."""
_REFRESH_SECONDS = 0.125
_STANCES = {
    "helps": "the draft helps; the scene plays what it says",
    "declines": "the draft declines; the scene plays what would come of it",
}
_EFFECTS = {"helped": ("+", "green"), "harmed": ("✗", "red"), "left without help": ("!", "yellow")}
_VERDICTS = {
    "keep": "nothing speaks against the draft",
    "improve": "the draft should help in a better way",
    "kinder": "the draft should decline more kindly",
    "help": "the draft should help",
}
CUT = "the answer ended at its limit of tokens, its end is missing; raise max_answer_tokens"
# Control characters, those that turn the direction of text around, and what no terminal can encode: a terminal must not
# obey a model.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


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
    return _UNSAFE.sub("\ufffd", escaped(text))


def _line(text: str) -> str:
    """The text as a single safe line."""
    return " ".join(safe(text).split())


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
        self._print(f"[{line}]")

    def show(self, event: Event) -> None:
        """One or more lines."""
        for line in _lines(event):
            self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(_line(line), markup=False, highlight=False, soft_wrap=True, emoji=False)


def _lines(event: Event) -> list[str]:
    kind = event["type"]
    if kind == "question":
        return [f"question: {event['question']}"]
    if kind == "draft":
        return [f"draft{' (given)' if event['given'] else ''}: {event['draft']}"]
    if kind == "cast":
        cast = event["cast"]
        return [
            *([f"situation: {cast['situation']}"] if cast.get("situation") else []),
            *([f"stance: {_STANCES[cast['stance']]}"] if cast.get("stance") in _STANCES else []),
            *(_person(role, cast["ego"]) for role in cast["roles"]),
            *(f"object: {thing['name']}: {thing['state']}" for thing in cast["objects"]),
            *(f"plan {number}: {step}" for number, step in enumerate(cast["plan"], 1)),
        ]
    if kind == "event":
        number = f"round {event['round']}"
        head = f"{number}: {event['role']}: {event['action']}"
        if not event["plausible"]:
            return [f"{head} -- REJECTED: {event['reason']}"]
        lines = [f"{head} -- seen by: {', '.join(event['observers']) or 'nobody'}"]
        lines += [f"{number}: they see: {seen}" for seen in _seen(event)]
        lines += [f"{number}: object: {c['object']}: {c['before']} -> {c['after']}" for c in event["changes"]]
        lines += [f"{number}: consequence: {event['consequence']}"] if event["consequence"] else []
        return [*lines, *([f"{number}: hurt: {', '.join(event['hurt'])}"] if event.get("hurt") else [])]
    if kind == "pass":
        return [f"round {event['round']}: {event['role']}: {_passed(event)}"]
    if kind == "failure":
        return [f"round {event['round']}: {event['role']}: {_failed(event)}"]
    if kind == "reflection":
        lesson = f": {event['lesson']}" if event["lesson"] else ""
        return [
            *(f"reflection: {name}: {became}" for name, became in _became(event)),
            f"reflection: {_VERDICTS.get(event['verdict'], event['verdict'])}{lesson}",
        ]
    if kind == "check":
        return [f"check: {'passed' if event['passed'] else 'NOT passed'}: {event['why']}"]
    if kind == "result":
        trace: Trace = event["trace"]
        if trace.error:
            return [_summary(trace)]
        answer = f"answer: {trace.answer}" if trace.revised else "answer: the draft, unchanged"
        return [answer, *([f"warning: {CUT}"] if trace.cut else []), _summary(trace)]
    return []


def _person(role: dict[str, Any], ego: str) -> str:
    who = f", {role['who']}" if role.get("who") else ""
    return (
        f"role: {role['name']}{' (ego)' if role['name'] == ego else ''}{who}: {role['traits']}; wants: {role['goal']}"
    )


def _seen(event: Event) -> list[str]:
    """What observers are told of an action where it is not the action itself; nothing else."""
    seen = event.get("seen")
    told = f"{event['role']}: {event['action']}"
    return [seen] if event["observers"] and seen and seen not in (event["action"], told) else []


def _passed(event: Event) -> str:
    return "leaves the step out" if event.get("step") else "does nothing"


def _became(event: Event) -> list[tuple[str, str]]:
    """Who was touched by the scene, and how; nobody else."""
    return [
        (person["name"], f"{person['effect']}{': ' + person['how'] if person['how'] else ''}")
        for person in event.get("people", ())
        if person["effect"] != "none"
    ]


class TerminalView:
    """Colours, and a footer with the objects' states and what is being waited for."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._objects: dict[str, str] = {}
        self._round = 0
        self._waiting = "starting"
        self._since: float | None = time.monotonic()
        self._spinner = Spinner("dots")
        # Two threads that draw at once leave bits of footer behind, so that only one may, and rich starts none.
        self._drawing = threading.RLock()
        self._ended = threading.Event()
        self._live = Live(get_renderable=self._footer, console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        threading.Thread(target=self._refresh, name="matrix-graph-footer", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._drawing:
            self._ended.set()
            self._live.stop()

    def status(self, line: str) -> None:
        """In the footer."""
        self._waiting, self._since = line, None

    def show(self, event: Event) -> None:
        """Above the footer."""
        shown = _SHOWN.get(event["type"])
        if shown is not None:
            with self._drawing:
                for renderable in shown(self, event):
                    self._console.print(renderable)

    def _refresh(self) -> None:
        while not self._ended.wait(_REFRESH_SECONDS):
            with self._drawing:
                if not self._ended.is_set():
                    self._live.refresh()

    def _footer(self) -> RenderableType:
        since = self._since
        seconds = "" if since is None else f"  {time.monotonic() - since:.0f} s"
        lines = [
            Text.assemble((_line(name), "bold yellow"), f": {_line(state)}", style="yellow")
            for name, state in list(self._objects.items())[:_MOST_OBJECTS]
        ]
        frame = self._spinner.render(self._console.get_time())
        waiting = Text.assemble(str(frame), " ", (f"{_line(self._waiting)}{seconds}", "dim"))
        for line in (*lines, waiting):
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*lines, waiting)

    def _wait_for(self, what: str) -> None:
        self._waiting, self._since = what, time.monotonic()

    def _heading(self, round: int) -> list[RenderableType]:
        if round == self._round:
            return []
        self._round = round
        return [Rule(f"Round {round}", align="left", style="dim")]

    def _question(self, event: Event) -> list[RenderableType]:
        self._wait_for("the model drafts its answer")
        return [Panel(Text(safe(event["question"])), title="Question", title_align="left", border_style="cyan")]

    def _draft(self, event: Event) -> list[RenderableType]:
        self._wait_for("the scene is cast")
        title = "Draft (given)" if event["given"] else "Draft"
        return [Panel(Text(safe(event["draft"]), style="dim"), title=title, title_align="left", border_style="dim")]

    def _cast(self, event: Event) -> list[RenderableType]:
        cast = event["cast"]
        self._objects = {thing["name"]: thing["state"] for thing in cast["objects"]}
        self._wait_for("round 1: the roles act")
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
        for heading in ("Role", "Traits", "Goal"):
            table.add_column(heading, overflow="fold")
        for role in cast["roles"]:
            ego = role["name"] == cast["ego"]
            name = Text(_line(role["name"]) + (" (ego)" if ego else ""), style="bold cyan" if ego else "bold")
            if role.get("who"):
                name.append(f"\n{_line(role['who'])}", style="not bold dim")
            table.add_row(name, Text(_line(role["traits"])), Text(_line(role["goal"])))
        lines: list[RenderableType] = [Rule("Cast", align="left", style="dim")]
        if cast.get("situation"):
            lines.append(Text(_line(cast["situation"])))
        if cast.get("stance") in _STANCES:
            lines.append(Text(f"{_capital(_STANCES[cast['stance']])}.", style="dim"))
        lines.append(table)
        rows = [("object", f"{_line(thing)}: {_line(state)}", "yellow") for thing, state in self._objects.items()]
        rows += [(f"plan {number}", _line(step), "cyan") for number, step in enumerate(cast["plan"], 1)]
        grid = Table.grid(padding=(0, 2, 0, 0))
        for label, text, style in rows:
            grid.add_row(Text(label, style=f"bold {style}"), Text(text))
        return [*lines, grid]

    def _action(self, event: Event) -> list[RenderableType]:
        self._wait_for(f"round {event['round']}: the modulator judges")
        return []

    def _event(self, event: Event) -> list[RenderableType]:
        lines = self._heading(event["round"])
        self._wait_for(f"after round {event['round']}: what follows from it")
        role, action = _line(event["role"]), _line(event["action"])
        if not event["plausible"]:
            lines.append(_item("✗", "red", (role, "bold"), "  ", (action, "strike red")))
            return [*lines, _detail(f"rejected: {event['reason']}", "red")]
        lines.append(_item("✓", "green", (role, "bold"), "  ", action))
        lines.append(_detail(f"seen by {', '.join(event['observers']) or 'nobody'}", "dim"))
        lines += [_detail(f"they see: {seen}", "dim") for seen in _seen(event)]
        for change in event["changes"]:
            self._objects[change["object"]] = change["after"]
            lines.append(_detail(f"{change['object']}: {change['before']} → {change['after']}", "yellow"))
        if event["consequence"]:
            lines.append(_detail(f"⇒ {event['consequence']}", "magenta"))
        if event.get("hurt"):
            lines.append(_detail(f"hurt: {', '.join(event['hurt'])}", "red"))
        return lines

    def _pass(self, event: Event) -> list[RenderableType]:
        passed = _item("·", "dim", (f"{_line(event['role'])}  {_passed(event)}", "dim"))
        return [*self._heading(event["round"]), passed]

    def _failure(self, event: Event) -> list[RenderableType]:
        item = _item("!", "red", (_line(event["role"] or ""), "bold"), "  ", (_line(_failed(event)), "red"))
        return [*self._heading(event["round"]), item]

    def _reflection(self, event: Event) -> list[RenderableType]:
        self._wait_for("the answer is revised")
        lines: list[RenderableType] = [Rule("Reflection", align="left", style="dim")]
        for name, became in _became(event):
            effect = became.partition(":")[0]
            lines.append(_item(*_EFFECTS.get(effect, ("·", "")), (_line(name), "bold"), "  ", _line(became)))
        if event["lesson"]:
            lines.append(Text(safe(event["lesson"])))
        verdict = _capital(_VERDICTS.get(event["verdict"], _line(event["verdict"])))
        return [*lines, Text(f"{verdict}.", style="bold green" if event["verdict"] == "keep" else "bold yellow")]

    def _check(self, event: Event) -> list[RenderableType]:
        passed = event["passed"]
        told = f"{'The better answer passed its check' if passed else 'The better answer did not pass its check'}: "
        return [_item("✓" if passed else "✗", "green" if passed else "red", (told, "bold"), _line(event["why"]))]

    def _result(self, event: Event) -> list[RenderableType]:
        trace: Trace = event["trace"]
        self._objects = {}
        self._wait_for("done")
        if trace.error:
            return [Text(_summary(trace), style="bold red")]
        cut = [Text(f"Warning: {CUT}.", style="bold yellow")] if trace.cut else []
        if not trace.revised:
            kept = Text("The answer is the draft, unchanged.", style="bold green")
            return [kept, *cut, Text(_summary(trace), style="dim")]
        before, after = _compared(safe(trace.draft or ""), safe(trace.answer or ""))
        panels: list[RenderableType] = [
            Panel(before, title="Draft", title_align="left", border_style="dim"),
            Panel(after, title="Answer", title_align="left", border_style="green"),
        ]
        if self._console.width >= _SIDE_BY_SIDE:
            grid = Table.grid(expand=True)
            grid.add_column(ratio=1)
            grid.add_column(ratio=1)
            grid.add_row(*panels)
            panels = [grid]
        return [*panels, *cut, Text(_summary(trace), style="dim")]


_SHOWN: dict[str, Callable[[TerminalView, Event], list[RenderableType]]] = {
    "question": TerminalView._question,
    "draft": TerminalView._draft,
    "cast": TerminalView._cast,
    "action": TerminalView._action,
    "event": TerminalView._event,
    "pass": TerminalView._pass,
    "failure": TerminalView._failure,
    "reflection": TerminalView._reflection,
    "check": TerminalView._check,
    "result": TerminalView._result,
}


def _item(mark: str, style: str, *parts: str | tuple[str, str]) -> RenderableType:
    """A marked line whose further lines are indented too."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row(Text(mark, style=style), Text.assemble(*parts))
    return grid


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _detail(text: str, style: str) -> RenderableType:
    return Padding(Text(_line(text), style=style), (0, 0, 0, 4))


def _failed(event: Event) -> str:
    what = {"act": "stays silent", "judge": "the action could not be judged"}.get(event["purpose"], "failed")
    return f"{what}: {event['error']['message']}"


def _summary(trace: Trace) -> str:
    if trace.error:
        return f"failed: {trace.error.type}: {safe(trace.error.message)}"
    rejected = sum(not event.plausible for event in trace.events)
    return (
        f"{trace.status} after {_count(max((event.round for event in trace.events), default=0), 'round')}: "
        f"{_count(len(trace.events), 'action')}, {rejected} rejected; {_count(len(trace.calls), 'call')}, "
        f"{_count(trace.usage.input_tokens, 'token')} read, {trace.usage.output_tokens:,} written, "
        f"{trace.seconds:.1f} s"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _compared(draft: str, answer: str) -> tuple[Text, Text]:
    """Draft and answer, word by word: what fell away in red, what is new in green."""
    old, new = re.findall(r"\s+|\S+\s*", draft), re.findall(r"\s+|\S+\s*", answer)
    if max(len(old), len(new)) > _MOST_COMPARED:
        return Text(draft), Text(answer)
    before, after = Text(), Text()
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new).get_opcodes():
        before.append("".join(old[a:b]), style="" if tag == "equal" else "red")
        after.append("".join(new[c:d]), style="" if tag == "equal" else "green")
    return before, after
