"""What if: branches of scenes that were played, from traces and from checkpoints."""

from __future__ import annotations

import json
from typing import Any, TypedDict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command

from matrix_graph import Cast, Rehearsal, Role, SceneConfig, SocialObject, Trace
from matrix_graph.compose.what_if import NewAction, NewState, NewVerdict, WhatIf, parse_change
from matrix_graph.errors import ConfigError, SceneError
from matrix_graph.scene.players import human
from tests.unit import invariants
from tests.unit.scripted import ScriptedModel

CAST = Cast(
    ego="Robber",
    roles=[Role(name="Teller"), Role(name="Robber", goal="money"), Role(name="Officer")],
    objects=[SocialObject(name="money", state="in the vault"), SocialObject(name="door", state="open")],
    plan=["walks in", "takes the money", "runs"],
    stance="helps",
)
CONFIG = SceneConfig(max_rounds=5)


def everybody_sees(purpose: str, role: str, round: int, rng: Any) -> Any:
    if purpose == "judge":
        others = [name for name in ("Teller", "Robber", "Officer") if name != role]
        changes = [{"object": "money", "after": f"{role} has it, {round}"}] if round == 2 else []
        told = {"observers": others, "seen": f"{role} is busy in {round}", "hurt": ["Teller"]}
        return {"reason": "so", "plausible": True, **told, "changes": changes, "consequence": "fear"}
    return {"action": f"{role} {ACTS[round % len(ACTS)]} in {round}"} if purpose == "act" else None


ACTS = ("waits at the door", "cries out loud", "runs upstairs", "counts coins", "calls somebody", "turns a key")
"""Each round another, since nobody does the same twice."""


def scene(model: ScriptedModel | None = None) -> tuple[Rehearsal, ScriptedModel, Trace]:
    model = model or ScriptedModel(override=everybody_sees)
    rehearsal = Rehearsal(model, cast=CAST, config=CONFIG)
    trace = rehearsal.invoke("Why?")["trace"]
    model.log.clear()
    return rehearsal, model, trace


def before(trace: Trace, round: int) -> list[Any]:
    return [event for event in trace.events if event.round < round]


def check(parent: Trace, branch: Trace, model: ScriptedModel, round: int, change: str) -> None:
    invariants.check_all(branch)
    assert branch.parent is not None and branch.id != parent.id and branch.created_at > parent.created_at
    assert (branch.parent.id, branch.parent.round, branch.parent.change) == (parent.id, round, change)
    assert before(branch, round) == before(parent, round)
    assert Trace.model_validate_json(branch.to_json_line()) == branch
    made = [call for call in branch.calls if not call.taken_over and call.author == "model"]
    assert len(made) == len(model.log), "only what comes after the change is asked of the model"
    assert branch.settings == parent.settings
    same = [call.model_copy(update={"taken_over": False}) for call in branch.calls if call.taken_over]
    assert all(call in [c.model_copy(update={"taken_over": False}) for c in parent.calls] for call in same)


def test_another_action() -> None:
    rehearsal, model, parent = scene()
    branch = rehearsal.what_if(parent, round=2, action=("Teller", "hands over\n the key"))["trace"]
    check(parent, branch, model, 2, "Teller: hands over the key")
    second = [(event.role, event.action) for event in branch.events if event.round == 2]
    assert second == [
        ("Robber", "takes the money"),
        ("Teller", "hands over the key"),
        ("Officer", "runs upstairs in 2"),
    ]
    assert {entry for entry in model.log if entry[2] == 2} == {("judge", n, 2) for n in ("Robber", "Teller", "Officer")}
    assert not any(entry[2] == 1 for entry in model.log)
    (by_hand,) = [call for call in branch.calls if call.author == "what_if"]
    assert json.loads(by_hand.completion) == {"action": "hands over the key"} and not by_hand.taken_over
    assert (by_hand.role, by_hand.round, by_hand.usage.output_tokens, by_hand.sampling) == ("Teller", 2, 0, {})
    later = [call for call in branch.calls if (call.purpose, call.role, call.round) == ("act", "Teller", 3)]
    assert later[0].messages[-2].content == by_hand.completion
    officer = [call for call in branch.calls if (call.purpose, call.role, call.round) == ("act", "Officer", 3)]
    assert "- Teller is busy in 2" in officer[0].messages[-1].content


def test_a_verdict_turned_to_no() -> None:
    rehearsal, model, parent = scene()
    branch = rehearsal.what_if(parent, round=2, verdict=("Robber", False, "the vault is locked"))["trace"]
    check(parent, branch, model, 2, "verdict: Robber: no: the vault is locked")
    robber, teller, officer = (event for event in branch.events if event.round == 2)
    assert (robber.plausible, robber.reason, robber.observers, robber.changes, robber.consequence) == (
        *(False, "the vault is locked", [], [], None),
    )
    assert teller.changes[0].before == "in the vault", "what others did is settled anew, without a further call"
    assert officer.changes[0].before == "Teller has it, 2"
    assert not any(purpose == "judge" and round == 2 for purpose, _, round in model.log)
    again = next(c for c in branch.calls if (c.purpose, c.role, c.round) == ("act", "Robber", 3))
    assert "the vault is locked" in again.messages[-1].content and "another way" in again.messages[-1].content


@pytest.mark.parametrize("observers", [None, ("Officer",)])
def test_a_verdict_turned_to_yes(observers: Any) -> None:
    def never(purpose: str, role: str, round: int, rng: Any) -> Any:
        said = everybody_sees(purpose, role, round, rng)
        return {**said, "plausible": round != 1} if purpose == "judge" else said

    rehearsal, model, parent = scene(ScriptedModel(override=never))
    verdict = NewVerdict("Robber", True, "the door is open", observers, {"door": "ajar"}, "a cold wind")
    branch = rehearsal.what_if(parent, round=1, verdict=verdict)["trace"]
    check(parent, branch, model, 1, "verdict: Robber: yes: the door is open")
    first = branch.events[0]
    assert first.plausible and first.observers == list(observers or ("Teller", "Officer"))
    assert (first.changes[0].object, first.changes[0].after, first.consequence) == ("door", "ajar", "a cold wind")
    # What was rejected was seen by nobody: those who see it now are told the action itself.
    assert (first.seen, first.hurt) == ("Robber: walks in", [])


def test_a_verdict_on_what_is_seen_and_whom_it_hurts() -> None:
    rehearsal, model, parent = scene()
    change: Any = {"observers": ("Officer",), "seen": "Robber hums a tune.", "hurt": ("Officer", "Teller")}
    branch = rehearsal.what_if(parent, round=2, verdict=NewVerdict("Robber", True, **change))["trace"]
    check(parent, branch, model, 2, "verdict: Robber: yes")
    robber = next(event for event in branch.events if event.round == 2)
    assert (robber.observers, robber.seen, robber.hurt) == (["Officer"], "Robber hums a tune.", ["Teller", "Officer"])
    as_it_was = rehearsal.what_if(parent, round=2, verdict=("Robber", True))["trace"]
    was, now = (next(event for event in trace.events if event.round == 2) for trace in (parent, as_it_was))
    assert now == was
    with pytest.raises(SceneError, match="'Nobody' is no role here"):
        rehearsal.what_if(parent, round=2, verdict=NewVerdict("Robber", True, hurt=("Nobody",)))


def test_another_state_of_an_object() -> None:
    rehearsal, model, parent = scene()
    branch = rehearsal.what_if(parent, round=2, object=("money", "burnt"))["trace"]
    check(parent, branch, model, 2, "object: money: burnt")
    assert [event for event in branch.events if event.round == 2] == [e for e in parent.events if e.round == 2]
    (edit,) = branch.edits
    assert (edit.round, edit.object, edit.before, edit.after) == (2, "money", "Officer has it, 2", "burnt")
    told = next(call for call in branch.calls if call.purpose == "judge" and call.round == 3)
    assert "- money: burnt" in told.messages[-1].content
    assert branch.object_states["money"] == "burnt" and parent.object_states["money"] == "Officer has it, 2"


def test_a_branch_of_a_branch() -> None:
    rehearsal, model, parent = scene()
    one = rehearsal.what_if(parent, round=1, object=("door", "locked"))["trace"]
    two = rehearsal.what_if(one, round=2, verdict=("Teller", False))["trace"]
    model.log.clear()
    three = rehearsal.what_if(two, round=3, action=("Robber", "gives up"))["trace"]
    check(two, three, model, 3, "Robber: gives up")
    assert [edit.object for edit in three.edits] == ["door"]
    assert [call.author for call in three.calls if call.author != "model"] == ["what_if", "what_if"]


async def test_from_a_checkpoint_of_a_finished_and_of_a_waiting_scene() -> None:
    model = ScriptedModel(override=everybody_sees)
    players: Any = {"Officer": human()}
    rehearsal = Rehearsal(model, cast=CAST, config=CONFIG, checkpointer=InMemorySaver(), players=players)
    thread: RunnableConfig = {"configurable": {"thread_id": "t"}}
    result: Any = await rehearsal.ainvoke("Why?", thread)
    assert result["interrupts"][0]["value"]["round"] == 2
    branch: Any = await rehearsal.awhat_if(thread, round=1, object=("money", "burnt"))
    assert branch["status"] == "waiting" and branch["thread_id"] != "t"
    other: RunnableConfig = {"configurable": {"thread_id": branch["thread_id"]}}
    while branch["status"] == "waiting":
        branch = await rehearsal.ainvoke(Command(resume="looks"), other)
    while result["status"] == "waiting":
        result = await rehearsal.ainvoke(Command(resume="looks"), thread)
    trace = result["trace"]
    assert trace.parent is None and branch["trace"].parent.id == trace.id and branch["trace"].edits
    invariants.check_all(branch["trace"])
    model.log.clear()
    late: Any = await rehearsal.awhat_if(thread, round=5, action=("Officer", "sleeps"))
    check(trace, late["trace"], model, 5, "Officer: sleeps")
    fresh = await rehearsal.ainvoke("Who?", other)
    while fresh["status"] == "waiting":
        fresh = await rehearsal.ainvoke(Command(resume=""), other)
    assert fresh["trace"].parent is None and fresh["trace"].edits == [], "a branch's thread starts its next scene clean"


async def test_inside_another_graphs_node_a_branch_is_a_run_of_its_own() -> None:
    rehearsal, model, parent = scene()

    def node(state: dict[str, Any]) -> Any:
        return {"found": rehearsal.what_if(parent, round=2, action=("Teller", "sits"))["trace"].model_dump(mode="json")}

    async def anode(state: dict[str, Any]) -> Any:
        found = await rehearsal.awhat_if(parent, round=2, action=("Teller", "sits"))
        return {"found": found["trace"].model_dump(mode="json")}

    for one in (node, anode):
        graph = StateGraph(Found)
        graph.add_node("node", one)
        graph.add_edge(START, "node")
        app: Any = graph.compile(checkpointer=InMemorySaver())
        model.log.clear()
        state = await app.ainvoke({"found": None}, {"configurable": {"thread_id": "outer"}, "recursion_limit": 3})
        check(parent, Trace.model_validate(state["found"]), model, 2, "Teller: sits")


class Found(TypedDict):
    found: Any


def test_a_rehearsal_without_a_cast_takes_any_scene() -> None:
    model = ScriptedModel(seed=4, plausible=1, nonsense=0.05)
    rehearsal = Rehearsal(model, config=SceneConfig(steps=3))
    parent = rehearsal.invoke("Why?")["trace"]
    assert parent.cast is not None
    model.log.clear()
    branch = rehearsal.what_if(parent, round=1, action=(parent.cast.ego, "sits down"))["trace"]
    check(parent, branch, model, 1, f"{parent.cast.ego}: sits down")


def test_the_branch_is_played_under_the_parents_settings() -> None:
    _, model, parent = scene()
    other = Rehearsal(model, cast=CAST, config=SceneConfig(max_rounds=1, temperature=1.5))
    branch = other.what_if(parent, round=2, object=("door", "shut"))["trace"]
    assert branch.settings == parent.settings and max(event.round for event in branch.events) > 1


@pytest.mark.parametrize(
    ("change", "help"),
    [
        ({"round": 9, "action": ("Robber", "x")}, "Round 9 was not played.*rounds 1 to 5"),
        ({"round": 0, "object": ("money", "x")}, "Round 0"),
        ({"round": 1, "action": ("Teller", "x")}, "Teller had no turn in round 1; a turn had: Robber"),
        ({"round": 1, "action": ("Nobody", "x")}, "'Nobody' is no role here; there are: Teller, Robber, Officer"),
        ({"round": 1, "action": ("Robber", " ")}, "empty"),
        ({"round": 1, "verdict": ("Teller", False)}, "No action of Teller was judged in round 1.*: Robber"),
        ({"round": 2, "verdict": NewVerdict("Teller", True, observers=("Teller",))}, "'Teller' is no observer"),
        ({"round": 2, "verdict": NewVerdict("Teller", True, reason="x" * 5000)}, "not possible"),
        ({"round": 1, "object": ("gold", "x")}, "'gold' is no object here; there are: money, door"),
        ({"round": 1, "object": ("money", "in the  vault")}, "is 'in the vault' already"),
    ],
)
def test_what_cannot_be_changed(change: dict[str, Any], help: str) -> None:
    rehearsal, model, parent = scene()
    with pytest.raises(Exception, match=help) as caught:
        rehearsal.what_if(parent, **change)
    assert type(caught.value).__module__ == "matrix_graph.errors" and not model.log


def test_one_change_at_a_time() -> None:
    rehearsal, _, parent = scene()
    with pytest.raises(TypeError, match="one of action=, verdict= and object=, not 0"):
        rehearsal.what_if(parent, round=1)
    with pytest.raises(TypeError, match="not 2"):
        rehearsal.what_if(parent, round=1, action=("Robber", "x"), object=("door", "x"))


def test_what_cannot_be_replayed_says_why() -> None:
    rehearsal, model, parent = scene()
    change: Any = {"round": 3, "action": ("Robber", "x")}
    old = parent.model_copy(update={"settings": {**parent.settings, "prompts": "older"}})
    with pytest.raises(SceneError, match="other prompts"):
        rehearsal.what_if(old, **change)
    calls = [
        call.model_copy(update={"completion": '{"action": "lies"}'}) if call.purpose == "act" else call
        for call in parent.calls
    ]
    with pytest.raises(SceneError, match="another prompt than was recorded"):
        rehearsal.what_if(parent.model_copy(update={"calls": calls}), **change)
    events = [event.model_copy(update={"consequence": "joy"}) for event in parent.events]
    with pytest.raises(SceneError, match="round 1 gives other events"):
        rehearsal.what_if(parent.model_copy(update={"events": events}), **change)
    less = parent.model_copy(update={"calls": [call for call in parent.calls if call.role != "Officer"]})
    with pytest.raises(SceneError, match="not recorded"):
        rehearsal.what_if(less, **change)
    with pytest.raises(SceneError, match="other people"):
        Rehearsal(model, cast=CAST.model_copy(update={"roles": CAST.roles[:2]})).what_if(parent, **change)
    with pytest.raises(SceneError, match="same players="):
        Rehearsal(model, cast=CAST, players={"Teller": lambda given: "x"}).what_if(parent, **change)
    with pytest.raises(SceneError, match="keeps no scenes"):
        rehearsal.what_if({"configurable": {"thread_id": "t"}}, **change)
    with pytest.raises(SceneError, match="Give its thread_id"):
        Rehearsal(model, cast=CAST, checkpointer=InMemorySaver()).what_if({}, **change)
    with pytest.raises(SceneError, match="No scene"):
        Rehearsal(model, cast=CAST, checkpointer=InMemorySaver()).what_if(
            {"configurable": {"thread_id": "t"}}, **change
        )
    failed = Rehearsal(ScriptedModel(override=lambda *_: ConnectionError("gone"))).invoke("Why?")["trace"]
    with pytest.raises(SceneError, match="failed before anybody acted"):
        rehearsal.what_if(failed, **change)
    assert not model.log


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.sampled_from([0.4, 0.9]), st.sampled_from([0.0, 0.2]), st.data())
def test_rules_hold_in_every_branch(seed: int, plausible: float, nonsense: float, data: Any) -> None:
    model = ScriptedModel(seed=seed, plausible=plausible, nonsense=nonsense)
    rehearsal = Rehearsal(
        model, cast=CAST, config=SceneConfig(max_rounds=5, context_length=data.draw(st.sampled_from([1024, None])))
    )
    parent = rehearsal.invoke("Why?")["trace"]
    for _ in range(2):
        if not parent.events:
            return
        event = data.draw(st.sampled_from(parent.events))
        change: Any = data.draw(
            st.sampled_from(
                [
                    NewAction(event.role, "tok0123456789ab"),
                    NewVerdict(event.role, not event.plausible),
                    NewState("door", f"s{seed}"),
                ]
            )
        )
        model.log.clear()
        if isinstance(change, NewState) and parent.edits:
            return
        branch = rehearsal.what_if(parent, **WhatIf(event.round, change).arguments)["trace"]
        check(parent, branch, model, event.round, str(change))
        parent = branch


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("round 2: Teller: hands over the key", WhatIf(2, NewAction("Teller", "hands over the key"))),
        ("Round 12:Police officer:  says: stop!", WhatIf(12, NewAction("Police officer", "says: stop!"))),
        ('round 1: "Dr. No: 1|2": waits', WhatIf(1, NewAction("Dr. No: 1|2", "waits"))),
        ('round 1: "verdict": waits', WhatIf(1, NewAction("verdict", "waits"))),
        ("round 1: action: 张三: 走开", WhatIf(1, NewAction("张三", "走开"))),
        ("round 2: verdict: Teller: no: no key", WhatIf(2, NewVerdict("Teller", False, "no key"))),
        ("round 2: verdict: Teller: YES", WhatIf(2, NewVerdict("Teller", True))),
        ("round 2: object: money: in the bag: tied", WhatIf(2, NewState("money", "in the bag: tied"))),
    ],
)
def test_changes_as_people_write_them(text: str, change: WhatIf) -> None:
    assert parse_change(text) == change
    assert parse_change(f"round {change.round}: {change.change}") == change


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Teller: x",
        "round two: Teller: x",
        "round 2: Teller",
        "round 2: Teller: ",
        "round 2: verdict: Teller: maybe",
    ],
)
def test_a_change_that_cannot_be_read_shows_how(text: str) -> None:
    with pytest.raises(ConfigError, match="round 2: object: money: in the bag"):
        parse_change(text)
