"""One turn of an agent, as a rehearsal sees it: what was asked, what is about to be answered, and what came of it.

What always holds: tool calls, their results and system messages are neither read nor changed; what is kept of a turn
is plain JSON, fit for every checkpointer; a replaced message says so, and which one it replaced.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage
from langchain_core.messages.content import is_data_content_block
from typing_extensions import TypedDict  # pydantic makes schemas of the standard one from Python 3.12 on only

from matrix_graph.models.thoughts import spoken as spoken_text
from matrix_graph.records import Trace

Skipped = Literal["no_answer", "tool_calls", "no_text", "no_question", "structured_response", "not_wanted"]
"""Why an answer was not rehearsed: the last message is not the model's, calls tools, or has no text; nobody asked
anything; the answer is data in a schema of the agent's own; `when` said so."""

_ABOUT_THE_MODEL = ("model", "model_name", "model_provider")


class RehearsalRecord(TypedDict):
    """What the agent's state keeps of one turn, under `rehearsals`: plain JSON.

    Keys:
        status: "finished", "blocked", "failed" as in the trace, or "skipped".
        revised: whether the answer was replaced.
        skipped: why there was no rehearsal; None if there was one, or one was tried.
        error: `{"type", "message"}` if it failed; the draft was kept then.
        draft_id: id of the agent's own last message; None if there was none.
        answer_id: id of the message that stands in its place; equal to `draft_id` unless `revised`.
        when: what decided: None (always), or `{"rule", "wanted", "who", "calls"}` with the rule's name and, of
            "touches_others", who would be touched and the model calls that it took.
        calls: model calls in all, `when`'s among them.
        usage: `{"input_tokens", "output_tokens"}` of those calls.
        seconds: wall time.
        trace_id: the trace's id; None without a scene.
        trace: the whole trace, for `Trace.model_validate`; None without a scene, or with `keep_trace=False`.
    """

    status: str
    revised: bool
    skipped: Skipped | None
    error: dict[str, str] | None
    draft_id: str | None
    answer_id: str | None
    when: dict[str, Any] | None
    calls: int
    usage: dict[str, int]
    seconds: float
    trace_id: str | None
    trace: dict[str, Any] | None


@dataclass
class Turn:
    """A turn on its way.

    Attributes:
        draft: the agent's own last message.
        chat: the conversation as a rehearsal takes it: what people said, the answers they got, the draft last.
        skipped: why it is not rehearsed.
        when: as in `RehearsalRecord`.
        trace: of the scene, once it has ended.
        error: why there is no result, as plain data.
    """

    draft: AIMessage | None
    chat: list[BaseMessage]
    skipped: Skipped | None = None
    when: dict[str, Any] | None = None
    trace: Trace | None = None
    error: dict[str, str] | None = None
    answer_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started: float = field(default_factory=time.monotonic)

    @property
    def revised(self) -> bool:
        """Whether there is another answer than the draft."""
        return self.error is None and self.trace is not None and self.trace.revised

    @property
    def seconds(self) -> float:
        """Wall time since the agent was done."""
        return time.monotonic() - self.started

    def replacement(self) -> list[BaseMessage]:
        """The messages that put the revision in the draft's place; empty unless `revised`.

        A message of a new id, since one that comes again under its old id is not shown to who streams messages.
        """
        if self.draft is None or self.trace is None or not self.revised:
            return []
        about = {"id": self.trace.id, "status": self.trace.status, "revised": True, "draft_id": self.draft.id}
        # What else the server told of the draft (its log-probabilities, the id under which it remembers it, why it
        # ended) is not true of the revision.
        told = {name: self.draft.response_metadata[name] for name in _ABOUT_THE_MODEL
                if name in self.draft.response_metadata}  # fmt: skip
        answer = AIMessage(
            content=_content(self.draft, self.trace.answer or ""),
            id=self.answer_id,
            name=self.draft.name,
            response_metadata={**told, "rehearsal": about},
            usage_metadata=self.draft.usage_metadata,
        )
        return [RemoveMessage(id=str(self.draft.id)), answer]

    def record(self, keep_trace: bool) -> RehearsalRecord:
        """What the agent's state keeps of the turn.

        Args:
            keep_trace: whether the whole trace is kept, too.
        """
        draft_id = self.draft.id if self.draft is not None else None
        calls: list[Mapping[str, Any]] = list((self.when or {}).get("calls", []))
        if self.trace is not None:
            calls += [{"usage": call.usage.model_dump()} for call in self.trace.calls]
        status = (
            "failed" if self.error else "skipped" if self.skipped else self.trace.status if self.trace else "failed"
        )
        return {
            "status": status,
            "revised": self.revised,
            "skipped": self.skipped,
            "error": self.error,
            "draft_id": draft_id,
            "answer_id": self.answer_id if self.revised else draft_id,
            "when": self.when,
            "calls": len(calls),
            "usage": {name: sum(call["usage"][name] for call in calls) for name in ("input_tokens", "output_tokens")},
            "seconds": round(self.seconds, 3),
            "trace_id": self.trace.id if self.trace else None,
            "trace": self.trace.model_dump(mode="json") if self.trace and keep_trace else None,
        }


def read_turn(state: Mapping[str, Any], last_turns: int | None) -> Turn:
    """The turn that an agent is about to end.

    Args:
        state: the agent's.
        last_turns: how many of the latest human messages, with the answers between them, make up the question; None:
            all of them.
    """
    messages: Sequence[BaseMessage] = state["messages"]
    draft = messages[-1] if messages else None
    if not isinstance(draft, AIMessage):
        return Turn(None, [], "no_answer")
    if draft.tool_calls or draft.invalid_tool_calls:
        return Turn(draft, [], "tool_calls")
    if state.get("structured_response") is not None:
        return Turn(draft, [], "structured_response")
    if not spoken_text(str(draft.text)).strip():
        return Turn(draft, [], "no_text")
    spoken = [message for message in messages[:-1] if _spoken(message)]
    asked = [place for place, message in enumerate(spoken) if isinstance(message, HumanMessage)]
    if not asked:
        return Turn(draft, [], "no_question")
    first = asked[-last_turns] if last_turns is not None and last_turns < len(asked) else 0
    return Turn(draft, [*(_plain(message) for message in spoken[first:]), AIMessage(spoken_text(str(draft.text)))])


def _spoken(message: BaseMessage) -> bool:
    """Whether a message is a part of the conversation: of a human, or an answer to one; not work with tools."""
    if isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
        return False
    if isinstance(message, AIMessage):
        return bool(spoken_text(str(message.text)).strip())
    return isinstance(message, HumanMessage) and bool(message.text.strip())


def _plain(message: BaseMessage) -> BaseMessage:
    text = str(message.text)
    return HumanMessage(text) if isinstance(message, HumanMessage) else AIMessage(spoken_text(text))


def _content(draft: AIMessage, answer: str) -> str | list[str | dict[str, Any]]:
    """The answer in the draft's form: its pictures and files stay, its text and the reasoning behind it do not."""
    if isinstance(draft.content, str):
        return answer
    kept = [block for block in draft.content if isinstance(block, dict) and _is_data(block)]
    return [*kept, {"type": "text", "text": answer}] if kept else answer


def _is_data(block: dict[str, Any]) -> bool:
    return is_data_content_block(block) or block.get("type") == "image_url"
