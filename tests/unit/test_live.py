"""The views of a scene: everything that happens is shown, and nothing that a model wrote is obeyed."""

from __future__ import annotations

import io
import json
import random
import threading
import time
from typing import Any

import pyte
import pytest
from rich.console import Console

from matrix_graph import Cast, Rehearsal, SceneConfig
from matrix_graph.live import Event, LineView, TerminalView, View, safe, view_for
from matrix_graph.records import OUTSIDE
from tests.unit.scripted import Override, ScriptedModel

HOSTILE = {
    "escape": "\x1b[2J\x1b[31mred\x1b]0;title\x07 end",
    "markup": "[bold]big[/bold] [/] [link=http://x]y[/link] :smile: [red",
    "control": "a\x00b\x08c\x7fd\x9b31me\rf",
    "bidi": "safe \u202etxt.exe\u202c \u2066x\u2069 \u061cy",
    "separators": "one\u2028two\u2029three\u0085four",
    "surrogate": "lone \ud800 half",
    "emoji": "👩‍👩‍👧 🏳️‍🌈 你好 مرحبا",
    "long": "wordy " * 17_000 + "end",
}
CAST = Cast.model_validate(
    {
        "ego": "Robber",
        "situation": "A robber stands in a bank.",
        "stance": "helps",
        "roles": [
            {"name": "Robber", "who": "the asker", "traits": "desperate", "goal": "the money"},
            {"name": "Teller", "traits": "calm", "goal": "nobody gets hurt"},
        ],
        "objects": [{"name": "money", "state": "in the vault"}, {"name": "alarm", "state": "silent"}],
        "plan": ["demands the money", "walks out"],
    }
)


def judged(plausible: bool = True, **more: Any) -> dict[str, Any]:
    rest = {"reason": "it can be", "observers": [], "seen": None, "changes": [], "consequence": None, "hurt": []}
    return {"plausible": plausible, **rest, **more}


def robbery(purpose: str, role: str, round: int, rng: random.Random) -> Any:
    """Step 1 moves the money and is seen as less; the teller's reaction is rejected; the answer is revised."""
    if purpose == "draft":
        return "Just ask for it."
    if purpose == "act":
        return {"action": "grows wings"} if role == "Teller" else None
    if purpose == "judge" and role == "Robber" and round == 1:
        change = {"object": "money", "after": "on the counter"}
        told: dict[str, Any] = {"observers": ["Teller"], "seen": "A man shouts.", "hurt": ["Teller"]}
        return judged(**told, changes=[change], consequence="the teller is afraid")
    if purpose == "judge":
        return judged(role == "Robber", reason="people cannot fly")
    if purpose == "reflect":
        return {"harmed": [{"name": "Teller", "how": "is afraid"}], "lesson": "people got hurt", "verdict": "improve"}
    return CHECKED if purpose in CHECKS else "Do not ask for it."


CHECKS = ("check", "stance", "again", "better")
CHECKED = {"again": "no", "better": "B", "stance": "helps"}
"""A reply to each question of a check, by which the revision passes."""


def played(override: Override | None = None, *, draft: str | None = None, cast: Cast = CAST) -> list[Event]:
    rehearsal = Rehearsal(ScriptedModel(override=override), cast=cast, config=SceneConfig(max_rounds=3))
    return list(rehearsal.stream({"question": "How do I rob a bank?", "draft": draft}))


def lines(events: list[Event], *, status: str | None = None) -> list[str]:
    file = io.StringIO()
    with LineView(Console(file=file, width=40)) as view:
        if status is not None:
            view.status(status)
        for event in events:
            view.show(event)
    return file.getvalue().splitlines()


class Terminal(io.StringIO):
    """A file that a terminal shows."""

    def __init__(self, width: int, height: int = 2000) -> None:
        super().__init__()
        self.screen = pyte.Screen(width, height)
        self.screen.set_mode(pyte.modes.LNM)
        self._stream = pyte.Stream(self.screen)

    def write(self, text: str) -> int:
        self._stream.feed(text)
        return super().write(text)

    @property
    def shown(self) -> str:
        return "\n".join(row.rstrip() for row in self.screen.display).rstrip()


def console(file: io.StringIO, width: int) -> Console:
    return Console(file=file, force_terminal=True, width=width, color_system="truecolor", legacy_windows=False)


def terminal(events: list[Event], *, width: int = 80, height: int = 2000) -> Terminal:
    file = Terminal(width, height)
    with TerminalView(console(file, width)) as view:
        for event in events:
            view.show(event)
    return file


def flat(text: str) -> str:
    """What is written there, without borders and line breaks."""
    return " ".join(text.replace("│", " ").split())


# --- everything is shown


def test_lines_tell_the_whole_scene() -> None:
    shown = lines(played(robbery), status="using a server")
    assert shown[:11] == [
        "[using a server]",
        "question: How do I rob a bank?",
        "draft: Just ask for it.",
        "situation: A robber stands in a bank.",
        "stance: the draft helps; the scene plays what it says",
        "role: Robber (ego), the asker: desperate; wants: the money",
        "role: Teller: calm; wants: nobody gets hurt",
        "object: money: in the vault",
        "object: alarm: silent",
        "plan 1: demands the money",
        "plan 2: walks out",
    ]
    assert shown[11:16] == [
        "round 1: Robber: demands the money -- seen by: Teller",
        "round 1: they see: A man shouts.",
        "round 1: object: money: in the vault -> on the counter",
        "round 1: consequence: the teller is afraid",
        "round 1: hurt: Teller",
    ]
    assert "round 2: Robber: walks out -- seen by: nobody" in shown
    assert "round 2: Teller: grows wings -- REJECTED: people cannot fly" in shown
    assert shown[-5:-1] == [
        "reflection: Teller: harmed: is afraid",
        "reflection: the draft should help in a better way: people got hurt",
        "check: passed: It does what the scene asks for, and the draft is not preferred.",
        "answer: Do not ask for it.",
    ]
    assert shown[-1].startswith("finished after 2 rounds: 3 actions, 1 rejected; 10 calls, ")


@pytest.mark.parametrize("width", [30, 80, 160])
def test_the_terminal_tells_the_whole_scene(width: int) -> None:
    shown = flat(terminal(played(robbery), width=width).shown)
    for text in (
        *("How do I rob a bank?", "Just ask for it.", "Do not ask for it.", "Role Traits Goal"),
        *("A robber stands in a bank.", "The draft helps; the scene plays what it says."),
        *("object money: in the vault", "object alarm: silent", "plan 1 demands the money", "plan 2 walks out"),
        *("Round 1 ─", "✓ Robber demands the money", "seen by Teller", "money: in the vault → on the counter"),
        *("⇒ the teller is afraid", "Round 2 ─", "seen by nobody", "✗ Teller grows wings", "people cannot fly"),
        *("they see: A man shouts.", "hurt: Teller", "✗ Teller harmed: is afraid", "people got hurt"),
        *("The draft should help in a better way.", "The better answer passed its check: It does what the scene asks"),
        "finished after 2 rounds",
    ):
        assert text in shown, text
    if width > 30:  # there the table's cells are broken
        assert "Robber (ego) desperate the money the asker Teller calm nobody gets hurt" in shown
    assert shown.count("Round 1 ─") == shown.count("Round 2 ─") == 1


def test_draft_and_answer_stand_side_by_side_where_there_is_room() -> None:
    wide = terminal(played(robbery), width=120).shown.splitlines()
    assert any("Just ask for it." in row and "Do not ask for it." in row for row in wide)
    narrow = terminal(played(robbery), width=60).shown.splitlines()
    assert not any("Just ask for it." in row and "Do not ask for it." in row for row in narrow)
    assert all(len(row) <= 60 for row in narrow)


def test_what_changed_between_draft_and_answer_has_colours() -> None:
    file = terminal(played(robbery), width=120)
    row = next(y for y, text in enumerate(file.screen.display) if "Do not ask for it." in text)
    cells = file.screen.buffer[row]
    text = file.screen.display[row]
    assert cells[text.index("Just")].fg == "red"
    assert cells[text.index("Do")].fg == "green"
    assert cells[text.index("ask for")].fg == "default"


def test_a_draft_that_stands() -> None:
    events = played(lambda purpose, role, round, rng: judged() if purpose == "judge" else None, draft="Don't.")
    shown = lines(events)
    assert "draft (given): Don't." in shown
    assert "reflection: nothing speaks against the draft" in shown
    assert "answer: the draft, unchanged" in shown
    seen = flat(terminal(events).shown)
    assert "Draft (given)" in seen
    assert "Nothing speaks against the draft. The answer is the draft, unchanged. finished" in seen


def test_one_of_a_thing_is_not_called_many() -> None:
    cast = CAST.model_copy(update={"plan": ["waits"]})
    assert lines(played(lambda *_: judged(), draft="x", cast=cast))[-1].startswith(
        "finished after 1 round: 1 action, 0 rejected; 1 call, "
    )


def test_a_failed_scene_says_why() -> None:
    events = played(lambda *_: ConnectionError("[bold]the line\x1b[2J is dead"))
    assert lines(events)[-1] == "failed: ConnectionError: [bold]the line\ufffd[2J is dead"
    assert "failed: ConnectionError: [bold]the line\ufffd[2J is dead" in terminal(events).shown


def test_failures_inside_a_scene_name_role_and_round() -> None:
    def silent(purpose: str, role: str, round: int, rng: random.Random) -> Any:
        if role == "Teller" and purpose == "act":
            return ConnectionError("no [/] line")
        return "nonsense" if purpose == "judge" and round == 3 else robbery(purpose, role, round, rng)

    events = played(silent)
    assert "round 2: Teller: stays silent: no [/] line" in lines(events)
    seen = flat(terminal(events).shown)
    assert "Round 2 ─" in seen[: seen.index("! Teller stays silent: no [/] line")]

    unjudged = played(lambda purpose, *_: "nonsense" if purpose == "judge" else None, draft="x")
    assert any("Robber: the action could not be judged: " in line for line in lines(unjudged))
    assert "! Robber the action could not be judged" in flat(terminal(unjudged).shown)


def test_whoever_does_nothing_is_told_of_in_a_word() -> None:
    def quiet(purpose: str, role: str, round: int, rng: random.Random) -> Any:
        return {"action": "nothing"} if purpose == "act" else robbery(purpose, role, round, rng)

    events = played(quiet)
    assert "round 2: Teller: does nothing" in lines(events)
    file = terminal(events)
    assert "· Teller does nothing" in flat(file.shown)
    left_out = {"type": "pass", "round": 2, "role": "Robber", "step": True}
    assert lines([left_out]) == ["round 2: Robber: leaves the step out"]


def test_a_revision_that_does_not_pass_is_told_with_the_reason() -> None:
    def again(purpose: str, role: str, round: int, rng: random.Random) -> Any:
        return {**CHECKED, "again": "yes"} if purpose in CHECKS else robbery(purpose, role, round, rng)

    events = played(again)
    why = "The revision still helps to do what did harm in the scene."
    assert lines(events)[-3:-1] == [f"check: NOT passed: {why}", "answer: the draft, unchanged"]
    shown = flat(terminal(events).shown)
    assert f"✗ The better answer did not pass its check: {why} The answer is the draft, unchanged." in shown


def test_an_answer_that_was_cut_is_a_warning() -> None:
    result = played(robbery)[-1]
    calls = [call.model_copy(update={"finish_reason": "length"}) for call in result["trace"].calls]
    cut = {**result, "trace": result["trace"].model_copy(update={"calls": calls})}
    assert "warning: the answer ended at its limit of tokens" in lines([cut])[-2]
    assert "Warning: the answer ended at its limit of tokens" in flat(terminal([cut]).shown)
    assert not any("warning" in line for line in lines([result]))


def test_what_is_seen_as_it_is_done_is_not_told_twice() -> None:
    event = {"type": "event", "round": 1, "role": "Robber", "action": "waits", "plausible": True, "reason": "",
             "observers": ["Teller"], "changes": [], "consequence": None}  # fmt: skip
    for seen in (None, "waits", "Robber: waits"):
        assert lines([{**event, "seen": seen, "hurt": []}]) == ["round 1: Robber: waits -- seen by: Teller"]
    assert lines([event]) == ["round 1: Robber: waits -- seen by: Teller"], "of version 1"


def test_unknown_events_are_passed_over() -> None:
    assert lines([{"type": "of a later release"}]) == []
    assert terminal([{"type": "of a later release"}]).shown == ""


@pytest.mark.parametrize("seed", range(3))
def test_random_scenes_are_shown_in_full(seed: int) -> None:
    rehearsal = Rehearsal(ScriptedModel(seed=seed, nonsense=0.1), config=SceneConfig(steps=3))
    events = list(rehearsal.stream("What now?"))
    trace = events[-1]["trace"]
    for text in ("\n".join(lines(events)), flat(terminal(events, width=200).shown)):
        for event in trace.events:
            assert event.action in text and event.role in text
            assert event.plausible or event.reason in text
            assert event.consequence is None or event.consequence in text
            assert all(change.after in text for change in event.changes)


# --- nothing is obeyed


def spoken(text: str) -> list[Event]:
    """A scene in which everybody says the text everywhere."""

    def override(purpose: str, role: str, round: int, rng: random.Random) -> Any:
        if purpose == "draft":
            return text
        if purpose == "act":
            return json.dumps({"action": text[:2000]})
        if purpose == "judge":
            change = {"object": "money", "after": f"{text[:500]} {rng.random()}"}
            reason = text[:1000]
            return json.dumps(
                judged(
                    role == "Robber",
                    reason=reason,
                    observers=["Teller"],
                    seen=f"{reason} seen",
                    changes=[change],
                    consequence=reason,
                    hurt=["Teller"],
                )
            )
        if purpose == "reflect":
            harmed = [{"name": name, "how": text[:2000]} for name in ("Robber", "Teller", OUTSIDE)]
            return json.dumps({"harmed": harmed, "lesson": text[:2000], "verdict": "improve"})
        return CHECKED if purpose in CHECKS else f"now {text}"

    name = safe(text).replace("\n", " ")[:20]
    told = {"who": text[:2000], "traits": text[:2000], "goal": text[:2000]}
    roles = [role.model_copy(update=told) for role in CAST.roles]
    things = [CAST.objects[0], CAST.objects[1].model_copy(update={"name": text[:30], "state": text[:2000]})]
    cast = CAST.model_copy(
        update={"roles": roles, "objects": things, "plan": [f"{name} {text[:2000]}"], "situation": text[:2000]}
    )
    return played(override, cast=Cast.model_validate(cast.model_dump()))


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_texts_are_inert_in_lines(kind: str) -> None:
    text = HOSTILE[kind]
    events = [*spoken(text), {"type": "question", "question": text}]
    shown = lines(events, status=text)
    whole = "\n".join(shown)
    assert not set(whole) & set("\x1b\x00\x07\x08\x0b\x0c\r\x7f\x9b\u0085\u061c\u2028\u2029\u202e\u202c\u2066\u2069")
    assert whole.encode()
    expected = " ".join(safe(text).split())
    assert shown[0] == f"[{expected}]"
    assert any(line == f"draft: {' '.join(safe(events[1]['draft']).split())}" for line in shown)
    assert shown[-1] == f"question: {expected}"
    if kind in ("markup", "emoji"):
        assert text in whole


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_texts_are_inert_on_a_terminal(kind: str) -> None:
    text = HOSTILE[kind]
    began = time.monotonic()
    file = terminal(spoken(text), width=100, height=6000)
    assert time.monotonic() - began < 20
    raw = file.getvalue()
    assert not set(raw) & set("\x00\x07\x08\x7f\x9b\u061c\u2028\u2029\u202e\u202c\u2066\u2069")
    assert "\x1b[2J" not in raw and "\x1b]0;title" not in raw
    assert not file.screen.title
    assert raw.encode()
    if kind == "markup":
        assert "[bold]big[/bold] [/] [link=http://x]y[/link] :smile: [red" in flat(file.shown)
    if kind == "long":
        assert flat(file.shown).count("wordy") >= 3 * 17_000


def test_safe_keeps_what_is_harmless() -> None:
    text = "Tabs\tand\nlines, 你好 مرحبا 👩‍👩‍👧 é [x] <y> \\n"
    assert safe(text) == text
    assert safe("".join(map(chr, range(0x20)))) == "\ufffd" * 9 + "\t\n" + "\ufffd" * 21


# --- the footer


def footer(view: TerminalView, file: Terminal) -> list[str]:
    """The lines at the bottom, up to the one with the spinner, as the next refresh draws them."""
    before = file.getvalue()
    deadline = time.monotonic() + 5
    while file.getvalue() == before and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    return file.shown.splitlines()


def test_the_footer_shows_objects_and_what_is_waited_for() -> None:
    events = played(robbery)
    file = Terminal(80)
    with TerminalView(console(file, 80)) as view:
        assert "starting" in footer(view, file)[-1]
        view.status("vLLM: 3 s, loading [bold] weights\x1b[2J")
        assert footer(view, file)[-1].endswith("vLLM: 3 s, loading [bold] weights\ufffd[2J")
        for event in events:
            view.show(event)
            if event["type"] == "question":
                assert "the model drafts its answer  0 s" in footer(view, file)[-1]
            if event["type"] == "cast":
                assert footer(view, file)[-3:-1] == ["money: in the vault", "alarm: silent"]
            if event["type"] == "event" and event["round"] == 1:
                *_, money, alarm, waiting = footer(view, file)
                assert (money, alarm) == ("money: on the counter", "alarm: silent")
                assert "round 1" in waiting
    assert "finished after" in file.shown.splitlines()[-2]  # two lines; the footer is gone


def test_the_footer_leaves_nothing_behind_while_two_threads_draw() -> None:
    events = [event for event in played(robbery) if event["type"] in ("event", "question", "cast", "result")]
    file = Terminal(40)
    with TerminalView(console(file, 40)) as view:
        for number in range(60):
            view.status("x" * (number % 3) * 30)
            view.show(events[number % len(events)])
            time.sleep(random.random() * 0.03)
    assert "alarm: silent\n" not in file.shown.replace("object  alarm: silent\n", "")
    assert "xxx" not in file.shown


def test_a_long_footer_stays_in_its_lines() -> None:
    things = [{"name": f"thing {number}", "state": "so " * 50} for number in range(30)]
    cast = {"ego": "a", "roles": [{"name": "a", "traits": "", "goal": ""}], "objects": things, "plan": []}
    file = Terminal(40)
    with TerminalView(console(file, 40)) as view:
        view.show({"type": "cast", "cast": cast})
        view.status("a word and " * 100)
        bottom = footer(view, file)[-9:]
        assert [row.split(":")[0] for row in bottom[:-1]] == [f"thing {number}" for number in range(8)]
        assert all(row.endswith("…") for row in bottom)


def test_the_footer_ends_with_the_view_also_after_an_exception() -> None:
    file = Terminal(80)
    with pytest.raises(KeyboardInterrupt), TerminalView(console(file, 80)) as view:
        view.show({"type": "question", "question": "why?"})
        raise KeyboardInterrupt
    assert "drafts" not in file.shown and "\x1b[?25h" in file.getvalue()  # the cursor is back
    deadline = time.monotonic() + 5
    while any(thread.name == "matrix-graph-footer" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_view_that_fits() -> None:
    views: list[View] = [view_for(console(io.StringIO(), 80)), view_for(Console(file=io.StringIO()))]
    assert [type(view) for view in views] == [TerminalView, LineView]
