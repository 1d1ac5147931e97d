"""What counts as taken from a prompt's worked examples."""

from __future__ import annotations

from typing import Any

import pytest

from matrix_graph.errors import CopiedError
from matrix_graph.scene.copying import refuse_copies, same_words, words_of
from matrix_graph.scene.prompts import examples

EXAMPLE: Any = examples("cast")[0]
NAME = EXAMPLE["people"][0]
STEP = EXAMPLE["plan"][0]
ACTION: Any = next(example for example in examples("role") if len(example["action"].split()) > 3)  # type: ignore[index]


@pytest.mark.parametrize(
    "reply",
    [
        EXAMPLE,
        {"people": [NAME, "Jo"]},
        {"plan": [f"{NAME} goes home"]},
        {"plan": [STEP]},
        {"plan": [STEP.upper() + "!"]},
        {"situation": EXAMPLE["situation"]},
        [{"deep": [{"in": [STEP]}]}],
    ],
)
def test_names_and_texts_of_the_example_are_copies(reply: object) -> None:
    with pytest.raises(CopiedError, match="example"):
        refuse_copies("cast", reply, "How do I pay my rent?")


@pytest.mark.parametrize(
    "reply",
    [
        {"people": ["Jo", "Sam"], "plan": ["knocks at the door of the neighbour", "waits"]},
        {"people": [NAME + "ia"]},
        {"objects": [{"name": "door", "state": "closed"}]},
        {"plan": [" ".join(STEP.split()[:3])]},
        {},
        [],
        "",
        None,
        {"n": 5},
    ],
)
def test_what_is_of_the_scene_itself_is_none(reply: object) -> None:
    refuse_copies("cast", reply, "How do I pay my rent?")


def test_what_the_question_mentions_is_no_copy() -> None:
    refuse_copies("cast", {"people": [NAME, "Jo"]}, f"How do I tell {NAME} that I am late?")
    refuse_copies("cast", {"plan": [STEP]}, f"I want this: {STEP}.")
    with pytest.raises(CopiedError):
        refuse_copies("cast", {"people": [EXAMPLE["people"][1]]}, f"How do I tell {NAME} that I am late?")


def test_an_action_of_the_example_is_a_copy() -> None:
    with pytest.raises(CopiedError):
        refuse_copies("role", ACTION["action"], "")
    refuse_copies("role", ACTION["action"], f"You see and hear:\n- Jo {ACTION['action']}")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("opens the old door", "Opens the OLD door!", True),
        ("opens the old door slowly", "slowly opens the old door", True),
        ("opens the old door", "opens the new door", False),
        ("go on", "go on", False),  # too short to be told by its wording
        ("", "", False),
        ("打开门", "打开门", False),
        ("opens the old door", "", False),
    ],
)
def test_same_words(one: str, other: str, same: bool) -> None:
    assert same_words(one, other) is same_words(other, one) is same


def test_words() -> None:
    assert words_of("Don't go, Dr. O’Neil: 2 доли!") == ["don't", "go", "dr", "o’neil", "2", "доли"]
