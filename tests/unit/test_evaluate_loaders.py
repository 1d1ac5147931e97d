"""Question sets in the layouts of their authors, on tiny harmless files of our own; and what is refused."""

import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from matrix_graph.errors import ConfigError, PrerequisiteError
from matrix_graph.evaluate.layouts import LAYOUTS, split_transcript
from matrix_graph.evaluate.loaders import load_questions, merged

_TALK = "\n\nHuman: May I pet your dog?\n\nAssistant: Ask him first.\n\nHuman: How?\n\nAssistant: "
HH = {"chosen": f"{_TALK}Hold out a hand.", "rejected": f"{_TALK}No idea."}
SAFE = {
    "prompt": "How do I tell her?", "response_0": "Shout.", "response_1": "Kindly.", "safer_response_id": 1,
    "better_response_id": 1, "is_response_0_safe": False, "is_response_1_safe": True,
}  # fmt: skip


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_our_own_fields(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "question": "What is tea?", "reference": "A drink.", "harmful": False, "category": "drinks"},
        {"question": "Which?", "chosen": "This.", "rejected": "That.", "history": [{"role": "user", "content": "Hi"}]},
        {"id": 7, "question": "Und dann?", "topic": "weiter", "other": [1]},
    ]
    first, second, third = load_questions([lines(tmp_path / "q.jsonl", *rows)])
    assert (first.id, first.reference, first.harmful, first.category) == ("a", "A drink.", False, "drinks")
    assert (second.chosen, second.rejected, len(second.id)) == ("This.", "That.", 16)
    assert second.messages == [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Which?"}]
    assert (third.id, third.category, third.harmful) == ("7", "weiter", None)
    assert first.source.endswith("q.jsonl") and first.answered


def test_a_made_id_is_the_same_everywhere_and_follows_the_content(tmp_path: Path) -> None:
    one = load_questions([lines(tmp_path / "a.jsonl", {"question": "x", "chosen": "1", "rejected": "2"})])
    same = load_questions([lines(tmp_path / "b.jsonl", {"question": "x", "chosen": "1", "rejected": "2"})])
    other = load_questions([lines(tmp_path / "c.jsonl", {"question": "x", "chosen": "1", "rejected": "3"})])
    assert one[0].id == same[0].id != other[0].id


def test_hh_rlhf(tmp_path: Path) -> None:
    (question,) = load_questions([lines(tmp_path / "hh.jsonl", HH)])
    assert question.question == "How?" and question.chosen == "Hold out a hand." and question.rejected == "No idea."
    assert [turn.role for turn in question.history] == ["user", "assistant"]
    assert question.text == "User: May I pet your dog?\nAssistant: Ask him first.\nUser: How?"


def test_hh_rlhf_as_it_is_published(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(json.dumps(HH) + "\n")
    assert load_questions([path])[0].chosen == "Hold out a hand."


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**HH, "rejected": "\n\nHuman: Another?\n\nAssistant: No."}, "differ before"),
        ({**HH, "chosen": "\n\nHuman: May I?"}, "does not end"),
        ({**HH, "chosen": "Human May I?"}, "no transcript"),
        ({**HH, "chosen": 5}, "a text is needed"),
    ],
)
def test_broken_hh_rows_are_refused_with_their_place(tmp_path: Path, row: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"hh\.jsonl, line 2: .*{says}"):
        load_questions([lines(tmp_path / "hh.jsonl", HH, row)])


def test_two_turns_of_one_speaker_are_one() -> None:
    turns = split_transcript("\n\nHuman: One\n\nHuman: two\n\nAssistant: Yes.")
    assert [(turn.role, turn.content) for turn in turns] == [("user", "One\n\ntwo"), ("assistant", "Yes.")]


def test_safe_rlhf(tmp_path: Path) -> None:
    both = {**SAFE, "safer_response_id": 0, "is_response_1_safe": False}
    first, second = load_questions([lines(tmp_path / "s.jsonl", SAFE, both)])
    assert (first.chosen, first.rejected, first.category) == ("Kindly.", "Shout.", None)
    assert (second.chosen, second.rejected, second.category) == ("Shout.", "Kindly.", "no safe answer")
    with pytest.raises(ConfigError, match="safer_response_id is 2"):
        load_questions([lines(tmp_path / "t.jsonl", {**SAFE, "safer_response_id": 2})])


def test_advbench_as_csv_and_as_on_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "harmful_behaviors.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["goal", "target"], ["Hide the cookies, all of them", "Sure, here is how"]])
    hub = lines(tmp_path / "hub.jsonl", {"prompt": "Hide the tea", "target": "Sure"})
    goal, prompt = load_questions([path, hub])
    assert (goal.question, goal.harmful, goal.chosen) == ("Hide the cookies, all of them", True, None)
    assert (prompt.question, prompt.harmful) == ("Hide the tea", True)


def test_tables_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"question": "x"}, {"question": "y"}]')
    (tmp_path / "b.json").write_text('{"question": "z"}\n{"question": "w"}\n')
    (tmp_path / "c.tsv").write_text("id\tquestion\n1\tp, q\n")
    got = load_questions([tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.tsv"])
    assert [question.question for question in got] == ["x", "y", "z", "w", "p, q"]
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"question": "x"}')[:-9])
    with pytest.raises(ConfigError, match="cannot be read"):
        load_questions([tmp_path / "torn.jsonl.gz"])


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="Parquet is read by the package datasets")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"question": "x"}]), tmp_path / "q.parquet")
    assert load_questions([tmp_path / "q.parquet"])[0].question == "x"


def test_harmfulqa(tmp_path: Path) -> None:
    row = {"id": 3, "topic": "Tea", "question": "How to spill it?", "blue_conversations": {}, "red_conversations": {}}
    (question,) = load_questions([lines(tmp_path / "h.jsonl", row)])
    assert (question.id, question.question, question.harmful, question.category) == (
        "3",
        "How to spill it?",
        True,
        "Tea",
    )


def test_vicuna_and_mt_bench(tmp_path: Path) -> None:
    vicuna = lines(tmp_path / "v.jsonl", {"question_id": 1, "category": "generic", "turns": ["What is tea?"]})
    old = lines(tmp_path / "o.jsonl", {"question_id": 2, "text": "What is milk?", "category": "generic"})
    mt = lines(
        tmp_path / "m.jsonl",
        {"question_id": 81, "category": "math", "turns": ["1+1?", "And 2+2?"], "reference": ["2", "4"]},
    )
    hub = lines(tmp_path / "p.jsonl", {"prompt_id": 9, "category": "x", "prompt": ["Go?", "On?"], "reference": []})
    got = load_questions([vicuna, old, mt, hub])
    assert [question.id for question in got] == ["fastchat-1", "fastchat-2", "fastchat-81", "fastchat-9"]
    assert [question.question for question in got] == ["What is tea?", "What is milk?", "1+1?", "Go?"]
    assert [question.reference for question in got] == [None, None, "2", None]
    assert all(question.harmful is False for question in got)


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("Anthropic/hh-rlhf", HH, {"path": "Anthropic/hh-rlhf", "data_dir": "harmless-base", "split": "test"}),
        (
            "anthropic/HH-RLHF#helpful-base/train",
            HH,
            {"path": "Anthropic/hh-rlhf", "data_dir": "helpful-base", "split": "train"},
        ),
        ("PKU-Alignment/PKU-SafeRLHF", SAFE, {"path": "PKU-Alignment/PKU-SafeRLHF", "split": "test"}),
        (
            "PKU-Alignment/PKU-SafeRLHF#alpaca-7b/train",
            SAFE,
            {"path": "PKU-Alignment/PKU-SafeRLHF", "name": "alpaca-7b", "split": "train"},
        ),
        ("walledai/AdvBench", {"prompt": "x", "target": "y"}, {"path": "walledai/AdvBench", "split": "train"}),
        ("declare-lab/HarmfulQA", {"id": 1, "question": "x"}, {"path": "declare-lab/HarmfulQA", "split": "train"}),
        ("HuggingFaceH4/mt_bench_prompts", {"prompt_id": 1, "prompt": ["x"], "category": "c"},
         {"path": "HuggingFaceH4/mt_bench_prompts", "split": "train"}),
    ],
)  # fmt: skip
def test_hub_names(monkeypatch: pytest.MonkeyPatch, name: str, row: Any, expected: dict[str, str]) -> None:
    datasets = pytest.importorskip("datasets", reason="hub names are looked up by the package datasets")
    asked: list[dict[str, Any]] = []

    def load_dataset(path: str, **options: Any) -> list[Any]:
        asked.append({"path": path, **options})
        return [row]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (question,) = load_questions([name])
    assert asked == [expected] and question.source == name.partition("#")[0]


def test_vicuna_bench_comes_from_its_authors_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="files of the web are read by the package datasets")
    asked: list[Any] = []
    row = {"question_id": 1, "category": "generic", "turns": ["What is tea?"]}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: asked.append((path, options)) or [row])
    assert load_questions(["vicuna-bench"])[0].question == "What is tea?"
    assert asked[0][0] == "json" and asked[0][1]["data_files"].endswith("vicuna_bench/question.jsonl")


def test_what_cannot_be_loaded_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="hub names are looked up by the package datasets")

    def no_network(path: str, **options: Any) -> Any:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(ConfigError, match="cannot be loaded from the hub: ConnectionError: offline"):
        load_questions(["walledai/AdvBench"])
    with pytest.raises(ConfigError, match=r"neither a file nor a known hub name. Known: Anthropic/hh-rlhf"):
        load_questions([str(tmp_path / "missing.jsonl")])
    (tmp_path / "a.docx").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(ConfigError, match=r"a\.docx is an Excel workbook or another zip file"):
        load_questions([tmp_path / "a.docx"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", r"q\.jsonl holds no rows: it is empty. Give a file with questions"),
        ("{}\n", '"question" is missing'),
        ('{"question": " "}\n', "is empty"),
        ("[1]\n", "row 1: the row is a number; an object"),
        ("{\n", "line 1: not JSON"),
        ('{"question": "a"}\n["text"]\n', "line 2: the row is a list"),
        ('{"question": 5}\n', 'line 1: "question" is a number; a text is allowed'),
        ('{"question": "a", "harmful": "perhaps"}\n', 'line 1: "harmful" is a text that cannot be used: .*boolean'),
    ],
)
def test_refused_files(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=says):
        load_questions([path])


def test_rows_to_score_need_something_to_score(tmp_path: Path) -> None:
    path = lines(tmp_path / "q.jsonl", {"id": "a", "question": "x", "chosen": "only"})
    with pytest.raises(ConfigError, match="nothing to score"):
        load_questions([path], answered=False)
    assert load_questions([lines(tmp_path / "p.jsonl", {"question": "x", "reference": "y"})], answered=False)[
        0
    ].reference


def test_one_id_in_two_files_is_told_apart(tmp_path: Path) -> None:
    one = lines(tmp_path / "one.jsonl", {"id": 1, "question": "x"}, {"id": 2, "question": "y"})
    two = lines(tmp_path / "two.jsonl", {"id": 1, "question": "z"}, {"id": 2, "question": "w"})
    assert [question.id for question in load_questions([one, two])] == ["1", "2", "two.jsonl:1", "two.jsonl:2"]
    same = lines(tmp_path / "same.jsonl", {"id": 1, "question": "x"}, {"id": 1, "question": "other"})
    with pytest.raises(ConfigError, match=r"Two different rows of .*same\.jsonl have the id 1"):
        load_questions([same])
    twice = lines(tmp_path / "twice.jsonl", {"id": 1, "question": "x"}, {"id": 1, "question": "x"})
    assert len(load_questions([twice])) == 1


def test_the_same_row_once_answered_and_once_scored_is_one_question(tmp_path: Path) -> None:
    path = lines(tmp_path / "q.jsonl", {"id": "a", "question": "x", "chosen": "1", "rejected": "2"})
    (question,) = merged(load_questions([path], answered=False), load_questions([path]))
    assert question.answered
    (question,) = merged(load_questions([path]), load_questions([path], answered=False))
    assert question.answered


def test_a_missing_package_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PrerequisiteError, match=r"pip install 'matrix-graph\[evaluate\]'"):
        load_questions(["walledai/AdvBench"])
    assert load_questions([lines(tmp_path / "q.jsonl", {"question": "x"})])  # files need no package


def test_limit_and_harm(tmp_path: Path) -> None:
    path = lines(tmp_path / "q.jsonl", *({"question": str(number)} for number in range(5)))
    got = load_questions([path], harmful=True, limit=2)
    assert [(question.question, question.harmful) for question in got] == [("0", True), ("1", True)]


def test_every_layout_names_what_tells_it_from_others() -> None:
    assert all(layout.columns for layout in LAYOUTS.values())


def test_text_that_no_file_can_hold_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"id": "a\\ud800", "question": "x\\ud800", "chosen": "y\\ud800", "rejected": "z"}\n')
    (question,) = load_questions([path])
    assert question.to_line().decode().count("\ufffd") == 3
