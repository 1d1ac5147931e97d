"""What an export needs of a trace, read faster than the whole of it: half of a trace is neither taught nor counted.

What always holds: what is read is validated as `records` has it; keys that an export does not need are passed over;
what a model thought, as older releases left it in drafts, answers and calls, is taken out.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter, ValidationError

# pydantic reads typed dicts of the standard library from Python 3.12 on only.
from typing_extensions import TypedDict

from matrix_graph.errors import TraceError
from matrix_graph.models.thoughts import spoken
from matrix_graph.records import SCHEMA_VERSION, Call, Purpose, Status, Trace
from matrix_graph.traces.store import refuse_newer, version_of

OLDEST_VERSION = 1
"""The oldest schema that can be read: the first that was released. Later ones only added keys that may be absent."""


class Message(TypedDict):
    """`records.Message`."""

    role: Literal["system", "user", "assistant"]
    content: str


class SpokenCall(TypedDict):
    """What is needed of `records.Call`."""

    purpose: Purpose
    role: str | None
    round: int | None
    messages: list[Message]
    completion: str
    finish_reason: str | None
    cut: NotRequired[list[str]]
    model: str
    error: NotRequired[dict[str, Any] | None]
    author: NotRequired[str]


class Plan(TypedDict):
    """What is needed of `records.Cast`."""

    plan: NotRequired[list[str]]


class Verdict(TypedDict):
    """What is needed of `records.Check`."""

    passed: bool


class Scene(TypedDict):
    """What is needed of `records.Trace`."""

    schema_version: NotRequired[int]
    id: str
    question: str
    draft: str | None
    answer: str | None
    revised: bool
    status: Status
    cast: Plan | None
    check: NotRequired[Verdict | None]
    calls: list[SpokenCall]
    settings: dict[str, Any]


_SCENE = TypeAdapter(Scene)
_TAGS = (b"think>", b"think\\u003e", b"think\\u003E")
"""How a tag may stand in a line of JSON."""


def parse_scene(line: bytes) -> Scene:
    """The scene in one whole line.

    Raises:
        ValueError: the line is not a trace.
        TraceError: its schema is newer than this version reads, or older than any that was released.
    """
    try:
        scene = _SCENE.validate_json(line)
    except ValidationError:
        refuse_newer(version_of(line))
        raise
    version = scene.get("schema_version", SCHEMA_VERSION)
    refuse_newer(version)
    if version < OLDEST_VERSION:
        raise TraceError(
            f"its schema version is {version}; this release reads {OLDEST_VERSION} to {SCHEMA_VERSION}. "
            "Play its question again with this release."
        )
    return without_thoughts(scene) if any(tag in line for tag in _TAGS) else scene


def without_thoughts(scene: Scene) -> Scene:
    """The scene without what its model thought, wherever that stands; a reply that was thought alone becomes empty."""
    said: dict[str, str] = {}

    def of_model(text: str) -> str:
        if "think>" in text and (kept := spoken(text)) != text:
            said[text] = kept
            return kept
        return text

    def of_prompt(message: Message) -> Message:
        content = message["content"]
        if "think>" in content:
            # A prompt holds the draft, and a dialogue what was said in it.
            content = of_model(content) if message["role"] == "assistant" else content
            for text, kept in longest_first:
                content = content.replace(text, kept)
        return {**message, "content": content}

    texts = {name: None if scene[name] is None else of_model(scene[name] or "") for name in ("draft", "answer")}
    completions = [of_model(call["completion"]) for call in scene["calls"]]
    longest_first = sorted(said.items(), key=lambda pair: -len(pair[0]))
    calls: list[SpokenCall] = [
        {**call, "completion": completion, "messages": [of_prompt(message) for message in call["messages"]]}
        for call, completion in zip(scene["calls"], completions, strict=True)
    ]
    return {**scene, "draft": texts["draft"], "answer": texts["answer"], "calls": calls}


def scene_of(trace: Trace) -> Scene:
    """The same of a whole trace."""
    return without_thoughts(_scene_of(trace))


def _scene_of(trace: Trace) -> Scene:
    return {
        "id": trace.id,
        "question": trace.question,
        "draft": trace.draft,
        "answer": trace.answer,
        "revised": trace.revised,
        "status": trace.status,
        "cast": {"plan": trace.cast.plan} if trace.cast else None,
        "check": {"passed": trace.check.passed} if trace.check else None,
        "calls": [_spoken(call) for call in trace.calls],
        "settings": trace.settings,
    }


def _spoken(call: Call) -> SpokenCall:
    return {
        "purpose": call.purpose,
        "role": call.role,
        "round": call.round,
        "messages": [{"role": message.role, "content": message.content} for message in call.messages],
        "completion": call.completion,
        "finish_reason": call.finish_reason,
        "cut": call.cut,
        "model": call.model,
        "error": call.error.model_dump() if call.error else None,
        "author": call.author,
    }
