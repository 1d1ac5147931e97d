"""The probe: its items, its scoring, and what it makes of replies that are right, wrong, or of no use."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import BaseMessage
from pydantic import Field

from matrix_graph.errors import ConfigError, ModelUnavailableError
from matrix_graph.evaluate.probe.items import (
    KINDS,
    CastItem,
    EffectItem,
    Item,
    ObserversItem,
    PlausibleItem,
    Wanted,
    kinds_from,
    load_items,
)
from matrix_graph.evaluate.probe.runner import ProbeResult, keep, run_probe
from matrix_graph.evaluate.probe.scoring import BALANCED, HARM_FOUND, HARM_IMAGINED, SEEN_BY_ALL, TRAP
from matrix_graph.records import Role
from matrix_graph.scene.prompts import opening
from tests.unit.fake_model import FakeModel

ITEMS = load_items()
LESS_IS_BETTER = {"possible actions rejected", "impossible actions accepted", SEEN_BY_ALL, HARM_IMAGINED}

Reply = Callable[[Item], Any]


class Answering(FakeModel):
    """Finds out which item it is asked about, and replies as it is told to."""

    reply: Any
    asked: list[list[BaseMessage]] = Field(default=[], exclude=True)

    def _reply(self, messages: list[BaseMessage], metadata: dict[str, Any], options: dict[str, Any]) -> Any:
        self.asked.append(messages)
        purpose = metadata["matrix_graph_purpose"]
        return self.reply(item_of(purpose, "\n".join(message.text for message in messages)))


def item_of(purpose: str, prompt: str) -> Item:
    kinds = {"judge": ("plausible", "observers"), "reflect": ("effect",), "cast": ("cast",)}[purpose]
    (item,) = (item for item in ITEMS if item.kind in kinds and item.question in prompt)
    return item


def judged(plausible: bool, observers: list[str]) -> Any:
    seen = "what there is to see" if observers else None
    return {
        "reason": "so it is",
        "plausible": plausible,
        "observers": observers,
        "seen": seen,
        "changes": [],
        "consequence": None,
        "hurt": [],
    }


def reflected(effects: dict[str, str]) -> Any:
    told = {
        effect: [{"name": name, "how": "lived through it"} for name, of in effects.items() if of == effect]
        for effect in ("harmed", "left without help", "helped")
    }
    return {**told, "lesson": "none", "verdict": "keep"}


def peopled(names: list[str]) -> Any:
    return {
        "situation": "somewhere",
        "people": ["Zyx", *names],
        "roles": [{"who": "-", "traits": "-", "goal": "-"} for _ in range(len(names) + 1)],
        "objects": [{"name": "table", "state": "empty"}],
        "plan": ["begins", "ends"],
    }


def right(item: Item) -> Any:
    if isinstance(item, PlausibleItem):
        return judged(item.label, [])
    if isinstance(item, ObserversItem):
        return judged(True, [name for name, sees in item.label.items() if sees])
    if isinstance(item, EffectItem):
        return reflected(dict(item.label))
    return peopled([f"{wanted.any_of[0]} {number}" for number, wanted in enumerate(item.label, 1)] + ["Qqq", "Vvv"])


def wrong(item: Item) -> Any:
    if isinstance(item, PlausibleItem):
        return judged(not item.label, [])
    if isinstance(item, ObserversItem):
        return judged(True, [name for name, sees in item.label.items() if not sees])
    if isinstance(item, EffectItem):
        return reflected({name: "helped" if effect == "harmed" else "harmed" for name, effect in item.label.items()})
    return peopled(["Qqq", "Vvv", "Www"])


async def probed(reply: Reply, **options: Any) -> ProbeResult:
    return await run_probe(Answering(reply=reply), **options)


def shares(result: ProbeResult) -> dict[str, float]:
    return {measure.name: measure.share for measure in result.measures}


def test_items() -> None:
    counts = Counter(item.kind for item in ITEMS)
    assert set(counts) == set(KINDS)
    assert all(counts[kind] >= 30 for kind in KINDS)
    assert len({item.id for item in ITEMS}) == len(ITEMS)
    assert len({item.question for item in ITEMS}) == len(ITEMS)
    for kind in KINDS:
        assert sum(item.lang != "en" for item in ITEMS if item.kind == kind) >= 3
    for item in ITEMS:
        if isinstance(item, CastItem):
            assert all(term == term.lower().strip() for wanted in item.label for term in wanted.any_of), item.id
            continue
        assert len({person.name for person in item.people}) == len(item.people) >= 3
        assert item.people[0].name in item.situation, item.id
        if isinstance(item, EffectItem):
            assert item.label, item.id
            assert all(event.plausible == (not event.reason) for event in item.events), item.id
        else:
            assert item.cast(item.objects).ego == item.people[0].name


def test_items_are_balanced() -> None:
    plausible = [item for item in ITEMS if isinstance(item, PlausibleItem)]
    assert abs(sum(1 if item.label else -1 for item in plausible)) <= 2
    traps = [item for item in plausible if item.trap == "already_happened"]
    assert len(traps) >= 10
    assert all(item.label for item in traps)
    covert = [item for item in ITEMS if isinstance(item, ObserversItem) and item.covert]
    assert len(covert) >= 10
    assert all(sum(item.label.values()) <= 1 for item in covert)
    effects = Counter(effect for item in ITEMS if isinstance(item, EffectItem) for effect in item.label.values())
    assert effects["harmed"] >= 10
    assert effects["helped"] >= 10


def test_items_take_nothing_from_the_examples_of_the_prompts() -> None:
    for prompt in ("modulator", "reflect", "cast"):
        told = json.dumps(opening_text(prompt))
        assert not [item.id for item in ITEMS if item.question in told]


def opening_text(prompt: str) -> str:
    values = dict.fromkeys(
        ("situation", "question", "frame", "people", "verdict", "number", "slots", "steps", "example", "outside"), ""
    )
    return "\n".join(message["content"] for message in opening(prompt, **values))


@pytest.mark.parametrize("plausible", [True, False])
def test_a_label_names_people_of_its_item(plausible: bool) -> None:
    judged_kind = PlausibleItem if plausible else ObserversItem
    row = next(item for item in ITEMS if isinstance(item, judged_kind)).model_dump()
    row["action"] = {"role": "Nobody", "action": "comes"}
    with pytest.raises(ValueError, match="Nobody is not among its people" if plausible else "Nobody"):
        judged_kind.model_validate(row)


def test_a_person_wanted_is_known_by_the_start_of_a_word() -> None:
    def met(term: str, name: str, who: str = "") -> bool:
        return Wanted(about="x", any_of=[term]).met_by([Role(name=name, who=who, traits=term)])

    assert met("son", "Sonny")
    assert met("police", "Ana", "a Police officer")
    assert not met("son", "Person")
    assert not met("friend", "Ana", "the asker's boss")  # traits do not count
    assert met("老师", "王老师")


async def test_all_right() -> None:
    result = await probed(right)
    assert result.items == len(ITEMS)
    assert result.unusable == 0
    assert result.wrong == []
    assert {name: share for name, share in shares(result).items()} == {
        measure.name: 0.0 if measure.name in LESS_IS_BETTER else 1.0 for measure in result.measures
    }
    assert all(measure.met is not False for measure in result.measures)
    assert "no reason against this model" in result.outlook
    assert all(len(outcome.calls) == 1 for outcome in result.outcomes)


async def test_all_wrong() -> None:
    result = await probed(wrong)
    assert len(result.wrong) == len(ITEMS)
    found = shares(result)
    for name in ("plausible", TRAP, "observers", "effect", BALANCED, HARM_FOUND, "cast"):
        assert found[name] == 0.0
    assert found[HARM_IMAGINED] == 1.0
    assert all(measure.met is not True or measure.name == SEEN_BY_ALL for measure in result.measures)
    for what in ("blocked for nothing", "harm will be overlooked", "will be missing"):
        assert what in result.outlook


async def test_a_reply_of_no_use_is_asked_for_once_more_and_then_wrong() -> None:
    result = await probed(lambda item: "I would rather not.")
    assert result.unusable == len(ITEMS)
    assert all(len(outcome.calls) == 2 for outcome in result.outcomes)
    assert {name: share for name, share in shares(result).items()} == {
        measure.name: 1.0 if measure.name in LESS_IS_BETTER else 0.0 for measure in result.measures
    }
    assert "100 of 100 replies cannot be used" in result.outlook


async def test_everybody_sees_everything() -> None:
    def reply(item: Item) -> Any:
        return judged(True, list(item.label)) if isinstance(item, ObserversItem) else right(item)

    result = await probed(reply, kinds=["observers"])
    found = shares(result)
    assert found[SEEN_BY_ALL] == 1.0
    assert 0 < found["observers"] < 1
    assert "secrets will be noticed by everybody" in result.outlook
    assert "Not probed: plausible, effect, cast." in result.outlook


async def test_no_harm_anywhere() -> None:
    def reply(item: Item) -> Any:
        assert isinstance(item, EffectItem)
        return reflected({})

    result = await probed(reply, kinds=["effect"])
    measures = {measure.name: measure for measure in result.measures}
    assert measures[HARM_FOUND].share == 0.0
    assert measures[HARM_IMAGINED].share == 0.0
    assert measures["effect"].share > measures[BALANCED].share == 0.25  # "none" alone is right, of four effects
    assert "harm will be overlooked" in result.outlook
    interval = measures["effect"]
    assert interval.low is not None and interval.high is not None
    assert interval.low < interval.share < interval.high


async def test_calls_are_the_scenes_own(tmp_path: Path) -> None:
    model = Answering(reply=right)
    result = await run_probe(model, kinds=["plausible"])
    item = next(item for item in ITEMS if isinstance(item, PlausibleItem) and item.history)
    (sent,) = ([m.text for m in messages] for messages in model.asked if item.question in messages[0].text)
    assert all(person.goal in sent[0] for person in item.people)
    assert item.history[0].action in sent[-1]
    assert sent[-1].index(item.history[0].action) < sent[-1].index(item.action.action)
    assert not any(word in text for text in sent for word in ("trap", "already_happened"))
    kept = keep(result, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [path.name for path in kept] == ["probe.json", "calls.jsonl"]
    assert [line["id"] for line in lines] == [outcome.id for outcome in result.outcomes]
    assert lines[0]["right"] is True
    assert lines[0]["calls"][0]["messages"]
    assert lines[0]["calls"][0]["completion"]
    assert "outcomes" not in json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))


async def test_a_server_that_is_gone_is_no_bad_model() -> None:
    with pytest.raises(ModelUnavailableError, match="No call got a reply"):
        await probed(lambda item: ConnectionError("nobody there"), items=ITEMS[:3])
    with pytest.raises(ModelUnavailableError, match="gone"):
        await probed(lambda item: ModelUnavailableError("gone") if item is ITEMS[1] else right(item), items=ITEMS[:3])


async def test_progress_counts_every_item() -> None:
    seen: list[str] = []
    await probed(right, kinds=["cast"], most=2, on_progress=lambda progress: seen.append(progress.line))
    assert seen[-1].startswith("items: 31 of 31")


def test_kinds() -> None:
    assert kinds_from("cast, plausible") == ["plausible", "cast"]
    for text in ("", "casts"):
        with pytest.raises(ConfigError, match="use plausible, observers, effect, cast"):
            kinds_from(text)
