"""A help desk of two agents under a supervisor; one of them looks ahead with the rehearsal tool before it advises."""

from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import tool
from langgraph_supervisor import create_supervisor

from matrix_graph import SceneConfig, rehearsal_tool


@tool
def look_up(topic: str) -> str:
    """Look up the law on a topic."""
    return f"On {topic}: see section 12."


def build(model: BaseChatModel, checkpointer: Any = None, store: Any = None) -> Any:
    rehearse = rehearsal_tool(model, config=SceneConfig(roles=1, steps=1), traces="store")
    adviser = create_agent(model, [rehearse], name="adviser", system_prompt="You advise families.")
    lawyer = create_agent(model, [look_up], name="lawyer", system_prompt="You know the law.")
    desk = create_supervisor([adviser, lawyer], model=model, output_mode="full_history")
    return desk.compile(checkpointer=checkpointer, store=store)
