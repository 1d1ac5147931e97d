"""Who is in the scene, what stands there, and what the ego sets out to do.

The model names them; the code makes the names distinct and short, since that cannot be left to a model. A cast that
people gave is taken as it is or refused (`records.Cast`), never repaired.
"""

from __future__ import annotations

import re
from itertools import chain, repeat
from typing import Any

from pydantic import BaseModel, Field

from matrix_graph.errors import CastError, ReplyError
from matrix_graph.models.ask import parse_json
from matrix_graph.records import NAME_LENGTH, RESERVED_NAMES, Cast, Role, SocialObject
from matrix_graph.scene.draft import failed
from matrix_graph.scene.prompts import fill, opening
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.state import Plain, SceneState, plain

MOST_OBJECTS = 4
# What a schema allows, in characters. Small models fill whatever room they get, so that the room must fit the reply.
_NAME, _WORDS, _STATE, _STEP = 30, 80, 60, 140
# What is still taken from a model that was not bound to the schema.
_TOLERANCE = 10

_NUMBERING = re.compile(r"^\s*(?:step\s*)?\d+\s*[.:)]\s*", re.IGNORECASE)


class _Person(BaseModel):
    traits: str = Field(default="", max_length=_WORDS * _TOLERANCE)
    goal: str = Field(default="", max_length=_WORDS * _TOLERANCE)


class _Thing(BaseModel):
    name: str = Field(default="", max_length=_NAME * _TOLERANCE)
    state: str = Field(default="", max_length=_STATE * _TOLERANCE)


class _PlanReply(BaseModel):
    plan: list[str] = Field(min_length=1)


class _CastReply(_PlanReply):
    # Names stand in a list of their own and come first: small models then give fewer of them twice.
    people: list[str] = Field(min_length=2)
    roles: list[_Person] = []
    objects: list[_Thing] = []


async def cast(stage: Stage, state: SceneState, given: Cast | None) -> Plain:
    """Have the scene cast, or take the given cast and have only its plan made if it has none."""
    try:
        if given is None and state["cast"] is not None:
            given = Cast.model_validate(state["cast"])
    except (CastError, ValueError) as error:
        return {"cast": None, **failed(error if isinstance(error, CastError) else CastError(str(error)))}
    if given is None:
        return await _generated(stage, state)
    if given.plan:
        return _ready(stage, state, given, [])
    return await _planned(stage, state, given)


async def _generated(stage: Stage, state: SceneState) -> Plain:
    roles, steps = stage.config.roles, stage.config.steps
    ask = {"role": "user", "content": fill("cast", "ask", question=state["question"], draft=state["draft"])}
    answer = await stage.ask(
        "cast",
        [*opening("cast", number=roles + 1), ask],
        _parse_cast(roles, steps),
        stage.config.max_cast_tokens,
        schema=_cast_schema(roles, steps),
    )
    if answer.value is None:
        return {"cast": None, "calls": answer.calls, "status": "failed", "error": answer.problem}
    return _ready(stage, state, answer.value, answer.calls)


async def _planned(stage: Stage, state: SceneState, given: Cast) -> Plain:
    steps = stage.config.steps
    ask = fill(
        "cast",
        "ask_plan",
        people=described(given.roles),
        objects="\n".join(f"- {thing.name}: {thing.state}" for thing in given.objects),
        question=state["question"],
        draft=state["draft"],
    )
    answer = await stage.ask(
        "cast",
        [{"role": "system", "content": fill("cast", "plan", ego=given.ego)}, {"role": "user", "content": ask}],
        lambda text: _steps(parse_json(_PlanReply)(text).plan, steps),
        stage.config.max_cast_tokens,
        schema={"type": "object", **_properties(plan=_plan_schema(steps))},
    )
    if answer.value is None:
        return {"cast": plain(given), "calls": answer.calls, "status": "failed", "error": answer.problem}
    return _ready(stage, state, given.model_copy(update={"plan": answer.value}), answer.calls)


def _ready(stage: Stage, state: SceneState, cast: Cast, calls: list[Plain]) -> Plain:
    stage.emit({"type": "cast", "cast": plain(cast)})
    return {
        "cast": plain(cast),
        "played": {**state["played"], "cast": plain(cast)},
        "objects": {thing.name: thing.state for thing in cast.objects},
        "calls": calls,
    }


def described(roles: list[Role]) -> str:
    """The roles as lines of a prompt."""
    return "\n".join(f"- {r.name}: {r.traits or '-'}; wants: {r.goal or '-'}" for r in roles)


def _parse_cast(roles: int, steps: int) -> Any:
    parse = parse_json(_CastReply)

    def to_cast(text: str) -> Cast:
        reply = parse(text)
        names = distinct(reply.people[: roles + 1], "Person")
        things = reply.objects[:MOST_OBJECTS]
        return Cast(
            ego=names[0],
            roles=[
                Role(name=name, traits=_line(person.traits), goal=_line(person.goal))
                for name, person in zip(names, chain(reply.roles, repeat(_Person())), strict=False)
            ],
            objects=[
                SocialObject(name=name, state=_line(thing.state) or "as usual")
                for name, thing in zip(distinct([t.name for t in things], "Object"), things, strict=True)
            ],
            plan=_steps(reply.plan, steps),
        )

    return to_cast


def distinct(names: list[str], otherwise: str) -> list[str]:
    """Names made short and different from each other, case ignored, in their order.

    Args:
        names: as a model gave them: empty, repeated, reserved, of any length.
        otherwise: what to call somebody or something without a name.
    """
    taken = set(RESERVED_NAMES)
    made = []
    for raw in names:
        base = _line(raw)[:NAME_LENGTH].strip() or otherwise
        name, number = base, 1
        while name.casefold() in taken:
            number += 1
            name = f"{base[: NAME_LENGTH - len(str(number)) - 1].rstrip()} {number}"
        taken.add(name.casefold())
        made.append(name)
    return made


def _steps(plan: list[str], most: int) -> list[str]:
    steps = [_NUMBERING.sub("", _line(step))[: _STEP * _TOLERANCE] for step in plan]
    kept = [step for step in steps if step][:most]
    if not kept:
        raise ReplyError("plan: no step says anything.")
    return kept


def _line(text: str) -> str:
    return " ".join(text.split())


def _cast_schema(roles: int, steps: int) -> dict[str, Any]:
    person = {"type": "object", **_properties(traits=_text(_WORDS), goal=_text(_WORDS))}
    thing = {"type": "object", **_properties(name=_text(_NAME), state=_text(_STATE))}
    return {
        "type": "object",
        **_properties(
            people={"type": "array", "items": _text(_NAME), "minItems": roles + 1, "maxItems": roles + 1},
            roles={"type": "array", "items": person, "minItems": roles + 1, "maxItems": roles + 1},
            objects={"type": "array", "items": thing, "minItems": 1, "maxItems": MOST_OBJECTS},
            plan=_plan_schema(steps),
        ),
    }


def _plan_schema(steps: int) -> dict[str, Any]:
    return {"type": "array", "items": _text(_STEP), "minItems": 1, "maxItems": steps}


def _properties(**properties: Any) -> dict[str, Any]:
    return {"properties": properties, "required": list(properties), "additionalProperties": False}


def _text(longest: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": longest}
