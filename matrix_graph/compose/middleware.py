"""`RehearsalMiddleware`: rehearses an agent's final answer, and puts the revision in its place.

What always holds: tool calls and their results are never touched; an answer is replaced only by the revision of a scene
that was played to its end; whatever happens, the agent's state says so (`rehearsals`), or an exception does; the
scene's own messages reach neither the agent's messages nor a client that streams messages; and the agent's database
grows by a summary a turn, never by a trace.
"""

from __future__ import annotations

import asyncio
import inspect
import operator
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NotRequired
from typing import cast as typed

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.channels import UntrackedValue
from langgraph.constants import TAG_NOSTREAM
from langgraph.errors import GraphBubbleUp
from langgraph.runtime import Runtime
from pydantic import ValidationError

from matrix_graph.compose.agent_turn import RehearsalRecord, RehearsalSummary, Turn, read_turn
from matrix_graph.compose.keeping import TraceKeeper, Traces
from matrix_graph.compose.rehearsal import Rehearsal, to_scene_input
from matrix_graph.compose.touches import Touch, touches_others
from matrix_graph.config import SceneConfig, explain
from matrix_graph.errors import ConfigError, PrerequisiteError, SceneError
from matrix_graph.models.ask import TRIES, describe
from matrix_graph.models.loop import run_sync
from matrix_graph.models.wrapped import chat_model
from matrix_graph.records import Cast

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState
    from langchain.agents.middleware.types import ContextT, OmitFromInput, ResponseT
except ImportError as error:  # pragma: no cover - the tests have it; one of them hides it in a process of its own
    raise PrerequisiteError(
        f"RehearsalMiddleware needs LangChain's agents ({error}). Install them: pip install 'matrix-graph[langchain]'"
    ) from error

When = Callable[[Any], bool | Awaitable[bool]] | Literal["touches_others"]
"""Which answers deserve a rehearsal: a function of the agent's state, sync or async; or one question to the model."""

SMALLEST_SCENE = 6
"""Model calls that `SceneConfig.max_calls` allows at least."""

_QUIET: RunnableConfig = {"tags": [TAG_NOSTREAM], "run_name": "rehearsal"}


class RehearsalState(AgentState[ResponseT]):
    """What the middleware adds to the agent's state.

    Keys:
        rehearsals: one summary a turn, oldest first; never given by the caller.
        last_rehearsal: all that is known of the run's turn; never given by the caller, and never in a checkpoint.
    """

    rehearsals: NotRequired[Annotated[list[RehearsalSummary], OmitFromInput, operator.add]]
    last_rehearsal: NotRequired[Annotated[RehearsalRecord, OmitFromInput, UntrackedValue]]


class RehearsalMiddleware(AgentMiddleware[RehearsalState[ResponseT], ContextT, ResponseT]):
    """Rehearse an agent's final answer before it is given.

    When the agent is done, its answer is played through in a scene. If the scene speaks against it, the answer's
    message is removed and the revision comes as a message with a new id, whose `response_metadata["rehearsal"]` names
    the scene and the message that it stands for (`draft_id`). Clients see that in every stream mode; those who stream
    tokens have seen the draft by then. Left alone are: messages with tool calls or without text, and answers of agents
    with a `response_format`.

    Each turn leaves a `RehearsalSummary` in the state's `rehearsals`, some 150 bytes. The whole `RehearsalRecord` with
    its trace, which may be 100 kB or more, stands in the run's output alone (`last_rehearsal`), since a checkpointer
    writes the whole state again at every step. `traces` keeps traces in the graph's store or in a folder.

    In the "custom" stream stand the scene's events as they happen: `{"type": "rehearsal", "event": {"type", ...}}`,
    the last of them with the type "result" and the record without trace and `when`.

    Example:
        agent = create_agent(
            model,
            tools,
            middleware=[RehearsalMiddleware(model, traces="store")],
            checkpointer=checkpointer,
            store=store,
        )
        summary = agent.invoke({"messages": [("user", question)]}, config)["rehearsals"][-1]
        item = store.get(("matrix_graph", "rehearsals"), summary["trace_id"])
        trace = Trace.model_validate(item.value["trace"])

    Args:
        model: the chat model that plays everybody; without tools, whatever the agent's own model has.
        when: which answers are rehearsed. None: all. A function of the agent's state (with "messages", the answer
            last), sync or async, that returns a bool. "touches_others": those that would touch other people than the
            asker, by one short question to the model.
        config: settings and limits of the scenes.
        cast: who is in the scenes; None has the model cast each.
        max_calls: the most model calls of one turn, those of `when` included; takes the place of the config's.
        max_seconds: the longest that one turn may take, `when` included; takes the place of the config's.
        on_failure: what happens if `when` or the scene fails. "keep": the answer stays as it is, and the record says
            why. "raise": a `SceneError`.
        last_turns: how many of the latest human messages make up the question, with the answers between them; None:
            all of the conversation.
        keep_trace: whether a run's output holds its whole trace, in `last_rehearsal`. No checkpoint does.
        traces: where traces are kept beyond that. None: nowhere. "store": in the store that the agent was made with,
            under `compose.keeping.NAMESPACE` and the trace's id. A folder: in its `traces.jsonl`, as `read_traces` and
            `matrix-graph report` read it.
        stream_events: whether the scene's events go to the "custom" stream.

    Raises:
        ConfigError: an argument that cannot be used; in a run, `traces="store"` and no store.
        PrerequisiteError: on import, if LangChain is not installed.
    """

    state_schema = RehearsalState  # type: ignore[assignment]  # mypy cannot bind its ResponseT to the class's

    def __init__(
        self,
        model: BaseChatModel,
        *,
        when: When | None = None,
        config: SceneConfig | None = None,
        cast: Cast | None = None,
        max_calls: int | None = None,
        max_seconds: float | None = None,
        on_failure: Literal["keep", "raise"] = "keep",
        last_turns: int | None = None,
        keep_trace: bool = True,
        traces: Traces | None = None,
        stream_events: bool = True,
    ) -> None:
        super().__init__()
        model = chat_model(model, "RehearsalMiddleware")
        if when is not None and when != "touches_others" and not callable(when):
            raise ConfigError(
                f'when is {when!r}; allowed are None (always), "touches_others", or a function of the agent\'s state '
                "that returns a bool."
            )
        if on_failure not in ("keep", "raise"):
            raise ConfigError(f'on_failure is {on_failure!r}; allowed are "keep" and "raise".')
        if last_turns is not None and last_turns < 1:
            raise ConfigError(f"last_turns is {last_turns}; give 1 or more, or None for the whole conversation.")
        self.tools = []
        self._model = model
        self._when = when
        self._cast = cast
        self._config = _limited(config or SceneConfig(), max_calls=max_calls, max_seconds=max_seconds)
        if when == "touches_others" and self._config.max_calls < SMALLEST_SCENE + TRIES:
            raise ConfigError(
                f'max_calls is {self._config.max_calls}; with when="touches_others" a turn needs '
                f"{SMALLEST_SCENE + TRIES} or more."
            )
        self._on_failure = on_failure
        self._last_turns = last_turns
        self._keep_trace = keep_trace
        self._keeper = TraceKeeper(traces)
        self._stream_events = stream_events
        self._rehearsal = self._with(self._config)

    def after_agent(self, state: RehearsalState[ResponseT], runtime: Runtime[ContextT]) -> dict[str, Any] | None:
        """Rehearse the agent's answer.

        Raises:
            SceneError: `when` or the scene failed, or its trace could not be kept, and `on_failure` is "raise".
            ConfigError: traces go to the store, and there is none.
        """
        self._keeper.check(runtime.store)
        turn = read_turn(state, self._last_turns)
        with self._watched(turn):
            if run_sync(self._wanted(turn, state)):
                for event in self._left(turn).stream(turn.chat, _QUIET):
                    self._take(turn, event, runtime)
        if turn.trace is not None:
            turn.kept, turn.not_kept = self._keeper.keep(turn.trace, turn.when_calls, runtime.store)
        return self._update(turn, runtime)

    async def aafter_agent(self, state: RehearsalState[ResponseT], runtime: Runtime[ContextT]) -> dict[str, Any] | None:
        """Rehearse the agent's answer; see `after_agent`."""
        self._keeper.check(runtime.store)
        turn = read_turn(state, self._last_turns)
        with self._watched(turn):
            if await self._wanted(turn, state):
                async for event in self._left(turn).astream(turn.chat, _QUIET):
                    self._take(turn, event, runtime)
        if turn.trace is not None:
            turn.kept, turn.not_kept = await self._keeper.akeep(turn.trace, turn.when_calls, runtime.store)
        return self._update(turn, runtime)

    # ---- whether --------------------------------------------------------------------------------------------------

    async def _wanted(self, turn: Turn, state: Mapping[str, Any]) -> bool:
        """Whether the answer is to be rehearsed; if not, the turn says why."""
        if turn.skipped is not None:
            return False
        if self._when is None:
            return True
        if self._when == "touches_others":
            wanted = await self._touches(turn)
        else:
            turn.when = {"rule": getattr(self._when, "__name__", type(self._when).__name__), "wanted": None}
            turn.when["wanted"] = wanted = await self._ask(typed("Callable[[Any], Any]", self._when), state)
        turn.skipped = None if wanted else "not_wanted"
        return wanted

    async def _touches(self, turn: Turn) -> bool:
        scene = to_scene_input(turn.chat)

        async def question(_: object) -> Touch:
            return await touches_others(
                self._model, scene["question"], str(scene.get("draft")), self._config.max_seconds
            )

        # As a runnable, so that its tags keep the reply out of the client's stream of messages.
        touch: Touch = await RunnableLambda(question).ainvoke(None, {**_QUIET, "run_name": "touches_others"})
        turn.when = {"rule": "touches_others", "wanted": touch.others, "who": touch.who, "calls": touch.calls}
        if touch.others is None:
            problem = touch.problem or {}
            raise SceneError(
                f"The model did not say whether the answer touches others ({problem.get('type')}: "
                f"{problem.get('message')})."
            )
        return touch.others

    async def _ask(self, when: Callable[[Any], Any], state: Mapping[str, Any]) -> bool:
        timeout = asyncio.timeout(self._config.max_seconds)
        try:
            async with timeout:
                # A sync function may wait for something, and must not hold up the event loop.
                wanted = when(state) if inspect.iscoroutinefunction(when) else await asyncio.to_thread(when, state)
                if inspect.isawaitable(wanted):
                    wanted = await wanted
        except TimeoutError:
            if not timeout.expired():
                raise
            raise SceneError(f"`when` took longer than max_seconds ({self._config.max_seconds:g}).") from None
        if not isinstance(wanted, bool):
            raise SceneError(f"`when` returned a {type(wanted).__name__}; it must return True or False.")
        return wanted

    # ---- the scene ------------------------------------------------------------------------------------------------

    def _with(self, config: SceneConfig) -> Rehearsal:
        # No checkpoints of the scene: a turn tried again after a failure begins its scene anew, and an agent's
        # database does not grow by every scene's steps.
        return Rehearsal(self._model, cast=self._cast, config=config, checkpointer=False)

    def _left(self, turn: Turn) -> Rehearsal:
        """The rehearsal, within what `when` has left of calls and seconds."""
        if turn.when is None:
            return self._rehearsal
        seconds = self._config.max_seconds - turn.seconds
        if seconds <= 0:
            raise SceneError(f"`when` took all of max_seconds ({self._config.max_seconds:g}).")
        return self._with(
            _limited(
                self._config,
                max_calls=self._config.max_calls - len(turn.when_calls),
                max_seconds=seconds,
            )
        )

    def _take(self, turn: Turn, event: Mapping[str, Any], runtime: Runtime[ContextT]) -> None:
        if event["type"] != "result":
            self._emit(event, runtime)
            return
        turn.trace = event["trace"]
        if event["status"] not in ("finished", "blocked"):
            problem = event["error"] or {"type": "SceneError", "message": f"The scene ended as {event['status']}."}
            raise _NotPlayed(problem)

    def _update(self, turn: Turn, runtime: Runtime[ContextT]) -> dict[str, Any]:
        if turn.not_kept is not None and self._on_failure == "raise":
            raise SceneError(
                f"{turn.not_kept['message']} ({turn.not_kept['type']}). "
                'With on_failure="keep" the record would say so, and the answer would be given.'
            )
        record = turn.record(self._keep_trace)
        told = {name: value for name, value in record.items() if name not in ("trace", "when")}
        self._emit({"type": "result", **told}, runtime)
        update: dict[str, Any] = {"rehearsals": [turn.summary()], "last_rehearsal": record}
        messages = turn.replacement()
        return {**update, "messages": messages} if messages else update

    def _emit(self, event: Mapping[str, Any], runtime: Runtime[ContextT]) -> None:
        if self._stream_events:
            runtime.stream_writer({"type": "rehearsal", "event": dict(event)})

    @contextmanager
    def _watched(self, turn: Turn) -> Iterator[None]:
        """What fails inside is written into the turn, or raised, as set."""
        try:
            yield
        except GraphBubbleUp:
            raise
        except Exception as error:
            turn.error = error.problem if isinstance(error, _NotPlayed) else describe(error)
            if self._on_failure == "raise":
                why = f"{turn.error['type']}: {turn.error['message'].rstrip('.')}"
                raise SceneError(
                    f"The agent's answer could not be rehearsed ({why}). "
                    'With on_failure="keep" the answer would stay as it is.'
                ) from error


class _NotPlayed(Exception):
    """A scene that failed, with its error as data."""

    def __init__(self, problem: dict[str, str]) -> None:
        super().__init__(problem["message"])
        self.problem = problem


def _limited(config: SceneConfig, *, max_calls: int | None, max_seconds: float | None) -> SceneConfig:
    """The settings with other limits; None leaves one as it is.

    Raises:
        ConfigError: a limit out of range.
    """
    given = {"max_calls": max_calls, "max_seconds": max_seconds}
    try:
        return SceneConfig.model_validate(
            config.model_dump() | {name: value for name, value in given.items() if value is not None}
        )
    except ValidationError as error:
        raise ConfigError(f"Limits that cannot be used:\n{explain(error)}") from error
