"""The graphs of langgraph.json without a server: their settings, their model, and the pictures of them in docs/."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field, SecretStr, ValidationError

from matrix_graph import ChatVLLM, SceneConfig
from matrix_graph.compose import studio
from matrix_graph.config import load_settings
from matrix_graph.scene.state import to_trace
from tests.unit import invariants
from tests.unit.scripted import ScriptedModel

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "graphs"
GRAPHS = json.loads((ROOT / "langgraph.json").read_text(encoding="utf-8"))["graphs"]


# ---- langgraph.json -------------------------------------------------------------------------------------------------


def test_langgraph_json_names_graphs_that_bring_no_checkpointer_or_store() -> None:
    assert list(GRAPHS) == ["scene", "bank_robbery", "chat_agent"]
    for name, entry in GRAPHS.items():
        module, _, variable = entry["path"].partition(":")
        graph = getattr(importlib.import_module(module), variable)
        assert graph.name == name and graph.checkpointer is None and graph.store is None
        assert len(entry["description"]) > 60


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", PICTURES / "draw.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", GRAPHS)
def test_pictures_show_the_graphs_as_they_are(draw: ModuleType, name: str) -> None:
    source = draw.source_of(getattr(studio, name))
    hint = "out of date: see docs/graphs/draw.py for how they are drawn"
    assert (PICTURES / f"{name}.mmd").read_text(encoding="utf-8") == source, hint
    picture = (PICTURES / f"{name}.svg").read_text(encoding="utf-8")
    assert picture.splitlines()[0] == draw.mark(source), hint
    shown = "".join(ElementTree.fromstring(picture).itertext())
    assert all(node.strip("_") in shown for node in getattr(studio, name).get_graph().nodes)


# ---- settings -------------------------------------------------------------------------------------------------------


def test_what_a_run_does_not_choose_is_as_the_environment_or_file_says() -> None:
    form = studio.settings_form(SceneConfig(roles=7, steps=2, temperature=1.5))
    assert form() == form(roles=7, steps=2, temperature=1.5)
    chosen = form(steps=9)
    assert (chosen.roles, chosen.steps, chosen.temperature, chosen.rounds) == (7, 9, 1.5, 11)
    assert isinstance(chosen, SceneConfig)
    with pytest.raises(ValidationError, match="step"):
        form(step=9)
    with pytest.raises(ValidationError, match="roles"):
        form(roles=0)
    defaults = {name: field["default"] for name, field in form.model_json_schema()["properties"].items()}
    assert defaults == SceneConfig(roles=7, steps=2, temperature=1.5).model_dump()


def test_the_chat_agents_own_setting_is_not_the_scenes() -> None:
    form: Any = studio.settings_form(SceneConfig(steps=3), studio.ChatSettings)
    chosen = form(rehearse="touches_others", roles=5)
    assert type(chosen.scene) is SceneConfig and chosen.scene == SceneConfig(steps=3, roles=5)
    with pytest.raises(ValidationError, match="rehearse"):
        form(rehearse="sometimes")


def test_a_run_without_a_context_is_played_by_the_defaults() -> None:
    graph = studio.studio_scene(ScriptedModel(plausible=1), "scene", config=SceneConfig(roles=1, steps=1))
    trace = to_trace(graph.invoke({"question": "Why?"}, {"recursion_limit": 99}))
    invariants.check_all(trace)
    assert len(trace.events) >= 1 and trace.settings["roles"] == 1
    other = to_trace(graph.invoke({"question": "Why?"}, {"recursion_limit": 99}, context={"roles": 2}))
    assert (other.settings["roles"], other.settings["steps"]) == (2, 1)


class Talker(ScriptedModel):
    """Plays scenes as scripted, and says "Knock." to people; `told` are the options of those calls."""

    told: list[dict[str, Any]] = Field(default=[], exclude=True)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        if "matrix_graph_purpose" in run_manager.metadata:
            return super()._generate(messages, stop, run_manager, **kwargs)
        self.told.append(kwargs)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("Knock."))])

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return self._generate(messages, stop, run_manager, **kwargs)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_agents_own_calls_and_its_scenes_keep_to_the_runs_settings(asynchronous: bool) -> None:
    model = Talker()
    agent = studio.studio_agent(model, "chat_agent", config=SceneConfig(roles=1, steps=1))
    asked: Any = {"messages": [{"role": "user", "content": "What now?"}]}
    context: Any = {"rehearse": "never", "temperature": 0.9, "max_answer_tokens": 33}
    done = await agent.ainvoke(asked, context=context) if asynchronous else agent.invoke(asked, context=context)
    assert done["messages"][-1].text == "Knock." and not done.get("rehearsals") and model.log == []
    assert model.told == [{"temperature": 0.9, "max_tokens": 33}]
    done = await agent.ainvoke(asked) if asynchronous else agent.invoke(asked)
    record = done["last_rehearsal"]
    assert [summary["kept"] for summary in done["rehearsals"]] == [None], "nothing brought a store"
    assert record["trace"]["draft"] == "Knock." and record["trace"]["settings"]["roles"] == 1
    assert model.told[1:] == [{"max_tokens": 1536}], "the server's own temperature"


# ---- the model ------------------------------------------------------------------------------------------------------


def test_a_server_that_runs_already_is_used_as_it_is() -> None:
    settings = load_settings(base_url="http://127.0.0.1:9/v1", model="m", api_key=SecretStr("k"))
    model = studio.studio_model(settings)
    assert type(model) is ChatVLLM and model.server is None
    assert (model.base_url, model.model) == ("http://127.0.0.1:9/v1", "m")
    assert model.api_key is not None and model.api_key.get_secret_value() == "k"


def test_a_server_of_our_own_is_not_started_by_loading() -> None:
    model = studio.studio_model(load_settings(model="own/model"))
    assert isinstance(model, studio.OwnServerModel) and not model.server.running
    assert model.give_up_after == 600, "as every model on a server that is watched"


async def test_a_server_that_cannot_start_says_so_to_each_call() -> None:
    class Broken:
        starts = 0
        failed = False

        def start(self) -> None:
            self.starts += 1
            raise RuntimeError("no room for the model")

    server = Broken()
    model = studio.OwnServerModel(server=server)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no room"):
            await model.ainvoke("Hello?")
    assert server.starts == 2, "the next call tries again, since the cause may be gone"


async def test_a_server_that_was_given_up_is_started_once_more() -> None:
    class Mortal:
        starts = 0
        failed = False
        api_key = "k"

        @property
        def base_url(self) -> str:
            return f"http://127.0.0.1:{self.starts}/v1"

        def start(self) -> None:
            self.starts += 1
            self.failed = False

    server = Mortal()
    model = studio.OwnServerModel(server=server)
    asked = []
    for failed in (False, False, True):
        server.failed = failed
        await model._payload([], None, {"model": "m"})  # all that a call does before it opens a socket
        asked.append((server.starts, model.base_url))
    assert asked == [(1, "http://127.0.0.1:1/v1"), (1, "http://127.0.0.1:1/v1"), (2, "http://127.0.0.1:2/v1")]


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_a_config_file_with_a_mistake_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("scene:\n  step: 2\n", encoding="utf-8")
    done = run("import matrix_graph.compose.studio", MATRIX_GRAPH_CONFIG=str(file))
    assert done.returncode != 0 and "ConfigError" in done.stderr and "scene.step" in done.stderr


def test_without_langchain_the_message_names_the_extra() -> None:
    done = run("import sys; sys.modules['langchain.agents'] = None\nimport matrix_graph.compose.studio")
    assert done.returncode != 0 and "pip install 'matrix-graph[studio]'" in done.stderr
