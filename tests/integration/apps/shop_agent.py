"""A shop's agent with a tool and a memory, which rehearses what it is about to say, and a client that shows it all."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import tool

from matrix_graph import RehearsalMiddleware, SceneConfig

MODES = ["values", "updates", "messages", "custom"]


@tool
def find_order(number: int) -> str:
    """Look up what is known of an order."""
    return f"Order {number}: paid, lost by the carrier."


def build(model: BaseChatModel, checkpointer: Any = None) -> Any:
    return create_agent(
        model,
        [find_order],
        system_prompt="You answer a shop's customers.",
        middleware=[RehearsalMiddleware(model, when="touches_others", config=SceneConfig(roles=1, steps=1))],
        checkpointer=checkpointer,
    )


class Client:
    """What a customer's browser shows while the agent streams."""

    def __init__(self) -> None:
        self.bubbles: dict[str, str] = {}
        """Text by message id, as shown now."""
        self.replaced: list[str] = []
        """Texts that were shown and taken back."""
        self.progress: list[str] = []
        """What the scene told as it went on."""
        self.nodes: list[str] = []
        """The steps of the agent, in order."""
        self.state: dict[str, Any] = {}
        """The agent's state, at the end."""

    def show(self, mode: str, chunk: Any) -> None:
        """Take one item of the stream."""
        if mode == "messages":
            self._message(chunk[0])
        elif mode == "custom" and chunk["type"] == "rehearsal":
            self.progress.append(chunk["event"]["type"])
        elif mode == "updates":
            self.nodes.extend(chunk)
        elif mode == "values":
            self.state = chunk

    def _message(self, message: Any) -> None:
        if isinstance(message, AIMessageChunk):
            self.bubbles[message.id] = self.bubbles.get(message.id, "") + message.text
        elif isinstance(message, AIMessage):
            about = message.response_metadata.get("rehearsal")
            if about:
                self.replaced.append(self.bubbles.pop(about["draft_id"]))
            self.bubbles[str(message.id)] = message.text

    def read(self, stream: Iterator[Any]) -> None:
        """Show a whole stream."""
        for mode, chunk in stream:
            self.show(mode, chunk)

    async def aread(self, stream: AsyncIterator[Any]) -> None:
        """Show a whole stream."""
        async for mode, chunk in stream:
            self.show(mode, chunk)
