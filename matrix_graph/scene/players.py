"""Who plays a role in the model's place: any Runnable (an agent, a graph, a function), or a human.

What always holds: a player gets the role's own dialogue and nothing else of the scene; what it says is checked
like a model's reply, its length too; it is asked once for each turn, so that what it did besides is not done twice; and
one that raises, hangs or talks nonsense leaves its role silent in that round, on record.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from typing import cast as typed

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import set_config_context
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.config import get_config
from langgraph.errors import GraphBubbleUp, ParentCommand
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from pydantic import BaseModel

from matrix_graph.config import SceneConfig
from matrix_graph.errors import CastError, ReplyError, SceneError
from matrix_graph.models.ask import Answer, ChatMessage, describe
from matrix_graph.models.complete import completion_text
from matrix_graph.models.thoughts import spoken as spoken_text
from matrix_graph.records import Author, Cast, clean
from matrix_graph.scene.role import Perform, checked_action, parse_action, spoken
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.state import Plain, RoleTask

T = TypeVar("T")


@dataclass(frozen=True)
class Human:
    """A person plays the role: the graph interrupts, shows what the role may know, and takes the action.

    The interrupt's value is a plain dict: type ("action_wanted"), role, round, you (name, who, traits and goal), people
    (name -> who everybody is to the asker), before (the role's dialogue so far), seen (the lines of what the role has
    just seen and heard), failed (why the role's last action could not happen, or None), step (the plan step that the
    role has in mind, or None), problem (what was wrong with the last reply, or None). Resume with a text or
    `{"action": text}`; an empty text, or "nothing", is to do nothing.
    """


def human() -> Human:
    """Have a role played by a person; see `Human`."""
    return Human()


Player = Human | Runnable[Any, Any] | Callable[..., Any]
"""Who may play a role. A Runnable or function gets `{"messages": [...]}`, the role's own dialogue, and returns a text,
a message, `{"messages": [...]}`, `{"action": text}` or such a JSON text. What it is to remember of earlier scenes is
for the store; under a checkpointer of the scene's, that one keeps what an agent needs to go on after an interrupt."""


def performers(cast: Cast | None, players: Mapping[str, Player] | None) -> dict[str, Perform]:
    """How each role is performed that the model does not play.

    Args:
        cast: who is in the scene.
        players: role name -> who plays it.

    Raises:
        CastError: players without a cast, a name that is not in the cast, or somebody who cannot play.
    """
    if not players:
        return {}
    if cast is None:
        raise CastError("players= needs cast=: only roles that are known beforehand can be given to somebody.")
    names = [role.name for role in cast.roles]
    unknown = [name for name in players if name not in names]
    if unknown:
        raise CastError(
            f"players= names {', '.join(map(repr, unknown))}, who is not in the cast ({', '.join(map(repr, names))})."
        )
    return {name: _performer(name, player) for name, player in players.items()}


def player_names(players: Mapping[str, Player] | None) -> dict[str, str]:
    """Who plays whom, as it stands in a trace's settings: "human", or the name of the Runnable."""
    return {role: _name(player) for role, player in (players or {}).items()}


def has_humans(players: Mapping[str, Player] | None) -> bool:
    """Whether somebody has to be waited for."""
    return any(isinstance(player, Human) for player in (players or {}).values())


def has_checkpointer(config: RunnableConfig) -> bool:
    """Whether a run's configuration holds a checkpointer, as those of nodes do in a graph that has one."""
    return any(isinstance(value, BaseCheckpointSaver) for value in config.get("configurable", {}).values())


def _performer(role: str, player: Player) -> Perform:
    if isinstance(player, Human):
        return _ask_human
    if isinstance(player, Runnable):
        return _Performer(player, _name(player))
    if callable(player):
        return _Performer(RunnableLambda(player, name=_name(player)), _name(player))
    raise CastError(
        f"The player of {role!r} is a {type(player).__name__}; give a Runnable, a function, or human() for a person."
    )


def _name(player: Player) -> str:
    if isinstance(player, Human):
        return "human"
    if isinstance(player, Runnable):
        return player.get_name()
    return str(getattr(player, "__name__", None) or type(player).__name__)


async def _ask_human(stage: Stage, task: RoleTask, messages: list[ChatMessage]) -> Answer[str]:
    if not has_checkpointer(get_config()):
        raise SceneError(
            f"{task['profile']['name']} is played by a human, who can only be waited for with a checkpointer. Compile "
            "the scene with one, and run it with a thread_id."
        )
    failed = " ".join(unread["text"] for unread in task["unread"] if unread["own"])
    wanted: Plain = {
        "type": "action_wanted",
        "role": task["profile"]["name"],
        "round": task["round"],
        "you": dict(task["profile"]),
        "people": dict(task["people"]),
        "before": [message for message in (task["dialogue"] or {"messages": []})["messages"] if _is_turn(message)],
        "seen": [unread["text"] for unread in task["unread"] if not unread["own"]],
        "failed": failed or None,
        "step": task["step"],
        "problem": None,
    }
    while True:
        reply = interrupt(wanted)
        try:
            action, completion = _from_human(reply)
            break
        except ReplyError as error:
            wanted = {**wanted, "problem": str(error)}
    call = call_of(task, messages, completion, author="human", model="human")
    return Answer(action, completion, list(messages), 0, [call])


def _from_human(reply: Any) -> tuple[str | None, str]:
    """The action (None is silence), and the text as it was given."""
    if isinstance(reply, Mapping) and set(reply) == {"action"}:
        reply = reply["action"]
    if reply is None:
        return None, ""
    if not isinstance(reply, str):
        raise ReplyError(f'A {type(reply).__name__} came; give a text, {{"action": text}}, or "" to do nothing.')
    text = clean(reply)
    return (read_action(text), text) if text.strip() else (None, "")


def _is_turn(message: ChatMessage) -> bool:
    return message["role"] != "system"


class _Performer:
    """A Runnable that plays a role."""

    def __init__(self, player: Runnable[Any, Any], name: str) -> None:
        self._player = player
        self._name = name

    async def __call__(self, stage: Stage, task: RoleTask, messages: list[ChatMessage]) -> Answer[str]:
        call = call_of(task, messages, "", author="runnable", model=self._name)
        seconds = min(stage.config.max_player_seconds, stage.seconds_left("act"))
        started = time.monotonic()
        action: str | None = None
        try:
            async with asyncio.timeout(seconds) as limit:
                result = await self._play(stage, task, convert_to_messages(messages))
            call["usage"] = _usage(result)
            call["completion"] = text = _text(result)
            action = read_action(text)
        except ParentCommand as error:
            call["error"] = describe(error)
        except GraphBubbleUp:  # an interrupt of the player's own, or the graph being drained
            raise
        except Exception as error:  # noqa: BLE001 - any player may stand here, and each raises types of its own
            late = ReplyError(f"{self._name} gave no action within {seconds:g} s.")
            call["error"] = describe(late if limit.expired() else error)
        except asyncio.CancelledError as error:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
            call["error"] = describe(error)  # something inside the player was cancelled, not the scene
        call["seconds"] = time.monotonic() - started
        return Answer(action, call["completion"], list(messages), 0, [call], call["error"])

    async def _play(self, stage: Stage, task: RoleTask, messages: list[BaseMessage]) -> Any:
        config: RunnableConfig = {
            "run_name": self._name,
            "metadata": {
                "matrix_graph_purpose": "act",
                "matrix_graph_role": task["profile"]["name"],
                "matrix_graph_round": task["round"],
            },
        }
        given = {"messages": messages}
        with set_config_context(_ambient()) as context:
            if _is_sync(self._player) or (stage.sync and has_checkpointer(get_config())):
                # A synchronous scene may have lent the player a checkpointer that is synchronous only.
                return await _in_thread(context, lambda: self._player.invoke(given, config))
            play = asyncio.get_running_loop().create_task(_awaited(self._player, given, config), context=context)
            return await play


async def _awaited(player: Runnable[Any, Any], given: Any, config: RunnableConfig) -> Any:
    return await player.ainvoke(given, config)


def _ambient() -> RunnableConfig:
    """The run's configuration as a player inherits it: callbacks, store and checkpointer, but no limit of the scene's.

    The scene's settings are not a context of the player's; its supersteps are counted for the scene alone.
    """
    config = get_config()
    configurable = {
        key: value.override(context=None)
        if isinstance(value, Runtime) and isinstance(value.context, SceneConfig)
        else value
        for key, value in config.get("configurable", {}).items()
    }
    ambient: Any = {key: value for key, value in config.items() if key != "recursion_limit"}
    ambient["configurable"] = configurable
    return typed(RunnableConfig, ambient)


def _is_sync(player: Runnable[Any, Any]) -> bool:
    """Whether the player has no asynchronous side of its own."""
    while isinstance(player, RunnableBindingBase):
        player = player.bound
    if isinstance(player, RunnableLambda):
        return not hasattr(player, "afunc")
    return type(player).ainvoke is Runnable.ainvoke


async def _in_thread(context: contextvars.Context, work: Callable[[], T]) -> T:
    """Run blocking work in a thread of its own.

    The loop's pool would do, but a player that never returns would keep the loop from closing.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is None:
            outcome.set_result(value)  # type: ignore[arg-type]  # None only where there is an error
        else:
            outcome.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)

    def run() -> None:
        value, failed = None, None
        try:
            value = context.run(work)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to who waits
            failed = error
        with suppress(RuntimeError):  # the loop has closed, and nobody waits any more
            loop.call_soon_threadsafe(settle, value, failed)

    threading.Thread(target=run, name="matrix-graph-player", daemon=True).start()
    return await outcome


def call_of(task: RoleTask, messages: list[ChatMessage], completion: str, *, author: Author, model: str) -> Plain:
    """The record of a turn that the scene's model did not take, as plain `records.Call`."""
    return {
        "purpose": "act",
        "role": task["profile"]["name"],
        "round": task["round"],
        "messages": list(messages),
        "completion": completion,
        "finish_reason": None,
        "model": model,
        "sampling": {},
        "usage": {"input_tokens": 0, "output_tokens": 0},
        "seconds": 0.0,
        "error": None,
        "author": author,
    }


def read_action(text: str) -> str:
    """The action in what a player said: in its JSON object, if it is one, or else the text itself.

    Raises:
        ReplyError: there is no action in it.
    """
    if text.lstrip().startswith(("{", "[", "```")):
        return parse_action(text)
    try:
        return parse_action(text)
    except ReplyError:
        return checked_action(text)


def _text(result: Any) -> str:
    """What a player returned, as text.

    Raises:
        ReplyError: it is nothing that an action could stand in.
    """
    if isinstance(result, BaseModel) and not isinstance(result, BaseMessage):
        result = result.model_dump()
    if isinstance(result, str):
        return spoken_text(clean(result))
    if isinstance(result, AIMessage):
        return completion_text(result)
    if isinstance(result, BaseMessage):
        raise ReplyError(f"The player's last message is a {type(result).__name__}; it must be the player's own.")
    if isinstance(result, Mapping):
        if "action" in result:
            action = result["action"]
            if not isinstance(action, str):
                raise ReplyError(f"action: it is a {type(action).__name__}; give a text.")
            return spoken(clean(action))
        if result.get("structured_response") is not None:
            return _text(result["structured_response"])
        messages = result.get("messages")
        if isinstance(messages, list | tuple) and messages:
            return _text(messages[-1])
    raise ReplyError(
        f"The player returned {_described(result)}; it must be a text, an AIMessage, "
        '{"messages": [...]} or {"action": text}.'
    )


def _described(result: Any) -> str:
    if isinstance(result, Mapping):
        return f"a mapping with the keys {json.dumps([str(key)[:40] for key in result][:10], ensure_ascii=False)}"
    return f"a {type(result).__name__}"


def _usage(result: Any) -> dict[str, int]:
    """The tokens that a player says it used."""
    messages = [result]
    if isinstance(result, Mapping):
        messages = list(result["messages"]) if isinstance(result.get("messages"), list | tuple) else []
    used = [message.usage_metadata for message in messages if isinstance(message, AIMessage) and message.usage_metadata]
    return {name: sum(int(item[name]) for item in used) for name in ("input_tokens", "output_tokens")}
