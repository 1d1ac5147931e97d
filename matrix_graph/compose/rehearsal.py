"""`Rehearsal`: the scene as one LangChain Runnable, from a question to an answer with its trace."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, TypedDict
from typing import cast as typed

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import merge_configs
from langgraph.types import Checkpointer

from matrix_graph.config import SceneConfig
from matrix_graph.records import Cast, Trace
from matrix_graph.scene.graph import create_scene, recursion_limit
from matrix_graph.scene.state import SceneInput, to_trace

RehearsalInput = str | Mapping[str, Any] | Sequence[Any]
"""A question; or `{"question", "draft"?, "cast"?}`; or chat messages, a last AI message being the draft."""


class RehearsalResult(TypedDict):
    """What a rehearsal gives.

    Keys:
        answer: the answer to give; the draft to the letter unless `revised`; None if there is not even a draft.
        revised: whether the scene led to another answer than the draft.
        status: "finished", "blocked" (the ego's plan stopped at a step that could not happen) or "failed".
        error: None, or `{"type", "message"}` if the scene failed.
        trace: the full record.
    """

    answer: str | None
    revised: bool
    status: str
    error: dict[str, str] | None
    trace: Trace


class Rehearsal(Runnable[RehearsalInput, RehearsalResult]):
    """Rehearse answers before they are given.

    What goes wrong in a scene does not raise: the result's status is "failed", with the error, and the answer is the
    draft. `stream` and `astream` yield the scene's events as they happen, each a dict with a "type"; the last one is
    `{"type": "result", **RehearsalResult}`.

    Args:
        model: the chat model that answers, and plays everybody.
        cast: who is in the scenes; None has the model cast each scene.
        config: settings and limits.
        checkpointer: keeps scenes so that a stopped one can go on. Without a `thread_id` in the run's config, each
            rehearsal is a thread of its own.
    """

    def __init__(
        self,
        model: BaseChatModel,
        *,
        cast: Cast | None = None,
        config: SceneConfig | None = None,
        checkpointer: Checkpointer = None,
    ) -> None:
        self.model = model
        self.scene_config = config or SceneConfig()
        self._checkpointer = checkpointer
        self.graph = create_scene(model, cast=cast, config=self.scene_config).compile(
            checkpointer=checkpointer, name="rehearsal"
        )

    def invoke(self, input: RehearsalInput, config: RunnableConfig | None = None, **kwargs: Any) -> RehearsalResult:
        """Rehearse one question.

        Raises:
            TypeError: the input is none of the kinds of `RehearsalInput`.
        """
        state = self.graph.invoke(to_scene_input(input), self._run_config(config), context=self.scene_config)
        return to_result(state)

    async def ainvoke(
        self, input: RehearsalInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> RehearsalResult:
        """Rehearse one question; see `invoke`."""
        state = await self.graph.ainvoke(to_scene_input(input), self._run_config(config), context=self.scene_config)
        return to_result(state)

    def stream(  # type: ignore[override]  # a scene streams its events, and its result last
        self, input: RehearsalInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[dict[str, Any]]:
        """Rehearse one question and yield what happens."""
        state: Any = {}
        for mode, chunk in self.graph.stream(
            to_scene_input(input), self._run_config(config), context=self.scene_config, stream_mode=["custom", "values"]
        ):
            if mode == "custom":
                yield typed("dict[str, Any]", chunk)
            else:
                state = chunk
        yield {"type": "result", **to_result(state)}

    async def astream(  # type: ignore[override]  # as `stream`
        self, input: RehearsalInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Rehearse one question and yield what happens."""
        state: Any = {}
        async for mode, chunk in self.graph.astream(
            to_scene_input(input), self._run_config(config), context=self.scene_config, stream_mode=["custom", "values"]
        ):
            if mode == "custom":
                yield typed("dict[str, Any]", chunk)
            else:
                state = chunk
        yield {"type": "result", **to_result(state)}

    def _run_config(self, config: RunnableConfig | None) -> RunnableConfig:
        # Inside LCEL and `batch` LangGraph's own limit silently becomes 25, so that it is set for each run.
        merged = merge_configs(config, {"recursion_limit": recursion_limit(self.scene_config)})
        if self._checkpointer and "thread_id" not in merged.get("configurable", {}):
            merged["configurable"] = {**merged.get("configurable", {}), "thread_id": uuid.uuid4().hex}
        return merged


def to_scene_input(value: RehearsalInput) -> SceneInput:
    """The scene's input from whatever people pass.

    Raises:
        TypeError: it is neither a text, nor a mapping with a "question", nor chat messages.
    """
    if isinstance(value, str):
        return _input(value)
    if isinstance(value, Mapping):
        if "messages" in value:
            return to_scene_input(value["messages"])
        if "question" not in value:
            raise TypeError(f'The mapping has the keys {sorted(map(str, value))}; it needs "question" (or "messages").')
        cast = value.get("cast")
        return _input(
            value["question"],
            value.get("draft"),
            cast.model_dump(mode="json") if isinstance(cast, Cast) else cast,
        )
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return _from_messages(value)
    raise TypeError(f"A rehearsal takes a question, a mapping or messages, not {type(value).__name__}.")


def _input(question: str, draft: str | None = None, cast: dict[str, Any] | None = None) -> SceneInput:
    # Every key is written, since a thread keeps what its last scene left behind.
    return {"question": question, "draft": draft, "cast": cast, "given": ["draft", "cast"]}


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


def _from_messages(messages: Any) -> SceneInput:
    try:
        chat: list[BaseMessage] = convert_to_messages(messages)
    except (NotImplementedError, ValueError) as error:
        raise TypeError(
            f"The sequence holds no chat messages ({error}). Give LangChain messages, (role, text) pairs or "
            '{"role", "content"} mappings; or a question as a text.'
        ) from error
    draft = None
    if chat and isinstance(chat[-1], AIMessage):
        draft = str(chat[-1].text)
        chat = chat[:-1]
    turns = [message for message in chat if isinstance(message, HumanMessage | AIMessage)]
    if not any(isinstance(message, HumanMessage) for message in turns):
        raise TypeError("The messages hold no human message; a rehearsal needs a question.")
    if len(turns) == 1:
        return _input(str(turns[0].text), draft)
    # Earlier turns are part of what is asked, so that they stand in the question as people wrote them.
    lines = [f"{'User' if isinstance(turn, HumanMessage) else 'Assistant'}: {turn.text}" for turn in turns]
    return _input("\n".join(lines), draft)
