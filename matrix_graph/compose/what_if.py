"""What if: one thing in a scene that was played is changed, and the scene is played on from there.

Why it can be exact: the same replies give the same scene, so that a trace alone brings the scene's state back, by
playing its recorded replies again. What always holds: each replayed prompt equals the recorded one, to the letter; what
came before the change is the parent's; and the rules of the scene hold in the branch, since the same code settles it.
"""

from __future__ import annotations

import contextvars
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables.config import var_child_runnable_config

from matrix_graph.config import SceneConfig
from matrix_graph.errors import ConfigError, SceneError
from matrix_graph.records import OUTSIDE, Cast, Trace
from matrix_graph.scene.graph import node_names, recorded_config
from matrix_graph.scene.prompts import digest
from matrix_graph.scene.replay import Replay
from matrix_graph.scene.role import checked_action
from matrix_graph.scene.state import Plain, plain

SYNTAX = """one of
  round 2: Teller: hands over the key            another action of Teller in round 2
  round 2: verdict: Teller: no: she has no key   Teller's action judged otherwise: yes or no, a reason if you like
  round 2: object: money: in the bag             the money's state after round 2
Put a name with a colon, or one of those words as a name, into quotes: round 2: "Dr. No: 1": waits"""

_FORM = re.compile(
    r"""\s*round\s+(\d{1,9})\s*:\s*
        (?:(action|verdict|object)\s*:\s*)?
        (?:"([^"]+)"|([^:"]+?))\s*:\s*  # the name
        (.*)""",
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class NewAction:
    """What a role does in the place of what it did."""

    role: str
    text: str

    def __str__(self) -> str:
        """As `parse_change` reads it, without the round."""
        return f"{_quoted(self.role)}: {self.text}"


@dataclass(frozen=True)
class NewVerdict:
    """How an action is judged in the place of how it was judged.

    Attributes:
        role: whose action.
        plausible: whether it can happen. False: nobody sees it, nothing changes, and its actor alone is told why.
        reason: why; None keeps the modulator's words.
        observers: who sees it; None: as it was, or everybody else if the action was rejected before.
        changes: object -> its state after it; None: as it was.
        consequence: its effect on people; None: as it was.
        seen: what those who see it are told; None: as it was, and where nobody saw it, the action itself.
        hurt: whom it harms, `records.OUTSIDE` for people who are not there; None: as it was.
    """

    role: str
    plausible: bool
    reason: str | None = None
    observers: tuple[str, ...] | None = None
    changes: Mapping[str, str] | None = None
    consequence: str | None = None
    seen: str | None = None
    hurt: tuple[str, ...] | None = None

    def __str__(self) -> str:
        """As `parse_change` reads it, without the round."""
        why = f": {self.reason}" if self.reason else ""
        return f"verdict: {_quoted(self.role)}: {'yes' if self.plausible else 'no'}{why}"


@dataclass(frozen=True)
class NewState:
    """An object's state after a round in the place of what it was."""

    object: str
    state: str

    def __str__(self) -> str:
        """As `parse_change` reads it, without the round."""
        return f"object: {_quoted(self.object)}: {self.state}"


@dataclass(frozen=True)
class WhatIf:
    """One change, and the round in which it is made."""

    round: int
    change: NewAction | NewVerdict | NewState

    @property
    def arguments(self) -> dict[str, Any]:
        """As `Rehearsal.what_if` takes them: `rehearsal.what_if(trace, **parse_change(text).arguments)`."""
        kinds = {NewAction: "action", NewVerdict: "verdict", NewState: "object"}
        return {"round": self.round, kinds[type(self.change)]: self.change}


@dataclass(frozen=True)
class Branch:
    """Where a branch begins.

    Attributes:
        state: of the scene's graph.
        as_node: the node that left it so.
        config: the settings that the parent was played under.
    """

    state: Plain
    as_node: str
    config: SceneConfig


def parse_change(text: str) -> WhatIf:
    """A change as people write it on a command line, such as "round 2: Teller: hands over the key".

    Raises:
        ConfigError: it has another form; the message shows the three that there are.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConfigError(f"The change {text[:200]!r} cannot be read. Write {SYNTAX}")
    number, kind, quoted, bare, rest = match.groups()
    name, rest = quoted or bare, " ".join(rest.split())
    if not rest:
        raise ConfigError(f"The change {text[:200]!r} does not say what {name} is changed to. Write {SYNTAX}")
    if (kind or "action").lower() == "action":
        return WhatIf(int(number), NewAction(name, rest))
    if kind.lower() == "object":
        return WhatIf(int(number), NewState(name, rest))
    verdict, _, reason = (part.strip() for part in rest.partition(":"))
    if verdict.lower() not in ("yes", "no"):
        raise ConfigError(f"The verdict {verdict[:80]!r} is neither yes nor no. Write {SYNTAX}")
    return WhatIf(int(number), NewVerdict(name, verdict.lower() == "yes", reason or None))


def what_if_of(round: int, action: Any, verdict: Any, object: Any) -> WhatIf:
    """The one change among the arguments of `Rehearsal.what_if`.

    Raises:
        TypeError: none of them was given, or several, or one that is not of its form.
    """
    given = [(kind, value) for kind, value in ((NewAction, action), (NewVerdict, verdict), (NewState, object)) if value]
    if len(given) != 1:
        raise TypeError(f"A what-if takes one of action=, verdict= and object=, not {len(given)} of them.")
    kind, value = given[0]
    if not isinstance(value, kind):
        if not isinstance(value, tuple | list):
            raise TypeError(f"The change is a {type(value).__name__}; give a tuple, or a {kind.__name__}.")
        value = kind(*value)
    return WhatIf(round, value)


def scene_of_state(state: Mapping[str, Any]) -> Trace:
    """The scene in a graph's state, finished or not, as far as it has come.

    Raises:
        SceneError: there is none.
    """
    if not state.get("id") or not state.get("cast"):
        raise SceneError("No scene with a cast is kept there; look at the thread_id (and checkpoint_id) of the config.")
    from matrix_graph.scene.state import to_trace

    return to_trace({**state, "status": state.get("status") or "finished", "error": None})


async def branch_of(
    scene: Trace, what_if: WhatIf, cast: Cast | None, players: Mapping[str, str], model: BaseChatModel
) -> Branch:
    """The state from which a branch is played on.

    Args:
        scene: the parent.
        what_if: the change.
        cast: of the rehearsal that plays on; None if it takes any.
        players: who plays whom in that rehearsal, by name.
        model: of that rehearsal; it is not called.

    Raises:
        SceneError: the change cannot be made, or the scene cannot be replayed.
    """
    config = _playable(scene, cast, players)
    assert scene.cast is not None  # _playable saw to it
    record = scene.model_dump(mode="json")
    replay = Replay(record, config, model)
    number, change = what_if.round, what_if.change
    played = replay.rounds
    if not 1 <= number <= played:
        raise SceneError(f"Round {number} was not played in this scene; there are rounds 1 to {played}.")
    await replay.play_to(number - 1)
    if isinstance(change, NewAction):
        _one_of(change.role, [role.name for role in scene.cast.roles], "role")
        await replay.act(number, {change.role: checked_action(change.text)})
        names = node_names([role.name for role in cast.roles]) if cast else {}
        as_node = names.get(change.role, "role")
    else:
        verdicts: dict[str, str] = {}
        if isinstance(change, NewVerdict):
            verdicts[change.role] = _judgement(scene, number, change)
        await replay.act(number, {})
        await replay.judge(verdicts)
        if isinstance(change, NewState):
            replay.edit(_one_of(change.object, [o.name for o in scene.cast.objects], "object"), change.state)
        as_node = "modulator"
    parent = {"id": scene.id, "round": number, "change": " ".join(str(change).split())}
    return Branch(_begun(replay.state, record["settings"], parent), as_node, config)


@contextmanager
def isolated() -> Iterator[None]:
    """Play a branch as a run of its own, also where the caller is a node of a graph or a step of a chain."""
    token: contextvars.Token[Any] = var_child_runnable_config.set(None)
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)


def _begun(state: Plain, settings: Plain, parent: Plain) -> Plain:
    """The state as the first update of a new thread."""
    calls = [{**call, "taken_over": not call.pop("new", False)} for call in map(dict, state["calls"])]
    return {
        **state,
        "id": uuid.uuid4().hex,
        "created_at": datetime.now(UTC).isoformat(),
        "settings": settings,
        "parent": parent,
        "calls": calls,
        "clock": [0.0],
    }


def _playable(scene: Trace, cast: Cast | None, players: Mapping[str, str]) -> SceneConfig:
    if scene.cast is None or scene.draft is None:
        raise SceneError("This scene failed before anybody acted; there is nothing in it to change.")
    if scene.settings.get("prompts") != digest():
        raise SceneError(
            f"This scene was played with other prompts ({scene.settings.get('prompts')}, matrix-graph "
            f"{scene.settings.get('version')}) than this version has ({digest()}), so that it cannot be replayed. "
            "Play it again with this version first."
        )
    if cast is not None and plain(cast)["roles"] != plain(scene.cast)["roles"]:
        names = (", ".join(role.name for role in people.roles) for people in (scene.cast, cast))
        raise SceneError("This scene has other people ({}) than the rehearsal's cast ({}).".format(*names))
    before = scene.settings.get("players") or {}
    if before != dict(players):
        raise SceneError(
            f"In this scene other roles were played by somebody else than the model ({before or 'none'}) than in this "
            f"rehearsal ({dict(players) or 'none'}). Make the rehearsal with the same players=."
        )
    try:
        return recorded_config(scene.settings)
    except ValueError as error:
        raise SceneError(f"This scene's settings cannot be used any more: {error}") from error


def _judgement(scene: Trace, number: int, verdict: NewVerdict) -> str:
    """The changed judgement as the modulator would have given it."""
    assert scene.cast is not None
    names = [role.name for role in scene.cast.roles]
    _one_of(verdict.role, names, "role")
    for name in verdict.observers or ():
        _one_of(name, [other for other in names if other != verdict.role], "observer")
    for name in verdict.hurt or ():
        _one_of(name, [*names, OUTSIDE], "role")
    for name in verdict.changes or {}:
        _one_of(name, [thing.name for thing in scene.cast.objects], "object")
    events = [event for event in scene.events if (event.round, event.role) == (number, verdict.role)]
    if not events:
        judged = ", ".join(event.role for event in scene.events if event.round == number) or "nobody"
        raise SceneError(f"No action of {verdict.role} was judged in round {number}; judged were those of: {judged}.")
    event = events[0]
    others = [name for name in names if name != verdict.role]
    was = event.observers if event.plausible else others
    observers = list(was if verdict.observers is None else verdict.observers)
    # Without a line to tell them, observers would be taken for nobody.
    seen = (verdict.seen or event.told) if observers else None
    changes = {change.object: change.after for change in event.changes} if verdict.changes is None else verdict.changes
    judgement = {
        "reason": verdict.reason or event.reason or "-",
        "plausible": verdict.plausible,
        "observers": observers,
        "seen": seen,
        "changes": [{"object": name, "after": state} for name, state in changes.items()],
        "consequence": event.consequence if verdict.consequence is None else verdict.consequence,
        "hurt": list(event.hurt if verdict.hurt is None else verdict.hurt),
    }
    if not verdict.plausible:
        judgement |= {"observers": [], "seen": None, "changes": [], "consequence": None, "hurt": []}
    return json.dumps(judgement, ensure_ascii=False)


def _one_of(name: str, names: list[str], kind: str) -> str:
    if name not in names:
        raise SceneError(f"{name!r} is no {kind} here; there are: {', '.join(names) or 'none'}.")
    return name


def _quoted(name: str) -> str:
    return f'"{name}"' if ":" in name or name.lower() in ("action", "verdict", "object") else name
