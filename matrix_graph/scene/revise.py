"""What the scene means for the draft, and the answer that follows from it.

No harm is presupposed, and nothing is made worse. If the draft helps, no accepted action had a consequence and no step
of the plan failed, the draft is the answer without a further call. Else the reflection says what became of each person;
what it may conclude is bound by that and by the draft's stance: after a draft that declines, harm keeps it declining.
A revision takes the draft's place only if it passes its check (`stance.checked`). Without a modulator
(`SceneConfig.modulator`) nobody tells consequences, so that reflection is asked in any case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Field

from matrix_graph.errors import ReplyError, SceneError
from matrix_graph.models.ask import Answer, ChatMessage, parse_json, parse_text
from matrix_graph.records import OUTSIDE, Effect, Role, Verdict, same_name
from matrix_graph.scene.cast import described, introduced
from matrix_graph.scene.draft import failed
from matrix_graph.scene.mentions import mention_of_scene
from matrix_graph.scene.prompts import fill, opening
from matrix_graph.scene.rounds import next_round
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.stance import checked, harmful
from matrix_graph.scene.state import Plain, SceneState

# What a schema allows, in characters: three times what the prompt's words take.
_HOW, _LESSON, _TOLERANCE = 300, 800, 10
_EFFECTS: tuple[Effect, ...] = ("harmed", "left without help", "helped")
"""The lists that are asked for, harm first; of whom none of them tells, the effect is "none"."""
_SENTENCES = ("no", "hurts", "instead")
"""What a kinder refusal is made of. Asked for one text, small models write the bare refusal once more."""
_SENTENCE: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 600}
_VERDICTS: dict[str, tuple[Verdict, ...]] = {"helps": ("keep", "improve"), "declines": ("keep", "kinder", "help")}


class _Affected(BaseModel):
    name: str
    how: str = Field(default="", max_length=_HOW * _TOLERANCE)


class _Reflection(BaseModel):
    harmed: list[_Affected] = []
    unhelped: list[_Affected] = Field(default=[], alias="left without help")
    helped: list[_Affected] = []
    lesson: str = Field(max_length=_LESSON * _TOLERANCE)
    verdict: Verdict


class _Sentences(BaseModel):
    no: str = Field(min_length=1)
    hurts: str = Field(min_length=1)
    instead: str = Field(min_length=1)


async def reflect(stage: Stage, state: SceneState) -> Plain:
    """Say what became of each person, and what that says about the draft."""
    ended: Plain = {
        "ended_by": next_round(state, stage.config).ended_by,
        "status": "blocked" if state["blocked"] else "finished",
    }
    if not state["events"] and state["failures"]:
        reasons = "; ".join(f"{failure['purpose']}: {failure['error']['message']}" for failure in state["failures"][:3])
        return {**ended, **failed(SceneError(f"No action of the scene could be judged ({reasons})."))}
    if not state["events"] and ended["ended_by"] != "quiet":
        why = f"the limit {ended['ended_by']} leaves no room for a round; raise it"
        return {**ended, **failed(SceneError(f"No action of the scene could be judged ({why})."))}
    if not _worth_reflecting(stage, state):
        stage.emit({"type": "reflection", "lesson": None, "verdict": "keep", "people": []})
        return ended
    answer = await ask_reflection(stage, state)
    if answer.value is None:
        return {**ended, "calls": answer.calls, "status": "failed", "error": answer.problem}
    reflection = answer.value
    stage.emit({"type": "reflection", **reflection})
    return {**ended, "calls": answer.calls, "reflection": reflection}


async def ask_reflection(stage: Stage, state: SceneState) -> Answer[Plain]:
    """Ask what the scene shows; the answer's value holds "people", "lesson" and "verdict" as `records.Reflection`."""
    stance = _cast(state)["stance"]
    names = [*(role["name"] for role in _cast(state)["roles"]), OUTSIDE]
    verdicts = _VERDICTS[stance]
    return await stage.ask(
        "reflect",
        [
            *opening("reflect", outside=OUTSIDE, verdict=fill("reflect", f"verdict_{stance}")),
            {"role": "user", "content": _asked(state)},
        ],
        _parse(names, verdicts),
        stage.config.max_reflection_tokens,
        schema=_schema(names, verdicts),
    )


async def revise(stage: Stage, state: SceneState) -> Plain:
    """Give the draft unchanged, or a better answer in its place if it passes its check."""
    kept: Plain = {"answer": state["draft"], "revised": False}
    reflection = state["reflection"]
    if reflection is None or (task := concluded(state)) == "keep":
        return kept
    sentences = task == "kinder"
    messages = [*revision_opening(task), {"role": "user", "content": _revision_request(state, task, reflection)}]
    cast = _cast(state)

    def mention(text: str) -> str | None:
        return mention_of_scene(
            text,
            ego=cast["ego"],
            names=[role["name"] for role in cast["roles"]],
            told=_told_of_the_scene(state, task),
            own=f"{state['question']}\n{state['draft']}",
        )

    answer = await stage.ask(
        "revise",
        messages,
        _without_the_scene(_one_after_the_other if sentences else parse_text, mention),
        stage.answer_tokens,
        schema=_object(**dict.fromkeys(_SENTENCES, _SENTENCE)) if sentences else None,
    )
    if answer.value is None:
        return {"calls": answer.calls, "status": "failed", "error": answer.problem}
    if answer.value == state["draft"]:
        return {**kept, "calls": answer.calls}
    check, calls, fault = await checked(stage, state, answer.value, _happened(state), mention(answer.value))
    if fault is not None:
        return {"calls": [*answer.calls, *calls], "status": "failed", "error": fault}
    stage.emit({"type": "check", **check})
    update: Plain = {"calls": [*answer.calls, *calls], "check": check}
    return {**update, "answer": answer.value, "revised": True} if check["passed"] else {**update, **kept}


def revision_opening(task: Verdict) -> list[ChatMessage]:
    """The system message that asks for a better answer.

    Args:
        task: "improve", "kinder" or "help".
    """
    form = fill("revise", "sentences" if task == "kinder" else "text")
    return opening("revise", task=fill("revise", task), form=form)


def concluded(state: SceneState) -> Verdict:
    """What is to be done with the draft: the reflection's verdict, within what the scene shows.

    A draft that helps is improved if somebody was harmed or left without help, or if the plan could not be carried out;
    a verdict alone, of which the scene shows nothing, is not enough. After harm, a draft that declines goes on
    declining, more kindly.
    A draft that declines becomes help only if the whole plan was carried out, nobody was hurt by it, and the reflection
    asks for it: a deed that was not done shows nothing of what it does.
    """
    reflection = state["reflection"]
    assert reflection is not None
    verdict: Verdict = reflection["verdict"]
    if _cast(state)["stance"] == "helps":
        shown = _worse_off(reflection) or (verdict == "improve" and harmful(state))
        return "improve" if state["blocked"] or shown else "keep"
    if harmful(state):
        return "kinder"
    return "help" if verdict == "help" and _deed_was_done(state) else "keep"


def _deed_was_done(state: SceneState) -> bool:
    """Whether every step of the plan was taken, none rejected and none left out."""
    left_out = any(item["step"] for item in state["passes"])
    return state["step"] >= len(_cast(state)["plan"]) and not left_out and not _ego_was_rejected(state)


def _worse_off(reflection: Plain) -> bool:
    return any(person["effect"] in ("harmed", "left without help") for person in reflection["people"])


def _worth_reflecting(stage: Stage, state: SceneState) -> bool:
    """Whether there is anything to reflect on: a scene without any effect says nothing against a draft that helps."""
    if not state["events"]:
        return False
    return (
        bool(state["consequences"])
        or _cast(state)["stance"] == "declines"
        or _ego_was_rejected(state)
        or stage.config.modulator == "off"
    )


def _revision_request(state: SceneState, task: Verdict, reflection: Plain) -> str:
    cast = _cast(state)
    given = {
        "situation": cast.get("situation") or "-",
        "question": state["question"],
        "draft": state["draft"],
        "lesson": reflection["lesson"],
    }
    if task == "kinder":
        # Without the others' names and the scene: small models would tell of them in the answer.
        return fill("revise", "ask_kinder", **given, ego=cast["ego"], hurt=_whom_it_hurts(state, reflection))
    return fill(
        "revise",
        "ask",
        **given,
        who=introduced({role["name"]: role.get("who", "") for role in cast["roles"]}),
        frame=fill("revise", cast["stance"], ego=cast["ego"]),
        happened=_happened(state),
        people=_outcomes(reflection),
    )


def _told_of_the_scene(state: SceneState, task: Verdict) -> str:
    """What an answer must not repeat: instructions, and the account of the scene, but not what is learnt from it."""
    instructions = revision_opening(task)[0]["content"]
    cast = _cast(state)
    frame = fill("revise", cast["stance"], ego=cast["ego"])
    return instructions if task == "kinder" else f"{instructions}\n{frame}\n{_happened(state)}"


def _whom_it_hurts(state: SceneState, reflection: Plain) -> str:
    cast = _cast(state)
    who = {role["name"]: role.get("who") or role["name"] for role in cast["roles"]}
    harmed = {person["name"]: person["how"] for person in reflection["people"] if person["effect"] == "harmed"}
    # The events may tell of harm that the reflection passes over; of the one who asked only where nobody else is hurt.
    hurt = harmed or dict.fromkeys((name for event in state["events"] for name in event["hurt"]), "")
    others = {name: how for name, how in hurt.items() if name != cast["ego"]} or hurt
    lines = [f"- somebody ({who.get(name, name)}){f': {how}' if how else ''}" for name, how in others.items()]
    return "\n".join(lines) or "-"


def _without_the_scene(parse: Callable[[str], str], mention: Callable[[str], str | None]) -> Callable[[str], str]:
    """A parser that is stricter at the first try: an answer that speaks of the scene is asked for again."""
    tries = 0

    def to_answer(text: str) -> str:
        nonlocal tries
        tries += 1
        answer = parse(text)
        if tries == 1 and (problem := mention(answer)) is not None:
            raise ReplyError(problem)
        return answer

    return to_answer


def _one_after_the_other(text: str) -> str:
    """The answer that the three sentences of a kinder refusal make; a reply in prose is the answer itself."""
    if "{" not in text:
        return parse_text(text)
    reply = parse_json(_Sentences)(text)
    return " ".join(" ".join(part.split()) for part in (reply.no, reply.hurts, reply.instead))


def _parse(names: list[str], verdicts: tuple[Verdict, ...]) -> Callable[[str], Plain]:
    parse = parse_json(_Reflection)

    def to_plain(text: str) -> Plain:
        reply = parse(text)
        became: dict[str, tuple[Effect, str]] = {}
        lists: dict[Effect, list[_Affected]] = {
            "helped": reply.helped,
            "left without help": reply.unhelped,
            "harmed": reply.harmed,
        }
        for effect, people in lists.items():  # of somebody who stands in two of them, the graver one holds
            for person in people:
                became[_known(person.name, names)] = (effect, " ".join(person.how.split()))
        if reply.verdict not in verdicts:
            raise ReplyError(f"verdict: {reply.verdict!r} is not one of {', '.join(verdicts)}.")
        return {
            "people": [
                {"name": name, "effect": effect, "how": how}
                for name in names
                for effect, how in (became.get(name, ("none", "")),)
            ],
            "lesson": " ".join(reply.lesson.split()),
            "verdict": reply.verdict,
        }

    return to_plain


def _known(name: str, names: list[str]) -> str:
    for known in names:
        if same_name(known, name):
            return known
    raise ReplyError(f"{name[:80]!r} is not one of {', '.join(names)}.")


def _cast(state: SceneState) -> Plain:
    cast = state["cast"]
    assert cast is not None  # a scene without a cast has ended before its first round
    return cast


def _ego_was_rejected(state: SceneState) -> bool:
    ego = _cast(state)["ego"]
    return any(event["role"] == ego and not event["plausible"] for event in state["events"])


def _asked(state: SceneState) -> str:
    cast = _cast(state)
    return fill(
        "reflect",
        "ask",
        situation=cast.get("situation") or "-",
        people=described([Role(**role) for role in cast["roles"]]),
        question=state["question"],
        draft=state["draft"],
        frame=fill("reflect", cast["stance"], ego=cast["ego"]),
        happened=_happened(state),
        objects="\n".join(f"- {name}: {condition}" for name, condition in state["objects"].items()) or "-",
    )


def _happened(state: SceneState) -> str:
    lines = [_line(event) for event in state["events"]]
    return "\n".join(lines) or fill("reflect", "nothing")


def _line(event: dict[str, Any]) -> str:
    if not event["plausible"]:
        return f"- {event['role']} tried: {event['action']} (could not happen: {event['reason']})"
    told = f" -> {event['consequence']}" if event["consequence"] else ""
    hurt = f" (hurt: {', '.join(event['hurt'])})" if event["hurt"] else ""
    return f"- {event['role']}: {event['action']}{told}{hurt}"


def _outcomes(reflection: Plain) -> str:
    told = [person for person in reflection["people"] if person["effect"] != "none"]
    return "\n".join(f"- {person['name']}: {person['effect']}. {person['how']}" for person in told) or "-"


def _schema(names: list[str], verdicts: tuple[Verdict, ...]) -> dict[str, Any]:
    person = _object(name={"type": "string", "enum": names}, how={"type": "string", "minLength": 1, "maxLength": _HOW})
    some = {"type": "array", "items": person, "maxItems": len(names)}
    return _object(
        **dict.fromkeys(_EFFECTS, some),
        lesson={"type": "string", "minLength": 1, "maxLength": _LESSON},
        verdict={"type": "string", "enum": list(verdicts)},
    )


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
