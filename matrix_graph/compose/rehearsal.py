"""`Rehearsal`: the scene as one LangChain Runnable, from a question to an answer with its trace."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, NotRequired
from typing import cast as typed

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs
from langgraph.types import Checkpointer, Command
from typing_extensions import TypedDict  # before Python 3.12, pydantic makes schemas of this one only

from matrix_graph.compose.inputs import RehearsalInput, RehearsalQuestion, to_graph_input
from matrix_graph.compose.inputs import to_scene_input as to_scene_input
from matrix_graph.compose.what_if import (
    Branch,
    NewAction,
    NewState,
    NewVerdict,
    branch_of,
    isolated,
    scene_of_state,
    what_if_of,
)
from matrix_graph.config import SceneConfig
from matrix_graph.errors import SceneError
from matrix_graph.models.loop import run_sync
from matrix_graph.models.wrapped import chat_model
from matrix_graph.records import Cast, Trace
from matrix_graph.scene.graph import create_scene, recorded_config, recursion_limit
from matrix_graph.scene.players import Player, has_checkpointer, has_humans, player_names
from matrix_graph.scene.state import to_trace


class RehearsalInterrupt(TypedDict):
    """Somebody who is waited for.

    Keys:
        id: to resume this one of several: `Command(resume={id: text})`.
        value: what is wanted, as `scene.players.Human` has it.
    """

    id: str
    value: Any


class RehearsalResult(TypedDict):
    """What a rehearsal gives.

    Keys:
        answer: the answer to give; the draft to the letter unless `revised`; None if there is not even a draft.
        revised: whether the scene led to another answer than the draft.
        status: "finished", "blocked" (the ego's plan stopped at a step that could not happen), "failed", or "waiting"
            (for a human; answer and trace are None until then).
        error: None, or `{"type", "message"}` if the scene failed.
        trace: the full record.
        interrupts: who is waited for, in no particular order; only with the status "waiting".
        thread_id: where the scene is kept; only with a checkpointer of the rehearsal's own.
    """

    answer: str | None
    revised: bool
    status: str
    error: dict[str, str] | None
    trace: Trace
    interrupts: NotRequired[list[RehearsalInterrupt]]
    thread_id: NotRequired[str]


class Rehearsal(Runnable[RehearsalInput, RehearsalResult]):
    """Rehearse answers before they are given.

    What goes wrong in a scene does not raise: the result's status is "failed", with the error, and the answer is the
    draft. `stream` and `astream` yield the scene's events as they happen, each a dict with a "type"; the last one is
    `{"type": "result", **RehearsalResult}`, or `{"type": "interrupt", **RehearsalResult}` if a human is waited for.
    Callbacks and `astream_events` get the same events as custom events named "rehearsal".

    Args:
        model: the chat model that answers, and plays everybody; see `create_scene`.
        cast: who is in the scenes; None has the model cast each scene.
        config: settings and limits; a run's `context=` (also by `bind`) takes their place.
        checkpointer: keeps scenes so that a stopped one can go on. Without a `thread_id` in the run's config, each
            rehearsal is a thread of its own. In a node of a graph that has a checkpointer, that one keeps the scene.
        players: role name -> who plays it in the model's place, see `create_scene`; only with a given cast.

    Raises:
        ConfigError: `model` is not a chat model, or has tools or a reply format bound to it.
        CastError: players without a cast, a name that is not in the cast, or somebody who cannot play.
    """

    name: str | None = "rehearsal"

    def __init__(
        self,
        model: BaseChatModel,
        *,
        cast: Cast | None = None,
        config: SceneConfig | None = None,
        checkpointer: Checkpointer = None,
        players: Mapping[str, Player] | None = None,
    ) -> None:
        self.model = model = chat_model(model, "Rehearsal")
        self.scene_config = config or SceneConfig()
        self._cast = cast
        self._players = dict(players or {})
        self._checkpointer = checkpointer
        self._scene = create_scene(model, cast=cast, config=self.scene_config, players=players)
        self.graph = self._scene.compile(checkpointer=checkpointer, name="scene")

    @property
    def InputType(self) -> Any:
        """A question, a mapping, or messages."""
        return str | RehearsalQuestion | list[AnyMessage]

    @property
    def OutputType(self) -> Any:
        """`RehearsalResult`."""
        return RehearsalResult

    def invoke(
        self,
        input: RehearsalInput,
        config: RunnableConfig | None = None,
        *,
        context: SceneConfig | None = None,
        **kwargs: Any,
    ) -> RehearsalResult:
        """Rehearse one question.

        Args:
            input: see `RehearsalInput`.
            config: of the run, as every Runnable takes it.
            context: settings of this run, in the place of the rehearsal's own.

        Raises:
            TypeError: the input is none of the kinds of `RehearsalInput`, or an unknown argument came.
            SceneError: a human plays, and there is no checkpointer to wait with.
        """
        _refuse(kwargs)
        return self._call_with_config(typed(Any, self._invoked), input, config, context=context)

    async def ainvoke(
        self,
        input: RehearsalInput,
        config: RunnableConfig | None = None,
        *,
        context: SceneConfig | None = None,
        **kwargs: Any,
    ) -> RehearsalResult:
        """Rehearse one question; see `invoke`."""
        _refuse(kwargs)
        return await self._acall_with_config(typed(Any, self._ainvoked), input, config, context=context)

    def stream(  # type: ignore[override]  # a scene streams its events, and its result last
        self,
        input: RehearsalInput,
        config: RunnableConfig | None = None,
        *,
        context: SceneConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[dict[str, Any]]:
        """Rehearse one question and yield what happens; see `invoke`."""
        _refuse(kwargs)
        # The base class has one type for what a Runnable gives whole and in pieces.
        streamed = typed(Any, self._streamed)
        events: Any = self._transform_stream_with_config(iter([input]), streamed, config, context=context)
        yield from events

    async def astream(  # type: ignore[override]  # as `stream`
        self,
        input: RehearsalInput,
        config: RunnableConfig | None = None,
        *,
        context: SceneConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[dict[str, Any]]:
        """Rehearse one question and yield what happens; see `invoke`."""
        _refuse(kwargs)
        streamed = typed(Any, self._astreamed)
        events: Any = self._atransform_stream_with_config(_only(input), streamed, config, context=context)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    def what_if(
        self,
        scene: Trace | RunnableConfig,
        *,
        round: int,
        action: NewAction | tuple[str, str] | None = None,
        verdict: NewVerdict | tuple[Any, ...] | None = None,
        object: NewState | tuple[str, str] | None = None,
        config: RunnableConfig | None = None,
    ) -> RehearsalResult:
        """Change one thing in a scene that was played, and play on from there with the model.

        What comes before the change is taken from the scene's record, which is replayed and compared; model calls are
        made only for what comes after. The branch is played under the settings that the scene was played under. Its
        trace has an id of its own and says in `parent` where it came from; the calls that it took over are marked
        `taken_over`, and count in its usage and limits like any, while its seconds are those of its own play.

        Args:
            scene: a trace; or a config with the thread_id, and checkpoint_id if you like, of a scene that this
                rehearsal's checkpointer keeps, be it finished or not.
            round: where the change is made, from 1.
            action: `(role, text)`: what the role does in this round.
            verdict: `(role, plausible)`, `(role, plausible, reason)` or a `NewVerdict`: how its action is judged.
            object: `(name, state)`: the object's state after this round.
            config: of the new run; its thread is always a new one.

        Raises:
            SceneError: no such scene, round, turn or object; or replaying does not give the scene that was recorded.
        """
        change = what_if_of(round, action, verdict, object)
        if not isinstance(scene, Trace):
            scene = scene_of_state(self._stored().get_state(_thread(scene)).values)
        branch = run_sync(branch_of(scene, change, self._cast, player_names(self._players), self.model))
        with isolated():
            graph, run = self._branch_run(branch, config)
            graph.update_state(run, branch.state, as_node=branch.as_node)
            state = graph.invoke(None, run, context=branch.config)
        return self._result(state, run)

    async def awhat_if(
        self,
        scene: Trace | RunnableConfig,
        *,
        round: int,
        action: NewAction | tuple[str, str] | None = None,
        verdict: NewVerdict | tuple[Any, ...] | None = None,
        object: NewState | tuple[str, str] | None = None,
        config: RunnableConfig | None = None,
    ) -> RehearsalResult:
        """Change one thing in a scene that was played, and play on from there; see `what_if`."""
        change = what_if_of(round, action, verdict, object)
        if not isinstance(scene, Trace):
            scene = scene_of_state((await self._stored().aget_state(_thread(scene))).values)
        branch = await branch_of(scene, change, self._cast, player_names(self._players), self.model)
        with isolated():
            graph, run = self._branch_run(branch, config)
            await graph.aupdate_state(run, branch.state, as_node=branch.as_node)
            state = await graph.ainvoke(None, run, context=branch.config)
        return self._result(state, run)

    def _invoked(
        self, input: RehearsalInput, config: RunnableConfig, context: SceneConfig | None = None
    ) -> RehearsalResult:
        given = to_graph_input(input)
        settings = context or self._resumed(given, config)
        run = self._run_config(config, settings)
        return self._result(self.graph.invoke(given, run, context=settings), run)

    async def _ainvoked(
        self, input: RehearsalInput, config: RunnableConfig, context: SceneConfig | None = None
    ) -> RehearsalResult:
        given = to_graph_input(input)
        settings = context or await self._aresumed(given, config)
        run = self._run_config(config, settings)
        return self._result(await self.graph.ainvoke(given, run, context=settings), run)

    def _streamed(
        self, inputs: Iterator[RehearsalInput], config: RunnableConfig, context: SceneConfig | None = None
    ) -> Iterator[dict[str, Any]]:
        given = to_graph_input(next(inputs))
        settings = context or self._resumed(given, config)
        run = self._run_config(config, settings)
        last = _Last()
        for mode, chunk in self.graph.stream(given, run, context=settings, stream_mode=["custom", "values"]):
            if mode == "custom":
                yield typed("dict[str, Any]", chunk)
            else:
                last.see(typed(Any, chunk))
        yield _final(self._result(last.state, run))

    async def _astreamed(
        self, inputs: AsyncIterator[RehearsalInput], config: RunnableConfig, context: SceneConfig | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        given = to_graph_input(await anext(inputs))
        settings = context or await self._aresumed(given, config)
        run = self._run_config(config, settings)
        last = _Last()
        async for mode, chunk in self.graph.astream(given, run, context=settings, stream_mode=["custom", "values"]):
            if mode == "custom":
                yield typed("dict[str, Any]", chunk)
            else:
                last.see(typed(Any, chunk))
        yield _final(self._result(last.state, run))

    def _run_config(self, config: RunnableConfig, settings: SceneConfig) -> RunnableConfig:
        # Inside LCEL and `batch` LangGraph's own limit silently becomes 25, so that it is set for each run.
        run = merge_configs(config, {"recursion_limit": recursion_limit(settings), "run_name": "scene"})
        run.pop("run_id", None)
        given = run.get("configurable", {})
        lent = has_checkpointer(run)
        self._refuse_humans(bool(self._checkpointer or lent))
        if self._checkpointer and not lent:
            if "checkpoint_ns" in given:  # in a node of a graph that keeps nothing: a run of its own keeps it
                given = {name: value for name, value in given.items() if not name.startswith(("__", "checkpoint_"))}
                given.pop("thread_id", None)
            run["configurable"] = {"thread_id": uuid.uuid4().hex, **given}
        return run

    def _refuse_humans(self, kept: bool) -> None:
        if has_humans(self._players) and not kept:
            names = [name for name, player in player_names(self._players).items() if player == "human"]
            raise SceneError(
                f"{', '.join(names)} is played by a human, who can only be waited for with a checkpointer: "
                "Rehearsal(..., checkpointer=InMemorySaver()), or put the rehearsal into a graph that has one."
            )

    def _resumed(self, given: Any, config: RunnableConfig) -> SceneConfig:
        """The settings to play under: a scene that goes on keeps those that it was begun with."""
        if not isinstance(given, Command) or has_checkpointer(config):
            return self.scene_config
        return _settings_in(self._stored().get_state(_thread(config)).values)

    async def _aresumed(self, given: Any, config: RunnableConfig) -> SceneConfig:
        if not isinstance(given, Command) or has_checkpointer(config):
            return self.scene_config
        return _settings_in((await self._stored().aget_state(_thread(config))).values)

    def _result(self, state: Mapping[str, Any], run: RunnableConfig) -> RehearsalResult:
        interrupts = state.get("__interrupt__")
        result: RehearsalResult = to_result(state) if not interrupts else typed(Any, dict(_WAITING))
        if interrupts:
            result["interrupts"] = [{"id": item.id, "value": item.value} for item in interrupts]
        if self._checkpointer and not has_checkpointer(run):
            result["thread_id"] = str(run["configurable"]["thread_id"])
        return result

    def _stored(self) -> Any:
        if not self._checkpointer:
            raise SceneError("This rehearsal keeps no scenes: make it with a checkpointer, or give a scene's trace.")
        return self.graph

    def _branch_run(self, branch: Branch, config: RunnableConfig | None) -> tuple[Any, RunnableConfig]:
        self._refuse_humans(bool(self._checkpointer))
        graph: Any = self.graph
        if not self._checkpointer:
            from langgraph.checkpoint.memory import InMemorySaver

            graph = self._scene.compile(checkpointer=InMemorySaver(), name="scene")
        configurable = {**ensure_config(config).get("configurable", {}), "thread_id": uuid.uuid4().hex}
        for name in ("checkpoint_id", "checkpoint_ns"):
            configurable.pop(name, None)
        run = merge_configs(config, {"recursion_limit": recursion_limit(branch.config)})
        run["configurable"] = configurable
        run.setdefault("run_name", "rehearsal")
        return graph, run


_WAITING = {"answer": None, "revised": False, "status": "waiting", "error": None, "trace": None}


class _Last:
    """What a graph's values have come to, with everybody whom it waits for; a chunk names one of them at most."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def see(self, chunk: Mapping[str, Any]) -> None:
        """Take in one chunk of the values."""
        waiting = [*self.state.get("__interrupt__", ()), *chunk.get("__interrupt__", ())]
        self.state = {**chunk, "__interrupt__": waiting} if waiting else dict(chunk)


def _thread(config: RunnableConfig) -> RunnableConfig:
    if "thread_id" not in config.get("configurable", {}):
        raise SceneError(
            'Which scene is meant? Give its thread_id: {"configurable": {"thread_id": result["thread_id"]}}.'
        )
    return config


def _settings_in(state: Mapping[str, Any]) -> SceneConfig:
    if not state:
        raise SceneError("There is no scene to go on with: no thread of that thread_id is kept.")
    return recorded_config(state["settings"])


def _final(result: RehearsalResult) -> dict[str, Any]:
    return {"type": "interrupt" if result["status"] == "waiting" else "result", **result}


async def _only(input: RehearsalInput) -> AsyncIterator[RehearsalInput]:
    yield input


def _refuse(kwargs: Mapping[str, Any]) -> None:
    if kwargs:
        raise TypeError(f"A rehearsal does not take {', '.join(sorted(kwargs))}; it takes input, config and context.")


def to_result(state: Mapping[str, Any]) -> RehearsalResult:
    """The result of a scene that has ended, from the graph's final state."""
    trace = to_trace(state)
    return {
        "answer": trace.answer,
        "revised": trace.revised,
        "status": trace.status,
        "error": trace.error.model_dump() if trace.error else None,
        "trace": trace,
    }
