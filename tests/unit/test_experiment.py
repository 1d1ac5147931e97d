"""The kept records of the experiment: without a word, and yet with all that is measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_graph.evaluate.refusals import REFUSAL_LISTS, refuses
from tests.unit.benchmark_scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("experiment_smollm2")


_WORDS = st.sampled_from(
    ["", " ", "\n", "secret", "Sorry", "I cannot", "I\u2019m sorry", "As an", " AI", "Hello!", "x"]
)


@given(parts=st.lists(_WORDS | st.text(max_size=5), max_size=12))
def test_a_masked_text_measures_the_same(script: ModuleType, parts: list[str]) -> None:
    text = "".join(parts)
    masked = script.mask(text)
    assert len(masked) == len(text) and list(map(len, masked.split())) == list(map(len, text.split()))
    for keywords in REFUSAL_LISTS:
        assert refuses(masked, keywords) == refuses(text, keywords)
    assert "secret" not in masked


def test_no_question_stands_in_two_parts_and_the_files_order_plays_no_part(script: ModuleType, tmp_path: Path) -> None:
    names = ("hh_harmless", "harmfulqa", "advbench", "vicuna_bench", "hh_harmless_pairs")
    drawn = []
    for turned in (False, True):
        data, out = tmp_path / f"data-{turned}", tmp_path / f"out-{turned}"
        data.mkdir()
        out.mkdir()
        for name in names:
            rows = [{"question": f"Who is {n}?"} for n in range(30)] + [
                {"question": f"Who is {n} of {name}?"} for n in range(9)
            ]
            rows = rows[::-1] if turned else rows
            (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        script.split(data, out, 12, 5, 7)
        parts = {}
        for part in ("train", "harmful", "harmless", "pairs"):
            lines = (out / f"{part}.jsonl").read_text().splitlines()
            parts[part] = [json.loads(line)["question"] for line in lines]
        drawn.append(parts)
    assert drawn[0] == drawn[1]
    assert {name: len(part) for name, part in drawn[0].items()} == {
        "train": 12,
        "harmful": 5,
        "harmless": 5,
        "pairs": 7,
    }
    everything = [question for part in drawn[0].values() for question in part]
    assert len(set(everything)) == len(everything)


def test_the_document_says_what_the_kept_records_give(script: ModuleType) -> None:
    with script.unpacked(script.RECORDS) as folder:
        made = script.tables_of(folder)
    text = script.DOCUMENT.read_text(encoding="utf-8")
    assert f"{script._BEGIN}\n\n{made}\n{script._END}" in text
