"""A help desk: finds what its handbook says, answers from it, has the answer rehearsed, and remembers who asked what.

It is written as somebody writes it who knows LangGraph and has read our README: the scene is a node of the desk's own
graph, between its answer and its reply. Handbook and memory are in the LangGraph store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore

from matrix_graph import SceneConfig, create_scene

HANDBOOK = ("handbook",)
PAGES = {
    "noise": "Music may play until ten at night. After that the caretaker, Ms Okafor, talks to whoever plays it.",
    "pets": "Dogs are welcome. One that barks all night is a matter for its owner first, then for the caretaker.",
    "bins": "The bins are emptied on Mondays. Glass goes into the green one.",
}


@dataclass
class Visitor:
    """Who asks."""

    name: str


class Desk(TypedDict, total=False):
    """The desk's state. The scene reads question and draft, and writes answer, revised, status and events."""

    question: str
    pages: list[str]
    draft: str
    answer: str
    revised: bool
    status: str
    events: list[dict[str, Any]]
    reply: str


def fill_handbook(store: BaseStore) -> None:
    """Put the handbook's pages into the store."""
    for title, text in PAGES.items():
        store.put(HANDBOOK, title, {"text": text})


def build(model: BaseChatModel) -> StateGraph[Desk, Visitor, Desk, Desk]:
    """The desk as a graph, uncompiled."""

    def retrieve(state: Desk, runtime: Runtime[Visitor]) -> Desk:
        assert runtime.store is not None
        words = {word.strip("?.,!").lower() for word in state["question"].split()}
        found = [
            (len(words & {word.strip(".,").lower() for word in page.value["text"].split()}), page.value["text"])
            for page in runtime.store.search(HANDBOOK, limit=50)
        ]
        return {"pages": [text for score, text in sorted(found, reverse=True)[:2] if score]}

    async def answer(state: Desk, runtime: Runtime[Visitor]) -> Desk:
        prompt = "Answer from these pages alone:\n" + "\n".join(state["pages"])
        said = await model.ainvoke([SystemMessage(prompt), HumanMessage(state["question"])])
        return {"draft": str(said.text)}

    async def reply(state: Desk, runtime: Runtime[Visitor]) -> Desk:
        assert runtime.store is not None
        name = runtime.context.name
        asked = await runtime.store.asearch(("visitors", name), limit=100)
        await runtime.store.aput(("visitors", name), f"question {len(asked) + 1}", {"text": state["question"]})
        greeting = f"Welcome back, {name}." if asked else f"Welcome, {name}."
        return {"reply": f"{greeting}\n\n{state['answer']}"}

    graph = StateGraph(Desk, context_schema=Visitor)
    graph.add_node("retrieve", retrieve)
    graph.add_node("answer", answer)
    graph.add_node("scene", create_scene(model, config=SceneConfig(roles=2, steps=2)).compile())
    graph.add_node("reply", reply)
    graph.add_edge(START, "retrieve")
    graph.add_edge("retrieve", "answer")
    graph.add_edge("answer", "scene")
    graph.add_edge("scene", "reply")
    graph.add_edge("reply", END)
    return graph


def open_desk(
    model: BaseChatModel, checkpointer: Any, store: BaseStore, **options: Any
) -> CompiledStateGraph[Desk, Visitor, Desk, Desk]:
    """The desk at work, under somebody's checkpointer and store."""
    return build(model).compile(checkpointer=checkpointer, store=store, name="desk", **options)
