"""One turn of an agent, as a rehearsal sees it: what was asked, what is about to be answered, and what came of it.

What always holds: tool calls, their results and system messages are neither read nor changed; what is kept of a turn
is plain JSON, fit for every checkpointer, and a few hundred bytes; a replaced message says so, and which one it
replaced.
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

from matrix_graph.compose.keeping import Kept
from matrix_graph.models.thoughts import spoken as spoken_text
from matrix_graph.records import Trace

Skipped = Literal["no_answer", "tool_calls", "no_text", "no_question", "structured_response", "not_wanted"]
"""Why an answer was not rehearsed: the last message is not the model's, calls tools, or has no text; nobody asked
anything; the answer is data in a schema of the agent's own; `when` said so."""

_LONGEST_ERROR = 500
"""Characters of an error's message that the agent's state keeps; an error may quote a whole reply."""
_ABOUT_THE_MODEL = ("model", "model_name", "model_provider")


class RehearsalSummary(TypedDict):
    """What the agent's state keeps of one turn, under `rehearsals`: plain JSON, some 150 bytes.

    Keys:
        status: "finished", "blocked", "failed" as in the trace, or "skipped".
        revised: whether the answer was replaced.
        skipped: why there was no rehearsal; None if there was one, or one was tried.
        error: `{"type", "message"}` if it failed, and the draft was kept; or if the trace could not be kept.
        question_id: id of the last human message; None if there was none.
        trace_id: the trace's id; None without a scene.
        kept: where the trace lies: "store" or "folder", as the middleware's `traces` says; None: it was not kept.
    """

    status: str
    revised: bool
    skipped: Skipped | None
    error: dict[str, str] | None
    question_id: str | None
    trace_id: str | None
    kept: Kept | None


class RehearsalRecord(RehearsalSummary):
    """All that is known of the turn that a run has just ended, under `last_rehearsal`: plain JSON.

    It stands in the run's output and streams, and in no checkpoint.

    Keys:
        draft_id: id of the agent's own last message; None if there was none.
        answer_id: id of the message that stands in its place; equal to `draft_id` unless `revised`.
        when: what decided: None (always), or `{"rule", "wanted", "who", "calls"}` with the rule's name and, of
            "touches_others", who would be touched and the model calls that it took.
        calls: model calls in all, `when`'s among them.
        usage: `{"input_tokens", "output_tokens"}` of those calls.
        seconds: wall time.
        trace: the whole trace, for `Trace.model_validate`; None without a scene, or with `keep_trace=False`.
    """

    draft_id: str | None
    answer_id: str | None
    when: dict[str, Any] | None
    calls: int
    usage: dict[str, int]
    seconds: float
    trace: dict[str, Any] | None


@dataclass
class Turn:
    """A turn on its way.

    Attributes:
        draft: the agent's own last message.
        chat: the conversation as a rehearsal takes it: what people said, the answers they got, the draft last.
        skipped: why it is not rehearsed.
        question_id: id of the last human message.
        when: as in `RehearsalRecord`.
        trace: of the scene, once it has ended.
        error: why there is no result, as plain data.
        kept: where the trace lies.
        not_kept: why it could not be kept, as plain data.
    """

    draft: AIMessage | None
    chat: list[BaseMessage]
    skipped: Skipped | None = None
    question_id: str | None = None
    when: dict[str, Any] | None = None
    trace: Trace | None = None
    error: dict[str, str] | None = None
    kept: Kept | None = None
    not_kept: dict[str, str] | None = None
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
        # Short, since every later checkpoint of the thread holds it again; the summary has the rest.
        about = {"id": self.trace.id, "draft_id": self.draft.id}
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

    @property
    def when_calls(self) -> list[dict[str, Any]]:
        """The model calls that decided whether there is a scene."""
        return list((self.when or {}).get("calls", []))

    def summary(self) -> RehearsalSummary:
        """What the agent's state keeps of the turn."""
        status = (
            "failed" if self.error else "skipped" if self.skipped else self.trace.status if self.trace else "failed"
        )
        error = self.error or self.not_kept
        return {
            "status": status,
            "revised": self.revised,
            "skipped": self.skipped,
            "error": {**error, "message": error["message"][:_LONGEST_ERROR]} if error else None,
            "question_id": self.question_id,
            "trace_id": self.trace.id if self.trace else None,
            "kept": self.kept,
        }

    def record(self, keep_trace: bool) -> RehearsalRecord:
        """All that is known of the turn.

        Args:
            keep_trace: whether the whole trace is in it, too.
        """
        draft_id = self.draft.id if self.draft is not None else None
        usages: list[Mapping[str, int]] = [call["usage"] for call in self.when_calls]
        if self.trace is not None:
            usages += [call.usage.model_dump() for call in self.trace.calls]
        return {
            **self.summary(),
            "draft_id": draft_id,
            "answer_id": self.answer_id if self.revised else draft_id,
            "when": self.when,
            "calls": len(usages),
            "usage": {name: sum(usage[name] for usage in usages) for name in ("input_tokens", "output_tokens")},
            "seconds": round(self.seconds, 3),
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
    question_id = next((message.id for message in reversed(messages) if isinstance(message, HumanMessage)), None)
    draft = messages[-1] if messages else None
    if not isinstance(draft, AIMessage):
        return Turn(None, [], "no_answer", question_id)
    if draft.tool_calls or draft.invalid_tool_calls:
        return Turn(draft, [], "tool_calls", question_id)
    if state.get("structured_response") is not None:
        return Turn(draft, [], "structured_response", question_id)
    if not spoken_text(str(draft.text)).strip():
        return Turn(draft, [], "no_text", question_id)
    spoken = [message for message in messages[:-1] if _spoken(message)]
    asked = [place for place, message in enumerate(spoken) if isinstance(message, HumanMessage)]
    if not asked:
        return Turn(draft, [], "no_question", question_id)
    first = asked[-last_turns] if last_turns is not None and last_turns < len(asked) else 0
    chat = [*(_plain(message) for message in spoken[first:]), AIMessage(spoken_text(str(draft.text)))]
    return Turn(draft, chat, question_id=question_id)


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
