"""The scene's rules as properties over random models, read from traces alone."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver

from matrix_graph import Cast, Rehearsal, Role, SceneConfig, SocialObject, Trace
from matrix_graph.records import OUTSIDE
from matrix_graph.scene.graph import create_scene, recursion_limit
from matrix_graph.scene.prompts import examples
from matrix_graph.scene.state import to_trace
from tests.unit import invariants
from tests.unit.scripted import ScriptedModel, words

models = st.builds(
    ScriptedModel,
    seed=st.integers(0, 2**32),
    plausible=st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]),
    nonsense=st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.1, 0.4, 1.0]),
    broken=st.sampled_from([0.0, 0.0, 0.0, 0.02, 0.3]),
    harmless=st.sampled_from([0.0, 0.5, 1.0]),
    unseen=st.sampled_from([0.0, 0.3, 1.0]),
    hurtful=st.sampled_from([0.0, 0.0, 0.5]),
    declines=st.sampled_from([0.0, 0.5, 1.0]),
    passes=st.sampled_from([0.0, 0.2, 0.6]),
    repeats=st.sampled_from([0.0, 0.3, 1.0]),
    copies=st.sampled_from([0.0, 0.0, 0.3]),
    full=st.sampled_from([0.0, 0.0, 0.3]),
    cut=st.sampled_from([0.0, 0.2]),
)
configs = st.builds(
    SceneConfig,
    roles=st.integers(1, 5),
    steps=st.integers(1, 5),
    max_rounds=st.none() | st.integers(1, 9),
    max_calls=st.sampled_from([6, 30, 80, 500, 500]),
    max_output_tokens=st.sampled_from([256, 12_000, 30_000, 100_000, 100_000]),
    context_length=st.sampled_from([1024, 4096, None]),
)
quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(models, configs)
async def test_rules_hold_whatever_the_model_says(model: ScriptedModel, config: SceneConfig) -> None:
    trace = (await Rehearsal(model, config=config).ainvoke("What shall I do?"))["trace"]
    invariants.check_all(trace)
    assert len(trace.calls) == len(model.log)
    assert len(trace.calls) <= config.max_calls
    assert trace.usage.output_tokens <= config.max_output_tokens
    assert max((event.round for event in trace.events), default=0) <= config.rounds
    assert Trace.model_validate_json(trace.to_json_line()) == trace


@quick
@given(models, configs)
def test_same_replies_same_scene_in_any_order_and_in_both_worlds(model: ScriptedModel, config: SceneConfig) -> None:
    slow = model.model_copy(update={"jitter": 0.003, "log": []})
    one, other = Rehearsal(model, config=config).invoke("Why?"), Rehearsal(slow, config=config).invoke("Why?")
    assert _told(one["trace"]) == _told(other["trace"])


async def test_async_and_sync_agree() -> None:
    model = ScriptedModel(seed=5, harmless=0)
    assert _told((await Rehearsal(model).ainvoke("Why?"))["trace"]) == _told(Rehearsal(model).invoke("Why?")["trace"])


def _told(trace: Trace) -> dict[str, Any]:
    told = trace.model_dump(exclude={"id", "created_at", "seconds"})
    for call in told["calls"]:
        del call["seconds"]
    return told


CAST = Cast(
    ego="Robber",
    roles=[Role(name="Teller"), Role(name="Robber", goal="money"), Role(name="Officer")],
    objects=[SocialObject(name="money", state="in the vault")],
    plan=["walks in", "takes the money"],
    stance="helps",
)
NAMES = [role.name for role in CAST.roles]
DECLINED = CAST.model_copy(update={"stance": "declines"})


def judge(plausible: bool = True, **more: Any) -> dict[str, Any]:
    """A judgement; observers see something in any case."""
    fields = {"observers": [], "seen": None, "changes": [], "consequence": None, "hurt": [], **more}
    if fields["observers"] and fields["seen"] is None:
        fields["seen"] = "they see it"
    return {"reason": "so", "plausible": plausible, **fields}


def reflection(verdict: str, lesson: str = "so it is", **effects: str) -> dict[str, Any]:
    """A reflection in which nothing became of those who are not named."""
    told: dict[str, list[dict[str, str]]] = {"harmed": [], "left without help": [], "helped": []}
    for name, effect in effects.items():
        told[effect].append({"name": name, "how": "as it was"})
    return {**told, "lesson": lesson, "verdict": verdict}


def script(**replies: Any) -> ScriptedModel:
    """A model that answers each purpose with a value, or with a function of (role, round).

    Its drafts help, and its revisions pass their checks, unless the replies say otherwise.
    """
    given = {"stance": "helps", "again": "no", "better": "A", **replies}

    def override(purpose: str, role: str, round: int, rng: Any) -> Any:
        reply = given.get(purpose)
        return reply(role, round) if callable(reply) else reply

    return ScriptedModel(override=override)


def test_nothing_against_the_draft_leaves_it_to_the_letter() -> None:
    draft = "  Take the\tmoney.\r\n\n"
    result = Rehearsal(script(judge=judge()), cast=CAST).invoke({"question": "How?", "draft": draft})
    assert result["answer"] == draft
    assert not result["revised"] and result["status"] == "finished"
    assert [call.purpose for call in result["trace"].calls] == ["judge", "judge"]


def test_reflection_that_finds_nothing_leaves_the_draft() -> None:
    model = script(judge=judge(consequence="everybody smiles"), reflect=reflection("keep"))
    result = Rehearsal(model, cast=CAST).invoke({"question": "How?", "draft": "Ask."})
    assert result["answer"] == "Ask." and not result["revised"]


def test_harm_leads_to_a_revision() -> None:
    model = script(
        judge=judge(consequence="the teller is afraid", hurt=["Teller"]),
        reflect=reflection("improve", Teller="harmed"),
        revise="Don't.",
    )
    result = Rehearsal(model, cast=CAST).invoke({"question": "How?", "draft": "Rob it."})
    assert result["answer"] == "Don't." and result["revised"]
    trace = result["trace"]
    invariants.check_all(trace)
    assert trace.check is not None and trace.check.harm and trace.check.repeats_deed is False
    prompt = next(call for call in trace.calls if call.purpose == "revise").messages[-1].content
    assert prompt.index("How?") < prompt.index("Rob it."), "question and draft stand in their places"


def test_a_revision_equal_to_the_draft_is_none() -> None:
    model = script(judge=judge(consequence="fear"), reflect=reflection("improve"), revise="Rob it.")
    result = Rehearsal(model, cast=CAST).invoke({"question": "How?", "draft": "Rob it."})
    assert not result["revised"] and result["trace"].check is None


HURT = judge(consequence="the teller is afraid", hurt=["Teller"])


@pytest.mark.parametrize(
    ("cast", "judged", "reflected", "replies", "revised"),
    [
        (CAST, HURT, reflection("improve", Teller="harmed"), {"again": "yes"}, False),
        (CAST, HURT, reflection("improve", Teller="harmed"), {"again": "no"}, True),
        (CAST, HURT, reflection("improve", Teller="harmed"), {"again": "perhaps"}, False),
        (
            CAST,
            judge(consequence="fine"),
            reflection("improve", Teller="left without help"),
            {"stance": "declines"},
            False,
        ),
        (CAST, judge(consequence="fine"), reflection("improve", Teller="left without help"), {"stance": "helps"}, True),
        (
            CAST,
            judge(consequence="fine"),
            reflection("improve", Teller="left without help"),
            {"better": "perhaps"},
            False,
        ),
        (CAST, judge(consequence="fine"), reflection("improve"), {"stance": "helps"}, False),
        (CAST, HURT, reflection("improve"), {"again": "no"}, True),
        (DECLINED, HURT, reflection("kinder", Teller="harmed"), {"stance": "declines"}, True),
        (DECLINED, HURT, reflection("kinder", Teller="harmed"), {"stance": "helps"}, False),
        (DECLINED, HURT, reflection("help"), {"stance": "helps"}, False),
        (DECLINED, judge(), reflection("help"), {"stance": "helps"}, True),
        (DECLINED, judge(), reflection("help"), {"stance": "declines"}, False),
        (DECLINED, judge(False), reflection("help"), {"stance": "helps"}, False),
        (DECLINED, judge(), reflection("kinder"), {"stance": "declines"}, False),
        (DECLINED, judge(), reflection("keep"), {"stance": "declines"}, False),
    ],
)
def test_a_revision_takes_the_drafts_place_only_if_it_passes_its_check(
    cast: Cast, judged: Any, reflected: Any, replies: dict[str, str], revised: bool
) -> None:
    model = script(judge=judged, reflect=reflected, revise="Another answer.", **replies)
    result = Rehearsal(model, cast=cast).invoke({"question": "How?", "draft": "An answer."})
    invariants.check_all(result["trace"])
    assert result["revised"] is revised
    assert result["answer"] == ("Another answer." if revised else "An answer.")


def test_a_draft_that_is_preferred_in_both_orders_stays() -> None:
    letters = iter(["A", "B"])  # the draft is shown first, and then second
    model = script(judge=HURT, reflect=reflection("improve"), revise="Don't.", better=lambda *_: next(letters))
    trace = Rehearsal(model, cast=CAST).invoke({"question": "How?", "draft": "Rob it."})["trace"]
    invariants.check_all(trace)
    assert trace.check is not None and trace.check.preferred == ["draft", "draft"] and not trace.revised


def test_a_kinder_refusal_is_its_three_sentences() -> None:
    kinder = {"no": "I will not help\nwith that. ", "hurts": "It hurts the teller.", "instead": "Ask for a loan."}
    model = script(judge=HURT, reflect=reflection("keep"), revise=kinder, stance="declines")
    result = Rehearsal(model, cast=DECLINED).invoke({"question": "How?", "draft": "No."})
    invariants.check_all(result["trace"])
    assert result["answer"] == "I will not help with that. It hurts the teller. Ask for a loan."
    assert json.loads(result["trace"].calls[-4].completion) == kinder


def test_a_kinder_refusal_without_one_of_its_sentences_is_asked_for_again() -> None:
    model = script(judge=HURT, reflect=reflection("keep"), revise={"no": "No.", "hurts": "Her."}, stance="declines")
    trace = Rehearsal(model, cast=DECLINED).invoke({"question": "How?", "draft": "No."})["trace"]
    assert trace.status == "failed" and [call.purpose for call in trace.calls].count("revise") == 2


def test_a_kinder_refusal_is_asked_for_without_the_scenes_names() -> None:
    cast = DECLINED.model_copy(update={"roles": [Role(name="Teller", who="works at the bank"), *CAST.roles[1:]]})
    model = script(judge=HURT, reflect=reflection("keep", Teller="harmed"), revise="No, sorry.", stance="declines")
    trace = Rehearsal(model, cast=cast).invoke({"question": "How?", "draft": "No."})["trace"]
    asked = next(call for call in trace.calls if call.purpose == "revise").messages[-1].content
    assert "- somebody (works at the bank): as it was" in asked
    assert "There this is Robber" in asked and "Teller" not in asked and "Officer" not in asked


@pytest.mark.parametrize(
    ("said", "about"),
    [
        ("The robber should ask.", "'Robber', who is the one that asked"),
        ("Give Ann the money back.", "'Ann', a person of the scene"),
        ("Keep what was good in the first answer, and change what did harm.", "repeats what it was told"),
        ("walks slowly into the bank with a gun -> the teller is afraid", "repeats what it was told"),
    ],
)
def test_an_answer_that_speaks_of_the_scene_is_asked_for_again_and_not_taken(said: str, about: str) -> None:
    roles = [Role(name="Ann", who="the teller"), *CAST.roles[1:]]
    cast = CAST.model_copy(update={"roles": roles, "plan": ["walks slowly into the bank with a gun"]})
    model = script(judge=HURT | {"hurt": ["Ann"]}, reflect=reflection("improve"), revise=said)
    trace = Rehearsal(model, cast=cast).invoke({"question": "How?", "draft": "Rob it."})["trace"]
    invariants.check_all(trace)
    first, second = (call for call in trace.calls if call.purpose == "revise")
    assert first.error is not None and about in first.error.message and second.error is None
    assert not trace.revised and trace.check is not None and about in trace.check.why

    replies = iter([said, "You should ask."])
    model = script(judge=HURT | {"hurt": ["Ann"]}, reflect=reflection("improve"), revise=lambda *_: next(replies))
    assert Rehearsal(model, cast=cast).invoke({"question": "How?", "draft": "Rob it."})["answer"] == "You should ask."
    own = Rehearsal(script(judge=HURT | {"hurt": ["Ann"]}, reflect=reflection("improve"), revise=said), cast=cast)
    assert own.invoke({"question": f"Is this right: {said}", "draft": "Rob it."})["answer"] == said


@pytest.mark.parametrize(
    ("hurt", "harmed", "told"),
    [
        (["Teller"], {}, "- somebody (works at the bank)\n"),
        (["Teller"], {"Robber": "harmed"}, "- somebody (the one who asks): as it was\n"),
        (["Robber"], {"Teller": "harmed", "Robber": "harmed"}, "- somebody (works at the bank): as it was\n"),
    ],
)
def test_a_kinder_refusal_is_told_whom_it_hurts_by_the_events_too(
    hurt: list[str], harmed: dict[str, str], told: str
) -> None:
    roles = [Role(name="Teller", who="works at the bank"), Role(name="Robber", who="the one who asks"), CAST.roles[2]]
    judged = judge(consequence="somebody is afraid", hurt=hurt)
    model = script(judge=judged, reflect=reflection("keep", **harmed), revise="No, sorry.", stance="declines")
    cast = DECLINED.model_copy(update={"roles": roles})
    trace = Rehearsal(model, cast=cast).invoke({"question": "How?", "draft": "No."})["trace"]
    asked = next(call for call in trace.calls if call.purpose == "revise").messages[-1].content
    assert f"Whom it hurts if somebody does it:\n{told}" in asked


def test_of_two_effects_on_one_person_the_graver_one_holds() -> None:
    told = {**reflection("keep", Teller="helped"), "harmed": [{"name": "teller", "how": " is  robbed "}]}
    trace = Rehearsal(script(judge=HURT, reflect=told), cast=DECLINED).invoke({"question": "How?", "draft": "No."})[
        "trace"
    ]
    assert trace.reflection is not None
    assert {person.name: (person.effect, person.how) for person in trace.reflection.people} == {
        "Teller": ("harmed", "is robbed"),
        "Robber": ("none", ""),
        "Officer": ("none", ""),
        OUTSIDE: ("none", ""),
    }


def test_an_effect_on_a_stranger_is_asked_for_again() -> None:
    told = {**reflection("keep"), "harmed": [{"name": "Nobody", "how": "is robbed"}]}
    trace = Rehearsal(script(judge=HURT, reflect=told), cast=CAST).invoke({"question": "How?", "draft": "Yes."})[
        "trace"
    ]
    assert trace.status == "failed" and trace.error is not None and "'Nobody' is not one of" in trace.error.message


@pytest.mark.parametrize("which", ["again", "better"])
def test_a_check_that_the_server_does_not_answer_fails_the_scene(which: str) -> None:
    model = script(judge=HURT, reflect=reflection("improve"), revise="Don't.", **{which: ConnectionError("gone")})
    trace = Rehearsal(model, cast=CAST).invoke({"question": "How?", "draft": "Rob it."})["trace"]
    assert trace.status == "failed" and trace.error is not None and trace.error.message == "gone"
    assert not trace.revised and trace.check is None


def test_a_reflection_that_the_draft_does_not_allow_is_asked_for_again() -> None:
    model = script(judge=HURT, reflect=reflection("help"))
    trace = Rehearsal(model, cast=CAST).invoke({"question": "How?", "draft": "Rob it."})["trace"]
    assert trace.status == "failed" and [c.purpose for c in trace.calls].count("reflect") == 2


def test_what_cannot_be_seen_reaches_nobody_and_a_lie_reaches_as_it_is_told() -> None:
    seen = {1: None, 2: "Robber says: I only want to ask something."}
    model = script(
        judge=lambda role, round: {**judge(observers=["Teller"]), "seen": seen.get(round)}, act={"action": "nothing"}
    )
    trace = Rehearsal(model, cast=CAST).invoke({"question": "How?", "draft": "Rob it."})["trace"]
    invariants.check_all(trace)
    assert [event.observers for event in trace.events] == [[], ["Teller"]]
    told = [call for call in trace.calls if call.purpose == "act"]
    assert len(told) == 1 and "I only want to ask" in told[0].messages[-1].content
    assert all("takes the money" not in message.content for message in told[0].messages)


def test_who_does_nothing_costs_no_judgement() -> None:
    model = script(judge=lambda role, round: judge(observers=["Teller"]), act={"action": "nothing"})
    trace = Rehearsal(model, cast=CAST).invoke({"question": "How?", "draft": "Rob it."})["trace"]
    invariants.check_all(trace)
    assert {event.role for event in trace.events} == {"Robber"} and not trace.failures
    assert trace.ended_by == "quiet"


def test_an_ego_that_does_nothing_leaves_its_step_out() -> None:
    def judged(role: str, round: int) -> Any:
        return judge(observers=["Robber"] if role == "Teller" else ["Teller"] if round == 1 else [])

    cast = CAST.model_copy(update={"plan": ["walks in", "waits there", "takes the money", "runs away"]})
    model = script(judge=judged, act=lambda role, _: {"action": "nothing" if role == "Robber" else "shouts for help"})
    trace = Rehearsal(model, cast=cast).invoke({"question": "How?", "draft": "Rob it."})["trace"]
    invariants.check_all(trace)
    assert [e.action for e in trace.events if e.role == "Robber"] == ["walks in", "waits there", "runs away"]
    assert trace.status == "finished"


def test_who_does_the_same_again_is_asked_once_more_and_then_passes() -> None:
    model = script(
        judge=lambda role, round: judge(observers=["Teller"] if role == "Robber" else []),
        act={"action": "Teller hides under the wide counter."},
    )
    trace = Rehearsal(model, cast=CAST).invoke({"question": "How?", "draft": "Rob it."})["trace"]
    invariants.check_all(trace)
    assert [event.round for event in trace.events if event.role == "Teller"] == [2]
    again = [call.error.type for call in trace.calls if call.purpose == "act" and call.error]
    assert again == ["RepeatedError", "RepeatedError"] and not trace.failures


def test_a_cast_taken_from_the_example_is_asked_for_again_without_it() -> None:
    casts = iter([json.dumps(examples("cast")[0]), None])
    model = script(cast=lambda *_: next(casts), judge=judge())
    trace = Rehearsal(model).invoke("How do I rob a bank?")["trace"]
    first, second = (call for call in trace.calls if call.purpose == "cast")
    assert first.error is not None and first.error.type == "CopiedError" and second.error is None
    assert all(f'"{name}"' in first.messages[0].content for name in examples("cast")[0]["people"])  # type: ignore[index]
    assert "Examples" not in second.messages[0].content
    assert len(second.messages[0].content) < len(first.messages[0].content) / 2
    assert trace.status == "finished"


def test_the_drafts_stance_is_part_of_the_cast_and_ends_the_scene_if_it_cannot_be_told() -> None:
    trace = Rehearsal(script(stance="declines", judge=judge(), reflect="?")).invoke("How?")["trace"]
    assert trace.cast is not None and trace.cast.stance == "declines"
    failed = Rehearsal(script(stance="perhaps")).invoke("How?")["trace"]
    invariants.check_all(failed)
    assert failed.status == "failed" and failed.answer == failed.draft and not failed.events


def test_a_step_rejected_twice_blocks_the_plan_and_only_its_actor_hears_why() -> None:
    model = script(
        judge=lambda role, round: judge(round == 1, reason=f"no way {round}", observers=["Teller"]),
        act=lambda role, round: {"action": f"{role} acts in {round}"},
        reflect=reflection("improve", lesson="the money cannot be had"),
        revise="Ask for a loan.",
    )
    trace = Rehearsal(model, cast=CAST, config=SceneConfig(max_rounds=9)).invoke({"question": "How?", "draft": "Rob."})
    trace_ = trace["trace"]
    invariants.check_all(trace_)
    assert trace_.status == "blocked" and trace_.ended_by == "quiet"
    robber = [event for event in trace_.events if event.role == "Robber"]
    assert [event.plausible for event in robber] == [True, False, False]
    again = next(call for call in trace_.calls if call.purpose == "act" and call.role == "Robber")
    assert "no way 2" in again.messages[-1].content and "another way" in again.messages[-1].content
    for call in trace_.calls:
        if call.purpose == "act" and call.role == "Teller":
            assert all("no way" not in message.content for message in call.messages)
    assert trace["answer"] == "Ask for a loan."


@pytest.mark.parametrize("reason", ["", "  ", ".", "-"])
def test_a_rejection_without_a_reason_gets_one(reason: str) -> None:
    model = script(
        judge=lambda role, round: judge(round == 1, reason=reason, observers=["Teller"]),
        act=lambda role, round: {"action": f"{role} acts in {round}"},
    )
    trace = Rehearsal(model, cast=CAST, config=SceneConfig(max_rounds=9)).invoke({"question": "How?", "draft": "Rob."})[
        "trace"
    ]
    invariants.check_all(trace)
    robber = [event for event in trace.events if event.role == "Robber"]
    assert [event.plausible for event in robber] == [True, False, False]
    assert [event.reason for event in robber] == [reason.strip(), *["It cannot happen like that here."] * 2]
    again = next(call for call in trace.calls if call.purpose == "act" and call.role == "Robber")
    assert "It cannot happen like that here." in again.messages[-1].content


def test_two_changes_of_one_object_in_one_round_are_settled_in_order() -> None:
    def moved(role: str, round: int) -> dict[str, Any]:
        after = {"Robber": "in the bag", "Teller": "under the counter"}.get(role, "gone")
        others = [name for name in ("Teller", "Robber", "Officer") if name != role]
        return judge(changes=[{"object": "money", "after": f"{after} {round}"}], observers=others)

    model = script(judge=moved, act=lambda role, round: {"action": f"{role} grabs the money, round {round}"})
    trace = Rehearsal(model, cast=CAST, config=SceneConfig(max_rounds=3)).invoke({"question": "?", "draft": "!"})[
        "trace"
    ]
    invariants.check_all(trace)
    second = [
        (event.role, event.changes[0].before, event.changes[0].after) for event in trace.events if event.round == 2
    ]
    assert second == [
        ("Robber", "in the bag 1", "in the bag 2"),
        ("Teller", "in the bag 2", "under the counter 2"),
        ("Officer", "under the counter 2", "gone 2"),
    ]


def test_last_observations_are_reacted_to() -> None:
    model = script(
        judge=lambda role, round: judge(observers=["Officer"] if role == "Robber" else []),
        act=lambda role, round: {"action": f"looks after the robber once more, {round}"},
    )
    trace = Rehearsal(model, cast=CAST).invoke({"question": "?", "draft": "!"})["trace"]
    assert [(event.round, event.role) for event in trace.events] == [
        (1, "Robber"),
        (2, "Robber"),
        (2, "Officer"),
        (3, "Officer"),
    ]
    assert trace.ended_by == "quiet"


def test_a_role_that_saw_two_things_at_once_is_told_both() -> None:
    model = script(
        judge=lambda role, round: judge(
            observers=[n for n in ("Teller", "Officer") if n != role and role != "Officer"],
            seen=f"{role} acts in {round}",
        ),
        act=lambda role, round: {"action": f"{role} does {round}"},
    )
    trace = Rehearsal(model, cast=CAST).invoke({"question": "?", "draft": "!"})["trace"]
    told = next(c for c in trace.calls if c.purpose == "act" and c.role == "Officer" and c.round == 3)
    assert "- Robber acts in 2" in told.messages[-1].content
    assert "- Teller acts in 2" in told.messages[-1].content


def test_a_silent_role_keeps_what_it_saw_and_the_others_go_on() -> None:
    def act(role: str, round: int) -> Any:
        return "nonsense" if (role, round) == ("Officer", 2) else {"action": f"{role} does {round}"}

    seen = {1: "he walks in", 2: "he takes the money"}
    model = script(
        judge=lambda role, round: judge(observers=["Officer"] if role == "Robber" else [], seen=seen.get(round)),
        act=act,
    )
    trace = Rehearsal(model, cast=CAST).invoke({"question": "?", "draft": "!"})["trace"]
    invariants.check_all(trace)
    assert [(f.purpose, f.role, f.round) for f in trace.failures] == [("act", "Officer", 2)]
    assert trace.status == "finished"
    later = next(c for c in trace.calls if c.purpose == "act" and c.role == "Officer" and c.round == 3)
    assert [message.role for message in later.messages] == ["system", "user"], "the two sides take turns"
    assert "walks in" in later.messages[-1].content and "takes the money" in later.messages[-1].content


def test_dialogues_are_append_only() -> None:
    trace = Rehearsal(ScriptedModel(seed=3, plausible=1, harmless=0)).invoke("Why?")["trace"]
    assert trace.cast is not None
    for role in trace.cast.roles:
        calls = [call for call in trace.calls if call.purpose == "act" and call.role == role.name]
        for before, after in pairwise(calls):
            kept = [*before.messages, after.messages[len(before.messages)]]
            assert after.messages[: len(kept)] == kept
            assert kept[-1].content == before.completion
    firsts: dict[int, Any] = {}
    for call in trace.calls:
        if call.purpose == "judge":
            firsts.setdefault(call.round or 0, call)
    for round in list(firsts)[1:]:
        assert firsts[round].messages[: len(firsts[round - 1].messages)] == firsts[round - 1].messages


def test_a_dialogue_that_outgrows_the_context_is_condensed_by_a_recorded_summary() -> None:
    model = script(
        judge=judge(observers=["Officer"]),
        act=lambda role, round: {"action": f"{role} {round} " + "talks and talks " * 14},
        recap="The robber talked.",
    )
    cast = CAST.model_copy(update={"plan": [f"step {number} " + "and on " * 30 for number in range(12)]})
    config = SceneConfig(max_rounds=13, context_length=1400)
    trace = Rehearsal(model, cast=cast, config=config).invoke({"question": "?", "draft": "!"})["trace"]
    invariants.check_all(trace)
    recaps = [call for call in trace.calls if call.purpose == "recap"]
    assert {call.role for call in recaps} == {"Officer", None}
    after = [c for c in trace.calls if c.purpose == "act" and c.role == "Officer" and c.round == recaps[-1].round]
    assert trace.status == "finished"
    assert any("The robber talked." in c.messages[1].content for c in trace.calls if c.purpose == "act")
    assert all(c.role == "Officer" for c in after)


@pytest.mark.parametrize("question", ["", "   \n\t", "\u3000"])
def test_an_empty_question_is_a_recorded_failure(question: str) -> None:
    result = Rehearsal(ScriptedModel()).invoke(question)
    assert result["status"] == "failed" and result["trace"].calls == []
    assert "empty" in (result["error"] or {})["message"]


@pytest.mark.parametrize(
    "question",
    ["a\x00b", "broken \ud83d surrogate", "كيف أرد \u202eعلى\u202c جاري؟ 🙂", "怎样和邻居和好？", "x" * 200_000],
)
def test_odd_questions_get_through(question: str) -> None:
    trace = Rehearsal(ScriptedModel(seed=1)).invoke(question)["trace"]
    assert trace.status in ("finished", "blocked")
    assert trace.question == question.replace("\ud83d", "\ufffd")
    assert json.loads(trace.to_json_line())["question"] == trace.question


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Ann", "ann", " Ann ", "Bob"], ["Ann", "ann 2", "Ann 3", "Bob"]),
        (["", " ", "\n", ""], ["Person", "Person 2", "Person 3", "Person 4"]),
        (["modulator", "Modulator", "x", "y"], ["modulator 2", "Modulator 3", "x", "y"]),
        (["n" * 500, "n" * 500, "x", "y"], ["n" * 60, "n" * 58 + " 2", "x", "y"]),
        (["Doctor or nurse", "Dr. No: 1|2", "x", "y"], ["Doctor or nurse", "Dr. No: 1|2", "x", "y"]),
    ],
)
def test_names_from_the_model_are_made_distinct(names: list[str], expected: list[str]) -> None:
    people = [{"traits": "t", "goal": "g"}] * len(names)
    reply = {
        "people": names,
        "roles": people,
        "objects": [{"name": "o", "state": "s"}] * 2,
        "plan": ["Step 1: go"],
    }
    trace = Rehearsal(script(cast=reply, judge=judge())).invoke("Why?")["trace"]
    assert trace.cast is not None
    assert [role.name for role in trace.cast.roles] == expected
    assert [thing.name for thing in trace.cast.objects] == ["o", "o 2"]
    assert trace.cast.plan == ["go"]


async def test_a_used_thread_starts_clean() -> None:
    rehearsal = Rehearsal(ScriptedModel(seed=2), checkpointer=InMemorySaver())
    config: RunnableConfig = {"configurable": {"thread_id": "t"}}
    first = (await rehearsal.ainvoke("Why?", config))["trace"]
    second = (await rehearsal.ainvoke("Why?", config))["trace"]
    assert _told(first) == _told(second) and first.id != second.id


def test_context_of_a_run_takes_the_place_of_the_configuration() -> None:
    app = create_scene(ScriptedModel(seed=2)).compile()
    config = SceneConfig(roles=1, steps=1)
    state = app.invoke({"question": "Why?"}, {"recursion_limit": recursion_limit(config)}, context=config)
    trace = to_trace(state)
    assert trace.cast is not None and len(trace.cast.roles) == 2 and trace.settings["roles"] == 1


def test_events_are_streamed_as_they_happen() -> None:
    events = list(Rehearsal(ScriptedModel(seed=4, plausible=1), config=SceneConfig(roles=2)).stream("Why?"))
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["question", "draft", "cast"] and kinds[-1] == "result"
    trace = events[-1]["trace"]
    assert kinds.count("event") == len(trace.events) and kinds.count("action") == len(trace.events)
    assert kinds.count("check") == (trace.check is not None)


def test_words_hold_one_token_each() -> None:
    import random

    assert len(invariants.TOKEN.findall(words(random.Random(1)))) == 1


@pytest.mark.parametrize("given", [{"question": 5}, {"question": "Why?", "draft": 5}, {"question": "Why?", "cast": 5}])
def test_values_of_the_wrong_type_are_recorded_failures(given: dict[str, Any]) -> None:
    result = Rehearsal(ScriptedModel()).invoke(given)
    assert result["status"] == "failed" and result["error"] and not result["revised"]
    assert all(call.purpose == "draft" for call in result["trace"].calls)


def test_what_ended_at_a_limit_is_named() -> None:
    trace = Rehearsal(ScriptedModel(seed=1, full=1, cut=1, plausible=1)).invoke("Why?")["trace"]
    cast = next(call for call in trace.calls if call.purpose == "cast" and call.error is None)
    assert {"reply", "situation", "people[0]", "roles[0].who", "plan[0]"} <= set(cast.cut)
    assert trace.cut


def test_a_limit_that_leaves_nothing_for_the_cast_says_so() -> None:
    model = script(draft="word " * 300)
    result = Rehearsal(model, config=SceneConfig(max_output_tokens=256)).invoke("Why?")
    assert (
        result["status"] == "failed" and "max_output_tokens (256) leaves nothing" in (result["error"] or {})["message"]
    )
