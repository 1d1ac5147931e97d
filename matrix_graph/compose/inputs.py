"""What people pass to a rehearsal, made into what a scene starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from langgraph.types import Command
from pydantic import Field
from typing_extensions import TypedDict  # before Python 3.12, pydantic makes schemas of this one only

from matrix_graph.models.thoughts import spoken
from matrix_graph.records import Cast
from matrix_graph.scene.state import SceneInput

RehearsalInput = str | Mapping[str, Any] | Sequence[Any] | BaseMessage | PromptValue | Command[Any]
"""A question; or `{"question", "draft"?, "cast"?}`; or chat messages, a last AI message being the draft; or a filled
prompt; or, where a human is waited for, `Command(resume=...)`."""


class RehearsalQuestion(TypedDict):
    """What to rehearse."""

    question: Annotated[str, Field(description="The text to answer.")]
    draft: NotRequired[Annotated[str | None, Field(description="The answer to rehearse; without it one is drafted.")]]
    cast: NotRequired[Annotated[Cast | None, Field(description="Who is in the scene; without it the model casts it.")]]


def to_graph_input(value: RehearsalInput) -> Any:
    """What the scene's graph starts from, or goes on with.

    Raises:
        TypeError: as `to_scene_input`.
    """
    if isinstance(value, Command):
        # LangGraph takes None for no reply at all; here it means that the person does nothing.
        silent = value.resume is None and not value.update and not value.goto
        return Command(resume="") if silent else value
    return to_scene_input(value)


def to_scene_input(value: RehearsalInput) -> SceneInput:
    """The scene's input from whatever people pass.

    Raises:
        TypeError: it is neither a text, nor a mapping with a "question", nor chat messages.
    """
    if isinstance(value, str):
        return _input(value)
    if isinstance(value, PromptValue):
        return to_scene_input(value.to_messages())
    if isinstance(value, BaseMessage):
        return to_scene_input([value])
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
        draft = spoken(str(chat[-1].text))
        chat = chat[:-1]
    turns = [message for message in chat if isinstance(message, HumanMessage | AIMessage)]
    if not any(isinstance(message, HumanMessage) for message in turns):
        raise TypeError("The messages hold no human message; a rehearsal needs a question.")
    if len(turns) == 1:
        return _input(str(turns[0].text), draft)
    # Earlier turns are part of what is asked, so that they stand in the question as people wrote them.
    lines = [
        f"User: {turn.text}" if isinstance(turn, HumanMessage) else f"Assistant: {spoken(str(turn.text))}"
        for turn in turns
    ]
    return _input("\n".join(lines), draft)
