"""A role's turn. It gets a `RoleTask` and nothing else of the scene, so that nobody knows what they did not see."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from pydantic import BaseModel, Field

from matrix_graph.errors import ReplyError
from matrix_graph.models.ask import Answer, ChatMessage, parse_json
from matrix_graph.records import clean
from matrix_graph.scene import dialogue as chat
from matrix_graph.scene.prompts import fill, opening
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.state import Plain, RoleTask

LONGEST_ACTION = 240
"""Characters that the schema allows; up to ten times as many are taken from a speaker that was not bound to it."""

Perform = Callable[[Stage, RoleTask, list[ChatMessage]], Awaitable[Answer[str]]]
"""Somebody else than the model who plays a role: from the role's own dialogue to its action. An answer without value
and without problem is silence by choice."""

_SCHEMA = {
    "type": "object",
    "properties": {"action": {"type": "string", "minLength": 1, "maxLength": LONGEST_ACTION}},
    "required": ["action"],
    "additionalProperties": False,
}


class _ActionReply(BaseModel):
    action: str = Field(max_length=LONGEST_ACTION * 10)


async def act(stage: Stage, task: RoleTask, perform: Perform | None = None) -> Plain:
    """One role's action in one round.

    The ego takes a plan step as it stands while it has seen nothing that could change its mind, which needs no model
    call; otherwise it says how it goes about the step. Everybody else reacts to what they have just seen. A role whose
    reply cannot be used is silent in this round.

    Args:
        stage: the world outside the scene.
        task: all that the role gets to know.
        perform: who plays the role; None is the model. Anybody else is asked about each plan step too.
    """
    name, step, round = task["profile"]["name"], task["step"], task["round"]
    start = opening("role", name=name, traits=task["profile"]["traits"] or "-", goal=task["profile"]["goal"] or "-")
    news = _news(task)
    dialogue = task["dialogue"] or chat.begin(start)
    calls: list[Plain] = []
    if perform is None and step is not None and not task["unread"] and not task["attempt"]:
        dialogue = chat.acted(chat.say(dialogue, news), spoken(step))
        action: str | None = step
    else:
        if perform is None:
            dialogue, calls = await stage.fitted(
                dialogue, start, [news], stage.config.max_action_tokens, prompt="role", role=name, round=round
            )
        dialogue = chat.say(dialogue, news)
        answer = await (perform or _modelled)(stage, task, dialogue["messages"])
        action, calls = answer.value, [*calls, *answer.calls]
        if answer.problem is not None:
            failure = {"purpose": "act", "role": name, "round": round, "error": answer.problem}
            stage.emit({"type": "failure", **failure})
            return {"dialogues": {name: dialogue}, "calls": calls, "failures": [failure]}
        if action is None:
            return {"dialogues": {name: dialogue}, "calls": calls}
        dialogue = chat.answered(dialogue, answer)
    taken = {"round": round, "role": name, "action": action, "step": step is not None}
    stage.emit({"type": "action", **taken})
    return {"dialogues": {name: dialogue}, "calls": calls, "actions": [taken]}


def spoken(action: str) -> str:
    """An action as the model would have said it."""
    return json.dumps({"action": action}, ensure_ascii=False)


def parse_action(text: str) -> str:
    """The action in a model's reply.

    Raises:
        ReplyError: there is none, or it is too long.
    """
    return checked_action(parse_json(_ActionReply)(text).action)


def checked_action(action: str) -> str:
    """An action on one line.

    Raises:
        ReplyError: it is empty or too long.
    """
    action = " ".join(clean(action).split())
    if not action:
        raise ReplyError("action: it is empty; say what the person does.")
    if len(action) > LONGEST_ACTION * 10:
        raise ReplyError(f"action: it has {len(action)} characters; at most {LONGEST_ACTION * 10} are allowed.")
    return action


async def _modelled(stage: Stage, task: RoleTask, messages: list[ChatMessage]) -> Answer[str]:
    return await stage.ask(
        "act",
        messages,
        parse_action,
        stage.config.max_action_tokens,
        schema=_SCHEMA,
        role=task["profile"]["name"],
        round=task["round"],
    )


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
