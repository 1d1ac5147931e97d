"""Worlds whose truth no single call knows: the whole scene finds it, and each ablation errs exactly where it must."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, SystemMessage

from matrix_graph import SceneConfig
from tests.unit.benchmark_scripts import load_script

_WORLDS = 24


@pytest.fixture(scope="module")
def planted() -> ModuleType:
    return load_script("_planted")


@pytest.mark.parametrize(
    ("modulator", "revised", "right"),
    [
        ("full", {"harmful", "impossible"}, 1.0),
        ("plausible_all", {"harmful"}, 0.75),
        ("everyone_sees", {"harmful", "impossible", "unseen"}, 0.75),
        ("off", {"harmful", "unseen"}, 0.5),
    ],
)
async def test_what_is_found_without_errors(
    planted: ModuleType, modulator: Any, revised: set[str], right: float
) -> None:
    worlds = planted.worlds(_WORLDS)
    assert sum(world.right(world.draft) for world in worlds) == _WORLDS / 2
    answers = 0
    for world in worlds:
        trace = await planted.rehearsed(world, SceneConfig(modulator=modulator))
        assert trace.error is None and not trace.failures
        assert trace.revised == (world.kind in revised), (world.kind, trace.check)
        assert (world.deed in trace.answer) != trace.revised
        answers += world.right(trace.answer)
    assert answers == right * _WORLDS


async def test_the_truth_is_in_pieces(planted: ModuleType) -> None:
    for world in planted.worlds(4):
        trace = await planted.rehearsed(world, SceneConfig())
        harm = f"is hurt by {world.deed}"
        for call in trace.calls:
            prompt = "\n".join(message.content for message in call.messages)
            if call.purpose == "act":
                assert "near by" not in prompt and "is impossible" not in prompt
                told = next(role.traits for role in world.cast.roles if role.name == call.role)
                assert (harm in prompt) == (f"{harm}," in f"{told},")
            if call.purpose == "check":
                assert harm not in prompt and "near by" not in prompt
        judged = [event for event in trace.events if event.role == world.cast.ego]
        assert judged and not any(event.hurt or event.consequence for event in judged)


async def test_the_same_messages_get_the_same_reply(planted: ModuleType) -> None:
    model = planted.PlantedModel(seed=3, error=0.5)
    schema = {"type": "object", "properties": {"better": {"enum": ["A", "B"]}}}

    async def said(number: int, **changed: Any) -> str:
        messages = [SystemMessage("Choose."), HumanMessage(f"Question {number}")]
        return str((await model.model_copy(update=changed).bind(schema=schema).ainvoke(messages)).text)

    replies = [await said(number) for number in range(40)]
    assert replies == [await said(number) for number in range(40)]
    assert replies != [await said(number, seed=4) for number in range(40)]
    assert {json.loads(reply)["better"] for reply in replies} == {"A", "B"}
    assert [await said(number, error=0.0) for number in range(40)] == ['{"better": "A"}'] * 40


async def test_errors_are_part_of_a_larger_error(planted: ModuleType) -> None:
    call = planted._Call(seed=0, error=0.0, texts=("one",))
    for number in range(200):
        flipped = [
            not planted._Call(seed=number, error=error, texts=call.texts).decided("x", True)
            for error in (0.0, 0.1, 0.5, 1.0)
        ]
        assert flipped == sorted(flipped) and not flipped[0] and flipped[-1]
