"""`rehearsal_tool`: an agent asks "what would happen if I said or did this?", and a scene answers.

What always holds: the reply that the agent reads is bounded in length and says what is the scene's and what is not;
where the trace lies stands beside it, in the tool message's artifact; a scene that fails is an error that the agent is
told.
"""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langgraph.constants import TAG_NOSTREAM
from langgraph.runtime import get_runtime
from langgraph.store.base import BaseStore
from pydantic import BaseModel, Field

from matrix_graph.compose.keeping import Kept, TraceKeeper, Traces
from matrix_graph.compose.rehearsal import Rehearsal, RehearsalResult
from matrix_graph.config import SceneConfig
from matrix_graph.errors import ConfigError
from matrix_graph.models.wrapped import chat_model
from matrix_graph.records import Cast, Event, Trace

DESCRIPTION = (
    "Find out what would happen if you said or did something, before you do: the people whom it would touch are played "
    "in a short scene. Returns what they did, what it led to, and whether to say or do it differently."
)
SMALLEST_LENGTH = 200
"""Characters; less would hold no sentence of the scene."""
_CUT = " [...]"
_QUIET: RunnableConfig = {"tags": [TAG_NOSTREAM], "run_name": "rehearsal"}


class RehearsalArguments(BaseModel):
    """What an agent gives the tool."""

    situation: str = Field(description="The question to answer or the situation to act in, with all that matters.")
    plan: str = Field(description="What you would say or do, in full.")


def rehearsal_tool(
    model: BaseChatModel,
    *,
    name: str = "rehearse",
    description: str = DESCRIPTION,
    config: SceneConfig | None = None,
    cast: Cast | None = None,
    max_length: int = 2000,
    traces: Traces | None = None,
    trace_in_artifact: bool = False,
) -> BaseTool:
    """A tool that rehearses what an agent is about to say or do.

    Its arguments are `situation` and `plan`. Its content is a readable summary. Its artifact is plain JSON: `status`,
    `revised`, `trace_id`, `kept` ("store", "folder" or None: where the trace lies) and `error` (None, or
    `{"type", "message"}` if it could not be kept). If the scene fails, the agent reads why, in a tool message with the
    status "error".

    Args:
        model: the chat model that plays everybody; without tools, whatever the agent's own model has.
        name: what the agent calls it.
        description: what the agent is told of it.
        config: settings and limits of the scenes.
        cast: who is in the scenes; None has the model cast each.
        max_length: the longest summary, in characters.
        traces: where traces are kept. None: nowhere. "store": in the store of the graph that calls the tool, under
            `compose.keeping.NAMESPACE` and the trace's id. A folder: in its `traces.jsonl`.
        trace_in_artifact: whether the artifact holds the whole trace, too (`trace`, for `Trace.model_validate`). It may
            be 100 kB, and a checkpointer writes an agent's tool messages again at every step of all later turns.

    Raises:
        ConfigError: an argument that cannot be used; when called, `traces="store"` and no store.

    Example:
        agent = create_agent(model, [rehearsal_tool(model, traces="runs/agent")])
    """
    model = chat_model(model, "rehearsal_tool")
    if max_length < SMALLEST_LENGTH:
        raise ConfigError(f"max_length is {max_length}; give {SMALLEST_LENGTH} characters or more.")
    # No checkpoints of the scene: an agent may call the tool several times at once, in one step of its graph.
    rehearsal = Rehearsal(model, cast=cast, config=config, checkpointer=False)

    keeper = TraceKeeper(traces)

    def rehearse(situation: str, plan: str) -> tuple[str, dict[str, Any]]:
        store = _store()
        keeper.check(store)
        result = rehearsal.invoke(_input(situation, plan), _QUIET)
        kept = keeper.keep(result["trace"], [], store)
        return _told(result, max_length), _artifact(result["trace"], *kept, whole=trace_in_artifact)

    async def arehearse(situation: str, plan: str) -> tuple[str, dict[str, Any]]:
        store = _store()
        keeper.check(store)
        result = await rehearsal.ainvoke(_input(situation, plan), _QUIET)
        kept = await keeper.akeep(result["trace"], [], store)
        return _told(result, max_length), _artifact(result["trace"], *kept, whole=trace_in_artifact)

    return StructuredTool.from_function(
        rehearse,
        arehearse,
        name=name,
        description=description,
        args_schema=RehearsalArguments,
        response_format="content_and_artifact",
        handle_tool_error=True,
    )


def summary(trace: Trace, max_length: int) -> str:
    """A finished scene in words: how it ended, what is better, who did what, and what it led to.

    What the agent needs most stands first; what does not fit is cut off at the end, visibly.

    Args:
        trace: of a scene that is finished or blocked.
        max_length: in characters.
    """
    first = trace.cast.objects if trace.cast else []
    states = trace.object_states
    changed = [f"- {thing.name}: {thing.state} -> {states[thing.name]}" for thing in first
               if states[thing.name] != thing.state]  # fmt: skip
    parts = [_verdict(trace, max_length // 2), *_people(trace)]
    parts.append("\n".join(["What happened in the scene:", *map(_line, trace.events)]))
    if changed:
        parts.append("\n".join(["What changed:", *changed]))
    return _cut("\n\n".join(parts), max_length)


def _input(situation: str, plan: str) -> dict[str, str]:
    for name, text in (("situation", situation), ("plan", plan)):
        if not text.strip():
            raise ToolException(f"The {name} is empty; say in words what it is.")
    return {"question": situation, "draft": plan}


def _store() -> BaseStore | None:
    """The store of the graph that calls the tool; None if there is none."""
    try:
        runtime: Any = get_runtime()
    except (RuntimeError, LookupError):  # called by hand, outside of a graph
        return None
    store: BaseStore | None = getattr(runtime, "store", None)
    return store


def _artifact(trace: Trace, kept: Kept | None, error: dict[str, str] | None, *, whole: bool) -> dict[str, Any]:
    summary = {"status": trace.status, "revised": trace.revised, "trace_id": trace.id, "kept": kept, "error": error}
    return {**summary, "trace": trace.model_dump(mode="json")} if whole else summary


def _told(result: RehearsalResult, max_length: int) -> str:
    trace = result["trace"]
    if result["status"] not in ("finished", "blocked"):
        error = result["error"] or {"type": "SceneError", "message": f"it ended as {result['status']}"}
        why = f"{error['type']}: {error['message'].rstrip('.')}"
        told = f"The plan could not be rehearsed, so that nothing is known of its effects ({why})."
        raise ToolException(_cut(told, max_length))
    return summary(trace, max_length)


def _verdict(trace: Trace, max_length: int) -> str:
    blocked = "The plan could not be carried out to its end. " if trace.status == "blocked" else ""
    if trace.revised:
        return f"{blocked}The scene speaks against the plan. Better:\n{_cut(trace.answer or '', max_length)}"
    if trace.check is not None and trace.reflection is not None:
        told = f"The scene speaks against the plan ({trace.reflection.lesson}), but no better one was found: "
        return _cut(f"{blocked}{told}{trace.check.why}", max_length)
    return f"{blocked}Nothing in the scene speaks against the plan."


def _people(trace: Trace) -> list[str]:
    """What became of those whom the scene touched; nothing where it touched nobody."""
    people = trace.reflection.people if trace.reflection else []
    touched = [f"- {person.name}: {person.effect}. {person.how}" for person in people if person.effect != "none"]
    return ["\n".join(["What became of the people:", *touched])] if touched else []


def _line(event: Event) -> str:
    if not event.plausible:
        return f"- {event.role} tried: {event.action} (could not happen: {event.reason})"
    led_to = f" This led to: {event.consequence}" if event.consequence else ""
    seen = f" (seen by {', '.join(event.observers)})" if event.observers else ""
    hurt = f" It hurt {', '.join(event.hurt)}." if event.hurt else ""
    return f"- {event.role}: {event.action}{seen}{led_to}{hurt}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - len(_CUT)].rstrip() + _CUT
