"""What is made of a cast as the model gave it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from matrix_graph import Cast, Rehearsal, Role, SceneConfig, Trace
from matrix_graph.scene.cast import distinct
from matrix_graph.scene.people import is_person
from matrix_graph.scene.prompts import examples
from tests.unit.scripted import ScriptedModel

JUDGED = {"reason": "so", "plausible": True, "observers": [], "seen": None, "changes": [], "consequence": None}
PEOPLE = ["Jo", "Sam", "Kim", "Lee"]


def reply(**fields: Any) -> dict[str, Any]:
    person = {"who": "a neighbour", "traits": "calm", "goal": "peace"}
    return {
        "situation": "Jo asks.",
        "people": PEOPLE,
        "roles": [person] * 4,
        "objects": [{"name": "fence", "state": "broken"}],
        "plan": ["knocks at the door", "says hello"],
        **fields,
    }


def play(*casts: Any, **config: Any) -> Trace:
    """A scene whose model gives these casts, one a try; the last one goes on."""
    left = list(casts)

    def override(purpose: str, *_: Any) -> Any:
        if purpose == "cast":
            return left.pop(0) if len(left) > 1 else left[0]
        return {"judge": JUDGED, "stance": "helps"}.get(purpose)

    model = ScriptedModel(override=override)
    return Rehearsal(model, config=SceneConfig(**config)).invoke({"question": "How?", "draft": "So."})["trace"]


def asked(trace: Trace) -> list[str | None]:
    return [call.error.type if call.error else None for call in trace.calls if call.purpose == "cast"]


def made(trace: Trace) -> Cast:
    assert trace.cast is not None
    return trace.cast


@pytest.mark.parametrize("twice", [["Jo", "Sam", " jo ", "Lee"], ["Jo", "Sam", "Sam", "Sam"], ["Jo", "Sam and Kim"]])
def test_a_person_who_stands_there_twice_is_asked_for_again_and_then_told_apart(twice: list[str]) -> None:
    trace = play(reply(people=twice), reply())
    assert asked(trace) == ["ReplyError", None] and [role.name for role in made(trace).roles] == PEOPLE
    names = [role.name for role in made(play(reply(people=twice))).roles]
    assert len({name.casefold() for name in names}) == len(twice), "what is given again is made distinct"


@pytest.mark.parametrize("several", ["Sam & Kim", "Sam, Kim", "Sam and Kim", "Sam und Kim", "Sam et Kim", "Sam y Kim"])
def test_several_people_in_one_name_are_asked_for_again(several: str) -> None:
    assert asked(play(reply(people=["Jo", several, "Lee"]), reply())) == ["ReplyError", None]


def test_names_that_only_look_like_several_people() -> None:
    assert asked(play(reply(people=["Andy", "Sandra Eyre", "Anders", "Ottilie"]))) == [None]


def test_people_are_no_objects() -> None:
    things = [{"name": name, "state": "there"} for name in ("the neighbour", "Sam", "fence")]
    cast = made(play(reply(objects=things)))
    assert [thing.name for thing in cast.objects] == ["fence"]


@pytest.mark.parametrize(
    ("thing", "is_one"),
    [
        ("landlord", True),
        ("the landlord", True),
        ("Her Landlord", True),
        ("Weber", True),
        ("Mr Weber", True),
        ("landlord's key", False),
        ("key", False),
        ("door", False),
        ("", False),
        ("the", False),
        ("town", False),
    ],
)
def test_who_a_person_is(thing: str, is_one: bool) -> None:
    roles = [Role(name="Mr Weber", who="the asker's landlord"), Role(name="Ann", who="counsels couples in the town")]
    assert is_person(thing, [roles[0], Role(name="Ann", who="")]) is is_one
    assert not is_person("key", roles)


@pytest.mark.parametrize(
    ("plan", "steps"),
    [
        (["1. goes in", "Step 2: waits", "3) leaves"], ["goes in", "waits", "leaves"]),
        (["goes in", "Goes in", "goes  in"], ["goes in"]),
        (["takes the key from him", "Takes the key from him.", "leaves"], ["takes the key from him", "leaves"]),
        (["", " ", "leaves"], ["leaves"]),
        (["a", "b", "c", "d", "e"], ["a", "b", "c"]),
    ],
)
def test_repeated_steps_are_one(plan: list[str], steps: list[str]) -> None:
    assert made(play(reply(plan=plan))).plan == steps


def test_a_plan_without_a_step_is_asked_for_again() -> None:
    assert asked(play(reply(plan=["", "  "]), reply())) == ["ReplyError", None]
    assert play(reply(plan=[])).status == "failed"


def test_a_copy_of_the_example_is_asked_for_again_without_it() -> None:
    copy: Any = examples("cast")[0]
    trace = play(copy, reply())
    assert asked(trace) == ["CopiedError", None]
    first, second = (call.messages[0].content for call in trace.calls if call.purpose == "cast")
    shown = [json.dumps(example, ensure_ascii=False) for example in examples("cast")]
    assert all(text in first for text in shown) and not any(text in second for text in shown)
    failed = play(copy)
    assert asked(failed) == ["CopiedError", "CopiedError"] and failed.status == "failed"
    assert failed.error is not None and failed.error.type == "CopiedError"


def test_what_is_missing_of_a_person_is_empty() -> None:
    cast = made(play({"people": ["Jo", "Sam"], "plan": ["goes"]}))
    assert cast.roles == [Role(name="Jo"), Role(name="Sam")] and cast.situation == "" and not cast.objects


def test_the_plan_of_a_given_cast_keeps_its_people() -> None:
    given = Cast(ego="Jo", roles=[Role(name="Jo"), Role(name="Sam")], situation="Jo waits.")
    model = ScriptedModel(seed=1)
    trace = Rehearsal(model, cast=given).invoke({"question": "How?", "draft": "So."})["trace"]
    cast = made(trace)
    assert cast.roles == given.roles and cast.situation == "Jo waits." and cast.plan and cast.stance == "helps"


def test_names_are_made_distinct_and_short() -> None:
    names = distinct(["Jo", "jo", "", "modulator", "x" * 99], "Person")
    assert names == ["Jo", "jo 2", "Person", "modulator 2", "x" * 60]
