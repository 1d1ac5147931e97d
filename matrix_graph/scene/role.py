"""A role's turn. It gets a `RoleTask` and nothing else of the scene, so that nobody knows what they did not see."""

from __future__ import annotations

import json

from pydantic import BaseModel, Field

from matrix_graph.errors import ReplyError
from matrix_graph.models.ask import Answer, parse_json
from matrix_graph.scene import dialogue as chat
from matrix_graph.scene.prompts import fill, opening
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.state import Plain, RoleTask

LONGEST_ACTION = 240
"""Characters that the schema allows; up to ten times as many are taken from a model that was not bound to it."""

_SCHEMA = {
    "type": "object",
    "properties": {"action": {"type": "string", "minLength": 1, "maxLength": LONGEST_ACTION}},
    "required": ["action"],
    "additionalProperties": False,
}


class _ActionReply(BaseModel):
    action: str = Field(max_length=LONGEST_ACTION * 10)


async def act(stage: Stage, task: RoleTask) -> Plain:
    """One role's action in one round.

    The ego takes a plan step as it stands while it has seen nothing that could change its mind, which needs no model
    call; otherwise it says how it goes about the step. Everybody else reacts to what they have just seen. A role whose
    reply cannot be used is silent in this round.
    """
    name, step, round = task["profile"]["name"], task["step"], task["round"]
    start = opening("role", name=name, traits=task["profile"]["traits"] or "-", goal=task["profile"]["goal"] or "-")
    news = _news(task)
    dialogue = task["dialogue"] or chat.begin(start)
    calls: list[Plain] = []
    if step is not None and not task["unread"] and not task["attempt"]:
        dialogue = chat.acted(chat.say(dialogue, news), json.dumps({"action": step}, ensure_ascii=False))
        action: str | None = step
    else:
        dialogue, calls = await stage.fitted(
            dialogue, start, [news], stage.config.max_action_tokens, prompt="role", role=name, round=round
        )
        dialogue = chat.say(dialogue, news)
        answer: Answer[str] = await stage.ask(
            "act",
            dialogue["messages"],
            _parse_action,
            stage.config.max_action_tokens,
            schema=_SCHEMA,
            role=name,
            round=round,
        )
        dialogue, action, calls = chat.answered(dialogue, answer), answer.value, [*calls, *answer.calls]
        if action is None:
            failure = {"purpose": "act", "role": name, "round": round, "error": answer.problem}
            stage.emit({"type": "failure", **failure})
            return {"dialogues": {name: dialogue}, "calls": calls, "failures": [failure]}
    taken = {"round": round, "role": name, "action": action, "step": step is not None}
    stage.emit({"type": "action", **taken})
    return {"dialogues": {name: dialogue}, "calls": calls, "actions": [taken]}


def _news(task: RoleTask) -> str:
    """What the role is told in this round: what it saw, what of its own could not happen, what it has in mind."""
    parts = []
    seen = [f"- {unread['actor']}: {unread['text']}" for unread in task["unread"] if unread["actor"] is not None]
    parts += [fill("role", "failed", reason=unread["text"]) for unread in task["unread"] if unread["actor"] is None]
    if seen:
        parts.append(fill("role", "seen", observations="\n".join(seen)))
    if task["step"] is not None:
        parts.append(fill("role", "step_again" if task["attempt"] else "step", step=task["step"]))
    return "\n".join([*parts, fill("role", "ask")])


def _parse_action(text: str) -> str:
    action = " ".join(parse_json(_ActionReply)(text).action.split())
    if not action:
        raise ReplyError("action: it is empty; say what the person does.")
    return action
