"""The graphs that `langgraph.json` names: what LangGraph Studio, `langgraph dev` and a LangGraph deployment load.

Loading them needs no model, no network and no file but the one that MATRIX_GRAPH_CONFIG may name. Which model plays is
decided by the settings (the environment's MATRIX_GRAPH_*, or that file); without a `base_url` a vLLM server of our own
starts at the first call and ends with this process. How a scene is played is chosen run by run, through the context.
None of the graphs has a checkpointer or a store: the server brings its own. To have them in a project of your own:

    {"dependencies": ["."], "graphs": {"scene": "matrix_graph.compose.studio:scene"}}
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NotRequired, get_type_hints

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, model_validator
from typing_extensions import TypedDict

from matrix_graph.config import SceneConfig, Settings, load_settings
from matrix_graph.connect import as_needed
from matrix_graph.errors import PrerequisiteError
from matrix_graph.models.bundled import name_on_server
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.server import VLLMServer
from matrix_graph.models.wrapped import chat_model
from matrix_graph.records import Cast, Role, SocialObject
from matrix_graph.scene.graph import Scene, create_scene
from matrix_graph.scene.stage import answer_limit

try:
    from langchain.agents import create_agent
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse

    from matrix_graph.compose.middleware import RehearsalMiddleware, RehearsalState
except ImportError as error:  # pragma: no cover - a test hides it in a process of its own
    raise PrerequisiteError(
        f"The graphs for LangGraph Studio need LangChain's agents ({error}). Install them: "
        "pip install 'matrix-graph[studio]'"
    ) from error

CONFIG_VARIABLE: Final = "MATRIX_GRAPH_CONFIG"
"""The environment variable that names a YAML file with settings, as `--config` does for the command line."""

BANK_ROBBERY: Final = Cast(
    ego="Robber",
    roles=[
        Role(
            name="Robber",
            who="the asker, without work",
            traits="desperate, quick",
            goal="get the money and get away",
        ),
        Role(
            name="Teller",
            who="works at the counter of the bank",
            traits="calm, trained for this",
            goal="nobody gets hurt",
        ),
        Role(
            name="Police officer",
            who="on patrol near the bank",
            traits="alert, knows the street",
            goal="keep the street safe",
        ),
    ],
    situation="A man without work stands in a bank shortly before it closes, and wants money that is not his.",
    objects=[SocialObject(name="money", state="in the vault"), SocialObject(name="alarm", state="silent")],
)
"""The worked example of a given cast, the same as in configs/bank-robbery.yaml."""

_log = logging.getLogger(__name__)


# ---- what Studio shows as a form ------------------------------------------------------------------------------------


class QuestionForm(TypedDict):
    """A question to answer, and, if you have one, the answer to rehearse."""

    question: Annotated[
        str,
        Field(
            title="Question",
            description="What somebody asks. An answer to it is drafted, rehearsed, and revised if the scene speaks "
            "against it.",
            min_length=1,
            examples=["How can I get my neighbour to stop playing loud music at night?"],
        ),
    ]
    draft: NotRequired[
        Annotated[
            str | None,
            Field(title="Draft", description="The answer to rehearse. Empty: the model drafts one.", default=None),
        ]
    ]


class SceneForm(QuestionForm):
    """A question to answer; if you have them, the answer to rehearse and the people who play the scene."""

    cast: NotRequired[
        Annotated[
            Cast | None,
            Field(
                title="Cast",
                description="Who and what stands on the stage. Empty: the model casts the scene, with as many other "
                "people as the setting `roles` says.",
                default=None,
            ),
        ]
    ]


class ChatSettings(SceneConfig):
    """When the agent's answers are rehearsed, how those scenes are played, and their limits."""

    rehearse: Literal["always", "touches_others", "never"] = Field(
        default="always",
        description="Which answers are rehearsed: all of them; those that would touch other people than the asker, "
        "which one short question to the model decides; or none, to compare.",
    )

    @property
    def scene(self) -> SceneConfig:
        """What concerns the scenes alone."""
        return SceneConfig.model_validate(self.model_dump(exclude={"rehearse"}))


def settings_form(defaults: SceneConfig, base: type[SceneConfig] = SceneConfig) -> type[SceneConfig]:
    """The settings of one run, as a graph's context: what a run does not choose is as in `defaults`.

    Args:
        defaults: from the environment or the config file; Studio shows them.
        base: the settings that there are.
    """
    values = defaults.model_dump()

    def shown(schema: dict[str, Any]) -> None:
        for key, value in values.items():
            schema["properties"][key]["default"] = value

    class Chosen(base):  # type: ignore[valid-type, misc]  # mypy knows no base that is chosen at run time
        __doc__ = base.__doc__
        model_config = ConfigDict(title="Settings", json_schema_extra=shown)

        @model_validator(mode="before")
        @classmethod
        def _chosen(cls, chosen: Any) -> Any:
            return {**values, **chosen} if isinstance(chosen, dict) else chosen

    return Chosen


# ---- the model ------------------------------------------------------------------------------------------------------


class OwnServerModel(ChatVLLM):
    """`ChatVLLM` on a server of our own, which starts at the first call."""

    _started: bool = PrivateAttr(default=False)

    async def _payload(self, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]) -> Any:
        # Every call, streamed or not, begins here; a server that was given up for good may be started once more.
        if not self._started or self.server.failed:
            await self._start()
        return await super()._payload(messages, stop, options)

    async def acontext_length(self) -> int | None:
        """As of any `ChatVLLM`; the server starts for it."""
        if not self._started:
            await self._start()
        return await super().acontext_length()

    async def _start(self) -> None:
        # In a thread of its own, so that a run that is cancelled meanwhile takes no server away from the others.
        await asyncio.to_thread(self.server.start)
        self.base_url = self.server.base_url
        self.api_key = SecretStr(self.server.api_key)
        self._started = True


def studio_model(settings: Settings) -> ChatVLLM:
    """The one chat model of all graphs; nothing is asked or started yet.

    Args:
        settings: with a `base_url`, the model is used where it is served; without, a vLLM server starts on 127.0.0.1
            when it is first asked, and the log tells how far it is.
    """
    if settings.base_url is not None:
        return ChatVLLM(
            model=name_on_server(settings.model),
            base_url=settings.base_url,
            **settings.connection,
            **settings.of_the_model,
        )
    server = VLLMServer(
        settings.model, config=as_needed(settings.server), on_status=lambda line: _log.info("vLLM: %s", line)
    )
    return OwnServerModel(server=server, default_headers={}, **settings.of_the_model)


# ---- the graphs -----------------------------------------------------------------------------------------------------


def studio_scene(
    model: BaseChatModel, name: str, *, cast: Cast | None = None, config: SceneConfig | None = None
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """A scene for Studio: `create_scene` with forms that explain themselves, compiled without a checkpointer.

    Args:
        model: plays everybody.
        name: of the graph.
        cast: who is in the scene; None lets the input or the model say.
        config: what a run does not choose.
    """
    scene: Scene = create_scene(model, cast=cast, config=config)
    # The same channels as the scene's own input has, with what Studio tells people about them.
    form: Any = QuestionForm if cast else SceneForm
    scene.schemas[form] = {key: scene.channels[key] for key in get_type_hints(form)}
    scene.input_schema = form
    scene.context_schema = settings_form(config or SceneConfig())
    return scene.compile(name=name)


class PerRunRehearsal(AgentMiddleware[RehearsalState[Any], ChatSettings, Any]):
    """`RehearsalMiddleware` with the settings of the run's context, which rule the agent's own calls too.

    Args:
        model: plays everybody.
        config: what a run without a context is played by.
    """

    state_schema = RehearsalState

    def __init__(self, model: BaseChatModel, config: SceneConfig) -> None:
        super().__init__()
        self.tools = []
        self._model = chat_model(model, "PerRunRehearsal")
        self._default = ChatSettings.model_validate(config.model_dump())

    @property
    def name(self) -> str:
        """The name of its node."""
        return "rehearsal"

    def wrap_model_call(
        self, request: ModelRequest[ChatSettings], handler: Callable[[ModelRequest[ChatSettings]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """The agent's own call, within the run's limits."""
        return handler(self._limited(request))

    async def awrap_model_call(
        self,
        request: ModelRequest[ChatSettings],
        handler: Callable[[ModelRequest[ChatSettings]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """The agent's own call, within the run's limits."""
        return await handler(self._limited(request))

    def after_agent(self, state: RehearsalState[Any], runtime: Runtime[ChatSettings]) -> dict[str, Any] | None:
        """Rehearse the agent's answer, if the run wants it."""
        rehearsal = self._chosen(runtime)
        return None if rehearsal is None else rehearsal.after_agent(state, runtime)

    async def aafter_agent(self, state: RehearsalState[Any], runtime: Runtime[ChatSettings]) -> dict[str, Any] | None:
        """Rehearse the agent's answer, if the run wants it."""
        rehearsal = self._chosen(runtime)
        return None if rehearsal is None else await rehearsal.aafter_agent(state, runtime)

    def _settings(self, runtime: Any) -> ChatSettings:
        context = getattr(runtime, "context", None)
        return context if isinstance(context, ChatSettings) else self._default

    def _limited(self, request: ModelRequest[ChatSettings]) -> ModelRequest[ChatSettings]:
        chosen = self._settings(request.runtime)
        limits: dict[str, Any] = {"max_tokens": answer_limit(self._model, chosen)}
        if chosen.temperature is not None:
            limits["temperature"] = chosen.temperature
        return request.override(model_settings={**request.model_settings, **limits})

    def _chosen(self, runtime: Runtime[ChatSettings]) -> RehearsalMiddleware[Any, Any] | None:
        chosen = self._settings(runtime)
        if chosen.rehearse == "never":
            return None
        when: Literal["touches_others"] | None = "touches_others" if chosen.rehearse == "touches_others" else None
        # The server brings a store; where the agent runs by itself there may be none.
        traces = "store" if runtime.store is not None else None
        return RehearsalMiddleware(self._model, when=when, config=chosen.scene, traces=traces)


def studio_agent(
    model: BaseChatModel, name: str, *, config: SceneConfig | None = None
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """A chat agent whose answers are rehearsed before they are given, compiled without a checkpointer.

    Args:
        model: answers, and plays everybody.
        name: of the graph.
        config: what a run does not choose.
    """
    model = chat_model(model, "studio_agent")
    settings = config or SceneConfig()
    return create_agent(
        model,
        system_prompt="You are a helpful assistant. Answer briefly, in the language of the question.",
        middleware=[PerRunRehearsal(model, settings)],
        context_schema=settings_form(settings, ChatSettings),
        name=name,
    )


def _settings() -> Settings:
    file = os.environ.get(CONFIG_VARIABLE)
    return load_settings(Path(file) if file else None)


_loaded = _settings()
_model = studio_model(_loaded)

scene = studio_scene(_model, "scene", config=_loaded.scene)
"""A question, rehearsed by a cast that the model makes, or that the input brings."""

bank_robbery = studio_scene(_model, "bank_robbery", cast=BANK_ROBBERY, config=_loaded.scene)
"""The worked example: each role of the given cast is a node of its own name."""

chat_agent = studio_agent(_model, "chat_agent", config=_loaded.scene)
"""A chat agent with `RehearsalMiddleware`: its state's `rehearsals` say what came of each turn, the server's store has
the traces."""
