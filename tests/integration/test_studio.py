"""LangGraph Studio's side: a real `langgraph dev` with the graphs of langgraph.json, driven by langgraph-sdk.

Studio's page is hosted elsewhere; all that it knows comes through this server's API. The server runs in a folder of its
own, without a network, and starts before there is any model; then the fake model server answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient

from matrix_graph.compose.keeping import NAMESPACE
from matrix_graph.options import cast_from
from matrix_graph.scene.state import to_trace
from tests.integration.model_server import ModelServer
from tests.integration.random_reply import JSON
from tests.integration.scenes import full_cast, purpose
from tests.unit import invariants

ROOT = Path(__file__).parents[2]
CONFIG = json.loads((ROOT / "langgraph.json").read_text(encoding="utf-8"))
GRAPHS = ("scene", "bank_robbery", "chat_agent")
QUESTION = "How can I get my neighbour to stop playing loud music?"
REVISION = "Ask them kindly, and before it is late."
SETTINGS = ("roles", "steps", "max_rounds", "temperature", "max_calls", "max_seconds")

WITH_A_HUMAN = """
from matrix_graph import create_scene
from matrix_graph.compose.studio import BANK_ROBBERY, studio_model
from matrix_graph.config import load_settings
from matrix_graph.scene.players import human

graph = create_scene(studio_model(load_settings()), cast=BANK_ROBBERY, players={"Teller": human()}).compile()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DevServer:
    """A `langgraph dev` in a folder of its own.

    Args:
        folder: with a langgraph.json.
        environment: further variables.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "dev.log"
        own = {name: value for name, value in os.environ.items() if not name.startswith(("MATRIX_GRAPH_", "LANGSMITH"))}
        nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
        quiet = {"LANGSMITH_TRACING": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1", "LANGGRAPH_NO_VERSION_CHECK": "true"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(Path(sys.executable).with_name("langgraph"), "dev", "--port", str(self.port)),
                    *("--no-browser", "--no-reload", "--n-jobs-per-worker", "4"),
                ],
                cwd=folder,
                env={
                    **own,
                    **nowhere,
                    **quiet,
                    "NO_PROXY": "127.0.0.1",
                    "no_proxy": "127.0.0.1",
                    "LANGGRAPH_STRICT_MSGPACK": "true",
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/ok", timeout=5) as answer:
                    assert answer.status == 200
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert self.process.poll() is None and time.monotonic() < deadline, self.told()
            time.sleep(0.1)

    def stop(self) -> int:
        """Ctrl-C; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise

    def told(self) -> str:
        """Its log, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(encoding="utf-8", errors="replace"))


def group_is_empty(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def replies(body: JSON) -> str | None:
    """Everybody sees everything, something comes of all of it, and the answer is revised."""
    return REVISION if purpose(body) == "revise" else full_cast(body)


@pytest.fixture(scope="module")
def model() -> ModelServer:
    """A fake model server that has a port, but does not run yet."""
    return ModelServer(port=free_port(), reply=replies)


@pytest.fixture(scope="module")
def dev(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    folder = tmp_path_factory.mktemp("studio")
    graphs = {**CONFIG["graphs"], "with_a_human": "./with_a_human.py:graph"}
    (folder / "langgraph.json").write_text(json.dumps({**CONFIG, "graphs": graphs}), encoding="utf-8")
    (folder / "with_a_human.py").write_text(WITH_A_HUMAN, encoding="utf-8")
    server = DevServer(
        folder,
        MATRIX_GRAPH_BASE_URL=model.base_url,
        MATRIX_GRAPH_SCENE__STEPS="2",
        MATRIX_GRAPH_SCENE__ROLES="2",
        MATRIX_GRAPH_SCENE__TEMPERATURE="0.4",
    )
    try:
        server.wait_ready()
        asyncio.run(everything_is_there(server))
        with model:
            yield server
    finally:
        server.stop()


async def everything_is_there(server: DevServer) -> None:
    """All graphs were loaded, and can be looked at, while no model server runs."""
    client = get_client(url=server.url)
    found = {assistant["graph_id"]: assistant for assistant in await client.assistants.search()}
    assert set(found) == {*GRAPHS, "with_a_human"}
    for graph in found:
        assert (await client.assistants.get_graph(graph, xray=True))["nodes"]
    for graph in GRAPHS:
        assert (await schemas(client, graph))["input_schema"]["properties"]


async def schemas(client: LangGraphClient, graph: str) -> Any:
    (assistant,) = await client.assistants.search(graph_id=graph)
    return await client.assistants.get_schemas(assistant["assistant_id"])


@pytest.fixture
def client(dev: DevServer) -> LangGraphClient:
    return get_client(url=dev.url)


# ---- what can be seen before anything runs --------------------------------------------------------------------------


def test_the_worked_example_is_the_one_in_configs() -> None:
    from matrix_graph.compose.studio import BANK_ROBBERY

    assert cast_from(ROOT / "configs" / "bank-robbery.yaml") == BANK_ROBBERY


async def test_graphs_and_their_inputs_explain_themselves(client: LangGraphClient) -> None:
    found = {assistant["graph_id"]: assistant for assistant in await client.assistants.search()}
    for graph in GRAPHS:
        assert found[graph]["name"] == graph
        assert found[graph]["description"] == CONFIG["graphs"][graph]["description"]
    scene = (await schemas(client, "scene"))["input_schema"]
    given = (await schemas(client, "bank_robbery"))["input_schema"]
    assert list(scene["properties"]) == ["question", "draft", "cast"] and scene["required"] == ["question"]
    assert list(given["properties"]) == ["question", "draft"]
    for form in (scene, given, *scene["$defs"].values()):
        for name, field in form["properties"].items():
            assert field["title"] and field["description"], name
    chat = (await schemas(client, "chat_agent"))["input_schema"]
    assert list(chat["properties"]) == ["messages"]


@pytest.mark.parametrize(
    "graph",
    ["scene", "bank_robbery", "chat_agent"],
)
async def test_outputs_are_described(client: LangGraphClient, graph: str) -> None:
    output = (await schemas(client, graph))["output_schema"]
    public = (
        ["messages", "rehearsals", "last_rehearsal"]
        if graph == "chat_agent"
        else ["question", "draft", "cast", "events", "answer"]
    )
    assert set(public) <= set(output["properties"])


@pytest.mark.parametrize("graph", GRAPHS)
async def test_settings_explain_themselves_and_show_their_defaults(client: LangGraphClient, graph: str) -> None:
    settings = (await schemas(client, graph))["context_schema"]
    assert set(SETTINGS) <= set(settings["properties"])
    for name, field in settings["properties"].items():
        assert field["title"] and len(field["description"]) > 15, name
    defaults = {name: field["default"] for name, field in settings["properties"].items()}
    assert (defaults["steps"], defaults["roles"], defaults["temperature"]) == (2, 2, 0.4), "the environment's first"
    assert (defaults["max_rounds"], defaults["max_answer_tokens"]) == (None, None)
    assert ("rehearse" in defaults) == (graph == "chat_agent")


def ways(graph: dict[str, Any]) -> set[tuple[str, str]]:
    return {(edge["source"], edge["target"]) for edge in graph["edges"]}


async def test_edges_are_those_that_are_taken(client: LangGraphClient) -> None:
    start, end = "__start__", "__end__"
    around = {(start, "draft"), ("draft", "cast"), ("draft", end), ("cast", "reflect"), ("cast", end)}
    around |= {("modulator", "reflect"), ("reflect", "revise"), ("reflect", end), ("revise", end)}
    for graph, roles in (("scene", ["role"]), ("bank_robbery", ["Robber", "Teller", "Police officer"])):
        rounds = {way for role in roles for way in (("cast", role), (role, "modulator"), ("modulator", role))}
        assert ways(await client.assistants.get_graph(graph, xray=True)) == around | rounds
    chat = {(start, "model"), ("model", "rehearsal.after_agent"), ("rehearsal.after_agent", end)}
    assert ways(await client.assistants.get_graph("chat_agent", xray=True)) == chat


# ---- runs -----------------------------------------------------------------------------------------------------------


def asked(graph: str, question: str = QUESTION) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}]} if graph == "chat_agent" else {"question": question}


@pytest.mark.parametrize("graph", GRAPHS)
async def test_every_stream_carries_something(client: LangGraphClient, graph: str) -> None:
    thread = (await client.threads.create())["thread_id"]
    streams: dict[str, list[Any]] = defaultdict(list)
    async for part in client.runs.stream(
        thread, graph, input=asked(graph), stream_mode=["updates", "values", "messages-tuple", "custom"]
    ):
        streams[part.event].append(part.data)
    nodes = [node for update in streams["updates"] for node in update]
    spoken = "".join(str(chunk["content"]) for chunk, _ in streams["messages"])
    last = streams["values"][-1]
    if graph == "chat_agent":
        assert nodes == ["model", "rehearsal.after_agent"]
        assert [event["type"] for event in streams["custom"]] == ["rehearsal"] * len(streams["custom"])
        kinds = [event["event"]["type"] for event in streams["custom"]]
        assert [message["content"] for message in last["messages"]] == [QUESTION, REVISION]
        assert [record["status"] for record in last["rehearsals"]] == ["finished"]
        assert set(node for _, node in {(0, meta["langgraph_node"]) for _, meta in streams["messages"]}) == set(nodes)
    else:
        roles = {"role"} if graph == "scene" else {"Robber", "Teller", "Police officer"}
        assert nodes[:2] == ["draft", "cast"] and nodes[-2:] == ["reflect", "revise"]
        assert set(nodes[2:-2]) == roles | {"modulator"}
        kinds = [event["type"] for event in streams["custom"]]
        assert last["answer"] == REVISION and last["revised"] and last["status"] == "finished"
        invariants.check_all(to_trace(last))
        assert {meta["langgraph_node"] for _, meta in streams["messages"]} >= {"draft", "modulator", *roles}
        rounds = [state["round"] for state in streams["values"] if "round" in state]
        assert rounds == sorted(rounds) and rounds[-1] == 4, "a watcher sees the scene grow"
    assert {"question", "draft", "cast", "event"} <= set(kinds)
    assert REVISION in spoken
    state = await client.threads.get_state(thread)
    last.pop("last_rehearsal", None)  # is told, and not kept
    assert state["next"] == [] and state["values"] == last


async def test_studios_message_stream_carries_the_answer(client: LangGraphClient) -> None:
    told: dict[str, str] = {}
    async for part in client.runs.stream(None, "chat_agent", input=asked("chat_agent"), stream_mode="messages"):
        if part.event in ("messages/partial", "messages/complete"):
            told |= {message["id"]: str(message["content"]) for message in part.data}
    assert REVISION in told.values()


async def test_settings_are_chosen_run_by_run(client: LangGraphClient) -> None:
    state = await client.runs.wait(
        None, "scene", input=asked("scene"), context={"roles": 1, "steps": 1, "max_answer_tokens": 40}
    )
    assert isinstance(state, dict)
    assert len(state["cast"]["roles"]) == 2 and len(state["cast"]["plan"]) == 1
    chosen = {name: state["settings"][name] for name in ("roles", "steps", "max_answer_tokens", "max_rounds")}
    assert chosen == {"roles": 1, "steps": 1, "max_answer_tokens": 40, "max_rounds": None}
    long = await client.runs.wait(None, "bank_robbery", input=asked("bank_robbery"), context={"steps": 14})
    assert isinstance(long, dict) and long["status"] == "finished" and long["round"] == 16, "past 25 supersteps"
    with pytest.raises(Exception, match="steps"):
        await client.runs.wait(None, "scene", input=asked("scene"), context={"steps": "many"})


async def test_a_form_with_empty_fields_is_a_form_with_a_question(client: LangGraphClient) -> None:
    empty = {"question": QUESTION, "draft": "", "cast": None}
    state = await client.runs.wait(None, "scene", input=empty, context={"steps": 1})
    assert isinstance(state, dict) and state["status"] == "finished" and state["draft"]
    nothing = await client.runs.wait(None, "scene", input={"question": ""})
    assert isinstance(nothing, dict) and nothing["status"] == "failed" and "question" in nothing["error"]["message"]
    cast = {"ego": "Ann", "roles": [{"name": "Ann"}, {"name": "Bob"}], "plan": ["knocks"]}
    given = await client.runs.wait(None, "scene", input={"question": QUESTION, "draft": "Knock.", "cast": cast})
    assert isinstance(given, dict) and given["status"] == "finished" and given["draft"] == "Knock."
    assert {event["role"] for event in given["events"]} == {"Ann", "Bob"}


async def test_the_agents_answers_are_rehearsed_as_the_run_says(client: LangGraphClient, model: ModelServer) -> None:
    thread = (await client.threads.create())["thread_id"]
    model.reset()
    never = await client.runs.wait(thread, "chat_agent", input=asked("chat_agent"), context={"rehearse": "never"})
    assert isinstance(never, dict) and len(model.bodies) == 1 and not never.get("rehearsals")
    assert never["messages"][-1]["content"] != REVISION
    assert (model.bodies[0]["temperature"], model.bodies[0]["max_tokens"]) == (0.4, 1536)
    model.reset()
    touched = {"who": "the neighbour", "touches_others": True}
    model.script(None, json.dumps(touched))
    await client.runs.wait(
        thread,
        "chat_agent",
        input=asked("chat_agent", "And then?"),
        context={"rehearse": "touches_others", "steps": 1, "max_answer_tokens": 64},
    )
    assert model.bodies[0]["max_tokens"] == 64
    state = await client.threads.get_state(thread)
    values = state["values"]
    assert isinstance(values, dict) and values["messages"][-1]["content"] == REVISION
    (summary,) = values["rehearsals"]
    assert summary["kept"] == "store" and "last_rehearsal" not in values
    kept = (await client.store.get_item(NAMESPACE, key=summary["trace_id"]))["value"]
    assert kept["thread_id"] == thread and kept["trace"]["settings"]["steps"] == 1
    assert json.loads(kept["when_calls"][0]["completion"]) == touched
    assert QUESTION in kept["trace"]["question"], "the thread's earlier turns belong to what is asked"


async def test_a_scene_is_forked_from_its_history(client: LangGraphClient) -> None:
    thread = (await client.threads.create())["thread_id"]
    first = await client.runs.wait(thread, "scene", input=asked("scene"))
    assert isinstance(first, dict)
    history = await client.threads.get_history(thread, limit=100)
    assert [state["next"] for state in history][-4:] == [["role"], ["cast"], ["draft"], ["__start__"]]
    drafted = next(state for state in history if state["next"] == ["cast"])
    forked = await client.threads.update_state(
        thread, {"draft": "Play louder music yourself."}, checkpoint=drafted["checkpoint"]
    )
    branch = await client.runs.wait(thread, "scene", input=None, checkpoint_id=forked["checkpoint"]["checkpoint_id"])
    assert isinstance(branch, dict) and branch["draft"] == "Play louder music yourself."
    assert branch["status"] == "finished" and branch["id"] == first["id"]
    kept = await client.threads.get_state(thread, checkpoint=history[0]["checkpoint"])
    assert kept["values"] == first, "the branch that was left is still there"
    assert len(await client.threads.get_history(thread, limit=100)) > len(history)


async def test_a_human_plays_a_role(client: LangGraphClient, model: ModelServer) -> None:
    thread = (await client.threads.create())["thread_id"]
    await client.runs.wait(thread, "with_a_human", input=asked("with_a_human"), context={"steps": 1})

    async def wanted() -> list[dict[str, Any]]:
        state = await client.threads.get_state(thread)
        return [dict(stop) for task in state["tasks"] for stop in task["interrupts"]]

    (stop,) = await wanted()
    value = stop["value"]
    assert (value["type"], value["role"], value["round"]) == ("action_wanted", "Teller", 2)
    assert value["seen"][0].startswith("something happens") and value["problem"] is None
    assert list(value["people"]) == ["Robber", "Teller", "Police officer"]
    assert "Police officer" not in json.dumps(value["you"]) and value["step"] is None
    model.reset()
    await client.runs.wait(thread, "with_a_human", command={"resume": 17}, context={"steps": 1})
    (again,) = await wanted()
    assert "int" in again["value"]["problem"] and not model.bodies, "nonsense is asked for again"
    done = await client.runs.wait(
        thread, "with_a_human", command={"resume": {"action": "smiles and counts slowly"}}, context={"steps": 1}
    )
    assert isinstance(done, dict)
    actions = {(event["round"], event["role"]): event["action"] for event in done["events"]}
    assert actions[2, "Teller"] == "smiles and counts slowly"
    assert all(purpose(body) not in ("draft", "cast") for body in model.bodies), "what was played stays played"


def test_nothing_is_left_behind(dev: DevServer) -> None:
    assert dev.stop() == 0, dev.told()[-3000:]
    assert group_is_empty(dev.process.pid)
    assert not (ROOT / ".langgraph_api").exists()
    complaints = [line for line in dev.told().splitlines() if re.search(r"BlockingError|msgpack|Slow graph", line)]
    assert not complaints


# ---- without a model server that already runs -----------------------------------------------------------------------


async def test_a_server_of_our_own_starts_with_the_first_run_and_ends_with_studio(tmp_path: Path) -> None:
    engine = [sys.executable, str(Path(__file__).with_name("engine.py")), "--engine-folder", str(tmp_path)]
    settings = {"model": "own/model", "server": {"command": engine, "health_interval": 0.1}, "scene": {"steps": 1}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (tmp_path / "langgraph.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    server = DevServer(tmp_path, MATRIX_GRAPH_CONFIG="own.yaml")
    try:
        server.wait_ready()
        client = get_client(url=server.url)
        await client.assistants.get_graph("scene", xray=True)
        assert not (tmp_path / "starts").exists(), "loading asks for no model"
        scenes = [client.runs.wait(None, graph, input=asked(graph)) for graph in ("scene", "bank_robbery")]
        for state in await asyncio.gather(*scenes):
            assert isinstance(state, dict) and state["status"] in ("finished", "blocked"), state
            assert {call["model"] for call in state["calls"]} == {"own/model"} and state["settings"]["steps"] == 1
        assert len((tmp_path / "starts").read_text().splitlines()) == 1
        assert "vLLM: " in server.told(), "the log tells how far the start is"
        pid = int((tmp_path / "pid").read_text())
        assert server.stop() == 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    finally:
        server.stop()
