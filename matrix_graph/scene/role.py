"""A role's turn. It gets a `RoleTask` and nothing else of the scene, so that nobody knows what they did not see."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable

from pydantic import BaseModel, Field

from matrix_graph.errors import RepeatedError, ReplyError
from matrix_graph.models.ask import Answer, ChatMessage, parse_json
from matrix_graph.records import clean
from matrix_graph.scene import dialogue as chat
from matrix_graph.scene.cast import introduced
from matrix_graph.scene.copying import refuse_copies, same_words, words_of
from matrix_graph.scene.prompts import fill, opening
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.state import Plain, RoleTask

LONGEST_ACTION = 400
"""Characters that the schema allows; up to ten times as many are taken from a speaker that was not bound to it."""
NOTHING = frozenset(
    {"nothing", "nichts", "rien", "nada", "niente", "ничего", "什么都不做", "无", "何もしない", "لا شيء"}
)
"""Words, casefolded, by which a person does nothing. The prompt asks for the first of them."""
_MOST_SILENT_WORDS = 3

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
    call; otherwise it says how it goes about the step. Everybody else reacts to what they have just seen. Whoever has
    nothing to do says so, and passes. Whoever does the same again in the same words is asked once more, and then
    passes, too. A role whose reply cannot be used is silent in this round.

    Args:
        stage: the world outside the scene.
        task: all that the role gets to know.
        perform: who plays the role; None is the model. Anybody else is asked about each plan step too.
    """
    name, step, round = task["profile"]["name"], task["step"], task["round"]
    start = opening(
        "role",
        people=introduced(task["people"]),
        name=name,
        traits=task["profile"]["traits"] or "-",
        goal=task["profile"]["goal"] or "-",
    )
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
        if answer.problem is not None and answer.problem["type"] == RepeatedError.__name__:
            action = None
        elif answer.problem is not None:
            failure = {"purpose": "act", "role": name, "round": round, "error": answer.problem}
            stage.emit({"type": "failure", **failure})
            return {"dialogues": {name: dialogue}, "calls": calls, "failures": [failure]}
        dialogue = chat.answered(dialogue, answer) if answer.value is not None else dialogue
        if action is None or does_nothing(action):
            passed = {"round": round, "role": name, "step": step is not None}
            stage.emit({"type": "pass", **passed})
            return {"dialogues": {name: dialogue}, "calls": calls, "passes": [passed]}
    taken = {"round": round, "role": name, "action": action, "step": step is not None}
    stage.emit({"type": "action", **taken})
    return {"dialogues": {name: dialogue}, "calls": calls, "actions": [taken]}


def spoken(action: str) -> str:
    """An action as the model would have said it."""
    return json.dumps({"action": action}, ensure_ascii=False)


def does_nothing(action: str) -> bool:
    """Whether an action is the word for doing nothing."""
    words = words_of(action)
    return " ".join(words) in NOTHING or (len(words) <= _MOST_SILENT_WORDS and words[-1:] == ["nothing"])


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
    name = task["profile"]["name"]
    done = [
        _without_name(action, name)
        for message in messages
        if message["role"] == "assistant"
        for action in _actions_in(message)
    ]
    told = "\n".join(message["content"] for message in messages[1:])

    def parse(text: str) -> str:
        action = _without_name(parse_action(text), name)
        if not does_nothing(action):
            refuse_copies("role", action, told)
            if any(action.casefold() == earlier.casefold() or same_words(action, earlier) for earlier in done):
                raise RepeatedError(f"{action[:80]!r} was done before; do something new, or nothing.")
        return action

    return await stage.ask(
        "act",
        messages,
        parse,
        stage.config.max_action_tokens,
        schema=_SCHEMA,
        role=name,
        round=task["round"],
    )


def _actions_in(message: ChatMessage) -> list[str]:
    try:
        return [parse_action(message["content"])]
    except ReplyError:
        return []


def _without_name(action: str, name: str) -> str:
    """The action without its actor's name before it, as some models tell it: "Ana opens the door"."""
    shorter = re.sub(rf"^{re.escape(name)}(?:\s*:\s*|\s+)", "", action, flags=re.IGNORECASE)
    return shorter if shorter.strip() and not shorter.startswith(("'", "’")) else action


def _news(task: RoleTask) -> str:
    """What the role is told in this round: what it saw, what of its own could not happen, what it has in mind."""
    parts = []
    seen = [f"- {unread['text']}" for unread in task["unread"] if not unread["own"]]
    parts += [fill("role", "failed", reason=unread["text"]) for unread in task["unread"] if unread["own"]]
    if seen:
        parts.append(fill("role", "seen", observations="\n".join(seen)))
    if task["step"] is not None:
        parts.append(fill("role", "step_again" if task["attempt"] else "step", step=task["step"]))
    return "\n".join([*parts, fill("role", "ask")])
