"""What a chat of 16 turns costs in a database on disk: little more with rehearsals than without.

A checkpointer writes the whole state again at every step of every turn, so that what the state keeps of a turn is paid
for at each later step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.store.memory import InMemoryStore

from matrix_graph import Rehearsal, RehearsalMiddleware, create_scene, rehearsal_tool
from matrix_graph.scene.graph import recursion_limit
from tests.unit.agent_model import AgentModel
from tests.unit.test_middleware import CAST, SMALL, player
from tests.unit.test_tool import ASKED

TURNS = 16


def size(path: Path, build: Any, turns: int = TURNS) -> int:
    """Bytes of the database after a chat.

    Args:
        path: of the database.
        build: makes the app of a checkpointer.
        turns: of the chat.
    """
    with SqliteSaver.from_conn_string(str(path)) as saver:
        app = build(saver)
        config: Any = {"configurable": {"thread_id": "1"}, "recursion_limit": recursion_limit(SMALL)}
        for turn in range(turns):
            question = f"How do I say no, part {turn}?"
            app.invoke({"messages": [("user", question)], "question": question}, config)
        saver.conn.commit()
        saver.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.stat().st_size


def agent(saver: Any, middleware: list[Any], store: Any = None) -> Any:
    replies = [AIMessage(f"You say no, as I said {turn} times.") for turn in range(TURNS)]
    return create_agent(AgentModel(replies=replies), [], middleware=middleware, checkpointer=saver, store=store)


@pytest.mark.parametrize("harm", [False, True])
def test_a_chat_with_the_middleware_takes_at_most_twice_the_space(tmp_path: Path, harm: bool) -> None:
    options: Any = {"config": SMALL, "cast": CAST, "when": "touches_others"}
    plain = size(tmp_path / "plain", lambda saver: agent(saver, []))
    kinds: list[dict[str, Any]] = [{}, {"traces": "store"}, {"traces": tmp_path / "traces"}]
    for number, kind in enumerate(kinds):
        middleware = RehearsalMiddleware(player(harm), **options, **kind)
        rehearsed = size(tmp_path / str(number), lambda saver, m=middleware: agent(saver, [m], InMemoryStore()))
        assert rehearsed <= 2 * plain, kind


def test_a_chat_with_the_tool_grows_by_what_the_agent_reads(tmp_path: Path) -> None:
    def app(saver: Any, tool: Any) -> Any:
        call: Any = {"type": "tool_call", "name": "rehearse", "args": ASKED, "id": "1"}
        replies = [
            AIMessage("", tool_calls=[{**call, "id": str(n)}]) if n % 2 == 0 else AIMessage("So.") for n in range(12)
        ]
        return create_agent(AgentModel(replies=replies), [tool], checkpointer=saver)

    tool = rehearsal_tool(player(), config=SMALL, cast=CAST)
    read = tool.invoke({"type": "tool_call", "name": "rehearse", "args": ASKED, "id": "1"}).content

    def rehearse(situation: str, plan: str) -> str:
        """Say the same as the rehearsal, from nowhere."""
        return str(read)

    plain = size(tmp_path / "plain", lambda saver: app(saver, rehearse), turns=6)
    assert size(tmp_path / "tool", lambda saver: app(saver, tool), turns=6) <= 1.25 * plain


class Chat(MessagesState, total=False):
    """A chat graph that shares what it wants to know with the scene."""

    question: str
    answer: str


def graph(saver: Any, rehearse: Any) -> Any:
    chat = StateGraph(Chat)
    chat.add_node("rehearse", rehearse)
    chat.add_node("say", lambda state: {"messages": [("ai", state["answer"])]})
    chat.add_edge(START, "rehearse")
    chat.add_edge("rehearse", "say")
    return chat.compile(checkpointer=saver)


@pytest.mark.parametrize("kind", ["subgraph", "runnable"])
def test_a_scene_in_a_graph_of_ones_own_leaves_no_checkpoints_if_asked(tmp_path: Path, kind: str) -> None:
    scene = create_scene(player(), cast=CAST, config=SMALL)
    rehearsal = Rehearsal(player(), cast=CAST, config=SMALL, checkpointer=False)

    def answer(state: Chat) -> dict[str, Any]:
        return {"answer": rehearsal.invoke(state["question"])["answer"]}

    plain = size(tmp_path / "plain", lambda saver: graph(saver, lambda state: {"answer": "Ask her first."}))
    quiet = scene.compile(checkpointer=False) if kind == "subgraph" else answer
    assert size(tmp_path / "quiet", lambda saver: graph(saver, quiet)) <= 1.25 * plain
