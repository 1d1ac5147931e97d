"""The modulator: judges the actions of a round side by side, settles them in order, and routes what was observed.

What always holds: a rejected action changes nothing, reaches nobody and has no consequence, and its actor alone is told
why; objects change through accepted actions only, each change from the state that the one before it left; who observes
whom is chosen from the cast, and nobody observes themselves; observers are told what can be seen and heard, which is
not always what is done.

Judging side by side and settling in order are reconciled so: every judgement of a round reads the same prompt with all
its actions in settlement order, and takes those before its own as having just happened.

`SceneConfig.modulator` takes parts of this away, for ablations alone; what is left still holds.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

from matrix_graph.errors import ReplyError
from matrix_graph.models.ask import Answer, ChatMessage, parse_json
from matrix_graph.records import OUTSIDE, Role, same_name
from matrix_graph.scene import dialogue as chat
from matrix_graph.scene.cast import described
from matrix_graph.scene.prompts import fill, opening
from matrix_graph.scene.rounds import actors, settlement_order
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.state import Action, Dialogue, Plain, SceneState, Unread

_SENTENCE, _STATE, _TOLERANCE = 400, 180, 10
# What a schema allows is three times what the prompt asks for, so that nothing ends in mid-word.
Notice = Literal["sees", "later", "no"]
"""Whether a person notices an action: sees or hears it, finds its result later, or does not notice it."""
_NO_REASON = "It cannot happen like that here."
"""What an actor is told whose action was rejected without a word."""
_NO_CONSEQUENCE = frozenset({"", "none", "null", "n/a", "nothing", "no consequence", "-"})


class _ObjectChange(BaseModel):
    object: str
    after: str = Field(max_length=_STATE * _TOLERANCE)


class Judgement(BaseModel):
    """What the modulator says of one action."""

    reason: str = Field(default="", max_length=_SENTENCE * _TOLERANCE)
    plausible: bool
    notices: dict[str, Notice] = {}
    observers: list[str] = []  # from a model that was not bound to the schema, or a judgement that was given by hand
    seen: str | None = Field(default=None, max_length=_SENTENCE * _TOLERANCE)
    changes: list[_ObjectChange] = []
    consequence: str | None = Field(default=None, max_length=_SENTENCE * _TOLERANCE)
    hurt: list[str] = []


async def moderate(stage: Stage, state: SceneState) -> Plain:
    """Judge and settle all actions of the round that has just been played."""
    round = state["round"] + 1
    order = {name: position for position, name in enumerate(settlement_order(state))}
    actions = sorted(
        (action for action in state["actions"] if action["round"] == round), key=lambda action: order[action["role"]]
    )
    if not actions:
        return {"round": round, "inbox": _left_over(state), **_progress(state, round)}
    if stage.config.modulator == "off":
        unjudged = [_unjudged(state, action) for action in actions]
        return {**_settle(stage, state, actions, unjudged), "round": round}
    start = _opening(state)
    things = _things(state)
    asked = [_question(position, actions) for position in range(len(actions))]
    dialogue, calls = await stage.fitted(
        state["modulator"] or chat.begin(start),
        start,
        [things, max(asked, key=len)],
        stage.config.max_judgement_tokens,
        prompt="modulator",
        role=None,
        round=round,
    )
    if not calls and _objects_told(state) == state["objects"]:
        things = fill("modulator", "things_as_before")
    answers = await asyncio.gather(
        *(
            _judge(stage, state, chat.say(dialogue, f"{things}\n{question}")["messages"], action)
            for question, action in zip(asked, actions, strict=True)
        )
    )
    for answer in answers:
        calls = [*calls, *answer.calls]
    return {
        **_settle(stage, state, actions, answers),
        "round": round,
        "calls": calls,
        "modulator": _remembered(dialogue, things, actions, answers),
    }


async def judge_alone(stage: Stage, state: SceneState, action: Action, before: str = "") -> Answer[Judgement]:
    """Judge one action as if it were the only one of its round; the state is left as it is.

    Args:
        stage: with the model.
        state: with a cast, a question and the things as they stand.
        action: what somebody tries.
        before: what has happened so far, told as a summary of the scene; empty: nothing has.
    """
    start = _opening(state)
    dialogue = chat.resumed(start, fill("modulator", "recalled", summary=before), []) if before else chat.begin(start)
    said = chat.say(dialogue, f"{_things(state)}\n{_question(0, [action])}")
    return await _judge(stage, state, said["messages"], action)


async def _judge(stage: Stage, state: SceneState, messages: list[ChatMessage], action: Action) -> Answer[Judgement]:
    others = _others(state, action["role"])
    everybody = [*(role["name"] for role in _cast(state)["roles"]), OUTSIDE]
    objects = [thing["name"] for thing in _cast(state)["objects"]]
    parse = parse_json(Judgement)

    def parse_judgement(text: str) -> Judgement:
        judgement = parse(text)
        plausible = judgement.plausible or stage.config.modulator == "plausible_all"
        acting = [*others, action["role"]]  # some name the actor, too; nobody observes themselves
        notices: dict[str, Notice] = {_chosen(name, acting, "observers"): "sees" for name in judgement.observers}
        notices |= {_chosen(name, acting, "notices"): how for name, how in judgement.notices.items()}
        observers = {name for name, how in notices.items() if how != "no"}
        hurt = {_chosen(name, everybody, "hurt") for name in judgement.hurt}
        seen = " ".join((judgement.seen or "").split())
        if seen.strip(".").casefold() in _NO_CONSEQUENCE:
            # What cannot be seen or heard reaches nobody; who is to see it all the same is told the action.
            seen, observers = "", set()
        return judgement.model_copy(
            update={
                "plausible": plausible,
                "reason": judgement.reason if plausible or _says_something(judgement.reason) else _NO_REASON,
                "observers": [
                    name for name in others if name in observers or stage.config.modulator == "everyone_sees"
                ],
                "seen": seen or None,
                "notices": notices,
                "hurt": [name for name in everybody if name in hurt],
                "changes": [
                    change.model_copy(update={"object": _chosen(change.object, objects, "changes")})
                    for change in judgement.changes
                ],
            }
        )

    return await stage.ask(
        "judge",
        messages,
        parse_judgement,
        stage.config.max_judgement_tokens,
        schema=_schema(others, everybody, objects, may_reject=stage.config.modulator != "plausible_all"),
        role=action["role"],
        round=action["round"],
    )


def _says_something(reason: str) -> bool:
    return any(letter.isalnum() for letter in reason)


def _opening(state: SceneState) -> list[ChatMessage]:
    """The modulator's system message: the scene, and what the draft said to the question."""
    cast = _cast(state)
    return opening(
        "modulator",
        situation=cast.get("situation") or "-",
        question=state["question"],
        outside=OUTSIDE,
        frame=fill("modulator", cast.get("stance") or "helps", ego=cast["ego"]),
        people=described([Role(**role) for role in cast["roles"]]),
    )


def _unjudged(state: SceneState, action: Action) -> Answer[Judgement]:
    """What stands in a judgement's place where there is no modulator: it happens, and everybody sees it."""
    return Answer(Judgement(plausible=True, observers=_others(state, action["role"])), "", [], 0, [])


def _settle(stage: Stage, state: SceneState, actions: list[Action], answers: list[Answer[Judgement]]) -> Plain:
    """Turn judgements into events one after the other, so that each change starts where the one before it ended."""
    objects = dict(state["objects"])
    inbox = _left_over(state)
    progress = _progress(state, actions[0]["round"])
    events: list[Plain] = []
    failures: list[Plain] = []
    for action, answer in zip(actions, answers, strict=True):
        judgement = answer.value
        if judgement is None:
            failure = {"purpose": "judge", "role": action["role"], "round": action["round"], "error": answer.problem}
            failures.append(failure)
            stage.emit({"type": "failure", **failure})
            continue
        event = _event(action, judgement, objects)
        events.append(event)
        stage.emit({"type": "event", **event})
        for name in event["observers"]:
            told = event["seen"] or f"{action['role']}: {action['action']}"
            inbox.setdefault(name, []).append(Unread(own=False, text=told))
        if not event["plausible"]:
            inbox.setdefault(action["role"], []).append(Unread(own=True, text=event["reason"]))
        if action["step"]:
            progress = _after_step(state, accepted=event["plausible"])
    consequences = [event["consequence"] for event in events if event["consequence"] is not None]
    return {
        "events": events,
        "failures": failures,
        "consequences": [*state["consequences"], *consequences],
        "objects": objects,
        "inbox": inbox,
        **progress,
    }


def _event(action: Action, judgement: Judgement, objects: dict[str, str]) -> Plain:
    """The event of one judged action; `objects` is brought up to date."""
    changes = []
    for change in judgement.changes if judgement.plausible else []:
        after = " ".join(change.after.split())
        if after and after != objects[change.object]:
            changes.append({"object": change.object, "before": objects[change.object], "after": after})
            objects[change.object] = after
    consequence = " ".join((judgement.consequence or "").split())
    harmless = not judgement.plausible or consequence.strip(".").casefold() in _NO_CONSEQUENCE
    observers = judgement.observers if judgement.plausible else []
    return {
        "round": action["round"],
        "role": action["role"],
        "action": action["action"],
        "plausible": judgement.plausible,
        "reason": " ".join(judgement.reason.split()),
        "observers": observers,
        "seen": judgement.seen if observers else None,
        "changes": changes,
        "consequence": None if harmless else consequence,
        "hurt": judgement.hurt if judgement.plausible else [],
    }


def _progress(state: SceneState, round: int) -> Plain:
    """How far the ego's plan is before this round's actions are settled: a step that it passed over is behind it."""
    passed = any(item["step"] for item in state["passes"] if item["round"] == round)
    if passed:
        return {"step": state["step"] + 1, "attempt": 0, "blocked": False}
    return {name: state[name] for name in ("step", "attempt", "blocked")}


def _after_step(state: SceneState, *, accepted: bool) -> Plain:
    """How far the ego's plan is: the next step, the same once more in another way, or no further."""
    if accepted:
        return {"step": state["step"] + 1, "attempt": 0, "blocked": False}
    return {"step": state["step"], "attempt": 1, "blocked": state["attempt"] == 1}


def _left_over(state: SceneState) -> dict[str, list[Unread]]:
    """What those who had no turn in this round are still to be told: why something of theirs could not happen."""
    told = set(actors(state))
    return {name: list(unread) for name, unread in state["inbox"].items() if name not in told}


def _things(state: SceneState) -> str:
    objects = "\n".join(f"- {name}: {condition}" for name, condition in state["objects"].items()) or "-"
    return fill("modulator", "things", objects=objects)


def _objects_told(state: SceneState) -> dict[str, str] | None:
    """The objects as the modulator was told of them last, before its last round; None: there was none."""
    if not state["events"]:
        return None
    told = {thing["name"]: thing["state"] for thing in _cast(state)["objects"]}
    last = state["events"][-1]["round"]
    for event in state["events"]:
        if event["round"] < last:
            told |= {change["object"]: change["after"] for change in event["changes"]}
    return told


def _question(position: int, actions: list[Action]) -> str:
    """What is asked about one action of the round; a question about one of several lists them all first."""
    action = actions[position]
    if len(actions) == 1:
        return fill("modulator", "judge_only", role=action["role"], action=action["action"])
    section = "judge_later" if position else "judge_first"
    which = fill("modulator", section, number=position + 1, role=action["role"], action=action["action"])
    return f"{_listed(actions)}\n{which}"


def _listed(actions: list[Action]) -> str:
    lines = "\n".join(f"{number}. {action['role']}: {action['action']}" for number, action in enumerate(actions, 1))
    return fill("modulator", "actions", actions=lines)


def _others(state: SceneState, name: str) -> list[str]:
    return [role["name"] for role in _cast(state)["roles"] if role["name"] != name]


def _remembered(dialogue: Dialogue, things: str, actions: list[Action], answers: list[Answer[Judgement]]) -> Dialogue:
    """The modulator's dialogue after the round: its first judgement as it was, and a line on each of the others.

    What the server has in its cache is the first judgement's prompt and completion. The others were made side by side
    with it, so that their full texts would have to be read anew by every judgement of the next round.
    """
    judged = next((n for n, answer in enumerate(answers) if answer.problem is None), None)
    if judged is None:
        remembered = chat.say(dialogue, f"{things}\n{_listed(actions)}")
    else:
        remembered = chat.answered(dialogue, answers[judged])
    others = [pair for position, pair in enumerate(zip(actions, answers, strict=True)) if position != judged]
    if not others:
        return remembered
    lines = [
        fill(
            "modulator",
            "void" if answer.value is None else "refused",
            number=actions.index(action) + 1,
            role=action["role"],
            reason="" if answer.value is None else " ".join(answer.value.reason.split()),
        )
        for action, answer in others
        if answer.value is None or not answer.value.plausible
    ]
    if len(lines) < len(others):
        lines.append(fill("modulator", "rest_happened" if lines else "happened"))
    return chat.say(remembered, fill("modulator", "outcomes", outcomes="\n".join(lines)))


def _chosen(name: str, allowed: list[str], field: str) -> str:
    for candidate in allowed:
        if same_name(candidate, name):
            return candidate
    raise ReplyError(f"{field}: {name[:80]!r} is not one of {', '.join(allowed) or '(none)'}.")


def _cast(state: SceneState) -> Plain:
    cast = state["cast"]
    assert cast is not None  # a scene without a cast has ended before its first round
    return cast


def _schema(others: list[str], everybody: list[str], objects: list[str], *, may_reject: bool = True) -> dict[str, Any]:
    sentence = {"type": "string", "minLength": 1, "maxLength": _SENTENCE}
    change = _object(
        object={"type": "string", "enum": objects}, after={"type": "string", "minLength": 1, "maxLength": _STATE}
    )
    notice = {"type": "string", "enum": list(get_args(Notice))}
    return _object(
        # Asked for the reason first, a small model finds one against many ordinary actions.
        plausible={"type": "boolean"} if may_reject else {"type": "boolean", "enum": [True]},
        reason=sentence,
        notices=_object(**{name: notice for name in others}),
        seen=sentence,
        changes=_some(change, len(objects)),
        consequence={"anyOf": [sentence, {"type": "null"}]},
        hurt=_some({"type": "string", "enum": everybody}, len(everybody)),
    )


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _some(items: dict[str, Any], most: int) -> dict[str, Any]:
    # An empty enumeration is not a valid schema, so that an array of nothing has no item schema at all.
    return {"type": "array", "items": items, "maxItems": most} if most else {"type": "array", "maxItems": 0}
