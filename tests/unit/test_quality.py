"""Scene quality against hand-made traces, and leaks against real scenes that something was put into."""

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from matrix_graph import Rehearsal, SceneConfig, Trace
from matrix_graph.errors import ModelError
from matrix_graph.evaluate.caricature import caricatures, exaggeration, individuation, sentences
from matrix_graph.evaluate.leaks import leaks
from matrix_graph.evaluate.quality import scene_quality
from matrix_graph.evaluate.scene_measures import repetition, scene_measures
from matrix_graph.evaluate.scene_words import MEASURES
from matrix_graph.records import Call, Cast, Change, Event, Message, Role, SocialObject, Usage
from tests.unit.scripted import ScriptedModel


def event(round: int, role: str, action: str, *, observers: tuple[str, ...] = (), **more: Any) -> Event:
    plain = {"plausible": True, "reason": "it can", "changes": [], "consequence": None}
    return Event(**{"round": round, "role": role, "action": action, "observers": list(observers), **plain, **more})


CAST = Cast(
    ego="Ann",
    roles=[
        Role(name="Ann", traits="shy", goal="sleep"),
        Role(name="Bob", traits="loud", goal="party"),
        Role(name="Cem", traits="Loud ", goal="party"),
    ],
    objects=[SocialObject(name="door", state="shut"), SocialObject(name="radio", state="on")],
    plan=["knock at the door", "ask for quiet"],
)


def scene(*events: Event, **more: Any) -> Trace:
    plain = {
        "id": "t",
        "question": "How do I ask my neighbour for quiet?",
        "draft": "Knock and ask in a friendly way.",
        "answer": "Knock and ask in a friendly way.",
        "revised": False,
        "status": "finished",
        "cast": CAST,
        "calls": [],
        "settings": {},
        "usage": Usage(input_tokens=70, output_tokens=30),
        "seconds": 1.0,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return Trace(**{**plain, "events": list(events), **more})


def test_the_measures_of_a_scene_by_hand() -> None:
    opened = Change(object="door", before="shut", after="open")
    trace = scene(
        event(1, "Ann", "knocks at the door", observers=("Bob", "Cem"), consequence="Bob is startled."),
        event(2, "Bob", "opens the door wide", observers=("Ann",), changes=[opened]),
        event(2, "Cem", "flies away", plausible=False),
        event(3, "Ann", "Knocks at  the door"),
    )  # fmt: skip
    found = scene_measures(trace)
    assert found["roles"] == 3 and found["distinct roles"] == pytest.approx(1 / 3)
    assert found["rejected"] == 1 / 4 and found["actions"] == 4
    assert found["observers"] == pytest.approx((2 + 1 + 0) / 3)
    assert found["changed objects"] == 1 / 2
    assert found["consequences"] == pytest.approx(1 / 3)
    assert found["repeated actions"] == 1 / 4
    # Pairs after the first action: opens-the, the-door (again), door-wide, flies-away, and three that came all before.
    assert found["repetition"] == pytest.approx(4 / 7)
    assert found["output tokens"] == 30 and found["revised"] == 0


def test_a_script_without_spaces_repeats_by_characters() -> None:
    assert repetition([event(1, "A", "他敲门"), event(2, "B", "他敲门")]) == 1
    assert repetition([event(1, "A", "他敲门"), event(2, "B", "开窗户")]) == 0
    assert repetition([event(1, "A", "runs"), event(2, "B", "runs")]) is None


def test_failed_scenes_are_counted_and_left_out() -> None:
    good = scene(event(1, "Ann", "knocks"))
    bad = scene(status="failed", draft=None, answer=None, cast=None, id="f")
    found = scene_quality([good, bad])
    assert found.scenes == 2 and found.failed == 1
    assert found.measures["actions"] is not None and found.measures["actions"].scenes == 1
    assert found.measures["actions"].interval is None and found.measures["repetition"] is None
    assert set(found.measures) == set(MEASURES)


@pytest.mark.parametrize("seed", range(6))
async def test_no_scene_leaks(seed: int) -> None:
    model = ScriptedModel(seed=seed, plausible=0.7, nonsense=0.1)
    trace = (await Rehearsal(model, config=SceneConfig(roles=4, steps=4)).ainvoke("How?"))["trace"]
    assert leaks(trace) == []


async def played() -> Trace:
    """A scene in which somebody reacts, and somebody was not seen by all."""
    for seed in range(50):
        model = ScriptedModel(seed=seed, plausible=0.8)
        trace = (await Rehearsal(model, config=SceneConfig(roles=3, steps=3)).ainvoke("How do I ask him?"))["trace"]
        acts = [call for call in trace.calls if call.purpose == "act"]
        if trace.status != "failed" and acts and _unseen(trace):
            return trace
    raise AssertionError("no such scene")


def _unseen(trace: Trace) -> list[tuple[int, Event]]:
    """(call, event) where the caller had not seen an earlier event of somebody else, nor the whole plan."""
    return [
        (number, past)
        for number, call in enumerate(trace.calls)
        if call.purpose == "act" and call.role != trace.cast.ego  # type: ignore[union-attr]
        for past in trace.events
        if past.round < (call.round or 0)
        and past.role != call.role
        and call.role not in past.observers
        and set(trace.cast.plan) - _seen(trace, call)  # type: ignore[union-attr]
    ]


def _seen(trace: Trace, call: Call) -> set[str]:
    """The actions that the caller had seen."""
    return {event.action for event in trace.events if call.role in event.observers and event.round < (call.round or 0)}


def tell(trace: Trace, number: int, text: str) -> Trace:
    """The trace with something more said in the last message of one call."""
    call = trace.calls[number]
    *before, last = call.messages
    messages = [*before, Message(role=last.role, content=f"{last.content}\n{text}")]
    calls = [*trace.calls]
    calls[number] = call.model_copy(update={"messages": messages})
    return trace.model_copy(update={"calls": calls})


async def test_whatever_is_put_into_a_prompt_is_found() -> None:
    trace = await played()
    assert leaks(trace) == [] and trace.cast is not None
    number, past = _unseen(trace)[0]
    call = trace.calls[number]
    other = next(role for role in trace.cast.roles if role.name != call.role)
    secret = next(step for step in trace.cast.plan if step not in _seen(trace, call))
    injected = {
        "observation": f"- {past.role}: does what nobody saw",
        "action": f"You heard that {past.action}",
        "profile": f"By the way: {other.traits}",
        "judgement": f"You know that {past.reason}",
        "plan": f"They plan: {secret}",
    }
    for kind, text in injected.items():
        found = leaks(tell(trace, number, text))
        assert [leak.kind for leak in found if leak.role == call.role] and kind in {leak.kind for leak in found}, kind
    assert scene_quality([tell(trace, number, injected["observation"])]).leaking == [trace.id]


async def test_an_observation_told_twice_is_a_leak() -> None:
    trace = await played()
    number, told = next(
        (number, past)
        for number, call in enumerate(trace.calls)
        if call.purpose == "act"
        for past in trace.events
        if call.role in past.observers and past.round < (call.round or 0)
    )
    found = leaks(tell(trace, number, f"- {told.told}"))
    assert {leak.kind for leak in found} == {"observation"}


def test_individuation_by_hand() -> None:
    one, other = np.array([[1.0, 0], [1, 0.1]]), np.array([[0.0, 1], [0.1, 1]])
    assert individuation(one, other) == 1
    assert individuation(one, one) == pytest.approx(0.5, abs=0.5)
    # Two opposite actions each: without an action, the rest of its role points the other way.
    assert individuation(np.array([[1.0, 0], [-1, 0]]), np.array([[0.0, 1], [0, -1]])) == 0


def test_exaggeration_by_hand() -> None:
    persona, topic = np.array([[1.0, 0]]), np.array([[0.0, 1]])
    assert exaggeration(persona, persona, topic) == pytest.approx(1)
    assert exaggeration(topic, persona, topic) == pytest.approx(0)
    half = np.array([[math.sqrt(0.5), math.sqrt(0.5)]])
    assert exaggeration(half, persona, topic) == pytest.approx(0.5)
    assert exaggeration(half, topic, topic) is None


class Counting:
    """Embeds a text as how often certain words stand in it."""

    words = ("quiet", "loud", "knock", "party")

    async def aembed_documents(self, texts: list[str], /) -> list[list[float]]:
        return [[1e-3 + text.lower().count(word) for word in self.words] for text in texts]


async def test_a_role_that_only_says_its_profile_is_a_caricature() -> None:
    cast = Cast(ego="Ann", roles=[Role(name="Ann", traits="quiet"), Role(name="Bob", traits="loud", goal="party")])

    def on_knocking(id: str, *actions: tuple[str, str]) -> Trace:
        events = [event(round, role, action) for round, (role, action) in enumerate(actions, 1)]
        return scene(*events, id=id, cast=cast, question="How do I knock?", draft="Knock.")

    flat = on_knocking("flat", ("Ann", "quiet"), ("Ann", "be quiet"), ("Bob", "loud party"), ("Bob", "loud, party!"))
    lively = on_knocking("lively", ("Ann", "knock"), ("Ann", "quiet"), ("Bob", "knock, party"), ("Bob", "quiet knock"))
    found = await caricatures([flat, lively], Counting())
    assert found["flat"]["individuation"] == 1 > found["lively"]["individuation"]
    assert found["flat"]["exaggeration"] == pytest.approx(1, abs=0.1)
    assert 0 < found["lively"]["exaggeration"] < 0.7
    merged = scene_quality([flat], found).measures["exaggeration"]
    assert merged is not None and merged.mean == pytest.approx(found["flat"]["exaggeration"])


async def test_an_embedding_model_that_loses_texts_is_an_error() -> None:
    class Short:
        async def aembed_documents(self, texts: list[str], /) -> list[list[float]]:
            return [[1.0]]

    with pytest.raises(ModelError, match="1 vectors for"):
        await caricatures([scene(event(1, "Ann", "knocks"))], Short())


def test_sentences() -> None:
    assert sentences("Knock. Then ask!\n他敲门。开了 ") == ["Knock.", "Then ask!", "他敲门。", "开了"]
