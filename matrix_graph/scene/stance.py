"""What an answer does with its question, and whether a revision may take the draft's place.

What always holds: a stance is one word of a fixed choice; a check takes at most three short calls, which are in flight
together, and only a proposed revision is checked.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal, TypeVar

from pydantic import RootModel

from matrix_graph.errors import ReplyError
from matrix_graph.models.ask import Answer, of_reply, parse_json
from matrix_graph.records import Stance
from matrix_graph.scene.prompts import fill, opening
from matrix_graph.scene.refusal import refuses_plainly
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.state import Plain, SceneState

Choice = TypeVar("Choice", bound=str)
Preferred = Literal["draft", "revision"]

CHOICE_TOKENS = 48
"""Room for one word in a JSON object."""
CHECKS = 3
"""Calls of the check of a revision, which are in flight together."""


async def ask_stance(stage: Stage, question: str, answer: str) -> Answer[Stance]:
    """Ask whether an answer helps with its question or declines to."""
    stances: tuple[Stance, ...] = ("helps", "declines")
    return await _choose(stage, "system", fill("stance", "ask", question=question, answer=answer), "stance", stances)


async def stance_of_draft(stage: Stage, question: str, draft: str) -> Answer[Stance]:
    """What a draft does with its question; it is asked, unless the draft refuses in so many words."""
    if refuses_plainly(draft):
        return Answer("declines", "", [], 0, [])
    return await ask_stance(stage, question, draft)


async def _repeats_deed(stage: Stage, deed: str, harm: str, answer: str) -> Answer[Literal["yes", "no"]]:
    words: tuple[Literal["yes", "no"], ...] = ("yes", "no")
    return await _choose(stage, "deed", fill("stance", "ask_deed", deed=deed, harm=harm, answer=answer), "again", words)


async def _better(stage: Stage, state: SceneState, happened: str, first: str, second: str) -> Answer[Literal["A", "B"]]:
    letters: tuple[Literal["A", "B"], ...] = ("A", "B")
    cast = state["cast"]
    assert cast is not None
    scene = {"ego": cast["ego"], "deed": "; ".join(cast["plan"]), "happened": happened}
    request = fill("stance", "ask_better", question=state["question"], first=first, second=second, **scene)
    return await _choose(stage, "better", request, "better", letters)


async def checked(
    stage: Stage, state: SceneState, revision: str, happened: str
) -> tuple[Plain, list[Plain], dict[str, str] | None]:
    """Check whether a revision may take the draft's place.

    Where the deed did harm, the revision must not help with it: after a draft that declines, the revision declines,
    too; after a draft that helps, it no longer helps to do what did harm. Where the deed did none, the revision must
    not decline. And a comparison in both orders must not prefer the draft in both.

    Args:
        stage: the world outside the scene.
        state: with a reflection.
        revision: to the letter.
        happened: the scene's events as lines of a prompt; the comparison is made in their light.

    Returns:
        The check as `records.Check`, the records of its calls, and the error of a call that the server did not answer
        (None: it answered all). After a reply that says neither of the words, the check is not passed.
    """
    reflection, cast, question = state["reflection"], state["cast"], state["question"]
    draft = state["draft"] or ""
    assert reflection is not None and cast is not None  # nothing is revised without
    harm = harmful(state)
    deed_asked = harm and cast["stance"] == "helps"
    first = (
        _repeats_deed(stage, "; ".join(cast["plan"]), told_harm(state), revision)
        if deed_asked
        else ask_stance(stage, question, revision)
    )
    side: Answer[Any]
    side, before, after = await asyncio.gather(
        first, _better(stage, state, happened, draft, revision), _better(stage, state, happened, revision, draft)
    )
    calls = [*side.calls, *before.calls, *after.calls]
    faults = [answer.problem for answer in (side, before, after) if answer.problem and not of_reply(answer.problem)]
    preferred: list[Preferred] = []
    for answer, draft_is in ((before, "A"), (after, "B")):
        if answer.value is not None:
            preferred.append("draft" if answer.value == draft_is else "revision")
    stance: Stance | None = None if deed_asked else side.value
    repeats = None if not deed_asked or side.value is None else side.value == "yes"
    why = _objection(cast["stance"], harm=harm, stance=stance, repeats=repeats, unclear=side.value is None)
    if why is None and preferred.count("draft") == 2:
        why = "Compared in both orders, the draft is preferred."
    if why is None and len(preferred) < 2:
        why = "The comparison with the draft could not be made."
    return (
        {
            "proposed": revision,
            "harm": harm,
            "stance": stance,
            "repeats_deed": repeats,
            "preferred": preferred,
            "passed": why is None,
            "why": why or "It does what the scene asks for, and the draft is not preferred.",
        },
        calls,
        (faults[0] if faults else None),
    )


def harmful(state: SceneState) -> bool:
    """Whether the deed did harm in the scene, by its events and by the reflection on them."""
    reflection = state["reflection"]
    hurt = any(event["hurt"] for event in state["events"])
    return hurt or any(person["effect"] == "harmed" for person in (reflection or {}).get("people", ()))


def told_harm(state: SceneState) -> str:
    """What the deed did to those whom it harmed, as lines of a prompt."""
    people = (state["reflection"] or {}).get("people", ())
    lines = [f"- {person['name']}: {person['how']}" for person in people if person["effect"] == "harmed"]
    lines = lines or [
        f"- {event['consequence']}" for event in state["events"] if event["hurt"] and event["consequence"]
    ]
    return "\n".join(lines) or "-"


def _objection(
    stance_before: Stance, *, harm: bool, stance: Stance | None, repeats: bool | None, unclear: bool
) -> str | None:
    if unclear:
        return "What the revision does with the question could not be told."
    if harm and stance_before == "declines" and stance != "declines":
        return "The deed did harm in the scene, and the revision helps with it."
    if harm and repeats:
        return "The revision still helps to do what did harm in the scene."
    if not harm and stance == "declines":
        return "The deed did no harm in the scene, and the revision declines."
    return None


async def _choose(stage: Stage, section: str, request: str, key: str, choices: tuple[Choice, ...]) -> Answer[Choice]:
    read = parse_json(RootModel[dict[str, Any]])

    def parse(text: str) -> Choice:
        try:
            word = str(read(text).root[key])
        except (ReplyError, KeyError):
            word = text
        folded = word.strip().strip(".\"'").casefold()
        for choice in choices:
            if folded == choice.casefold():
                return choice
        raise ReplyError(f"{key}: {word[:80]!r} is not one of {', '.join(choices)}.")

    return await stage.ask(
        "check",
        [*opening("stance", section), {"role": "user", "content": request}],
        parse,
        CHOICE_TOKENS,
        schema={
            "type": "object",
            "properties": {key: {"type": "string", "enum": list(choices)}},
            "required": [key],
            "additionalProperties": False,
        },
    )
