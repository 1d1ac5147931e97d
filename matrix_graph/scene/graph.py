"""The map of the scene: its nodes, and the ways between them.

    draft -> cast -> role, role, ... -> modulator -> (the next round's roles) | reflect -> revise
                      ^____________________|

Every node is one async function of a `Stage` and the state, in a module of its own. The graph runs sync and async from
the same functions: sync runs put the coroutine on one background event loop.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from langchain_core.callbacks import BaseCallbackManager, adispatch_custom_event
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Send

from matrix_graph.config import SceneConfig
from matrix_graph.models.loop import run_sync
from matrix_graph.models.thoughts import spoken_tokens
from matrix_graph.models.turn import clock as now
from matrix_graph.models.wrapped import chat_model
from matrix_graph.records import Cast
from matrix_graph.scene.cast import cast as make_cast
from matrix_graph.scene.draft import draft
from matrix_graph.scene.modulator import moderate
from matrix_graph.scene.players import Player, performers, player_names
from matrix_graph.scene.revise import reflect, revise
from matrix_graph.scene.role import act
from matrix_graph.scene.rounds import next_round
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.state import Plain, SceneInput, SceneState

Scene = StateGraph[SceneState, SceneConfig, SceneInput, SceneState]
Node = Callable[[Stage, Any], Awaitable[Plain]]

SUPERSTEPS_PER_ROUND = 2
SUPERSTEPS_AROUND = 6

CUSTOM_EVENT = "rehearsal"
"""The name of the custom event (`on_custom_event`) by which callbacks hear what happens in a scene."""

_KEYWORDS = ("end", "graph", "subgraph", "flowchart", "style", "class", "classdef", "click", "default", "linkstyle")
_RESERVED = frozenset({"draft", "cast", "role", "modulator", "reflect", "revise", START, END, *_KEYWORDS})
"""Names, casefolded, of other nodes, and words that mean something in a Mermaid diagram."""
_MEANINGFUL = frozenset(':|()[]{}<>"`#;\\/')
"""Characters that mean something to LangGraph or in a Mermaid diagram."""


def create_scene(
    model: BaseChatModel,
    *,
    cast: Cast | None = None,
    config: SceneConfig | None = None,
    players: Mapping[str, Player] | None = None,
) -> Scene:
    """Build the scene as a LangGraph graph, uncompiled, so that the caller owns checkpointer and store.

    Args:
        model: the one chat model that plays everybody, judges and writes; `with_retry`, `with_fallbacks`, `bind` and
            configurable fields of chat models are taken as well.
        cast: who is in the scene; each of its roles becomes a node of its own name. None has the model cast it.
        config: settings and limits; a `SceneConfig` passed as the run's `context=` takes its place.
        players: role name -> who plays it in the model's place: a Runnable, a function, or `human()`, which needs a
            checkpointer. Only with a given cast.

    Returns:
        A `StateGraph` that takes `{"question", "draft"?, "cast"?}`. Compile and run it with
        `recursion_limit=recursion_limit(config)`.

    Raises:
        ConfigError: `model` is not a chat model, or has tools or a reply format bound to it.
        CastError: players without a cast, a name that is not in the cast, or somebody who cannot play.
    """
    model = chat_model(model, "create_scene")
    settings = config or SceneConfig()
    graph: Scene = StateGraph(SceneState, context_schema=SceneConfig, input_schema=SceneInput)

    performed, names = performers(cast, players), player_names(players)

    def node(function: Node, **kind: bool) -> _Node:
        return _Node(model, settings, function, **kind)

    async def drafting(stage: Stage, state: SceneState) -> Plain:
        # A thread that has played a branch before starts the next scene as a scene of its own.
        update: Plain = {**await draft(stage, state), "parent": None, "edits": []}
        return {**update, "settings": {**update["settings"], "players": names}} if names else update

    async def casting(stage: Stage, state: SceneState) -> Plain:
        return await make_cast(stage, state, cast)

    role_nodes = node_names([role.name for role in cast.roles]) if cast else {}
    roles: Sequence[str] = list(role_nodes.values()) or ["role"]

    def play(state: SceneState) -> list[Send] | str:
        """The next round's roles, or reflection when play is over."""
        if state.get("status") == "failed":
            return END
        tasks = next_round(state, recorded_config(state["settings"])).tasks
        return [Send(role_nodes.get(task["profile"]["name"], "role"), task) for task in tasks] or "reflect"

    def drafted(state: SceneState) -> Literal["cast", "__end__"]:
        return "__end__" if state.get("status") == "failed" else "cast"

    def reflected(state: SceneState) -> Literal["revise", "__end__"]:
        return "__end__" if state.get("status") == "failed" else "revise"

    graph.add_node("draft", node(drafting, begins=True))
    graph.add_node("cast", node(casting))
    acting = {role_nodes[role]: perform for role, perform in performed.items()}
    for name in roles:
        graph.add_node(name, node(partial(act, perform=acting.get(name)), in_round=True))
        graph.add_edge(name, "modulator")
    graph.add_node("modulator", node(moderate, in_round=True))
    graph.add_node("reflect", node(reflect))
    graph.add_node("revise", node(revise))
    graph.add_edge(START, "draft")
    graph.add_conditional_edges("draft", drafted, ["cast", END])
    graph.add_conditional_edges("cast", play, [*roles, "reflect", END])
    graph.add_conditional_edges("modulator", play, [*roles, "reflect"])
    graph.add_conditional_edges("reflect", reflected, ["revise", END])
    graph.add_edge("revise", END)
    return graph


def recursion_limit(config: SceneConfig) -> int:
    """Supersteps that a scene of this configuration takes at most, plus one as LangGraph counts them."""
    return config.rounds * SUPERSTEPS_PER_ROUND + SUPERSTEPS_AROUND


def recorded_config(settings: Mapping[str, Any]) -> SceneConfig:
    """The configuration that a scene was begun with, from its recorded settings."""
    return SceneConfig.model_validate({name: settings[name] for name in SceneConfig.model_fields if name in settings})


def node_names(names: Sequence[str]) -> dict[str, str]:
    """A LangGraph node name for each role: readable, unique, without what means something to LangGraph or Mermaid.

    Args:
        names: role names, distinct.
    """
    taken = set(_RESERVED)
    made: dict[str, str] = {}
    for name in names:
        base = " ".join(_safe(name).split()) or "role"
        node_name, number = base, 1
        while node_name.casefold() in taken or node_name.startswith("__"):
            number += 1
            node_name = f"{base.lstrip('_') or 'role'} {number}"
        taken.add(node_name.casefold())
        made[name] = node_name
    return made


def _safe(name: str) -> str:
    """The name with "_" for each run of characters that cannot stand in it; joiners are part of many scripts."""
    safe = ""
    for char in name:
        if char in _MEANINGFUL or (unicodedata.category(char)[0] == "C" and char not in "\u200c\u200d"):
            safe += "" if safe.endswith("_") else "_"
        else:
            safe += char
    return safe


def _config(settings: SceneConfig) -> SceneConfig:
    # An outer graph's context reaches an inner graph as it is, so that only our own type is taken for settings.
    context = get_runtime().context
    return context if isinstance(context, SceneConfig) else settings


class _Node(Runnable[Any, Any]):
    """One node, for sync and async runs of the graph; a plain function would do for one of the two only."""

    def __init__(
        self,
        model: BaseChatModel,
        settings: SceneConfig,
        function: Node,
        *,
        begins: bool = False,
        in_round: bool = False,
    ) -> None:
        self._model = model
        self._settings = settings
        self._function = function
        self._begins = begins
        self._in_round = in_round

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Plain:
        return run_sync(self._run(input, config, sync=True))

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Plain:
        return await self._run(input, config, sync=False)

    async def _run(self, input: Any, config: RunnableConfig | None, *, sync: bool) -> Plain:
        started = now()
        # A thread that has played a scene before starts the next one at zero.
        clock = 0.0 if self._begins else float(input["clock"])
        settings = _config(self._settings)
        happened: list[Plain] = []
        write = get_runtime().stream_writer

        def emit(event: Plain) -> None:
            write(event)
            happened.append(event)

        stage = Stage(self._model, settings, emit, clock, self._tokens_left(input, settings), sync)
        update = await self._function(stage, input)
        if _somebody_listens(config):
            for event in happened:
                await adispatch_custom_event(CUSTOM_EVENT, event, config=config)
        clock += now() - started
        return {**update, "clock": [clock] if self._begins else clock}

    def _tokens_left(self, state: Any, config: SceneConfig) -> int | None:
        if self._in_round:  # a round begins only if all that it may generate fits
            return None
        calls = [] if self._begins else state["calls"]
        return config.max_output_tokens - sum(spoken_tokens(call) for call in calls)


def _somebody_listens(config: RunnableConfig | None) -> bool:
    callbacks = config.get("callbacks") if config else None
    return isinstance(callbacks, BaseCallbackManager) and bool(callbacks.handlers or callbacks.inheritable_handlers)
