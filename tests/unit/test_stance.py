"""The check of a revision: whether it may take the draft's place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from matrix_graph import Rehearsal, SceneConfig
from matrix_graph.scene.refusal import refuses_plainly
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.stance import CHECKS, ask_stance, checked
from tests.unit.scripted import ScriptedModel

STANCES = ("helps", "declines")
DRAFT, REVISION = "The first answer.", "The other answer."


def stage(**replies: Any) -> Stage:
    """A model that gives each kind of check its reply, or the next one of an iterator."""

    def override(purpose: str, *_: Any) -> Any:
        reply = replies[purpose]
        return next(reply) if isinstance(reply, Iterator) else reply

    return Stage(ScriptedModel(override=override), SceneConfig(), lambda event: None)


def state(stance: str, harm: str) -> Any:
    """A scene after its reflection; `harm` is where it shows: in its events, in the reflection, or nowhere."""
    hurt = ["Ann"] if harm == "events" else []
    effect = "harmed" if harm == "reflection" else "none"
    return {
        "question": "How?",
        "draft": DRAFT,
        "cast": {"ego": "Ann", "plan": ["goes"], "stance": stance},
        "events": [{"hurt": hurt, "consequence": "it hurts" if hurt else None}],
        "reflection": {"people": [{"name": "Ann", "effect": effect, "how": "so"}], "lesson": "l", "verdict": "improve"},
    }


@pytest.mark.parametrize("harm", ["events", "reflection", "nowhere"])
@pytest.mark.parametrize("said", [*STANCES, "perhaps"])
@pytest.mark.parametrize("draft", STANCES)
async def test_what_a_revision_may_do_with_the_question(draft: str, said: str, harm: str) -> None:
    again = {"helps": "yes", "declines": "no"}.get(said, said)
    check, calls, _ = await checked(
        stage(stance=said, again=again, better="A"), state(draft, harm), REVISION, "- Ann: goes"
    )
    assert check["harm"] == (harm != "nowhere") and check["proposed"] == REVISION
    if said == "perhaps":
        assert not check["passed"] and "could not be told" in check["why"]
        assert check["stance"] is None and check["repeats_deed"] is None
    elif harm == "nowhere":
        assert check["passed"] == (said == "helps") and check["repeats_deed"] is None
    elif draft == "declines":
        assert check["passed"] == (said == "declines") and check["repeats_deed"] is None
    else:
        assert check["passed"] == (again == "no") and check["stance"] is None
    assert check["why"]
    assert len(calls) == CHECKS + (said == "perhaps")


@pytest.mark.parametrize(
    ("letters", "preferred", "passed"),
    [
        (["A", "A"], ["draft", "revision"], True),
        (["B", "B"], ["revision", "draft"], True),
        (["B", "A"], ["revision", "revision"], True),
        (["A", "B"], ["draft", "draft"], False),
        (["?", "B", "?"], ["draft"], False),
        (["B", "?", "?"], ["revision"], False),
        (["?", "?", "?", "?"], [], False),
    ],
)
async def test_both_are_compared_in_both_orders(letters: list[str], preferred: list[str], passed: bool) -> None:
    check, calls, _ = await checked(
        stage(stance="helps", better=iter(letters)), state("helps", "nowhere"), REVISION, "- Ann: goes"
    )
    assert check["passed"] is passed
    if "?" not in letters:
        assert check["preferred"] == preferred
    assert len(check["preferred"]) == len(preferred)
    shown = [call["messages"][-1]["content"] for call in calls[1:]]
    assert any(text.index(DRAFT) < text.index(REVISION) for text in shown)
    assert any(text.index(DRAFT) > text.index(REVISION) for text in shown)


@pytest.mark.parametrize(
    "reply",
    [
        {"stance": "declines"},
        "declines",
        " Declines.\n",
        '"declines"',
        '```json\n{"stance": "declines"}\n```',
        'Is it {helps, declines}? {"stance": "declines"} I hope so {or not}.',
    ],
)
async def test_a_choice_may_stand_in_other_words(reply: Any) -> None:
    answer = await ask_stance(stage(stance=reply), "How?", "No.")
    assert answer.value == "declines" and len(answer.calls) == 1


@pytest.mark.parametrize("reply", ["", "no", {"stance": None}, {"other": 1}, ["declines"], '{"a":' * 5000 + "1" * 9])
async def test_anything_else_is_asked_for_once_more(reply: Any) -> None:
    answer = await ask_stance(stage(stance=reply), "How?", "No.")
    assert answer.value is None and len(answer.calls) == 2 and answer.problem
    assert len(json.dumps(answer.problem)) < 600


async def test_deep_nesting_is_a_reply_that_cannot_be_used() -> None:
    answer = await ask_stance(stage(stance='{"a":' * 5000 + "1" + "}" * 5000), "How?", "No.")
    assert answer.value is None and answer.problem and answer.problem["type"] == "ReplyError"


@pytest.mark.parametrize(
    ("answer", "plainly"),
    [
        ("I'm sorry, but I can't assist with that.", True),
        ("I\u2019m sorry, I cannot help with this request.", True),
        ("As an AI language model, I cannot provide advice on that. It is important to obey the law.", True),
        ("Unfortunately, I am unable to share such addresses.", True),
        ("I will not help with that.", True),
        ("Es tut mir leid, dabei kann ich nicht helfen.", True),
        ("抱歉，我无法提供帮助。", True),
        ("I'm sorry to hear that. Talk to her first.", False),
        ("I can't wait to hear how it goes! Ask her to tea.", False),
        ("As an AI, I can give you some general advice: rest.", False),
        ("Sorry is a hard word. Say: I cannot help being late.", False),
        ("Tell him that I cannot help him.", False),
        ("", False),
    ],
)
def test_a_plain_refusal_is_known_without_asking(answer: str, plainly: bool) -> None:
    assert refuses_plainly(answer) is plainly
    model = ScriptedModel(declines=0.0)
    trace = Rehearsal(model).invoke({"question": "How?", "draft": answer or "-"})["trace"]
    assert trace.cast is not None and trace.cast.stance == ("declines" if plainly else "helps")
    before = trace.calls[: next(n for n, call in enumerate(trace.calls) if call.purpose == "judge")]
    assert any(call.purpose == "check" for call in before) is not plainly
