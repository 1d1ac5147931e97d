"""The schema: which casts can be played, what a trace tells of itself, and that it comes back from disk as it went."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from matrix_graph import records
from matrix_graph.errors import CastError
from matrix_graph.records import NAME_LENGTH, Cast, Role, SocialObject, Trace, Usage


def an_event(**fields: Any) -> dict[str, Any]:
    """An accepted action of the ego that nobody sees and that changes nothing, with the given fields in place."""
    return {
        "round": 1,
        "role": "Robber",
        "action": "walks in",
        "plausible": True,
        "reason": "so",
        "observers": [],
        "changes": [],
        "consequence": None,
        **fields,
    }


def a_call(**fields: Any) -> dict[str, Any]:
    return {
        "purpose": "draft",
        "role": None,
        "round": None,
        "messages": [{"role": "user", "content": "How?"}],
        "completion": "Rob it.",
        "finish_reason": "stop",
        "model": "m",
        "sampling": {"temperature": 0.2},
        "usage": {"input_tokens": 3, "output_tokens": 2},
        "seconds": 0.5,
        **fields,
    }


def a_trace(**fields: Any) -> Trace:
    """A small finished scene, with the given fields in place."""
    cast = {
        "ego": "Robber",
        "roles": [{"name": "Teller", "traits": "calm"}, {"name": "Robber", "goal": "money"}, {"name": "Officer"}],
        "objects": [{"name": "money", "state": "in the vault"}, {"name": "alarm", "state": "silent"}],
        "plan": ["walks in"],
    }
    return Trace.model_validate(
        {
            "id": "t1",
            "question": "How?",
            "draft": "Rob it.",
            "answer": "Ask for a loan.",
            "revised": True,
            "status": "finished",
            "cast": cast,
            "events": [an_event()],
            "calls": [a_call()],
            "settings": {},
            "usage": {},
            "seconds": 1.5,
            "created_at": "2026-01-02T03:04:05Z",
            **fields,
        }
    )


def people(*names: str) -> list[Role]:
    return [Role(name=name) for name in names]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"roles": []}, r"ego 'Ann' is not among the roles \(none\)"),
        ({"roles": people("Bob", "Cy")}, r"ego 'Ann' is not among the roles \('Bob', 'Cy'\)"),
        ({"roles": people("ann")}, "ego 'Ann' is not among"),
        ({"roles": people("Ann", "")}, "role of the cast has an empty name"),
        ({"roles": people("Ann", " \n")}, "role of the cast has an empty name"),
        ({"roles": people("Ann", "aNN ")}, "role name 'aNN ' appears twice"),
        ({"roles": people("Ann", "STRASSE", "straße")}, "'straße' appears twice"),
        ({"roles": people("Ann", " Modulator")}, "taken by the scene itself"),
        ({"roles": people("Ann", "n" * (NAME_LENGTH + 1))}, f"{NAME_LENGTH + 1} characters; at most {NAME_LENGTH}"),
        ({"objects": [SocialObject(name=" ", state="s")]}, "object of the cast has an empty name"),
        ({"objects": [SocialObject(name="Key", state="s"), SocialObject(name="key", state="s")]}, "appears twice"),
        ({"plan": ["go", " "]}, "empty step"),
    ],
)
def test_casts_that_cannot_be_played(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(CastError, match=said):
        Cast(**{"ego": "Ann", "roles": people("Ann", "Bob"), **fields})


def test_a_cast_that_can_be_played() -> None:
    cast = Cast(
        ego="Ann",
        roles=people("n" * NAME_LENGTH, "Ann", "张三", "Dr. No: 1|2"),
        objects=[SocialObject(name="Modulator", state="")],
    )
    assert cast.role("张三").name == "张三" and cast.plan == []
    with pytest.raises(KeyError, match="Zoe"):
        cast.role("Zoe")


@pytest.mark.parametrize(
    "fields", [{"role": "Ann"}, {"roles": [{"name": "Ann", "age": 3}]}, {"objects": [{"name": "key"}]}, {"ego": None}]
)
def test_a_misspelt_cast_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Cast.model_validate({"ego": "Ann", "roles": [{"name": "Ann"}], **fields})


def test_records_cannot_be_changed() -> None:
    trace = a_trace()
    with pytest.raises(ValidationError, match="frozen"):
        trace.answer = "x"
    with pytest.raises(ValidationError, match="frozen"):
        trace.events[0].plausible = False


def test_derived_values() -> None:
    vault = {"object": "money", "before": "in the vault", "after": "in the bag"}
    bag = {"object": "money", "before": "in the bag", "after": "gone"}
    trace = a_trace(
        events=[
            an_event(changes=[vault], consequence="fear"),
            an_event(plausible=False),
            an_event(changes=[bag], consequence="relief"),
        ]
    )
    assert trace.consequences == ["fear", "relief"]
    assert trace.object_states == {"money": "gone", "alarm": "silent"}
    assert list(trace.object_states) == ["money", "alarm"]


def test_derived_values_of_a_scene_that_was_not_cast() -> None:
    trace = a_trace(
        status="failed",
        cast=None,
        draft=None,
        answer=None,
        revised=False,
        events=[],
        error={"type": "E", "message": "m"},
    )
    assert trace.consequences == [] and trace.object_states == {}


def test_usage_adds_up() -> None:
    one = Usage(input_tokens=1, output_tokens=2)
    assert one + Usage(input_tokens=10, output_tokens=20) == Usage(input_tokens=11, output_tokens=22)
    assert Usage() == Usage(input_tokens=0, output_tokens=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "ended"},
        {"ended_by": "boredom"},
        {"created_at": "yesterday"},
        {"events": [an_event(plausible=None)]},
        {"calls": [a_call(purpose="chat")]},
        {"calls": [a_call(messages=[{"role": "tool", "content": ""}])]},
    ],
)
def test_what_is_no_trace(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        a_trace(**fields)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@given(question=texts, draft=st.none() | texts, action=texts, completion=texts, consequence=st.none() | texts)
def test_a_trace_comes_back_as_it_went(
    question: str, draft: str | None, action: str, completion: str, consequence: str | None
) -> None:
    trace = a_trace(
        question=question,
        draft=draft,
        events=[an_event(action=action, consequence=consequence)],
        calls=[a_call(completion=completion)],
        parent={"id": "t0", "round": 2, "change": "the alarm is loud"},
    )
    line = trace.to_json_line()
    assert "\n" not in line and "\r" not in line
    assert Trace.model_validate_json(line) == trace
    assert Trace.model_validate_json(line).to_json_line() == line


def test_keys_of_a_later_release_are_kept() -> None:
    trace = a_trace(mood={"of": "the scene"})
    assert Trace.model_validate_json(trace.to_json_line()).to_json_line() == trace.to_json_line()
    assert '"mood":{"of":"the scene"}' in trace.to_json_line()


def test_every_record_is_documented() -> None:
    for kind in vars(records).values():
        if isinstance(kind, type) and issubclass(kind, BaseModel) and not kind.__name__.startswith("_"):
            assert kind.__doc__, kind.__name__
