"""The RAG-like app under a real PostgreSQL: threads, streams, approval, forks and memory, through its own plain API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.store.postgres import PostgresStore
from langgraph.store.postgres.aio import AsyncPostgresStore

from tests.integration.apps import rag_graph
from tests.integration.apps.rag_graph import PAGES, Visitor, open_desk
from tests.integration.model_server import ModelServer
from tests.integration.random_reply import JSON
from tests.integration.scenes import busy, client, purpose

if TYPE_CHECKING:
    from tests.integration.postgres import PostgresServer

pytest_plugins = ["tests.integration.postgres"]

QUESTION = "May my neighbour play music all night?"
DRAFT = "Music may play until ten."
REVISION = "Music may play until ten; talk to them before you call the caretaker."


def replies(body: JSON) -> str | None:
    """The desk answers from its pages; the scene finds something against it, and says it better."""
    system = body["messages"][0]["content"]
    if system.startswith("Answer from these pages"):
        return DRAFT if PAGES["noise"] in system else "I do not know."
    return REVISION if purpose(body) == "revise" else busy(body)


class Office:
    """A model server, and the checkpointer and store of one empty database."""

    def __init__(self, server: ModelServer, saver: AsyncPostgresSaver, store: AsyncPostgresStore) -> None:
        self.server = server
        self.saver = saver
        self.store = store

    def desk(self, **options: Any) -> Any:
        return open_desk(client(self.server), self.saver, self.store, **options)


@pytest.fixture
async def office(postgres: PostgresServer, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Office]:
    uri = postgres.database()
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    with PostgresStore.from_conn_string(uri) as store:
        store.setup()
        rag_graph.fill_handbook(store)
    async with (
        AsyncPostgresSaver.from_conn_string(uri, serde=strict) as saver,
        AsyncPostgresStore.from_conn_string(uri) as astore,
    ):
        await saver.setup()
        with ModelServer(reply=replies) as server:
            yield Office(server, saver, astore)
    complaints = [record.getMessage() for record in caplog.records if "serializ" in record.getMessage()]
    assert not complaints, "types that strict msgpack blocks"


def thread(name: str) -> RunnableConfig:
    return {"configurable": {"thread_id": name}}


async def test_it_answers_from_its_pages_and_gives_the_rehearsed_answer(office: Office) -> None:
    done = await office.desk().ainvoke({"question": QUESTION}, thread("1"), context=Visitor("Ada"))
    assert PAGES["noise"] in done["pages"] and done["draft"] == DRAFT
    assert done["status"] == "finished" and done["revised"] and done["answer"] == REVISION
    assert done["reply"] == f"Welcome, Ada.\n\n{REVISION}"
    assert len(done["events"]) >= 2 and all(event["plausible"] for event in done["events"])
    # The scene rehearses the desk's draft, and makes none of its own.
    assert all(purpose(body) != "draft" for body in office.server.bodies)
    cast = next(body for body in office.server.bodies if purpose(body) == "cast")
    assert DRAFT in cast["messages"][-1]["content"]


async def test_it_remembers_on_one_thread_and_in_its_store(office: Office) -> None:
    desk = office.desk()
    await desk.ainvoke({"question": QUESTION}, thread("1"), context=Visitor("Ada"))
    office.server.reset()
    again = await desk.ainvoke({"question": "And when are the bins emptied?"}, thread("1"), context=Visitor("Ada"))
    assert again["reply"].startswith("Welcome back, Ada.")
    assert again["draft"] == "I do not know.", "a thread's next question is answered anew"
    scene = json.dumps(office.server.bodies[1:])
    assert "the bins" in scene and QUESTION not in scene, "and its scene knows nothing of the last one"
    # A visitor on another thread, through other objects on the same database, is another visitor.
    other = await office.desk().ainvoke({"question": QUESTION}, thread("2"), context=Visitor("Grace"))
    assert other["reply"].startswith("Welcome, Grace.")
    remembered = await office.store.asearch(("visitors", "Ada"))
    assert sorted(item.value["text"] for item in remembered) == ["And when are the bins emptied?", QUESTION]


async def test_a_client_can_watch_the_scene(office: Office) -> None:
    updates: list[tuple[tuple[str, ...], str]] = []
    happened: list[str] = []
    async for namespace, mode, chunk in office.desk().astream(
        {"question": QUESTION},
        thread("1"),
        context=Visitor("Ada"),
        stream_mode=["updates", "custom"],
        subgraphs=True,
    ):
        if mode == "custom":
            assert namespace and namespace[0].startswith("scene:")
            happened.append(chunk["type"])
        else:
            updates += [(namespace, node) for node in chunk]
    assert [node for namespace, node in updates if not namespace] == ["retrieve", "answer", "scene", "reply"]
    inside = [node for namespace, node in updates if namespace]
    assert inside[:2] == ["draft", "cast"] and inside[-2:] == ["reflect", "revise"] and "modulator" in inside
    assert {"cast", "event"} <= set(happened)


async def test_a_person_approves_and_asks_for_another_draft(office: Office) -> None:
    desk = office.desk(interrupt_before=["reply"])
    waiting = await desk.ainvoke({"question": QUESTION}, thread("1"), context=Visitor("Ada"))
    assert waiting["answer"] == REVISION and "reply" not in waiting
    calls = len(office.server.bodies)
    done = await office.desk().ainvoke(None, thread("1"), context=Visitor("Ada"))
    assert done["reply"].endswith(REVISION) and len(office.server.bodies) == calls
    # From the point before the scene, with another draft: a branch of its own, and the old one stays.
    history = [state async for state in desk.aget_state_history(thread("1"))]
    before = next(state for state in history if state.next == ("scene",))
    forked = await desk.aupdate_state(before.config, {"draft": "Play it louder."})
    branch = await office.desk().ainvoke(None, forked, context=Visitor("Ada"))
    assert branch["draft"] == "Play it louder." and branch["reply"].endswith(REVISION)
    cast = next(body for body in office.server.bodies[calls:] if purpose(body) == "cast")
    assert "Play it louder." in cast["messages"][-1]["content"]
    assert (await desk.aget_state(history[0].config)).values["draft"] == DRAFT
