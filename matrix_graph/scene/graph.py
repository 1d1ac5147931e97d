"""The map of the scene: its nodes, and the ways between them.

    draft -> cast -> role, role, ... -> modulator -> (the next round's roles) | reflect -> revise
                      ^____________________|

Every node is one async function of a `Stage` and the state, in a module of its own. The graph runs sync and async from
the same functions: sync runs put the coroutine on one background event loop.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal
from typing import cast as typed

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Send

from matrix_graph.config import SceneConfig
from matrix_graph.models.loop import run_sync
from matrix_graph.models.turn import clock as now
from matrix_graph.records import Cast
from matrix_graph.scene.cast import cast as make_cast
from matrix_graph.scene.draft import draft
from matrix_graph.scene.modulator import moderate
from matrix_graph.scene.revise import reflect, revise
from matrix_graph.scene.role import act
from matrix_graph.scene.rounds import next_round
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.state import Plain, SceneInput, SceneState

Scene = StateGraph[SceneState, SceneConfig, SceneInput, SceneState]
Node = Callable[[Stage, Any], Awaitable[Plain]]

SUPERSTEPS_PER_ROUND = 2
SUPERSTEPS_AROUND = 6


def create_scene(model: BaseChatModel, *, cast: Cast | None = None, config: SceneConfig | None = None) -> Scene:
    """Build the scene as a LangGraph graph, uncompiled, so that the caller owns checkpointer and store.

    Args:
        model: the one chat model that plays everybody, judges and writes.
        cast: who is in the scene; each of its roles becomes a node of its own name. None has the model cast it.
        config: settings and limits; a `SceneConfig` passed as the run's `context=` takes its place.

    Returns:
        A `StateGraph` that takes `{"question", "draft"?, "cast"?}`. Compile and run it with
        `recursion_limit=recursion_limit(config)`.
    """
    settings = config or SceneConfig()
    graph: Scene = StateGraph(SceneState, context_schema=SceneConfig, input_schema=SceneInput)

    def node(function: Node) -> _Node:
        return _Node(model, settings, function)

    async def casting(stage: Stage, state: SceneState) -> Plain:
        return await make_cast(stage, state, cast)

    role_nodes = node_names([role.name for role in cast.roles]) if cast else {}
    roles: Sequence[str] = list(role_nodes.values()) or ["role"]

    def play(state: SceneState) -> list[Send] | str:
        """The next round's roles, or reflection when play is over."""
        if state.get("status") == "failed":
            return END
        tasks = next_round(state, _config(settings)).tasks
        return [Send(role_nodes.get(task["profile"]["name"], "role"), task) for task in tasks] or "reflect"

    def drafted(state: SceneState) -> Literal["cast", "__end__"]:
        return "__end__" if state.get("status") == "failed" else "cast"

    def reflected(state: SceneState) -> Literal["revise", "__end__"]:
        return "__end__" if state.get("status") == "failed" else "revise"

    graph.add_node("draft", node(draft))
    graph.add_node("cast", node(casting))
    for name in roles:
        graph.add_node(name, node(act))
        graph.add_edge(name, "modulator")
    graph.add_node("modulator", node(moderate))
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


def node_names(names: Sequence[str]) -> dict[str, str]:
    """A LangGraph node name for each role: readable, unique, without the characters that LangGraph reserves.

    Args:
        names: role names, distinct.
    """
    taken = {"draft", "cast", "role", "modulator", "reflect", "revise", START, END}
    made: dict[str, str] = {}
    for name in names:
        base = re.sub(r"[^\w .,'()-]+", "_", name).strip() or "role"
        node_name, number = base, 1
        while node_name in taken or node_name.startswith("__"):
            number += 1
            node_name = f"{base.lstrip('_') or 'role'} {number}"
        taken.add(node_name)
        made[name] = node_name
    return made


def _config(settings: SceneConfig) -> SceneConfig:
    # An outer graph's context reaches an inner graph as it is, so that only our own type is taken for settings.
    context = get_runtime().context
    return context if isinstance(context, SceneConfig) else settings


class _Node(Runnable[Any, Any]):
    """One node, for sync and async runs of the graph; a plain function would do for one of the two only."""

    def __init__(self, model: BaseChatModel, settings: SceneConfig, function: Node) -> None:
        self.name = typed(Any, function).__name__
        self._model = model
        self._settings = settings
        self._function = function

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Plain:
        return run_sync(self.ainvoke(input, config))

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Plain:
        started = now()
        function = self._function
        # A thread that has played a scene before starts the next one at zero.
        clock = 0.0 if function is draft else float(input["clock"])
        settings = _config(self._settings)
        left = _tokens_left(function, input, settings)
        update = await function(Stage(self._model, settings, get_runtime().stream_writer, clock, left), input)
        clock += now() - started
        return {**update, "clock": [clock] if function is draft else clock}


def _tokens_left(function: Node, state: Any, config: SceneConfig) -> int | None:
    if function in (act, moderate):  # a round begins only if all that it may generate fits
        return None
    calls = [] if function is draft else state["calls"]
    return config.max_output_tokens - sum(int(call["usage"]["output_tokens"]) for call in calls)
