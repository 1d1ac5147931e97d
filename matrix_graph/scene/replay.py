"""A scene's recorded replies played again, round by round, to bring its state back without a model.

What always holds: a recorded reply is used only for the very prompt that it was given for; anything else means that the
scene cannot be replayed, which is said and never passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, get_type_hints

from langchain_core.language_models import BaseChatModel

from matrix_graph.config import SceneConfig
from matrix_graph.errors import ReplyError, SceneError
from matrix_graph.models.ask import Answer, ChatMessage
from matrix_graph.models.system_role import folded
from matrix_graph.records import Purpose
from matrix_graph.scene.modulator import moderate
from matrix_graph.scene.players import call_of, read_action
from matrix_graph.scene.role import Perform, act, spoken
from matrix_graph.scene.rounds import next_round
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.state import Dialogue, Plain, RoleTask, SceneState

T = TypeVar("T")

_Script = dict[tuple[str, str | None, int | None], list[Plain]]
_BY_HAND = "what-if"
"""The model's name in the record of what was changed."""


class Replay:
    """A scene on its way through its recorded rounds.

    Args:
        record: the scene, as `Trace.model_dump(mode="json")` has it.
        config: the settings that it was played under.
        model: named in the record of what is changed; it is not called.

    Attributes:
        state: as the scene's graph has it after what has been replayed; calls of a change are marked "new".
    """

    def __init__(self, record: Plain, config: SceneConfig, model: BaseChatModel) -> None:
        self._record = record
        self._config = config
        script: _Script = {}
        for call in record["calls"]:
            script.setdefault((call["purpose"], call["role"], call["round"]), []).append(call)
        self._stage = _ReplayStage(model, config, lambda event: None, script=script)
        self.state: Plain = _before_the_first_round(record)

    @property
    def rounds(self) -> int:
        """How many rounds the modulator has seen to, as the record shows."""
        judged = [call["round"] for call in self._record["calls"] if call["purpose"] == "judge"]
        return max(judged, default=0)

    async def play_to(self, number: int) -> None:
        """Replay all rounds up to this one.

        Raises:
            SceneError: replaying does not give the scene that was recorded.
        """
        for current in range(self.state["round"] + 1, number + 1):
            await self.act(current, {})
            await self.judge({})
            self._compare(current)
            for edit in self._record.get("edits", []):
                if edit["round"] == current:
                    self.edit(edit["object"], edit["after"])

    async def act(self, number: int, changed: Mapping[str, str]) -> None:
        """Replay what the roles did in the next round.

        Args:
            number: of the round.
            changed: role -> what it does in the place of what it did.

        Raises:
            SceneError: a role that had no turn, or replaying does not give the scene that was recorded.
        """
        tasks = next_round(_typed(self.state), self._config).tasks
        turns = [task["profile"]["name"] for task in tasks]
        for name in changed:
            if name not in turns:
                raise SceneError(f"{name} had no turn in round {number}; a turn had: {', '.join(turns) or 'nobody'}.")
        for task in tasks:
            name = task["profile"]["name"]
            self._take(await act(self._stage, task, self._performed(task, changed.get(name))))

    async def judge(self, changed: Mapping[str, str]) -> None:
        """Replay how the modulator judged the round.

        Args:
            changed: role -> the judgement of its action, as JSON, in the place of what the modulator said.

        Raises:
            SceneError: a judgement that does not fit, or replaying does not give the scene that was recorded.
        """
        self._take(await moderate(replace(self._stage, changed=changed), _typed(self.state)))

    def edit(self, name: str, after: str) -> None:
        """Change an object's state by hand, after the round that was replayed last."""
        before, after = self.state["objects"][name], " ".join(after.split())
        if not after or after == before:
            raise SceneError(f"{name} is {before!r} already; give another state.")
        self.state["objects"] = {**self.state["objects"], name: after}
        edit = {"round": self.state["round"], "object": name, "before": before, "after": after}
        self.state["edits"] = [*self.state["edits"], edit]

    def _performed(self, task: RoleTask, changed: str | None) -> Perform | None:
        """How a turn is replayed that the model did not take; None if it did."""
        name, number = task["profile"]["name"], task["round"]

        async def change(stage: Stage, task: RoleTask, messages: list[ChatMessage]) -> Answer[str]:
            assert changed is not None
            call = call_of(task, messages, spoken(changed), author="what_if", model=_BY_HAND)
            return Answer(changed, call["completion"], list(messages), 0, [{**call, "new": True}])

        async def repeat(stage: Stage, task: RoleTask, messages: list[ChatMessage]) -> Answer[str]:
            call = _same_prompt([recorded], messages)[0]
            silent = call["error"] is not None or not call["completion"].strip()
            action = None if silent else read_action(call["completion"])
            return Answer(action, call["completion"], list(messages), 0, [call], call["error"])

        if changed is not None:
            return change
        calls = self._stage.script.get(("act", name, number), [])
        if not calls or calls[-1]["author"] == "model":
            return None
        recorded = calls[-1]
        return repeat

    def _take(self, update: Plain) -> None:
        for name, value in update.items():
            reducer = _REDUCERS.get(name)
            self.state[name] = reducer(self.state[name], value) if reducer else value

    def _compare(self, number: int) -> None:
        """Raises: SceneError: the round's events are not those of the record."""
        was, now = (
            [event for event in events if event["round"] == number]
            for events in (self._record["events"], self.state["events"])
        )
        if was != now:
            raise SceneError(f"Replaying round {number} gives other events than were recorded. {_WHY}")


_WHY = (
    "The scene was recorded by another version of matrix-graph, or its record was changed. Play it again first, or "
    "take the version that stands in its settings."
)


@dataclass(frozen=True)
class _ReplayStage(Stage):
    """A stage on which recorded replies are given again.

    Attributes:
        script: the recorded calls by purpose, role and round.
        changed: role -> the judgement of its action, as JSON, that takes the place of the recorded one.
    """

    script: _Script = field(default_factory=dict)
    changed: Mapping[str, str] = field(default_factory=dict)

    async def ask(
        self,
        purpose: Purpose,
        messages: Sequence[ChatMessage],
        parse: Callable[[str], T],
        max_tokens: int,
        *,
        schema: dict[str, Any] | None = None,
        role: str | None = None,
        round: int | None = None,
        again: Sequence[ChatMessage] | None = None,
    ) -> Answer[T]:
        """The recorded answer to this very prompt."""
        calls = _same_prompt(self.script.get((purpose, role, round), []), messages)
        last = calls[-1]
        tokens = sum(last["usage"].values())
        if purpose == "judge" and role is not None and role in self.changed:
            text = self.changed[role]
            # Its usage stays: the prompt is the same, and the modulator's dialogue goes on from that count.
            by_hand = {**last, "messages": calls[0]["messages"], "completion": text, "finish_reason": None}
            by_hand |= {"model": _BY_HAND, "sampling": {}, "seconds": 0.0, "error": None}
            by_hand |= {"author": "what_if", "taken_over": False, "new": True}
            try:
                return Answer(parse(text), text, list(messages), tokens, [by_hand])
            except ReplyError as error:
                raise SceneError(f"This verdict on {role} is not possible: {error}") from error
        if last["error"] is not None:
            return Answer(None, "", list(messages), tokens, calls, last["error"])
        try:
            return Answer(parse(last["completion"]), last["completion"], last["messages"], tokens, calls)
        except ReplyError as error:
            raise SceneError(
                f"The recorded {purpose} of {role} in round {round} is refused now: {error} {_WHY}"
            ) from error

    async def fitted(
        self,
        dialogue: Dialogue,
        opening: list[ChatMessage],
        new: Sequence[str],
        reply_tokens: int,
        *,
        prompt: str,
        role: str | None,
        round: int,
    ) -> tuple[Dialogue, list[Plain]]:
        """Condensed where the record has a summary; how long the model's context was then, nobody has to be asked."""
        if ("recap", role, round) not in self.script:
            return dialogue, []
        tight = replace(self, config=self.config.model_copy(update={"context_length": 1}))
        return await Stage.fitted(tight, dialogue, opening, new, reply_tokens, prompt=prompt, role=role, round=round)


def _same_prompt(calls: list[Plain], messages: Sequence[ChatMessage]) -> list[Plain]:
    """The calls, if the first of them was given this prompt.

    Raises:
        SceneError: there are none, or the prompt was another.
    """
    if not calls:
        raise SceneError(f"Replaying asks for a reply that was not recorded. {_WHY}")
    call = calls[0]
    if folded(call["messages"]) != folded(messages):  # as sent, it may be without a system role
        raise SceneError(
            f"Replaying gives another prompt than was recorded ({call['purpose']}, {call['role']}, round "
            f"{call['round']}). {_WHY}"
        )
    return calls


def _before_the_first_round(record: Plain) -> Plain:
    """The state that the cast node leaves."""
    cast = record["cast"]
    # The draft's stance is asked before the first round, a revision's after the last.
    first = next((n for n, call in enumerate(record["calls"]) if call["round"] is not None), len(record["calls"]))
    return {
        "question": record["question"],
        "draft": record["draft"],
        "cast": cast,
        "given": None,
        "played": {"draft": record["draft"], "cast": cast},
        "round": 0,
        "events": [],
        "consequences": [],
        "answer": record["draft"],
        "revised": False,
        "status": None,
        "settings": record["settings"],
        "error": None,
        "ended_by": None,
        "calls": record["calls"][:first],
        "failures": [],
        "clock": 0.0,
        "actions": [],
        "passes": [],
        "dialogues": {},
        "modulator": None,
        "objects": {thing["name"]: thing["state"] for thing in cast["objects"]},
        "inbox": {},
        "step": 0,
        "attempt": 0,
        "blocked": False,
        "reflection": None,
        "check": None,
        "edits": [],
    }


def _typed(state: Plain) -> SceneState:
    return state  # type: ignore[return-value]  # it has all keys of one


_REDUCERS: dict[str, Callable[[Any, Any], Any]] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(SceneState, include_extras=True).items()
    if hasattr(hint, "__metadata__") and callable(hint.__metadata__[0])
}
