"""One scene for people: a Mermaid sequence diagram, and a Markdown page around it, from the trace alone.

What always holds: every text of a trace is untrusted model output, so that none of it reaches Mermaid or Markdown as
syntax. Whatever stands in a trace, the diagram parses and stays under Mermaid's size limit, the tables keep their
columns, and nothing becomes HTML, a link or an image. Texts are shortened in the diagram only; the page has them whole.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matrix_graph.records import Call, Cast, Check, Event, Failure, Reflection, Stance, Trace, Usage, Verdict

LARGEST_DIAGRAM = 45_000
"""The longest diagram in UTF-16 units; Mermaid draws nothing but an error above 50,000 (its `maxTextSize`)."""

STANCES: dict[Stance, str] = {
    "helps": "the ego does what it says.",
    "declines": "the ego does it all the same, as a what-if.",
}
VERDICTS: dict[Verdict, str] = {
    "keep": "nothing speaks against the draft",
    "improve": "the draft should help in a better way",
    "kinder": "the draft should decline more kindly",
    "help": "the draft should help",
}

_TEXT_LENGTHS = (240, 80, 30)
"""The longest text in a diagram, in characters; a scene that would not fit is tried again with shorter texts."""
_LINE_WIDTH = 36
"""Columns of a line in the diagram; Chinese and Japanese characters take two."""
_MOST_PEOPLE = 100
"""The most columns of a diagram; everybody after them shares one more."""

# What would be read as syntax somewhere between the source and the picture: by Mermaid's grammar, its comments and
# directives, KaTeX, the HTML of the result, the Markdown fence around it, or as Mermaid's own stand-ins for entities.
_MERMAID_SYNTAX = {ord(character): f"#{ord(character)};" for character in '#;:<>&"%{}$`\\ﬂ°¶'}
_MARKDOWN_SYNTAX = {ord(c): f"\\{c}" for c in "\\`*_[]#|~$"} | {ord(c): f"&#{ord(c)};" for c in "<>&"}
# Controls, and marks of direction, which would turn the words around them about; isolates of our own replace them.
_UNSHOWABLE: dict[int, str] = {
    **dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], "\ufffd"),
    **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C, 0xFEFF], ""),
}


def to_mermaid(trace: Trace) -> str:
    """The scene as a Mermaid `sequenceDiagram`.

    Args:
        trace: of any status; a scene that failed before it was cast gives a diagram that says so.

    Returns:
        The diagram's source, ending with a newline: the ego first, then the others in cast order; a box a round; an
        accepted action as arrows to those who saw it, a rejected one as a crossed arrow to its actor; as notes what is
        seen where it is not the action itself, changes of objects, consequences, who is hurt, and failures. At most
        `LARGEST_DIAGRAM` long; rounds that would not fit even with short texts are left out, and a note says how many.
    """
    drawings = (_Drawing(trace, longest).source() for longest in _TEXT_LENGTHS[:-1])
    fitting = next((drawn for drawn in drawings if _size(drawn) <= LARGEST_DIAGRAM), None)
    return fitting or _Drawing(trace, _TEXT_LENGTHS[-1]).source(limit=LARGEST_DIAGRAM)


def to_markdown(trace: Trace) -> str:
    """A page of one scene: question, draft, cast, diagram, what happened, answer, and what it took.

    Args:
        trace: of any status.

    Returns:
        GitHub-flavoured Markdown without raw HTML, ending with a newline.
    """
    happened = [line for number in _rounds(trace) for line in _round_lines(trace, number)]
    parts = [
        f"# {_inline(_short(_plain(trace.question), 80)) or '(no question)'}",
        _summary(trace),
        f"## Question\n\n{_quoted(trace.question)}",
        f"## Draft\n\n{_quoted(trace.draft) if trace.draft is not None else 'None.'}",
        *([f"## Situation\n\n{_situation(trace.cast)}"] if trace.cast and _situation(trace.cast) else []),
        f"## Cast\n\n{_cast(trace)}",
        f"## Scene\n\n```mermaid\n{to_mermaid(trace)}```",
        "\n".join(["## What happened", "", *(happened or ["Nothing."])]),
        "\n".join(["## Consequences", "", *(f"- {_inline(text)}" for text in trace.consequences or ["None."])]),
        *([f"## Reflection\n\n{_reflection(trace.reflection)}"] if trace.reflection else []),
        *([f"## Check of the revision\n\n{_check(trace.check)}"] if trace.check else []),
        f"## Answer\n\n{_answer(trace)}",
        f"## What it took\n\n{_costs(trace)}",
    ]
    if trace.failures:
        parts.append("\n".join(["## What failed on the way", "", *(f"- {_failed(item)}" for item in trace.failures)]))
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class _Drawing:
    trace: Trace
    longest: int

    def source(self, limit: int | None = None) -> str:
        names = _names(self.trace)
        ids = {name: f"r{min(position, _MOST_PEOPLE)}" for position, name in enumerate(names)}
        lines = ["sequenceDiagram"]
        for name in names[:_MOST_PEOPLE]:
            ego = self.trace.cast is not None and name == self.trace.cast.ego
            lines.append(f"    {'actor' if ego else 'participant'} {ids[name]} as {self._text(_plain(name), ego=ego)}")
        if not names:
            lines.append("    participant r0 as (nobody)")
        if len(names) > _MOST_PEOPLE:
            lines.append(f"    participant r{_MOST_PEOPLE} as {len(names) - _MOST_PEOPLE} others")
        everybody = f"r0,{ids[names[-1]]}" if len(names) > 1 else "r0"
        end = f"    Note over {everybody}: {self._text(_plain(_ending(self.trace)))}"
        room = None if limit is None else limit - _size("\n".join([*lines, end])) - 100
        numbers = _rounds(self.trace)
        for position, number in enumerate(numbers):
            drawn = [*self._round(number, ids, everybody)]
            if room is not None and (room := room - _size("\n".join(drawn)) - 1) < 0:
                lines.append(f"    Note over {everybody}: {len(numbers) - position} more rounds are not drawn")
                break
            lines += drawn
        return "\n".join([*lines, end]) + "\n"

    def _round(self, number: int, ids: dict[str, str], everybody: str) -> Iterator[str]:
        yield "    rect rgba(128, 128, 128, 0.1)"
        yield f"    Note over {everybody}: Round {number}"
        for event in self.trace.events:
            if event.round == number:
                yield from self._event(event, ids)
        for failure in self.trace.failures:
            if failure.round == number:
                over = ids.get(failure.role or "", everybody)
                yield f"    Note over {over}: {self._text(_plain(_trouble(failure)))}"
        yield "    end"

    def _event(self, event: Event, ids: dict[str, str]) -> Iterator[str]:
        actor, action = ids[event.role], self._text(_plain(event.action))
        if not event.plausible:
            yield f"    {actor}-x{actor}: {action}<br/>{self._text(f'✗ {_plain(event.reason)}')}"
        elif not event.observers:
            yield f"    Note over {actor}: {action}<br/>(nobody sees it)"
        observers = dict.fromkeys(ids[name] for name in event.observers if event.plausible)
        for position, observer in enumerate(observers):
            yield f"    {actor}->>{observer}: {'(the same)' if position else action}"
        if observers and (seen := other_than_done(event)) is not None:
            yield f"    Note over {actor}: {self._text(f'They see: {_plain(seen)}')}"
        for change in event.changes:
            words = f"{_plain(change.object)}: {_plain(change.before)} → {_plain(change.after)}"
            yield f"    Note over {actor}: {self._text(words)}"
        if event.consequence is not None:
            yield f"    Note over {actor}: {self._text(f'⇒ {_plain(event.consequence)}')}"
        if event.hurt:
            hurt = ", ".join(map(_plain, event.hurt))
            yield f"    Note over {actor}: {self._text(f'Hurt: {hurt}')}"

    def _text(self, text: str, *, ego: bool = False) -> str:
        shown = _short(text, self.longest) or "(empty)"
        lines = _wrapped(f"{shown} (ego)" if ego else shown)
        return "<br/>".join(line.translate(_MERMAID_SYNTAX) for line in lines)


def _names(trace: Trace) -> list[str]:
    """Everybody, the ego first; also who acts or observes without being cast, since traces may come from elsewhere."""
    names = [trace.cast.ego, *(role.name for role in trace.cast.roles)] if trace.cast else []
    for event in trace.events:
        names += [event.role, *event.observers]
    return list(dict.fromkeys(names))


def _rounds(trace: Trace) -> list[int]:
    failed = {failure.round for failure in trace.failures if failure.round is not None}
    return sorted({event.round for event in trace.events} | failed)


def _ending(trace: Trace) -> str:
    if trace.status == "failed":
        return f"The scene failed: {trace.error.message if trace.error else 'it does not say why.'}"
    stopped = "The plan was blocked." if trace.status == "blocked" else "The scene came to its end."
    refused = " The revision did not pass its check." if trace.check is not None and not trace.check.passed else ""
    return f"{stopped}{refused} The answer is {'revised' if trace.revised else 'the draft, unchanged'}."


def _trouble(failure: Failure) -> str:
    what = {"act": "stays silent", "judge": "could not be judged"}.get(failure.purpose, f"{failure.purpose} failed")
    return f"{what}: {failure.error.type}: {failure.error.message}"


def _summary(trace: Trace) -> str:
    facts = [("Status", trace.status + (f", play ended by {trace.ended_by}" if trace.ended_by else ""))]
    if trace.error:
        facts.append(("Error", f"{trace.error.type}: {trace.error.message}"))
    if trace.cut:
        facts.append(("Cut", "the answer ended at its limit of tokens; its end is missing"))
    facts.append(("Rounds", str(len(_rounds(trace)))))
    facts.append(("Played", f"{trace.created_at.isoformat(' ', 'minutes')}, {trace.seconds:.1f} s"))
    if trace.parent:
        facts.append(("Branch of", f"{trace.parent.id} at round {trace.parent.round}: {trace.parent.change}"))
    facts.append(("Trace", trace.id))
    return "\n".join(f"- {name}: {_inline(value)}" for name, value in facts)


def _cast(trace: Trace) -> str:
    if trace.cast is None:
        return "The scene was not cast."
    known = any(role.who for role in trace.cast.roles)
    rows = [(f"{r.name} (ego)" if r.name == trace.cast.ego else r.name, r.who, r.traits, r.goal)
            for r in trace.cast.roles]  # fmt: skip
    head = ("Role", "Who", "Traits", "Goal")
    people = _table(head, rows) if known else _table((head[0], *head[2:]), [(row[0], *row[2:]) for row in rows])
    after = trace.object_states
    objects = [(thing.name, thing.state, after[thing.name]) for thing in trace.cast.objects]
    plan = [f"{number}. {_inline(step)}" for number, step in enumerate(trace.cast.plan, 1)]
    parts = [people]
    if objects:
        parts.append(_table(("Object", "At the start", "At the end"), objects))
    if plan:
        parts.append("\n".join([f"The plan of {_inline(trace.cast.ego)}:", "", *plan]))
    return "\n\n".join(parts)


def _situation(cast: Cast) -> str:
    stance = f"The draft {cast.stance}: {STANCES[cast.stance]}" if cast.stance else ""
    return "\n\n".join(filter(None, [_inline(cast.situation), stance]))


def _reflection(reflection: Reflection) -> str:
    parts = [f"Verdict: {reflection.verdict}, {VERDICTS[reflection.verdict]}."]
    if reflection.people:
        parts.append(_table(("Person", "Effect", "How"), [(p.name, p.effect, p.how) for p in reflection.people]))
    if reflection.lesson:
        parts.append(_quoted(reflection.lesson))
    return "\n\n".join(parts)


def _check(check: Check) -> str:
    facts = [f"- {'Passed' if check.passed else '**Not passed**'}: {_inline(check.why)}"]
    facts.append(f"- The deed did {'harm' if check.harm else 'no harm'} in the scene.")
    if check.stance is not None:
        facts.append(f"- The revision {check.stance}.")
    if check.repeats_deed is not None:
        facts.append(f"- It {'still helps' if check.repeats_deed else 'does not help'} to do what did harm.")
    if check.preferred:
        facts.append(f"- Preferred, with the draft shown first and second: {', '.join(check.preferred)}.")
    parts = ["\n".join(facts)]
    if not check.passed:
        parts.append(f"Proposed, and not taken:\n\n{_quoted(check.proposed)}")
    return "\n\n".join(parts)


def other_than_done(event: Event) -> str | None:
    """What observers are told of an action where it is not the action itself; else None."""
    return None if event.seen in (None, "", event.action, f"{event.role}: {event.action}") else event.seen


def _round_lines(trace: Trace, number: int) -> Iterator[str]:
    yield f"- Round {number}"
    for event in trace.events:
        if event.round != number:
            continue
        said = f"**{_inline(event.role) or '(nobody)'}**: {_inline(event.action) or '(nothing)'}"
        if not event.plausible:
            yield f"  - ~~{said}~~ (rejected: {_inline(event.reason) or 'no reason given'})"
            continue
        yield f"  - {said} (seen by {', '.join(map(_inline, event.observers)) or 'nobody'})"
        if event.observers and (seen := other_than_done(event)) is not None:
            yield f"    - They see: {_inline(seen)}"
        for change in event.changes:
            yield f"    - {_inline(change.object)}: {_inline(change.before)} → {_inline(change.after)}"
        if event.consequence is not None:
            yield f"    - Consequence: {_inline(event.consequence)}"
        if event.hurt:
            yield f"    - Hurt: {', '.join(map(_inline, event.hurt))}"
    for failure in trace.failures:
        if failure.round == number:
            yield f"  - {_failed(failure)}"


def _failed(failure: Failure) -> str:
    where = f", round {failure.round}" if failure.round is not None else ""
    return f"{_inline(failure.role or 'The scene')}{where}: {_inline(_trouble(failure))}"


def _answer(trace: Trace) -> str:
    if trace.status == "failed":
        return "None: the scene failed, so that nothing is known for or against the draft."
    cut = "The answer ended at its limit of tokens; its end is missing.\n\n" if trace.cut else ""
    if not trace.revised:
        return f"{cut}Unchanged: the draft is the answer."
    return f"{cut}{_quoted(trace.answer or '')}"


def is_cut(call: Call) -> bool:
    """Whether something of a call ended at a limit."""
    return bool(call.cut) or call.finish_reason == "length"


def _costs(trace: Trace) -> str:
    def row(name: str, calls: Sequence[Call], seconds: float) -> tuple[str, ...]:
        usage = sum((call.usage for call in calls), Usage())
        unusable = sum(call.error is not None for call in calls)
        cut = sum(is_cut(call) for call in calls)
        return (name, *map(str, (len(calls), unusable, cut, usage.input_tokens, usage.output_tokens)), f"{seconds:.1f}")

    by_purpose: dict[str, list[Call]] = {}
    for call in trace.calls:
        by_purpose.setdefault(call.purpose, []).append(call)
    rows = [row(name, calls, sum(call.seconds for call in calls)) for name, calls in by_purpose.items()]
    # Calls overlap, so that the scene takes less time than its calls together.
    rows.append(row("everything", trace.calls, trace.seconds))
    return _table(("Calls for", "Calls", "Unusable", "Cut", "Tokens in", "Tokens out", "Seconds"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(_inline(cell) or "-" for cell in cells) for cells in [head, *rows]]
    return "\n".join(f"| {line} |" for line in [lines[0], " | ".join("---" for _ in head), *lines[1:]])


def _quoted(text: str) -> str:
    """A text of many lines as a block quotation, line by line as it stands, without becoming Markdown itself."""
    lines = []
    for line in re.split(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", text):
        # Leading blanks would make a code block; no-break spaces keep the look of an indented line.
        indent = len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip(" "))
        lines.append(f"> {chr(0xA0) * indent}{_inline(line)}" if _plain(line) else ">")
    breaks = ["\\" if a != ">" and b != ">" else "" for a, b in zip(lines, [*lines[1:], ">"], strict=True)]
    return "\n".join(line + end for line, end in zip(lines, breaks, strict=True))


def _inline(text: str) -> str:
    """One line of Markdown that shows the text and is nothing but text."""
    escaped = _plain(text).translate(_MARKDOWN_SYNTAX)
    # What only the beginning of a line makes a list or an underline, and what some renderers make a link unasked.
    escaped = re.sub(r"^(\d{1,9})([.)])(?=\s|$)|^(?=[-+=])", r"\1\\\2", escaped)
    return re.sub(r":(?=//)|(?<=www)\.", r"\\\g<0>", escaped, flags=re.IGNORECASE)


def _plain(text: str) -> str:
    """One line without what cannot be shown; Arabic and Hebrew isolated, lest they turn the words around them about."""
    line = " ".join(text.split()).translate(_UNSHOWABLE).strip()
    return f"\u2068{line}\u2069" if any(unicodedata.bidirectional(c) in ("R", "AL") for c in line) else line


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}…"


def _wrapped(text: str) -> list[str]:
    """The text in lines of `_LINE_WIDTH` columns, broken at blanks where there are any, else anywhere."""
    lines, line, width = [], "", 0
    for word in re.findall(r"\S+\s*", text):
        if width and width + _columns(word.rstrip()) > _LINE_WIDTH:
            lines.append(line)
            line, width = "", 0
        for character in word:
            if width and width + _columns(character) > _LINE_WIDTH and not character.isspace():
                lines.append(line)
                line, width = "", 0
            line += character
            width += _columns(character)
    return [kept.strip() for kept in [*lines, line] if kept.strip()]


def _columns(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _size(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2
