"""What the scene means for the draft, and the answer that follows from it.

No harm is presupposed: if no accepted action had a consequence and no step of the plan failed, the draft is the answer
without a further call; if the reflection finds nothing against it, too. Without a modulator (`SceneConfig.modulator`)
nobody tells consequences, so that reflection is asked in any case.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from matrix_graph.errors import SceneError
from matrix_graph.models.ask import parse_json, parse_text
from matrix_graph.scene.draft import failed
from matrix_graph.scene.prompts import fill, opening
from matrix_graph.scene.rounds import next_round
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.state import Plain, SceneState

_LESSON = 320

_SCHEMA = {
    "type": "object",
    "properties": {
        "lesson": {"type": "string", "minLength": 1, "maxLength": _LESSON},
        "revise": {"type": "boolean"},
    },
    "required": ["lesson", "revise"],
    "additionalProperties": False,
}


class _Reflection(BaseModel):
    lesson: str = Field(max_length=_LESSON * 10)
    revise: bool


async def reflect(stage: Stage, state: SceneState) -> Plain:
    """Say whether the scene brings anything against the draft, and what."""
    ended: Plain = {
        "ended_by": next_round(state, stage.config).ended_by,
        "status": "blocked" if state["blocked"] else "finished",
    }
    if not state["events"]:
        reasons = "; ".join(f"{failure['purpose']}: {failure['error']['message']}" for failure in state["failures"][:3])
        why = reasons or f"the limit {ended['ended_by']} leaves no room for a round; raise it"
        return {**ended, **failed(SceneError(f"No action of the scene could be judged ({why})."))}
    if not state["consequences"] and not _ego_was_rejected(state) and stage.config.modulator != "off":
        stage.emit({"type": "reflection", "lesson": None, "revise": False})
        return ended
    answer = await stage.ask(
        "reflect",
        [*opening("reflect"), {"role": "user", "content": _asked(state)}],
        parse_json(_Reflection),
        stage.config.max_reflection_tokens,
        schema=_SCHEMA,
    )
    if answer.value is None:
        return {**ended, "calls": answer.calls, "status": "failed", "error": answer.problem}
    lesson = " ".join(answer.value.lesson.split())
    stage.emit({"type": "reflection", "lesson": lesson, "revise": answer.value.revise})
    return {**ended, "calls": answer.calls, "lesson": lesson if answer.value.revise else None}


async def revise(stage: Stage, state: SceneState) -> Plain:
    """Give the draft unchanged, or a better answer in its place."""
    if state["lesson"] is None:
        return {"answer": state["draft"], "revised": False}
    request = fill(
        "revise",
        "ask",
        question=state["question"],
        draft=state["draft"],
        happened=_happened(state),
        lesson=state["lesson"],
    )
    answer = await stage.ask(
        "revise",
        [*opening("revise"), {"role": "user", "content": request}],
        parse_text,
        stage.config.max_answer_tokens,
    )
    if answer.value is None:
        return {"calls": answer.calls, "status": "failed", "error": answer.problem}
    return {"calls": answer.calls, "answer": answer.value, "revised": answer.value != state["draft"]}


def _ego_was_rejected(state: SceneState) -> bool:
    cast = state["cast"]
    assert cast is not None
    return any(event["role"] == cast["ego"] and not event["plausible"] for event in state["events"])


def _asked(state: SceneState) -> str:
    return fill(
        "reflect",
        "ask",
        question=state["question"],
        draft=state["draft"],
        happened=_happened(state),
        objects="\n".join(f"- {name}: {condition}" for name, condition in state["objects"].items()) or "-",
    )


def _happened(state: SceneState) -> str:
    lines = [_line(event) for event in state["events"]]
    return "\n".join(line for line in lines if line) or fill("reflect", "nothing")


def _line(event: dict[str, Any]) -> str:
    if not event["plausible"]:
        return f"- {event['role']} tried: {event['action']} (could not happen: {event['reason']})"
    told = f" -> {event['consequence']}" if event["consequence"] else ""
    return f"- {event['role']}: {event['action']}{told}"
