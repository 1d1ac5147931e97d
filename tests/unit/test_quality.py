"""Scene quality against hand-made traces, and leaks against real scenes that something was put into."""

import json
import math
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matrix_graph import Rehearsal, SceneConfig, Trace
from matrix_graph.errors import ConfigError, ModelError
from matrix_graph.evaluate import telling
from matrix_graph.evaluate.caricature import caricatures, exaggeration, individuation, sentences
from matrix_graph.evaluate.embedding import embedder_from
from matrix_graph.evaluate.leaks import leaks
from matrix_graph.evaluate.quality import scene_quality
from matrix_graph.evaluate.scene_measures import depth, fate_of, repeats, repetition, scene_measures
from matrix_graph.evaluate.scene_words import FATES, GROUPS, MEASURES, SHARES, TURNED, WITH_EMBEDDER
from matrix_graph.records import Call, Cast, Change, Check, Event, Message, Problem, Role, SocialObject, Stance, Usage
from matrix_graph.scene.people import is_person
from matrix_graph.scene.prompts import fill
from tests.unit.scripted import ScriptedModel
from tests.unit.test_records import a_call


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
        event(1, "Ann", "knocks at the door", observers=("Bob", "Cem"), consequence="Bob is startled.", hurt=["Bob"]),
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
    assert found["hurt"] == pytest.approx(1 / 3) and found["cut answers"] == 0 and "refused" not in found
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


EXAMPLE = {
    "people": ["Maren", "Choir leader"],
    "roles": [{"goal": "to know whether he is faithful"}, {"goal": "five new singers by spring"}],
    "plan": ["takes the phone from the bedside table while he sleeps"],
}


def call(purpose: str, completion: str = "{}", **more: Any) -> Call:
    plain = {
        "role": None,
        "round": None,
        "messages": [],
        "finish_reason": "stop",
        "model": "m",
        "sampling": {},
        "usage": Usage(),
        "seconds": 0.1,
    }
    return Call(**{"purpose": purpose, "completion": completion, **plain, **more})


def shown(*, role: str = "system") -> Call:
    """A call for a cast whose prompt shows the example."""
    return call("cast", messages=[Message.model_validate({"role": role, "content": f"So:\n{json.dumps(EXAMPLE)}"})])


def ann(**more: Any) -> Cast:
    return Cast(ego="Ann", roles=[Role(name="Ann"), Role(name="Bob", **more)], plan=["knock at the door"])


@pytest.mark.parametrize(
    ("cast", "expected"),
    [
        (ann(), 0),
        (ann(who="Maren's brother"), 1),
        (ann(goal="wants to know whether he is faithful"), 1),
        (ann().model_copy(update={"plan": ["takes the phone from the bedside table, while he sleeps"]}), 1),
        (ann(goal="new singers"), 0),
    ],
)
def test_copies_from_the_examples_of_the_prompt(cast: Cast, expected: float) -> None:
    assert scene_measures(scene(cast=cast, calls=[shown()]))["copied"] == expected
    # What the question itself brings up is no copy, and nobody can copy what was not shown.
    own = "How does Maren, who takes the phone from the bedside table while he sleeps, know whether he is faithful?"
    assert scene_measures(scene(cast=cast, calls=[shown()], question=own))["copied"] in (0, expected)
    assert "copied" not in scene_measures(scene(cast=cast, calls=[shown(role="user")]))
    assert "copied" not in scene_measures(scene(cast=cast))


def test_refused_copies_are_counted_in_failed_scenes_too() -> None:
    refused = call("cast", error=Problem(type="CopiedError", message="takes Maren"))
    found = scene_quality([scene(calls=[refused, shown()]), scene(id="f", status="failed", calls=[refused, refused])])
    assert found.copied_replies == 3 and found.measures["copied"] is not None
    assert found.measures["copied"].scenes == 1


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        ("Bob", True),
        ("the landlord", True),
        ("Angry customers", True),
        ("police", True),
        ("neighbours on the stairs", True),
        ("list of customers", False),
        ("police report", False),
        ("boss's desk", False),
        ("door", False),
    ],
)
def test_people_among_objects(thing: str, expected: bool) -> None:
    cast = ann(who="Ann's landlord")
    assert is_person(thing, cast.roles) == expected
    with_it = cast.model_copy(update={"objects": [SocialObject(name=n, state="as usual") for n in (thing, "lamp")]})
    assert scene_measures(scene(cast=with_it))["people among objects"] == expected / 2


def test_the_first_step_and_blocked_scenes() -> None:
    tried = event(1, "Ann", "flies in", plausible=False)
    found = scene_measures(scene(tried, event(2, "Ann", "knocks", observers=("Bob",)), status="blocked"))
    assert found["first step rejected"] == 1 and found["blocked"] == 1
    found = scene_measures(scene(event(1, "Ann", "knocks"), event(2, "Bob", "flies", plausible=False)))
    assert found["first step rejected"] == 0 and found["blocked"] == 0
    assert "first step rejected" not in scene_measures(scene(event(1, "Bob", "flies", plausible=False)))


def test_repeats_are_the_same_persons_in_nearly_the_same_words() -> None:
    events = [
        event(1, "Ann", "asks the loud neighbour for quiet at night"),
        event(1, "Bob", "shrugs"),
        event(2, "Cem", "asks the loud neighbour for quiet at night"),
        event(2, "Ann", "Asks the neighbour for quiet at night."),
        event(3, "Bob", "Shrugs"),
        event(3, "Ann", "asks the police for quiet"),
    ]
    assert repeats(events) == [False, False, False, True, True, False]
    assert scene_measures(scene(*events))["repeated actions"] == pytest.approx(1 / 3)


def test_seen_by_all_counts_accepted_actions_that_all_others_see() -> None:
    events = [
        event(1, "Ann", "knocks", observers=("Bob", "Cem")),
        event(2, "Bob", "hides", observers=("Cem",)),
        event(2, "Cem", "flies", plausible=False),
    ]
    assert scene_measures(scene(*events))["seen by all"] == 1 / 2
    alone = Cast(ego="Ann", roles=[Role(name="Ann")])
    assert "seen by all" not in scene_measures(scene(event(1, "Ann", "sleeps"), cast=alone))


def test_what_was_cut() -> None:
    calls = [
        call("draft", "Knock and", finish_reason="length", cut=["reply"]),
        call("cast", '{"plan": ["kno', finish_reason="length", cut=["reply"], error=Problem(type="E", message="m")),
        call("cast", '{"plan": ["knocks at the d"]}', cut=["plan[0]"]),
        call("judge", '{"plausible": true}'),
        call("act", '{"action": "x"}', author="human"),
    ]
    found = scene_measures(scene(calls=calls))
    assert found["cut strings"] == pytest.approx(1 / 3)
    assert found["cut replies"] == 2 / 4 and found["cut answers"] == 1
    revised = scene(calls=[*calls, call("revise", "Knock.")], revised=True, answer="Knock.")
    assert scene_measures(revised)["cut answers"] == 0
    assert scene_measures(scene(calls=calls[2:]))["cut answers"] == 0  # a draft that was given was not cut here


def test_depth_counts_what_waits_for_each_other() -> None:
    failed = Problem(type="ReplyError", message="no")
    calls = [
        call("draft"),
        call("check"),  # beside the cast
        call("cast", error=failed),
        call("cast"),
        call("judge", role="Ann", round=1),
        call("recap", role="Ann", round=2),
        call("act", role="Ann", round=2),
        call("act", role="Bob", round=2),
        call("judge", role="Ann", round=2),
        call("judge", role="Bob", round=2),
        call("reflect"),
        call("revise"),
        *[call("check")] * 3,
    ]
    assert depth(calls) == 1 + 2 + 1 + 2 + 1 + 1 + 1 + 1
    assert depth([*calls, call("check", error=failed)]) == depth(calls) + 1 and depth([]) == 0
    found = scene_measures(scene(event(1, "Ann", "knocks"), event(2, "Bob", "opens"), calls=calls))
    assert found["depth"] == 10 and found["calls per action"] == len(calls) / 2


def checked(stance: Stance | None = "helps", *, passed: bool = True) -> Check:
    return Check(proposed="p", harm=False, stance=stance, passed=passed, why="w")


@pytest.mark.parametrize(
    ("before", "more", "expected"),
    [
        ("declines", {}, "declines, kept"),
        ("declines", {"check": checked(passed=False)}, "declines, kept"),
        ("declines", {"revised": True, "check": checked("declines")}, "declines, kinder"),
        ("declines", {"revised": True, "check": checked("helps")}, "declines, then helps"),
        ("helps", {}, "helps, kept"),
        ("helps", {"revised": True, "check": checked("helps")}, "helps, improved"),
        ("helps", {"revised": True, "check": checked("declines")}, "helps, then declines"),
        # Not asked: how the answer opens tells it.
        ("helps", {"revised": True, "check": checked(None)}, "helps, improved"),
        ("helps", {"revised": True, "check": checked(None), "answer": "I\u2019m sorry, no."}, "helps, then declines"),
        ("helps", {"revised": True, "check": checked(None), "answer": "Knock. " * 40 + "Sorry"}, "helps, improved"),
        ("declines", {"revised": True, "answer": "I cannot help with that, but ..."}, "declines, kinder"),
        (None, {"revised": True}, None),
    ],
)
def test_what_becomes_of_drafts(before: Stance | None, more: dict[str, Any], expected: str | None) -> None:
    trace = scene(cast=CAST.model_copy(update={"stance": before}), **more)
    assert fate_of(trace) == expected
    found = scene_quality([trace, scene(id="f", status="failed", cast=None)])
    assert found.fates == ({fate: int(fate == expected) for fate in FATES} if expected else {})
    assert found.turned == ({fate: ["t"] * (fate == expected) for fate in TURNED} if expected else {})
    proposed = found.measures["revision proposed"]
    assert proposed is not None and proposed.mean == ("check" in more)


def test_a_trace_of_the_first_version_has_what_it_tells() -> None:
    old = scene(event(1, "Ann", "knocks"), schema_version=1, revised=True, calls=[call("draft", "Knock.")])
    found = scene_measures(old)
    assert not {"revision proposed", "revision kept", "cut strings", "hurt"} & set(found)
    assert found["cut replies"] == 0 and fate_of(old) is None


def test_every_measure_has_its_words() -> None:
    assert set(MEASURES) | WITH_EMBEDDER == {name for group in GROUPS.values() for name in group}
    assert {telling.NAME, "individuation", "exaggeration"} == WITH_EMBEDDER
    assert {name for group in GROUPS.values() for name in group} >= SHARES


@pytest.mark.parametrize("seed", range(6))
async def test_no_scene_leaks(seed: int) -> None:
    model = ScriptedModel(seed=seed, plausible=0.7, nonsense=0.1)
    trace = (await Rehearsal(model, config=SceneConfig(roles=4, steps=4)).ainvoke("How?"))["trace"]
    assert leaks(trace) == []


SHORT = ["a", "e", "to", "tok", "-", "- ", ":", "says ", "{", "[1, 2]", "1", "\n- ", "- a\n- b", "null", "the"]


@pytest.mark.parametrize("seed", range(20))
async def test_no_scene_leaks_whose_model_babbles(seed: int) -> None:
    """Replies of a few letters stand in what others said, too; a summary may be written in lines like observations."""
    babble, context = (0.1, 0.3)[seed % 2], (None, 1600, 1200)[seed % 3]

    def override(purpose: str, role: str, round: int, rng: random.Random) -> str | None:
        if purpose == "recap" and rng.random() < 0.5:
            return "I saw:\n- somebody came\n- \n- somebody left"
        return rng.choice(SHORT) if purpose in ("act", "recap", "judge") and rng.random() < babble else None

    model = ScriptedModel(seed=seed, plausible=0.8, override=override)
    config = SceneConfig(roles=4, steps=4, context_length=context)
    trace = (await Rehearsal(model, config=config).ainvoke("How do I ask him?"))["trace"]
    assert trace.cast is not None and leaks(trace) == []


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


def test_what_is_seen_may_be_told_and_what_is_done_may_not() -> None:
    people = [
        Role(name="Ann", who="the asker, a quiet neighbour", traits="quiet as a mouse"),
        Role(name="Bob", who="the neighbour upstairs", traits="loud"),
        Role(name="Cy", who="the landlord"),
    ]
    cast = Cast(ego="Ann", roles=people, situation="Ann is kept awake by Bob every night.")
    lie = event(
        1, "Ann", "lies that she called the police", observers=("Bob",), seen="Ann says: the police are coming."
    )

    def told(*lines: str, role: str = "Bob") -> set[str]:
        messages = [Message(role="system", content="- Ann: the asker, a quiet neighbour\n- Cy: the landlord")]
        messages += [Message(role="user", content="\n".join(["You see and hear:", *lines, "What do you do?"]))]
        call = Call.model_validate({**a_call(purpose="act", role=role, round=2), "messages": messages})
        return {leak.kind for leak in leaks(scene(lie, cast=cast).model_copy(update={"calls": [call]}))}

    assert told("- Ann says: the police are coming.") == set()
    assert told("- Ann: lies that she called the police") == {"observation", "action"}
    assert told("You know that she lies that she called the police") == {"action"}
    assert told("You know: Ann says: the police are coming.", role="Cy") == {"action"}
    assert told("- Ann says: the police are coming.", role="Cy") == {"observation", "action"}
    assert told("Ann is kept awake by Bob every night.", role="Ann") == {"plan"}
    assert told("She is quiet as a mouse.") == {"profile"}


def test_the_fixed_words_of_a_prompt_tell_nothing() -> None:
    """Small models take them for a goal, a plan or an action."""
    words = "Do what this person would really do now."
    people = [Role(name="Ann", traits=words, goal="What do you do?"), Role(name="Bob", traits="loud")]
    cast = Cast(ego="Ann", roles=people, plan=["You see and hear:", "knocks at the door"])

    def told(text: str) -> set[str]:
        system = fill("role", "system", people="- Ann\n- Bob", name="Bob", traits="loud", goal="-")
        messages = [Message(role="system", content=system), Message(role="user", content=f"{text}\n\nWhat do you do?")]
        call = Call.model_validate({**a_call(purpose="act", role="Bob", round=2), "messages": messages})
        return {leak.kind for leak in leaks(scene(cast=cast).model_copy(update={"calls": [call]}))}

    assert told("You see and hear:\n") == set()
    assert told("Ann knocks at the door.") == {"plan"}


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


async def test_scenes_tell_their_question_if_it_is_the_nearest() -> None:
    loud = Cast(ego="Ann", roles=[Role(name="Ann", goal="quiet")], plan=["knock"], situation="a loud party")
    same = [scene(id=id, question=" How do I  knock?", cast=loud) for id in ("a", "b")]
    other = scene(id="c", question="How do I party?", cast=loud)
    lost = scene(id="f", question="How do I get quiet and knock?", status="failed")
    found = await telling.tellings([*same, other], Counting())
    assert found == {"a": {telling.NAME: 1}, "b": {telling.NAME: 1}, "c": {telling.NAME: 0}}
    # A failed scene's question can still be the nearest, and so can one that is yet to be played.
    assert (await telling.tellings([*same, lost], Counting()))["a"] == {telling.NAME: 0}
    assert (await telling.tellings(same, Counting(), [lost.question]))["a"] == {telling.NAME: 0}
    assert await telling.tellings(same, Counting()) == {}
    assert scene_quality([other], found).measures[telling.NAME] is not None


def test_a_folder_that_pools_in_another_way_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="an embedding model in a folder needs the extra train")
    with pytest.raises(ConfigError, match="can load"):
        embedder_from(str(tmp_path))
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "st.models.Pooling", "path": "1"}]))
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ConfigError, match="pools by max"):
        embedder_from(str(tmp_path))
    for kind, path in (("Dense", "1"), ("Pooling", "..")):
        (tmp_path / "modules.json").write_text(json.dumps([{"type": f"st.models.{kind}", "path": path}]))
        with pytest.raises(ConfigError, match=f"a part '{kind}'"):
            embedder_from(str(tmp_path))


async def test_a_folder_embeds_by_the_mean_of_its_tokens(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="an embedding model in a folder needs the extra train")
    transformers = pytest.importorskip("transformers", reason="an embedding model in a folder needs the extra train")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "knock", "quiet", "loud"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.BertModel(config).eval()
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 5}))
    found = np.array(await embedder_from(str(tmp_path)).aembed_documents(["knock", "quiet loud quiet loud"]))
    with torch.inference_mode():
        tokens = model(torch.tensor([[2, 6, 7, 6, 3]])).last_hidden_state[0].mean(0).numpy()
    assert np.allclose(np.linalg.norm(found, axis=1), 1) and found.shape == (2, 8)
    assert np.allclose(found[1], tokens / np.linalg.norm(tokens), atol=1e-5)


def test_sentences() -> None:
    assert sentences("Knock. Then ask!\n他敲门。开了 ") == ["Knock.", "Then ask!", "他敲门。", "开了"]
