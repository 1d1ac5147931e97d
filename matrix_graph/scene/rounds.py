"""Who acts in the next round, or why there is none: a pure function of the state, so that any order of calls agrees."""

from __future__ import annotations

from dataclasses import dataclass

from matrix_graph.config import LONGEST_ANSWER, SceneConfig
from matrix_graph.models.ask import TRIES
from matrix_graph.models.thoughts import spoken_tokens
from matrix_graph.records import EndedBy
from matrix_graph.scene.stage import PLAY_SHARE
from matrix_graph.scene.stance import CHECKS, CHOICE_TOKENS
from matrix_graph.scene.state import RoleTask, SceneState

CLOSING_CALLS = (2 + CHECKS) * TRIES
"""Calls that reflection, revision and its check may still need when play ends."""


@dataclass(frozen=True)
class Round:
    """The next round.

    Attributes:
        tasks: one for everybody who acts, in settlement order (ego, then cast order); empty if play is over.
        ended_by: why play is over; None while it goes on.
    """

    tasks: list[RoleTask]
    ended_by: EndedBy | None = None


def next_round(state: SceneState, config: SceneConfig) -> Round:
    """The round after `state["round"]`.

    The ego acts while it has plan steps left and is not blocked; everybody, the ego too, acts on unread observations.
    """
    tasks = _tasks(state)
    if not tasks:
        return Round([], "quiet")
    limit = _limit(state, config, len(tasks))
    return Round([], limit) if limit else Round(tasks)


def settlement_order(state: SceneState) -> list[str]:
    """All names: the ego, then cast order."""
    cast = state["cast"]
    assert cast is not None  # a scene without a cast has ended before its first round
    return [cast["ego"], *(role["name"] for role in cast["roles"] if role["name"] != cast["ego"])]


def actors(state: SceneState) -> list[str]:
    """Who has a turn in the round after `state["round"]`, in settlement order: whoever has something to react to."""
    return [
        name
        for name in settlement_order(state)
        if _step(state, name) is not None or any(not item["own"] for item in state["inbox"].get(name, []))
    ]


def _step(state: SceneState, name: str) -> str | None:
    """The plan step that this role takes next; None if it is not the ego, or has none left, or is blocked."""
    cast = state["cast"]
    assert cast is not None
    if name != cast["ego"] or state["blocked"] or state["step"] >= len(cast["plan"]):
        return None
    step: str = cast["plan"][state["step"]]
    return step


def _tasks(state: SceneState) -> list[RoleTask]:
    cast = state["cast"]
    assert cast is not None
    profiles = {role["name"]: {"who": "", **role} for role in cast["roles"]}
    return [
        {
            "round": state["round"] + 1,
            "profile": profiles[name],
            "people": {profile["name"]: profile["who"] for profile in profiles.values()},
            "dialogue": state["dialogues"].get(name),
            "unread": state["inbox"].get(name, []),
            "step": _step(state, name),
            "attempt": state["attempt"] if _step(state, name) is not None else 0,
            "clock": state["clock"],
        }
        for name in actors(state)
    ]


def _limit(state: SceneState, config: SceneConfig, actors: int) -> EndedBy | None:
    """The limit that the next round could break, if every one of its calls were needed twice."""
    if state["round"] >= config.rounds:
        return "max_rounds"
    if state["clock"] >= config.max_seconds * PLAY_SHARE:
        return "max_seconds"
    # One act and one judgement for everybody, each asked twice; a recap for everybody and for the modulator.
    calls = actors * 2 * TRIES + (actors + 1) * TRIES
    if len(state["calls"]) + calls + CLOSING_CALLS > config.max_calls:
        return "max_calls"
    tokens = sum(spoken_tokens(call) for call in state["calls"])
    tokens += actors * TRIES * (config.max_action_tokens + config.max_judgement_tokens)
    tokens += (actors + 1) * TRIES * config.max_reflection_tokens
    tokens += TRIES * (
        config.max_reflection_tokens + (config.max_answer_tokens or LONGEST_ANSWER) + CHECKS * CHOICE_TOKENS
    )
    return "max_output_tokens" if tokens > config.max_output_tokens else None
