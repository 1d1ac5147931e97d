"""Who is in the scene, what stands there, and what the ego sets out to do.

The model names them; the code makes the names distinct and short, keeps people out of the things, and has a cast that
was taken from the prompt's example written again without it. What the draft does with the question, its stance, is
asked apart and side by side. A cast that people gave is taken as it is or refused (`records.Cast`), never repaired.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from itertools import chain, repeat
from typing import Any

from pydantic import BaseModel, Field

from matrix_graph.errors import CastError, ReplyError
from matrix_graph.models.ask import TRIES, Answer, parse_json
from matrix_graph.records import NAME_LENGTH, RESERVED_NAMES, Cast, Role, SocialObject, same_name
from matrix_graph.scene.copying import refuse_copies, same_words
from matrix_graph.scene.draft import failed
from matrix_graph.scene.people import is_person
from matrix_graph.scene.prompts import fill, opening
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.stance import CHOICE_TOKENS, stance_of_draft
from matrix_graph.scene.state import Plain, SceneState, plain

MOST_OBJECTS = 3
# What a schema allows, in characters: three times what the prompt's words take, so that nothing ends in mid-word.
_NAME, _WORDS, _STATE, _STEP, _SENTENCE = 60, 240, 180, 300, 600
# What is still taken from a model that was not bound to the schema.
_TOLERANCE = 10

_NUMBERING = re.compile(r"^\s*(?:step\s*)?\d+\s*[.:)]\s*", re.IGNORECASE)
_SEVERAL = re.compile(r",|&|\b(?:and|und|et|y|e)\b", re.IGNORECASE)
"""What joins the names of several people in one."""


class _Person(BaseModel):
    who: str = Field(default="", max_length=_WORDS * _TOLERANCE)
    traits: str = Field(default="", max_length=_WORDS * _TOLERANCE)
    goal: str = Field(default="", max_length=_WORDS * _TOLERANCE)


class _Thing(BaseModel):
    name: str = Field(default="", max_length=_NAME * _TOLERANCE)
    state: str = Field(default="", max_length=_STATE * _TOLERANCE)


class _PlanReply(BaseModel):
    situation: str = Field(default="", max_length=_SENTENCE * _TOLERANCE)
    plan: list[str] = Field(min_length=1)


class _CastReply(_PlanReply):
    # Names stand in a list of their own and come first: small models then give fewer of them twice.
    people: list[str] = Field(min_length=2)
    roles: list[_Person] = []
    objects: list[_Thing] = []


async def cast(stage: Stage, state: SceneState, given: Cast | None) -> Plain:
    """Have the scene cast, or take the given cast and have only what it lacks made."""
    try:
        if given is None and state["cast"] is not None:
            given = Cast.model_validate(state["cast"])
    except (CastError, ValueError) as error:
        return {"cast": None, **failed(error if isinstance(error, CastError) else CastError(str(error)))}
    asked = given is None or given.stance is None
    aside = stage.without(CHOICE_TOKENS * TRIES) if asked else stage
    casting = generate_cast(aside, state) if given is None else _planned(aside, state, given)
    if given is not None and given.stance is not None:
        made, calls = await casting, []
    else:
        made, stance = await asyncio.gather(casting, stance_of_draft(stage, state["question"], state["draft"] or ""))
        calls = stance.calls
        if made.value is not None and stance.value is not None:
            made = Answer(made.value.model_copy(update={"stance": stance.value}), made.text, [], 0, made.calls)
        elif made.value is not None:
            kept = plain(made.value) if given is not None else None
            return {"cast": kept, "calls": [*calls, *made.calls], "status": "failed", "error": stance.problem}
    calls = [*calls, *made.calls]
    if made.value is None:
        kept = plain(given) if given is not None else None
        return {"cast": kept, "calls": calls, "status": "failed", "error": made.problem}
    return _ready(stage, state, made.value, calls)


async def generate_cast(stage: Stage, state: SceneState) -> Answer[Cast]:
    """Have the model cast the scene of the state's question and draft; the stance is not asked."""
    roles, steps = stage.config.roles, stage.config.steps
    parts = fill("cast", "slots").splitlines()
    slots = " ".join(parts[: roles if roles < 4 else None])
    ask = {"role": "user", "content": fill("cast", "ask", question=state["question"], draft=state["draft"])}

    def prompt(example: str) -> list[dict[str, str]]:
        return [*opening("cast", number=roles + 1, slots=slots, steps=_count(steps), example=example), ask]

    return await stage.ask(
        "cast",
        prompt("\n" + fill("cast", "example").strip("\n")),
        _parse_cast(roles, steps, f"{state['question']}\n{state['draft']}"),
        stage.config.max_cast_tokens,
        schema=_cast_schema(roles, steps),
        again=prompt(""),
    )


async def _planned(stage: Stage, state: SceneState, given: Cast) -> Answer[Cast]:
    if given.plan:
        return Answer(given, "", [], 0, [])
    steps = stage.config.steps
    ask = fill(
        "cast",
        "ask_plan",
        people=described(given.roles),
        objects="\n".join(f"- {thing.name}: {thing.state}" for thing in given.objects),
        question=state["question"],
        draft=state["draft"],
    )

    def parse(text: str) -> Cast:
        reply = parse_json(_PlanReply)(text)
        update = {"plan": _steps(reply.plan, steps), "situation": given.situation or _line(reply.situation)}
        return given.model_copy(update=update)

    return await stage.ask(
        "cast",
        [*opening("cast", "plan", ego=given.ego, steps=_count(steps)), {"role": "user", "content": ask}],
        parse,
        stage.config.max_cast_tokens,
        schema={"type": "object", **_properties(situation=_text(_SENTENCE), plan=_plan_schema(steps))},
    )


def _ready(stage: Stage, state: SceneState, cast: Cast, calls: list[Plain]) -> Plain:
    stage.emit({"type": "cast", "cast": plain(cast)})
    return {
        "cast": plain(cast),
        "played": {**state["played"], "cast": plain(cast)},
        "objects": {thing.name: thing.state for thing in cast.objects},
        "calls": calls,
    }


def described(roles: list[Role]) -> str:
    """The roles with all that is known of them, as lines of a prompt."""
    return "\n".join(
        f"- {role.name}{f', {role.who}' if role.who else ''}: {role.traits or '-'}; wants: {role.goal or '-'}"
        for role in roles
    )


def introduced(people: dict[str, str]) -> str:
    """The people as everybody knows them, as lines of a prompt.

    Args:
        people: name -> who it is to the asker.
    """
    return "\n".join(f"- {name}{f': {who}' if who else ''}" for name, who in people.items())


def _count(steps: int) -> str:
    return "one" if steps == 1 else f"two to {steps}" if steps > 2 else "two"


def _parse_cast(roles: int, steps: int, own: str) -> Callable[[str], Cast]:
    """A parser that is stricter at the first try: then a person who stands there twice is asked for again."""
    parse = parse_json(_CastReply)
    tries = 0

    def to_cast(text: str) -> Cast:
        nonlocal tries
        tries += 1
        reply = parse(text)
        refuse_copies("cast", reply.model_dump(), own)
        raw = [_line(name) for name in reply.people[: roles + 1]]
        if tries == 1:
            _refuse_doubles(raw)
        people = [
            Role(name=name, who=_line(person.who), traits=_line(person.traits), goal=_line(person.goal))
            for name, person in zip(distinct(raw, "Person"), chain(reply.roles, repeat(_Person())), strict=False)
        ]
        things = [thing for thing in reply.objects[:MOST_OBJECTS] if not is_person(thing.name, people)]
        return Cast(
            ego=people[0].name,
            roles=people,
            objects=[
                SocialObject(name=name, state=_line(thing.state) or "as usual")
                for name, thing in zip(distinct([t.name for t in things], "Object"), things, strict=True)
            ],
            plan=_steps(reply.plan, steps),
            situation=_line(reply.situation),
        )

    return to_cast


def _refuse_doubles(names: list[str]) -> None:
    for number, name in enumerate(names):
        if any(same_name(name, other) for other in names[:number]):
            raise ReplyError(f"people: {name[:80]!r} stands there twice; name different people.")
        if _SEVERAL.search(name):
            raise ReplyError(f"people: {name[:80]!r} is more than one person; name single people.")


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
    """The plan's steps, each once."""
    kept: list[str] = []
    for raw in plan:
        step = _NUMBERING.sub("", _line(raw))[: _STEP * _TOLERANCE]
        if step and not any(step.casefold() == other.casefold() or same_words(step, other) for other in kept):
            kept.append(step)
    if not kept:
        raise ReplyError("plan: no step says anything.")
    return kept[:most]


def _line(text: str) -> str:
    return " ".join(text.split())


def _cast_schema(roles: int, steps: int) -> dict[str, Any]:
    person = {"type": "object", **_properties(who=_text(_WORDS), traits=_text(_WORDS), goal=_text(_WORDS))}
    thing = {"type": "object", **_properties(name=_text(_NAME), state=_text(_STATE))}
    return {
        "type": "object",
        **_properties(
            situation=_text(_SENTENCE),
            people={"type": "array", "items": _text(_NAME), "minItems": roles + 1, "maxItems": roles + 1},
            roles={"type": "array", "items": person, "minItems": roles + 1, "maxItems": roles + 1},
            objects={"type": "array", "items": thing, "minItems": 1, "maxItems": MOST_OBJECTS},
            plan=_plan_schema(steps),
        ),
    }


def _plan_schema(steps: int) -> dict[str, Any]:
    return {"type": "array", "items": _text(_STEP), "minItems": min(2, steps), "maxItems": steps}


def _properties(**properties: Any) -> dict[str, Any]:
    return {"properties": properties, "required": list(properties), "additionalProperties": False}


def _text(longest: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": longest}
