"""What of a scene can be taught: its answer, the dialogues of roles and modulator, and single calls.

What always holds: every message stands in the trace, character by character; a message is marked as taught only if the
model said it in a call of this trace; and what people, agents or a what-if's author said in a role's place is taught
nowhere. A dialogue that holds such a turn is left out where trainers would learn every turn of the assistant, and
stands as context where they learn one completion.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from matrix_graph.records import Purpose
from matrix_graph.traces.export.options import Include, Parts
from matrix_graph.traces.export.scenes import Message, Scene, SpokenCall

Kind = Literal["answer", "role", "modulator", "cast", "consequence", "helpful"]
Chat = list[Message]

_HUMAN = "human"
_STEP = json.JSONEncoder(ensure_ascii=False)
_TURNS = ["user", "assistant"]


@dataclass(slots=True)
class Piece:
    """One example, before it is given the shape of a format.

    Attributes:
        kind: what it is.
        question: of its scene; the split goes by it.
        messages: a chat that ends with the assistant.
        taught: positions of the messages that the model itself said.
        purpose: of the call it ends with; "given" is an answer that the scene was given and left as it was.
        speaker: the role that speaks; "" where none does.
        round: from 1; 0 outside the rounds.
        trace_id: the scene; "" if it comes from no scene.
        run: the folder that the scene was read from, by its name.
        rejected: the draft of a preference pair.
        cut_off: something that it teaches, or its rejected answer, ended at a token limit.
    """

    kind: Kind
    question: str
    messages: Chat
    taught: list[int]
    purpose: str = ""
    speaker: str = ""
    round: int = 0
    trace_id: str = ""
    run: str = ""
    rejected: str = ""
    cut_off: bool = False


@dataclass
class Dropped:
    """What was not taken, by reason."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, rows: int = 1) -> None:
        """Count rows under a reason."""
        self.counts[reason] += rows


def pieces(
    scene: Scene, parts: Parts, dropped: Dropped, *, by_call: bool = False, pairs: bool = False, run: str = ""
) -> Iterator[Piece]:
    """What of one scene can be taught.

    Args:
        scene: of any status; of a failed one nothing is taken.
        parts: which parts, each named singly.
        dropped: counts what is left out, and why.
        by_call: one piece a call instead of one a dialogue.
        pairs: preference pairs, of revised answers alone.
        run: where the trace was read from.

    Yields:
        The answer first, then the rest in the order of the calls.
    """
    if scene["status"] == "failed" or scene["answer"] is None:
        return
    if Include.answers in parts:
        yield from _answer(scene, dropped, pairs, run)
    if parts - {Include.answers}:
        yield from _scene(scene, parts, dropped, by_call, run)


def _answer(scene: Scene, dropped: Dropped, pairs: bool, run: str) -> Iterator[Piece]:
    answer = scene["answer"] or ""
    if not answer.strip():
        dropped.add("empty answer")
        return
    if pairs and (not scene["revised"] or not (scene["draft"] or "").strip() or scene["draft"] == answer):
        dropped.add("not revised")
        return
    wanted: Purpose = "revise" if scene["revised"] else "draft"
    last = _last(scene, wanted)
    before = _last(scene, "draft") if pairs else None
    yield Piece(
        kind="answer",
        question=scene["question"],
        messages=[{"role": "user", "content": scene["question"]}, {"role": "assistant", "content": answer}],
        taught=[1],
        purpose=wanted if last or scene["revised"] else "given",
        trace_id=scene["id"],
        run=run,
        rejected=(scene["draft"] or "") if pairs else "",
        cut_off=any(call is not None and is_cut(call) for call in (last, before)),
    )


def _last(scene: Scene, purpose: Purpose) -> SpokenCall | None:
    """The last usable call of a purpose."""
    calls = (call for call in reversed(scene["calls"]) if call["purpose"] == purpose and call.get("error") is None)
    return next(calls, None)


def is_cut(call: SpokenCall) -> bool:
    """Whether a reply, or a string in it, ended at a limit."""
    return call["finish_reason"] == "length" or bool(call.get("cut"))


def _scene(scene: Scene, parts: Parts, dropped: Dropped, by_call: bool, run: str) -> Iterator[Piece]:
    others = players(scene)
    wanted = {kind for kind, part in _PARTS.items() if part in parts}
    refused = not (scene.get("check") or {"passed": True})["passed"]
    spoken: list[tuple[SpokenCall, Kind, str]] = []
    for call in scene["calls"]:
        purpose = call["purpose"]
        kind = ("role" if call["role"] else "modulator") if purpose == "recap" else _KINDS.get(purpose)
        if kind is None or kind not in wanted:
            continue
        if is_players(call, others):
            dropped.add("a person's or an agent's turn")
        elif purpose == "revise" and refused:
            dropped.add("revision that did not pass its check")
        elif call.get("error") is None and call["completion"] and not call["completion"].isspace():
            spoken.append((call, kind, (call["role"] or "") if kind == "role" else ""))
    own = {call["completion"] for call, _, _ in spoken}
    cut = {call["completion"] for call, _, _ in spoken if is_cut(call)}
    steps = {_STEP.encode({"action": step}) for step in (scene["cast"] or {}).get("plan", ())}
    whole = set(range(len(spoken))) if by_call else _whole(spoken)
    for number, (call, kind, speaker) in enumerate(spoken):
        if number not in whole:
            continue
        messages: Chat = [*call["messages"], {"role": "assistant", "content": call["completion"]}]
        if not _takes_turns(messages):
            dropped.add("chat whose sides do not take turns")
            continue
        taught = [len(messages) - 1]
        if kind in _DIALOGUES and not by_call:
            taught = []
            foreign = False
            for at, message in enumerate(messages):
                if message["role"] == "assistant":
                    if message["content"] in own:
                        taught.append(at)
                    elif message["content"] not in steps:
                        foreign = True
            if foreign:
                dropped.add("dialogue with somebody else's words")
                continue
        yield Piece(
            kind=kind,
            question=scene["question"],
            messages=messages,
            taught=taught,
            purpose=call["purpose"],
            speaker=speaker,
            round=call["round"] or 0,
            trace_id=scene["id"],
            run=run,
            cut_off=any(messages[at]["content"] in cut for at in taught),
        )


_PARTS: dict[Kind, Include] = {
    "role": Include.roles,
    "modulator": Include.modulator,
    "cast": Include.cast,
    "consequence": Include.consequences,
}
_KINDS: dict[str, Kind] = {
    "act": "role",
    "judge": "modulator",
    "cast": "cast",
    # What the scene did to people, and the answer that follows from it. What single actions did stands in the
    # modulator's judgements; the draft is not taught, since the answer is there to replace it.
    "reflect": "consequence",
    "revise": "consequence",
}
"""What a call is part of; a recap is part of its speaker's dialogue."""
_DIALOGUES = ("role", "modulator")


def _whole(spoken: list[tuple[SpokenCall, Kind, str]]) -> set[int]:
    """The calls that no later call of the same speaker repeats as the beginning of its prompt."""
    whole: set[int] = set()
    later: dict[tuple[Kind, str], list[Chat]] = {}
    for number in range(len(spoken) - 1, -1, -1):
        call, kind, speaker = spoken[number]
        prompt, completion = call["messages"], call["completion"]
        prompts = later.get((kind, speaker)) if kind in _DIALOGUES else None
        if prompts is None:
            later[kind, speaker] = [prompt]
            whole.add(number)
            continue
        at = len(prompt)
        for other in prompts:
            # The completion is compared first: it alone tells most of them apart, and prompts are long.
            if len(other) > at and other[at]["content"] == completion and other[:at] == prompt:
                break
        else:
            whole.add(number)
        prompts.append(prompt)
    return whole


def _takes_turns(messages: Chat) -> bool:
    """Whether user and assistant alternate, as chat templates want it, after a system message or none."""
    first = 1 if messages[0]["role"] == "system" else 0
    turns = [message["role"] for message in messages[first:]]
    return len(turns) % 2 == 0 and turns == _TURNS * (len(turns) // 2)


def players(scene: Scene) -> frozenset[str]:
    """The roles that somebody other than the model played, as far as the settings name them."""
    named: Any = scene["settings"].get("players") or ()
    if not isinstance(named, (Mapping, list, tuple)):
        return frozenset()
    return frozenset(str(entry.get("role", "")) if isinstance(entry, Mapping) else str(entry) for entry in named)


def is_players(call: SpokenCall, others: frozenset[str]) -> bool:
    """Whether a turn was a person's, an agent's, or changed by hand.

    Args:
        call: any call.
        others: the roles that the model did not play.
    """
    if call.get("author", "model") != "model":
        return True
    return (call["model"] == _HUMAN or call["role"] in others) and call["purpose"] in ("act", "recap")
