"""LangChain's tools as vLLM's request wants them.

What always holds: a `tool_choice` that no tool answers to fails here, not as an HTTP 400 later.
"""

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from matrix_graph.errors import ConfigError

JSON = dict[str, Any]
ToolLike = JSON | type | Callable[..., Any] | BaseTool


def tool_options(tools: Sequence[ToolLike], tool_choice: str | bool | JSON | None, strict: bool | None) -> JSON:
    """The per-call options `tools` and `tool_choice`; see `ChatVLLM.bind_tools`.

    Raises:
        ConfigError: `tool_choice` names no such tool.
    """
    formatted = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
    if not formatted:
        return {}  # vLLM refuses an empty list
    if tool_choice is True or tool_choice == "any":
        tool_choice = "required"
    elif isinstance(tool_choice, str) and tool_choice not in ("auto", "none", "required"):
        names = [tool["function"]["name"] for tool in formatted if "function" in tool]
        if tool_choice not in names:
            raise ConfigError(
                f"tool_choice is {tool_choice!r}; it must be auto, none, any, required, or one of: {', '.join(names)}"
            )
        tool_choice = {"type": "function", "function": {"name": tool_choice}}
    return {"tools": formatted, "tool_choice": tool_choice or "auto"}
