"""Scenes against the fake model server: what a request is for, replies that make for busy scenes, depth of calls."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from matrix_graph import ChatVLLM, Trace
from matrix_graph.scene.prompts import fill
from matrix_graph.scene.revise import revision_opening
from tests.integration.model_server import Fault, ModelServer
from tests.integration.random_reply import JSON, Reply, digest

PURPOSES = ("draft", "cast", "act", "judge", "reflect", "revise", "check")
CHECKS = ("stance", "again", "better")

Replies = Callable[[JSON], str | Reply | Fault | None]


class Stories(dict[str, Callable[[Path], None]]):
    """Tests that mostly wait for other processes, each a function of an empty folder, by its name.

    They are played side by side, `WORKERS` at a time, as soon as the first of them is wanted; pytest collects one test
    for each, which waits for its end.
    """

    WORKERS = 3

    def add(self, story: Callable[[Path], None]) -> Callable[[Path], None]:
        self[story.__name__] = story
        return story

    @contextmanager
    def played(
        self, request: pytest.FixtureRequest, folders: pytest.TempPathFactory
    ) -> Iterator[dict[str, Future[None]]]:
        """The ends of those whose tests were selected. Their parameter is called "story"."""
        tests = (
            item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        )
        chosen = {test.callspec.params.get("story") for test in tests}
        with ThreadPoolExecutor(self.WORKERS) as pool:
            futures = {
                name: pool.submit(story, folders.mktemp("story")) for name, story in self.items() if name in chosen
            }
            try:
                yield futures
            finally:
                for future in futures.values():
                    future.cancel()


def client(server: ModelServer, /, **options: Any) -> ChatVLLM:
    return ChatVLLM(**{"base_url": server.base_url, "timeout": 30, "give_up_after": 5, **options})


def schema_of(body: JSON) -> JSON:
    """The schema that a request asks its reply to keep to, in whichever form it does; empty: none."""
    format = (body.get("response_format") or {}).get("json_schema") or {}
    found: JSON = (body.get("structured_outputs") or {}).get("json") or format.get("schema") or {}
    return found


def purpose(body: JSON) -> str:
    """What a request is for, told from its content alone."""
    messages = body["messages"]
    if messages[0]["role"] != "system":
        return "draft"
    schema = schema_of(body)
    for name, field in (("cast", "plan"), ("act", "action"), ("judge", "plausible"), ("reflect", "lesson")):
        if field in schema.get("properties", {}):
            return name
    if any(field in schema.get("properties", {}) for field in CHECKS):
        return "check"
    if messages[0] in [revision_opening(task)[0] for task in ("improve", "kinder", "help")]:
        return "revise"
    recaps = [fill(speaker, "recap") for speaker in ("role", "modulator")]
    return "recap" if any(recap in messages[-1]["content"] for recap in recaps) else "chat"


def busy(body: JSON) -> str | None:
    """Everybody sees everything, everything has a consequence, and the draft is revised: the most calls."""
    what = purpose(body)
    schema = schema_of(body).get("properties", {})
    if what == "check":
        return json.dumps({name: {"stance": "helps", "again": "no", "better": "A"}[name] for name in schema})
    if what == "reflect":
        names = schema["harmed"]["items"]["properties"]["name"]["enum"]
        unhelped = [{"name": name, "how": "heard it"} for name in names]
        told = {"harmed": [], "left without help": unhelped, "helped": []}
        return json.dumps({**told, "lesson": "it made trouble", "verdict": "improve"})
    if what != "judge":
        return None
    notices = dict.fromkeys(schema["notices"]["properties"], "sees")
    seen = f"something happens {digest(body['messages'])}"
    return json.dumps(
        {
            "reason": "why not",
            "plausible": True,
            "notices": notices,
            "seen": seen,
            "changes": [],
            "consequence": "they talk",
            "hurt": [],
        }
    )


def full_cast(body: JSON) -> str | None:
    """A busy scene whose plan has as many steps as the schema allows."""
    if purpose(body) != "cast":
        return busy(body)
    schema = schema_of(body)["properties"]
    plan = [f"takes step {n}" for n in range(schema["plan"]["maxItems"])]
    if "people" not in schema:  # the cast was given, and only its plan is asked for
        return json.dumps({"situation": "Somebody asks.", "plan": plan})
    others = [f"person {n}" for n in range(schema["people"]["maxItems"] - 1)]
    return json.dumps(
        {
            "situation": "Somebody asks.",
            "people": ["asker", *others],
            "roles": [{"who": "one of them", "traits": "calm", "goal": "peace"}] * (len(others) + 1),
            "objects": [{"name": "door", "state": "closed"}],
            "plan": plan,
        }
    )


def drafted(server: ModelServer) -> Counter[str]:
    """How often each question was begun: its requests for a draft. One token long are those that look for a server."""
    return Counter(
        body["messages"][-1]["content"]
        for body in server.bodies
        if purpose(body) == "draft" and body.get("max_tokens") != 1
    )


def depth(trace: Trace) -> int:
    """The longest chain of calls that had to wait for each other.

    The draft's stance is asked beside the cast, and the questions of a check are asked side by side.
    """
    chain = 0
    checks: dict[tuple[bool, str], int] = defaultdict(int)
    casting, closing = 0, False
    acting: dict[tuple[int, str], int] = defaultdict(int)
    judging: dict[tuple[int, str], int] = defaultdict(int)
    recaps: dict[int, int] = defaultdict(int)
    for call in trace.calls:
        closing = closing or call.purpose == "revise"
        if call.purpose == "check":
            checks[closing, call.messages[-1].content.split("\n\n(Your last reply")[0]] += 1
        elif call.purpose == "cast":
            casting += 1
        elif call.round is None:
            chain += 1
        elif call.purpose == "judge":
            judging[call.round, call.role or ""] += 1
        elif call.role is None:
            recaps[call.round] += 1
        else:
            acting[call.round, call.role] += 1
    chain += max([casting, *(count for (closed, _), count in checks.items() if not closed)])
    chain += max((count for (closed, _), count in checks.items() if closed), default=0)
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
