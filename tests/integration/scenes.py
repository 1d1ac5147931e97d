"""Scenes against the fake model server: what a request is for, replies that make for busy scenes, depth of calls."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from matrix_graph import ChatVLLM, Trace
from matrix_graph.scene.prompts import opening
from tests.integration.model_server import Fault, ModelServer
from tests.integration.random_reply import JSON, Reply

PURPOSES = ("draft", "cast", "act", "judge", "reflect", "revise")

Replies = Callable[[JSON], str | Reply | Fault | None]


def client(server: ModelServer, /, **options: Any) -> ChatVLLM:
    return ChatVLLM(**{"base_url": server.base_url, "timeout": 30, "give_up_after": 5, **options})


def purpose(body: JSON) -> str:
    """What a request is for, told from its content alone."""
    messages = body["messages"]
    if messages[0]["role"] != "system":
        return "draft"
    schema = (body.get("structured_outputs") or {}).get("json") or {}
    for name, field in (("cast", "plan"), ("act", "action"), ("judge", "plausible"), ("reflect", "lesson")):
        if field in schema.get("properties", {}):
            return name
    return "revise" if messages[0] == opening("revise")[0] else "recap"


def busy(body: JSON) -> str | None:
    """Everybody sees everything, and everything has a consequence: the scene with the most calls."""
    if purpose(body) == "reflect":
        return json.dumps({"lesson": "it made trouble", "revise": True})
    if purpose(body) != "judge":
        return None
    schema = body["structured_outputs"]["json"]["properties"]
    others = schema["observers"].get("items", {}).get("enum", [])
    return json.dumps(
        {"reason": "why not", "plausible": True, "observers": others, "changes": [], "consequence": "they talk"}
    )


def full_cast(body: JSON) -> str | None:
    """A busy scene whose plan has as many steps as the schema allows."""
    if purpose(body) != "cast":
        return busy(body)
    schema = body["structured_outputs"]["json"]["properties"]
    plan = [f"takes step {n}" for n in range(schema["plan"]["maxItems"])]
    if "people" not in schema:  # the cast was given, and only its plan is asked for
        return json.dumps({"plan": plan})
    others = [f"person {n}" for n in range(schema["people"]["maxItems"] - 1)]
    return json.dumps(
        {
            "people": ["asker", *others],
            "roles": [{"traits": "calm", "goal": "peace"}] * (len(others) + 1),
            "objects": [{"name": "door", "state": "closed"}],
            "plan": plan,
        }
    )


def depth(trace: Trace) -> int:
    """The longest chain of calls that had to wait for each other."""
    chain = 0
    acting: dict[tuple[int, str], int] = defaultdict(int)
    judging: dict[tuple[int, str], int] = defaultdict(int)
    recaps: dict[int, int] = defaultdict(int)
    for call in trace.calls:
        if call.round is None:
            chain += 1
        elif call.purpose == "judge":
            judging[call.round, call.role or ""] += 1
        elif call.role is None:
            recaps[call.round] += 1
        else:
            acting[call.round, call.role] += 1
    for round in {key[0] for key in [*acting, *judging]}:
        for calls in (acting, judging):
            chain += max((count for (number, _), count in calls.items() if number == round), default=0)
        chain += recaps[round]
    return chain


def told(trace: Trace) -> dict[str, Any]:
    """The trace without what differs between two runs of the same scene."""
    kept = trace.model_dump(exclude={"id", "created_at", "seconds"})
    for call in kept["calls"]:
        del call["seconds"]
    return kept


def sent(trace: Trace) -> Counter[str]:
    """The messages of all recorded calls."""
    return _counted([message.model_dump() for message in call.messages] for call in trace.calls)


def received(server: ModelServer) -> Counter[str]:
    """The messages of all requests that the server saw."""
    return _counted(body["messages"] for body in server.bodies)


def _counted(chats: Iterable[Any]) -> Counter[str]:
    return Counter(json.dumps(chat, sort_keys=True) for chat in chats)
