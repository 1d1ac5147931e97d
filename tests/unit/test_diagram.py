"""Diagram and page of a scene: they tell what the trace tells, and no text of it becomes syntax."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from matrix_graph import Rehearsal, Trace
from matrix_graph.records import NAME_LENGTH
from matrix_graph.traces.diagram import LARGEST_DIAGRAM, to_markdown, to_mermaid
from tests.unit.scripted import ScriptedModel
from tests.unit.test_records import a_call, a_trace, an_event

HOSTILE = [
    *("end", "", " ", ";", "#", "#35;", "#quot;", ":", "%%{init: {}}%%", "%% comment", "$$x$$", "wrap: x", "{", "@{ }"),
    *("<script>alert(1)</script>", "</text></svg>", "<br/>", "a\nend\nloop x", "```\n# x", "~~~", "`", "|", "\\", "~~"),
    *("style a:b#c;d", "classDef x:y#z;", "ﬂ°°60¶ß", "r0->>r1: x", "\u202eevil", "\x00\x1b[31m", "\u2028x", "\ud800"),
    *("---", "===", "- x", "1. x", "1) x", "# x", "> x", "    code", "[a](b)", "![a](http://b)", "http://b.c", "*x*"),
    *("&lt;", "<!-- x", "www.a.bc", "<http://a>", "A" * 5000, "怎样和邻居和好？" * 20, "كيف أرد على جاري؟", "🏳️‍🌈" * 50),
]
texts = st.sampled_from(HOSTILE) | st.text(max_size=60) | st.text('#;:<>&"%{}$`\\|~ \n-+x)(ﬂ°¶ßend', max_size=30)
STATEMENT = re.compile(
    r"    (?:(?:participant|actor) r\d+ as (?P<alias>.+)|rect rgba\(128, 128, 128, 0\.1\)|end"
    r"|Note over r\d+(?:,r\d+)?: (?P<note>.+)|r\d+(?:->>|-x)r\d+: (?P<message>.+))"
)
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def statements(diagram: str) -> Iterator[tuple[str, str]]:
    """Every line of a diagram with its text; fails on any line that this package does not write."""
    first, *lines = diagram.removesuffix("\n").split("\n")
    assert first == "sequenceDiagram"
    for line in lines:
        found = STATEMENT.fullmatch(line)
        assert found, f"{line!r} is none of our statements"
        text = found["alias"] or found["note"] or found["message"] or ""
        bare = re.sub(r"#\d+;", "", text.replace("<br/>", ""))
        assert not set(bare) & set('#;:<>&"%{}$`\\\n\r\u2028\u2029'), f"{bare!r} holds syntax"
        yield line, text
    assert len(diagram.encode("utf-16-le")) // 2 <= LARGEST_DIAGRAM + 1


def shown(text: str) -> str:
    """A diagram's text as a reader sees it, its lines joined by blanks."""
    return html.unescape(re.sub(r"#(\d+);", r"&#\1;", text.replace("<br/>", " ")))


def tokens(page: str) -> list[Token]:
    found = MARKDOWN.parse(page)
    return [*found, *(child for token in found for child in token.children or [])]


def check(trace: Trace) -> None:
    """What always holds of a diagram and of a page."""
    list(statements(to_mermaid(trace)))
    page = to_markdown(trace)
    page.encode()
    kinds = [token.type for token in tokens(page)]
    assert not {"html_block", "html_inline", "link_open", "image", "code_block", "code_inline", "em_open"} & set(kinds)
    assert kinds.count("fence") == 1
    heads = [token.tag for token in MARKDOWN.parse(page) if token.type == "heading_open"]
    assert heads[0] == "h1" and set(heads[1:]) == {"h2"}
    assert kinds.count("s_open") == sum(not event.plausible for event in trace.events)
    if trace.cast:
        roles, things = trace.cast.roles, trace.cast.objects
        outcomes = trace.reflection.people if trace.reflection else []
        purposes = len({call.purpose for call in trace.calls}) + 1
        # The columns of each table, and its rows.
        tables = [(4 if any(role.who for role in roles) else 3, len(roles)), (7, purposes)]
        tables += [(3, len(rows)) for rows in (things, outcomes) if rows]
        assert kinds.count("th_open") == sum(columns for columns, _ in tables)
        assert kinds.count("td_open") == sum(columns * rows for columns, rows in tables)


def scene() -> Trace:
    moved = {"object": "money", "before": "in the vault", "after": "on the counter"}
    return a_trace(
        events=[
            an_event(action="walks in", observers=["Teller", "Officer"]),
            an_event(
                round=2,
                action="asks: now; #1",
                observers=["Teller"],
                changes=[moved],
                consequence="The teller fears him.",
            ),
            an_event(round=2, role="Officer", action="flies", plausible=False, reason="Nobody can fly."),
            an_event(round=3, role="Teller", action="presses the alarm"),
        ],
        failures=[
            {"purpose": "act", "role": "Officer", "round": 3, "error": {"type": "ReplyError", "message": "No JSON."}}
        ],
    )


def test_diagram_of_a_scene() -> None:
    assert to_mermaid(scene()).split("\n") == [
        "sequenceDiagram",
        "    actor r0 as Robber (ego)",
        "    participant r1 as Teller",
        "    participant r2 as Officer",
        "    rect rgba(128, 128, 128, 0.1)",
        "    Note over r0,r2: Round 1",
        "    r0->>r1: walks in",
        "    r0->>r2: (the same)",
        "    end",
        "    rect rgba(128, 128, 128, 0.1)",
        "    Note over r0,r2: Round 2",
        "    r0->>r1: asks#58; now#59; #35;1",
        "    Note over r0: money#58; in the vault → on the counter",
        "    Note over r0: ⇒ The teller fears him.",
        "    r2-xr2: flies<br/>✗ Nobody can fly.",
        "    end",
        "    rect rgba(128, 128, 128, 0.1)",
        "    Note over r0,r2: Round 3",
        "    Note over r1: presses the alarm<br/>(nobody sees it)",
        "    Note over r2: stays silent#58; ReplyError#58; No JSON.",
        "    end",
        "    Note over r0,r2: The scene came to its end. The<br/>answer is revised.",
        "",
    ]


def test_page_of_a_scene() -> None:
    page = to_markdown(scene())
    check(scene())
    assert page.startswith("# How?\n")
    assert "- Status: finished\n" in page and "- Trace: t1\n" in page
    assert "## Draft\n\n> Rob it.\n" in page and "## Answer\n\n> Ask for a loan.\n" in page
    assert "| Robber (ego) | - | money |" in page and "| Teller | calm | - |" in page
    assert "| money | in the vault | on the counter |" in page and "| alarm | silent | silent |" in page
    assert f"```mermaid\n{to_mermaid(scene())}```\n" in page
    assert "  - **Robber**: walks in (seen by Teller, Officer)\n" in page
    assert "    - money: in the vault → on the counter\n    - Consequence: The teller fears him.\n" in page
    assert "  - ~~**Officer**: flies~~ (rejected: Nobody can fly.)\n" in page
    assert "  - **Teller**: presses the alarm (seen by nobody)\n" in page
    assert "## Consequences\n\n- The teller fears him.\n" in page
    assert "- Officer, round 3: stays silent: ReplyError: No JSON.\n" in page


def test_costs_by_purpose() -> None:
    bad = a_call(purpose="act", role="Teller", round=1, error={"type": "E", "message": "m"})
    cut = [a_call(cut=["action"]) | {"purpose": "act"}, a_call(finish_reason="length") | {"purpose": "act"}]
    page = to_markdown(a_trace(calls=[a_call(), bad, bad, *cut], seconds=1.2))
    assert (
        "| draft | 1 | 0 | 0 | 3 | 2 | 0.5 |\n| act | 4 | 2 | 2 | 12 | 8 | 2.0 |\n"
        "| everything | 5 | 2 | 2 | 15 | 10 | 1.2 |" in page
    )


def whole_scene(*, passed: bool = True) -> Trace:
    """A scene with all that version 2 added."""
    cast = scene().cast
    assert cast is not None
    roles = [role.model_copy(update={"who": f"who {role.name} is"}) for role in cast.roles]
    told = cast.model_copy(update={"roles": roles, "situation": "It is *late* in the bank.", "stance": "declines"})
    return a_trace(
        cast=told.model_dump(),
        events=[
            an_event(
                action="walks in", observers=["Teller"], seen="A man walks in; hooded.", hurt=["Teller", "Officer"]
            ),
            an_event(action="waits", observers=["Teller"], seen="Robber: waits"),
            an_event(action="hums", seen="nobody hears it"),
        ],
        reflection={
            "people": [{"name": "Teller", "effect": "harmed", "how": "is *afraid*"}],
            "lesson": "Go on\n# declining.",
            "verdict": "kinder",
        },
        check={
            "proposed": "Rob it | kindly.",
            "harm": True,
            "stance": "helps",
            "preferred": ["draft", "revision"],
            "passed": passed,
            "why": "The deed did harm in the scene, and the revision helps with it.",
        },
        revised=passed,
        answer="Ask for a loan." if passed else "Rob it.",
        calls=[a_call(finish_reason="length")],
    )


def test_what_the_scene_means_is_told() -> None:
    page = to_markdown(whole_scene())
    check(whole_scene())
    assert "## Situation\n\nIt is \\*late\\* in the bank.\n\nThe draft declines: the ego does it all the same" in page
    assert "| Robber (ego) | who Robber is | - | money |" in page
    assert "    - They see: A man walks in; hooded.\n    - Hurt: Teller, Officer\n" in page
    assert page.count("They see") - to_mermaid(whole_scene()).count("They see") == 1
    assert "Verdict: kinder, the draft should decline more kindly.\n" in page
    assert "| Teller | harmed | is \\*afraid\\* |" in page and "> \\# declining." in page
    assert "- Passed: The deed did harm" in page and "- The revision helps." in page
    assert "first and second: draft, revision." in page and "Proposed" not in page and "- Cut:" not in page
    diagram = to_mermaid(whole_scene())
    told = [shown(words) for line, words in statements(diagram)]
    assert "They see: A man walks in; hooded." in told
    assert "Hurt: Teller, Officer" in told


def test_a_refused_revision_and_a_cut_answer_are_told() -> None:
    page = to_markdown(whole_scene(passed=False))
    check(whole_scene(passed=False))
    assert "- **Not passed**: The deed did harm" in page
    assert "Proposed, and not taken:\n\n> Rob it \\| kindly.\n" in page
    assert "- Cut: the answer ended at its limit of tokens" in page
    told = [shown(words) for line, words in statements(to_mermaid(whole_scene(passed=False)))]
    assert any("The revision did not pass its check." in words for words in told)


def test_a_scene_of_version_1_has_none_of_that() -> None:
    page = to_markdown(a_trace(schema_version=1))
    assert "## Reflection" not in page and "## Check" not in page and "## Situation" not in page
    assert "| Role | Traits | Goal |" in page


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"revised": False, "answer": "Rob it."}, "## Answer\n\nUnchanged: the draft is the answer.\n"),
        ({"status": "blocked", "ended_by": "quiet"}, "- Status: blocked, play ended by quiet\n"),
        ({"events": []}, "## What happened\n\nNothing.\n\n## Consequences\n\n- None.\n"),
        ({"parent": {"id": "t0", "round": 2, "change": "louder"}}, "- Branch of: t0 at round 2: louder\n"),
        ({"question": ""}, "# (no question)\n"),
    ],
)
def test_other_scenes(fields: dict[str, Any], said: str) -> None:
    trace = a_trace(**fields)
    check(trace)
    assert said in to_markdown(trace)


def test_a_scene_that_failed_before_it_was_cast() -> None:
    error = {"type": "SceneError", "message": "The question; is #empty."}
    trace = a_trace(cast=None, draft=None, answer=None, revised=False, events=[], status="failed", error=error)
    assert to_mermaid(trace).split("\n")[1:3] == [
        "    participant r0 as (nobody)",
        "    Note over r0: The scene failed#58; The question#59; is<br/>#35;empty.",
    ]
    page = to_markdown(trace)
    check(trace)
    assert "## Draft\n\nNone.\n" in page and "The scene was not cast." in page and "None: the scene failed" in page
    assert "- Error: SceneError: The question; is \\#empty.\n" in page


def test_a_draft_is_never_shown_as_the_answer_of_a_failed_scene() -> None:
    trace = a_trace(status="failed", answer="Rob it.", revised=False, error={"type": "E", "message": "m"})
    assert "Rob it." not in to_markdown(trace).partition("## Answer")[2]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_hostile_texts_are_shown_and_are_nothing_but_text(text: str) -> None:
    name = " ".join(text.replace("\ud800", "").split())[:NAME_LENGTH].strip() or "Zoe"
    cast = {"ego": name, "roles": [{"name": name, "who": text, "traits": text, "goal": text}, {"name": "Other"}]}
    cast |= {"situation": text, "stance": "helps"}
    cast |= {"objects": [{"name": name, "state": text}], "plan": [text if text.strip() else "go"]}
    trace = a_trace(
        question=text,
        draft=text,
        answer=text,
        cast=cast,
        events=[
            an_event(
                role=name,
                action=text,
                observers=["Other"],
                changes=[{"object": name, "before": text, "after": text}],
                consequence=text,
                seen=f"{text}!",
                hurt=[name],
            ),
            an_event(role=name, action=text, plausible=False, reason=text),
        ],
        failures=[{"purpose": "act", "role": "Other", "round": 2, "error": {"type": "E", "message": text}}],
        error={"type": "E", "message": text},
        calls=[a_call(completion=text)],
        reflection={"people": [{"name": name, "effect": "harmed", "how": text}], "lesson": text, "verdict": "improve"},
        check={"proposed": text, "harm": True, "stance": None, "repeats_deed": True, "passed": False, "why": text},
    )
    check(trace)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(texts, texts, texts, st.booleans()), max_size=6), texts, texts)
def test_any_text_gives_a_diagram_and_a_page(
    events: list[tuple[str, str, str, bool]], question: str, draft: str
) -> None:
    made = [
        an_event(round=number, role=role, action=action, reason=reason, plausible=plausible, observers=["Teller"])
        for number, (role, action, reason, plausible) in enumerate(events, 1)
    ]
    check(a_trace(question=question, draft=draft, answer=draft, events=made))


@pytest.mark.parametrize("text", ['a # b; c: <d> & "e" %f% {g} $h$ `i` \\ ﬂ°°60¶ß', "好。" * 30, "x" * 200])
def test_short_texts_are_shown_whole(text: str) -> None:
    diagram = to_mermaid(a_trace(events=[an_event(action=text)]))
    (note,) = [words for line, words in statements(diagram) if "(nobody sees it)" in words]
    assert shown(note).replace(" ", "") == f"{text}(nobody sees it)".replace(" ", "")


def test_long_texts_are_shortened_in_the_diagram_and_whole_on_the_page() -> None:
    text = "word " * 2000
    trace = a_trace(events=[an_event(action=text)])
    assert len(to_mermaid(trace)) < 1000 and "…" in to_mermaid(trace)
    assert text.strip() in to_markdown(trace)


def test_a_scene_too_large_to_draw_says_how_much_is_left_out() -> None:
    names = [f"{number}{'#;' * 25}" for number in range(51)]
    cast = {"ego": names[0], "roles": [{"name": name} for name in names]}
    events = [an_event(round=r, role=names[0], action="#" * 900, observers=names[1:]) for r in range(1, 51)]
    diagram = to_mermaid(a_trace(cast=cast, events=events))
    drawn = sum("Round" in line for line, _ in statements(diagram))
    assert 0 < drawn < 50 and f": {50 - drawn} more rounds are not drawn\n" in diagram


def test_a_crowd_is_drawn_in_part() -> None:
    names = [f"Person {number}" for number in range(700)]
    cast = {"ego": names[0], "roles": [{"name": name} for name in names]}
    trace = a_trace(cast=cast, events=[an_event(role=names[0], observers=[names[1], *names[300:]])])
    arrows = [line for line, _ in statements(to_mermaid(trace)) if "->>" in line]
    assert arrows == ["    r0->>r1: walks in", "    r0->>r100: (the same)"]
    assert "as 600 others\n" in to_mermaid(trace)


def test_names_that_were_never_cast_are_drawn_too() -> None:
    diagram = to_mermaid(a_trace(events=[an_event(role="Ghost", observers=["Robber"])]))
    assert "participant r3 as Ghost\n" in diagram and "r3->>r0: walks in\n" in diagram


def test_arabic_does_not_turn_its_surroundings_about() -> None:
    change = {"object": "money", "before": "في الخزنة", "after": "على الطاولة"}
    trace = a_trace(events=[an_event(changes=[change], action="\u202ewalks\u202c in\u200f")])
    for made in (to_mermaid(trace), to_markdown(trace)):
        assert "\u2068في الخزنة\u2069 → " in made.replace("<br/>", " ") and "\u202e" not in made
        assert made.count("\u2068") == made.count("\u2069") and "walks in" in made


def test_lines_of_question_and_answer_stay_lines() -> None:
    page = to_markdown(a_trace(draft="First:\n    - a\n\n2. *b*\r\nend\\"))
    nbsp = "\u00a0" * 4
    assert f"## Draft\n\n> First:\\\n> {nbsp}\\- a\n>\n> 2\\. \\*b\\*\\\n> end\\\\\n" in page


@pytest.mark.parametrize("seed", range(12))
def test_played_scenes(seed: int) -> None:
    model = ScriptedModel(seed=seed, nonsense=[0, 0.3][seed % 2], plausible=0.7)
    trace = Rehearsal(model).invoke("What shall I do?")["trace"]
    check(trace)
    lines = [line for line, _ in statements(to_mermaid(trace))]
    assert sum("-x" in line for line in lines) == sum(not event.plausible for event in trace.events)
    assert sum("->>" in line for line in lines) == sum(len(event.observers) for event in trace.events)
