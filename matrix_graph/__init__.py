"""A LangGraph plugin that rehearses an answer in a social scene before giving it.

The names below are the public surface. They are imported at first use, so that `import matrix_graph` stays light and
needs none of the extras.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from matrix_graph.batch.runner import run_batch
    from matrix_graph.compose.middleware import RehearsalMiddleware
    from matrix_graph.compose.rehearsal import Rehearsal
    from matrix_graph.compose.tool import rehearsal_tool
    from matrix_graph.config import SceneConfig
    from matrix_graph.models.chat_vllm import ChatVLLM
    from matrix_graph.models.server import ServerConfig, VLLMServer
    from matrix_graph.records import Cast, Role, SocialObject, Trace
    from matrix_graph.scene.graph import create_scene
    from matrix_graph.scene.players import human
    from matrix_graph.traces.store import read_traces

__all__ = [
    "Cast",
    "ChatVLLM",
    "Rehearsal",
    "RehearsalMiddleware",
    "Role",
    "SceneConfig",
    "ServerConfig",
    "SocialObject",
    "Trace",
    "VLLMServer",
    "create_scene",
    "human",
    "read_traces",
    "rehearsal_tool",
    "run_batch",
]
if find_spec("langchain") is None:  # `import *` must not ask for an extra; the name itself says what to install
    __all__.remove("RehearsalMiddleware")

_HOMES = {
    "Cast": "records",
    "ChatVLLM": "models.chat_vllm",
    "Rehearsal": "compose.rehearsal",
    "RehearsalMiddleware": "compose.middleware",
    "Role": "records",
    "SceneConfig": "config",
    "ServerConfig": "models.server",
    "SocialObject": "records",
    "Trace": "records",
    "VLLMServer": "models.server",
    "create_scene": "scene.graph",
    "human": "scene.players",
    "read_traces": "traces.store",
    "rehearsal_tool": "compose.tool",
    "run_batch": "batch.runner",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
