"""What the scene's graph remembers between its nodes.

Only plain JSON values stand in the state, so that every checkpointer takes it and strict msgpack needs no allow-list.
What many nodes write at once is reduced in the order in which they were sent, never in the order in which they return.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, TypeVar

from pydantic import BaseModel
from typing_extensions import TypedDict  # pydantic takes the one of typing from Python 3.12 on only

from matrix_graph.records import Trace, Usage

T = TypeVar("T")
Plain = dict[str, Any]


def extend(old: list[T], new: list[T | None]) -> list[T]:
    """Reducer: append. A None first means begin anew, so that a used thread starts its next scene clean."""
    items = [item for item in new if item is not None]
    return items if new[:1] == [None] else [*old, *items]


def merge(old: dict[str, T], new: dict[str, T] | None) -> dict[str, T]:
    """Reducer: replace the given keys; None empties the mapping."""
    return {} if new is None else {**old, **new}


def latest(old: float, new: float | list[float]) -> float:
    """Reducer: the largest, since nodes that run side by side take as long as the slowest; a list of one sets it."""
    return new[0] if isinstance(new, list) else max(old, new)


class Dialogue(TypedDict):
    """An append-only chat of one speaker.

    Keys:
        messages: `{"role", "content"}`; the last prompt sent, its completion, and what was said to the speaker since.
        counted: how many of the messages the server has counted: the last prompt and its completion.
        tokens: their size, as the server counted it.
    """

    messages: list[dict[str, str]]
    counted: int
    tokens: int


class Unread(TypedDict):
    """Something that a role has not been told yet.

    Keys:
        own: whether it is why an action of its own could not happen; else it is what it saw and heard.
        text: the line that it is told.
    """

    own: bool
    text: str


class Action(TypedDict):
    """What a role does in a round; `step` says whether it is the ego's plan step."""

    round: int
    role: str
    action: str
    step: bool


class Pass(TypedDict):
    """A turn in which a role chose to do nothing; `step` says whether the ego left a step of its plan out by it."""

    round: int
    role: str
    step: bool


class RoleTask(TypedDict):
    """All that a role's node gets to know: itself, who the others are, its own dialogue, what it has just observed.

    Keys:
        round: from 1.
        profile: the role as `records.Role`.
        people: name -> who everybody is to the asker, as all know it.
        dialogue: its chat so far; None before its first round.
        unread: what it has not been told yet.
        step: the ego's plan step for this round; None for everybody else.
        attempt: 1 if that step was rejected once already.
        clock: seconds that the scene has taken when the round begins.
    """

    round: int
    profile: Plain
    people: dict[str, str]
    dialogue: Dialogue | None
    unread: list[Unread]
    step: str | None
    attempt: int
    clock: float


class SceneInput(TypedDict):
    """What a scene starts from.

    Keys:
        question: the text to answer.
        draft: the answer to rehearse; without it the model drafts one.
        cast: who is in the scene, as `records.Cast`; without it the model casts the scene.
        given: which of draft and cast come with this input. Without it those that equal what the last scene left on
            the same thread do not count as given.
    """

    question: str
    draft: NotRequired[str | None]
    cast: NotRequired[Plain | None]
    given: NotRequired[list[str] | None]


class SceneState(SceneInput, total=False):
    """The scene. The first block is the public one of DESIGN; the second is how the nodes work together."""

    round: int
    events: Annotated[list[Plain], extend]
    consequences: list[str]
    answer: str | None
    revised: bool
    status: str | None

    id: str
    created_at: str
    settings: Plain
    error: Plain | None
    ended_by: str | None
    calls: Annotated[list[Plain], extend]
    failures: Annotated[list[Plain], extend]
    clock: Annotated[float, latest]
    actions: Annotated[list[Action], extend]
    passes: Annotated[list[Pass], extend]
    dialogues: Annotated[dict[str, Dialogue], merge]
    modulator: Dialogue | None
    objects: dict[str, str]
    inbox: dict[str, list[Unread]]
    step: int
    attempt: int
    blocked: bool
    reflection: Plain | None
    check: Plain | None
    parent: Plain | None
    edits: list[Plain]
    played: Plain  # draft and cast of the last scene, since a thread's next input holds only what is new


def to_trace(state: Mapping[str, Any]) -> Trace:
    """The trace of a scene that has ended.

    Args:
        state: the graph's final state.

    Raises:
        pydantic.ValidationError: the scene has not ended.
    """
    calls = state.get("calls", [])
    read, written = (sum(call["usage"][name] for call in calls) for name in ("input_tokens", "output_tokens"))
    return Trace(
        id=state["id"],
        question=state["question"],
        draft=state.get("draft"),
        answer=state.get("answer"),
        revised=state["revised"],
        status=state["status"],
        error=state.get("error"),
        cast=state.get("cast"),
        events=state.get("events", []),
        calls=calls,
        reflection=state.get("reflection"),
        check=state.get("check"),
        failures=state.get("failures", []),
        ended_by=state.get("ended_by"),
        settings=state["settings"],
        usage=Usage(input_tokens=read, output_tokens=written),
        seconds=round(state.get("clock", 0.0), 3),
        created_at=state["created_at"],
        parent=state.get("parent"),
        edits=state.get("edits", []),
    )


def plain(record: BaseModel) -> Plain:
    """A record as plain JSON values, fit for the state."""
    return record.model_dump(mode="json")
