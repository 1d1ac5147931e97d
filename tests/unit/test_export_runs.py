"""Whole exports of run folders: what is dropped, drawn and kept apart, what the card says, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from matrix_graph.errors import ConfigError, ExportError, MatrixGraphError, PrerequisiteError, TraceError
from matrix_graph.records import Trace
from matrix_graph.traces.export import ExportFormat, ExportOptions, FileType, Include, Summary, duplicates, export_runs
from matrix_graph.traces.export.duplicates import DuplicateFilter, alike, sketch
from matrix_graph.traces.export.hashing import Digest
from matrix_graph.traces.export.options import parse_mix
from matrix_graph.traces.export.pipeline import is_validation
from matrix_graph.traces.store import trace_line
from tests.unit.test_export_formats import EVERYTHING, a_scene
from tests.unit.test_records import a_trace

ERROR = {"type": "E", "message": "m"}


def words(seed: int, count: int = 40) -> str:
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(10_000)}" for _ in range(count))


def answered(number: int, **fields: Any) -> Trace:
    return a_trace(**{"id": f"t{number}", "question": f"Question {number}?", "answer": words(number), **fields})


def run_of(folder: Path, *traces: Trace) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "traces.jsonl").write_bytes(b"".join(trace_line(trace) + b"\n" for trace in traces))
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def export(tmp_path: Path, *traces: Trace, **options: Any) -> Summary:
    return export_runs([run_of(tmp_path / "run", *traces)], tmp_path / "rows.jsonl", ExportOptions.of(**options))


def ids(path: Path) -> list[str]:
    return [row["trace_id"] for row in rows_of(path)]


# ---- what is left out -----------------------------------------------------------------------------------------------


def test_duplicates_go_the_first_stays(tmp_path: Path) -> None:
    again = answered(1, id="again")
    summary = export(tmp_path, answered(1), answered(2), again)
    assert ids(tmp_path / "rows.jsonl") == ["t1", "t2"] and summary.dropped == {"duplicate": 1}
    assert export(tmp_path, answered(1), again, keep_duplicates=True).rows == 2


def test_near_duplicates_go(tmp_path: Path) -> None:
    near = answered(1, id="near", answer=words(1, 100) + " indeed")
    traces = answered(1, answer=words(1, 100)), answered(2, answer=words(2, 100)), near
    assert export(tmp_path, *traces).dropped == {"near duplicate": 1}
    assert ids(tmp_path / "rows.jsonl") == ["t1", "t2"]
    assert export(tmp_path, *traces, near_duplicates=1).rows == 3


@pytest.mark.parametrize("young", [1, 7, 10_000])
def test_equal_rows_are_told_whether_their_like_is_in_memory_or_not(
    monkeypatch: pytest.MonkeyPatch, young: int
) -> None:
    monkeypatch.setattr(duplicates, "_MOST_YOUNG", young)
    draw = random.Random(5)
    batches = [[(str(draw.randrange(300)),) for _ in range(draw.randrange(6))] for _ in range(200)]
    before: set[tuple[str, ...]] = set()
    with DuplicateFilter(0.9) as seen:
        for batch in batches:
            expected = []
            for row in batch:
                expected.append(row in before)
                before.add(row)
            assert seen.duplicates(batch) == expected


@pytest.mark.parametrize("join", [" ", ""], ids=["words", "characters"])
def test_likeness_is_estimated_well(join: str) -> None:
    pool = [chr(0x4E00 + number) for number in range(5000)] if not join else [f"w{number}" for number in range(5000)]
    for seed, changed in enumerate([0, 5, 20, 60, 150, 300]):
        draw = random.Random(seed)
        one = [draw.choice(pool) for _ in range(300)]
        other = [*one[: 300 - changed], *(draw.choice(pool) for _ in range(changed))]
        sets = [{tuple(text[at : at + 3]) for at in range(len(text) - 2)} for text in (one, other)]
        exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        assert abs(alike(sketch(join.join(one)), sketch(join.join(other))) - exact) < 0.12


def test_near_duplicates_are_found_among_many() -> None:
    with DuplicateFilter(0.9) as seen:
        texts = [(words(9000 + number, 30), words(number, 120)) for number in range(400)]
        assert not any(seen.is_near_duplicate(*text) for text in texts)
        assert sum(seen.is_near_duplicate(question, f"{answer} and so on") for question, answer in texts) >= 398
        assert not any(seen.is_near_duplicate(words(n, 30), words(n, 120)) for n in range(400, 800))
        question, answer = texts[0]
        assert seen.is_near_duplicate(f"{question.upper()}?", f"*{answer}*!"), "case and punctuation tell nothing apart"


def test_one_refusal_to_many_questions_is_many_rows(tmp_path: Path) -> None:
    refusals = [answered(number, question=f"How do I rob {words(number, 2)}?", answer=words(1)) for number in range(20)]
    answers = [answered(number, question="How do I rob a bank?", answer=words(100 + number)) for number in range(20)]
    assert export(tmp_path, *refusals, *answers).rows == 40


def test_answers_that_wait_are_found_as_those_that_were_hashed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(texts: list[tuple[str, str]]) -> list[bool]:
        with DuplicateFilter(0.8) as seen:
            return [seen.is_near_duplicate(*text) for text in texts]

    draw = random.Random(3)
    asked = [words(seed, draw.choice([2, 5, 12, 30])) for seed in range(40)]
    said = [words(100 + seed, draw.choice([1, 3, 40, 120])) for seed in range(40)] + [
        "\ud800 is half a sign",
        "長" * 5000,
    ]
    rows = [(draw.choice(asked), draw.choice(said) + draw.choice(["", " well", " or so"])) for _ in range(1500)]
    lazily = outcome(rows)
    monkeypatch.setattr(duplicates, "_LONGEST_WAITING", -1)
    assert lazily == outcome(rows)
    assert 300 < sum(lazily) < 1200


@pytest.mark.parametrize("text", ["", " ", "a", "a b", "好", "?!", "?"])
def test_short_texts_have_sketches(text: str) -> None:
    with DuplicateFilter(0.9) as seen:
        assert not seen.is_near_duplicate(text, text) and seen.is_near_duplicate(text, text)


def test_blocked_scenes(tmp_path: Path) -> None:
    blocked = answered(1, status="blocked")
    assert export(tmp_path, blocked, answered(2)).rows == 2
    assert export(tmp_path, blocked, answered(2), blocked=False).dropped == {"scene that was blocked": 1}
    pairs = export(tmp_path, blocked, answered(2), format="preference")
    assert ids(tmp_path / "rows.jsonl") == ["t2"] and pairs.dropped == {"scene that was blocked": 1}
    assert export(tmp_path, blocked, answered(2), format="preference", blocked=True).rows == 2


def test_pairs_are_of_revised_scenes_alone(tmp_path: Path) -> None:
    same = answered(2, revised=False, draft="Same.", answer="Same.")
    assert export(tmp_path, answered(1), same, format="preference").dropped == {"not revised": 1}
    (row,) = rows_of(tmp_path / "rows.jsonl")
    assert row["chosen"] == [{"role": "assistant", "content": words(1)}]
    assert row["rejected"] == [{"role": "assistant", "content": "Rob it."}]
    with pytest.raises(ExportError, match=r"not revised: 1.*finished scenes that revised"):
        export(tmp_path, same, format="preference")


def test_replies_cut_off_are_told_of_and_can_be_left_out(tmp_path: Path) -> None:
    call = a_scene().calls[-1].model_dump() | {"finish_reason": "length"}
    traces = answered(1, calls=[call | {"purpose": "revise"}]), answered(2)
    kept = export(tmp_path, *traces, cut_off=True)
    assert (kept.offered, kept.cut_read, kept.cut_off, kept.dropped) == (2, 1, 1, {})
    found = export(tmp_path, *traces)
    assert (found.offered, found.cut_read, found.cut_off) == (2, 1, 0)
    assert found.dropped == {"cut off at a token limit": 1}
    assert ["1 of 2 rows (50.0%) teach what was cut" in warning for warning in found.warnings] == [True]
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "- Cut off at a token limit: 1 of 2 rows (50.0%), of which 0 were kept\n" in card
    with pytest.raises(ExportError, match=r"cut off at a token limit: 1.*larger max_answer_tokens, or give --cut-off"):
        export(tmp_path, traces[0])


def test_a_string_that_was_cut_is_taught_nowhere(tmp_path: Path) -> None:
    calls = [call.model_dump() for call in a_scene().calls]
    whole = export(tmp_path, a_scene(), parts=frozenset({Include.roles})).kinds["role"]
    cut = [call | {"cut": ["action"]} if call["purpose"] == "act" else call for call in calls]
    with pytest.raises(ExportError, match=f"cut off at a token limit: {whole}"):
        export(tmp_path, a_scene(calls=cut), parts=frozenset({Include.roles}))


def test_a_pair_with_a_cut_side_is_left_out(tmp_path: Path) -> None:
    draft = a_scene().calls[0].model_dump() | {"purpose": "draft", "finish_reason": "length"}
    traces = answered(1, calls=[draft]), answered(2)
    assert export(tmp_path, *traces).dropped == {}
    assert export(tmp_path, *traces, format="preference").dropped == {"cut off at a token limit": 1}


def test_a_revision_that_did_not_pass_is_taught_nowhere(tmp_path: Path) -> None:
    check = {"proposed": "Worse.", "harm": True, "stance": "helps", "passed": False, "why": "It helps."}
    revise = a_scene().calls[-1].model_dump() | {"purpose": "revise", "completion": "Worse."}
    trace = answered(1, revised=False, answer="Rob it.", check=check, calls=[revise])
    summary = export(tmp_path, trace, parts=frozenset({Include.answers, Include.consequences}))
    assert summary.dropped == {"revision that did not pass its check": 1} and summary.kinds == {"answer": 1}


# ---- where rows go --------------------------------------------------------------------------------------------------


def test_no_question_stands_on_both_sides(tmp_path: Path) -> None:
    traces = [answered(number, answer=words(number)) for number in range(200)]
    again = [answered(n, id=f"u{n}", question=f" question  {n}? ", answer=words(1000 + n)) for n in range(200)]
    summary = export(tmp_path, *traces, *again, validation=0.25)
    train, held = rows_of(tmp_path / "rows.jsonl"), rows_of(tmp_path / "rows.validation.jsonl")
    asked = [
        {row["messages"][0]["content"].strip().lower().replace("  ", " ") for row in side} for side in (train, held)
    ]
    assert len(train) + len(held) == 400 == summary.rows and not asked[0] & asked[1]
    assert 60 <= len(held) <= 140, "a quarter, more or less"
    assert [(file.split, file.rows) for file in summary.files] == [("train", len(train)), ("validation", len(held))]


def test_the_split_stays_when_rows_are_added(tmp_path: Path) -> None:
    few, many = [[answered(number) for number in range(count)] for count in (60, 120)]
    export(tmp_path / "a", *few, validation=0.3)
    export(tmp_path / "b", *many, validation=0.3)
    before, after = (set(ids(tmp_path / side / "rows.validation.jsonl")) for side in "ab")
    assert before and before == after & {trace.id for trace in few}
    assert all(is_validation("x", 0.5) == is_validation(" X ", 0.5) for _ in range(2))


def test_a_validation_file_of_before_does_not_stay(tmp_path: Path) -> None:
    export(tmp_path, *(answered(number) for number in range(50)), validation=0.5)
    assert (tmp_path / "rows.validation.jsonl").exists()
    kept = next(number for number in range(50) if not is_validation(f"Question {number}?", 0.01))
    summary = export(tmp_path, answered(kept), validation=0.01)
    assert not (tmp_path / "rows.validation.jsonl").exists() and "validation" in summary.warnings[0]


def test_all_questions_kept_apart(tmp_path: Path) -> None:
    number = next(number for number in range(50) if is_validation(f"Question {number}?", 0.5))
    with pytest.raises(ExportError, match="none are left to train on"):
        export(tmp_path, answered(number), validation=0.5)
    assert not list(tmp_path.glob("*rows*"))


def test_several_runs(tmp_path: Path) -> None:
    first, second = run_of(tmp_path / "a", answered(1), answered(2)), run_of(tmp_path / "b", answered(2), answered(3))
    summary = export_runs([first, second / "traces.jsonl"], tmp_path / "rows.jsonl")
    assert [(row["run"], row["trace_id"]) for row in rows_of(tmp_path / "rows.jsonl")] == [
        ("a", "t1"),
        ("a", "t2"),
        ("b", "t3"),
    ]
    assert [source.run for source in summary.sources] == ["a", "b"] and summary.scenes == {"finished": 4}
    assert summary.sources[1].sha256 == hashlib.sha256((second / "traces.jsonl").read_bytes()).hexdigest()


# ---- the mix --------------------------------------------------------------------------------------------------------


def helpful_file(folder: Path, count: int = 30) -> Path:
    path = folder / "helpful.jsonl"
    lines = [json.dumps({"question": f"Help {n}?", "answer": words(5000 + n), "more": n}) for n in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def mixed(tmp_path: Path, traces: list[Trace], **options: Any) -> tuple[Summary, list[dict[str, Any]]]:
    folder = run_of(tmp_path / "run", *traces)
    out = tmp_path / "rows.jsonl"
    summary = export_runs([folder], out, ExportOptions.of(**options), helpful=helpful_file(tmp_path))
    return summary, rows_of(out)


def varied(number: int) -> Trace:
    """A scene whose every call has words of its own."""
    calls = [call.model_dump() for call in a_scene().calls]
    for call in calls:
        call["messages"][0]["content"] += f" {number}"
    return answered(number, calls=calls)


def test_the_mix_has_its_shares(tmp_path: Path) -> None:
    mix = {"helpful": 12, "harmful": 7, "simulation": 20}
    traces = [varied(number) for number in range(25)]
    summary, rows = mixed(tmp_path, traces, mix=mix)
    assert len(rows) == 39 and summary.mix == {"helpful": 30, "harmful": 25, "simulation": 150}
    kinds = [row["kind"] for row in rows]
    assert kinds.count("helpful") == 12 and kinds.count("answer") == 7
    assert {"role", "modulator", "cast", "consequence"} <= set(kinds)
    again = mixed(tmp_path, traces, mix=mix)[1]
    other = mixed(tmp_path, traces, mix=mix, seed=1)[1]
    turned = mixed(tmp_path, traces[::-1], mix=mix)[1]
    key = json.dumps
    assert again == rows and other != rows and sorted(map(key, turned)) == sorted(map(key, rows))


def test_the_mix_takes_what_there_is_and_says_so(tmp_path: Path) -> None:
    summary, rows = mixed(tmp_path, [answered(1)], mix={"helpful": 100, "harmful": 1})
    assert len(rows) == 31 and summary.warnings == ["The mix wants 100 rows of helpful; only 30 are there."]


def test_only_some_parts_in_the_simulation_share(tmp_path: Path) -> None:
    options = {"mix": {"simulation": 50}, "parts": {Include.cast}}
    assert export(tmp_path, varied(1), varied(2), **options).kinds == {"cast": 2}


@pytest.mark.parametrize(
    "text",
    ["", "helpful", "helpful=", "helpful=-1", "helpful=0", "other=5", "helpful=1,helpful=2", "helpful=1,", "helpful=²"],
)
def test_a_mix_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="helpful=6000,harmful=6000,simulation=6000"):
        parse_mix(text)
    assert parse_mix(" helpful = 5, simulation=10") == {"helpful": 5, "simulation": 10}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "question,answer,more\nWhat?,That.,1\n"),
        ("b.jsonl", '\ufeff{"prompt": "What?", "response": "That."}\n\n'),
        ("c.jsonl", '{"instruction": "What?", "input": "", "output": "That."}'),
        ("d.json", '{"prompt": "What?", "completion": "That."}\n'),
    ],
)
def test_helpful_rows_in_other_forms(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    run = run_of(tmp_path / "run", answered(1))
    export_runs([run], tmp_path / "rows.jsonl", helpful=tmp_path / name)
    row = rows_of(tmp_path / "rows.jsonl")[0]
    assert [message["content"] for message in row["messages"]] == ["What?", "That."]
    assert (row["kind"], row["trace_id"], row["run"], row["purpose"]) == ("helpful", "", name[0], "given")


def test_helpful_rows_in_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    rows = [{"question": f"What {n}?", "answer": words(n)} for n in range(600)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "help.parquet")
    run, out = run_of(tmp_path / "run", answered(1)), tmp_path / "rows.jsonl"
    assert export_runs([run], out, helpful=tmp_path / "help.parquet").kinds == {"answer": 1, "helpful": 600}
    (tmp_path / "bad.parquet").write_text("none")
    with pytest.raises(ExportError, match=r"bad.parquet is no Parquet file"):
        export_runs([run], out, helpful=tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"question": "What?"}\n', "a.jsonl, line 1: no question and answer .it has: .question"),
        ("a.jsonl", '{"question": "What?", "answer": " "}\n', "line 1"),
        ("a.jsonl", '{"question": "W", "answer": "x"}\nnonsense\n', "line 2: not JSON"),
        ("a.jsonl", "[1]\n", "row 1: no question and answer .it has: a number"),
        ("a.csv", "question;answer\nWhat?;That.\n", "a.csv has no columns .question. and .answer. or"),
        ("a.jsonl", b"\xff\xfe", "not UTF-8"),
        ("missing.jsonl", None, "cannot be read"),
    ],
)
def test_helpful_rows_that_are_none(tmp_path: Path, name: str, content: str | bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    run = run_of(tmp_path / "run", answered(1))
    with pytest.raises(ExportError, match=says):
        export_runs([run], tmp_path / "rows.jsonl", helpful=tmp_path / name)
    assert not list(tmp_path.glob("*rows*"))


def test_helpful_rows_and_options_that_do_not_fit(tmp_path: Path) -> None:
    run, out = run_of(tmp_path / "run", answered(1)), tmp_path / "rows.jsonl"
    with pytest.raises(ConfigError, match="--helpful FILE"):
        export_runs([run], out, ExportOptions.of(mix={"helpful": 5}))
    with pytest.raises(ConfigError, match="add helpful=N"):
        export_runs([run], out, ExportOptions.of(mix={"harmful": 5}), helpful=helpful_file(tmp_path))
    with pytest.raises(ConfigError, match="no preference pairs"):
        export_runs([run], out, ExportOptions.of(format="preference"), helpful=helpful_file(tmp_path))


# ---- the card -------------------------------------------------------------------------------------------------------


def test_the_card_tells_the_truth(tmp_path: Path) -> None:
    failed = answered(9, status="failed", answer=None, revised=False, error=ERROR)
    traces = [*(answered(n) for n in range(30)), answered(1), failed, answered(40, status="blocked")]
    summary = export(tmp_path, *traces, validation=0.3)
    card = (tmp_path / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["configs"][0]["data_files"] == [
        {"split": "train", "path": "rows.jsonl"},
        {"split": "validation", "path": "rows.validation.jsonl"},
    ]
    assert header["size_categories"] == ["n<1K"]
    assert [feature["name"] for feature in header["dataset_info"]["features"]] == list(
        rows_of(tmp_path / "rows.jsonl")[0]
    )
    for file in summary.files:
        content = (tmp_path / file.name).read_bytes()
        assert file.sha256 == hashlib.sha256(content).hexdigest() and file.bytes == len(content)
        assert f"| {file.rows} | {file.bytes:,} | `{file.sha256}` |" in card
    assert "- 1 scenes that failed: never exported" in card and "- 1 rows: duplicate" in card
    assert summary.sources[0].sha256 in card and "1 blocked, 1 failed, 31 finished" in card


def test_nobody_elses_readme_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    summary = export(tmp_path, answered(1))
    assert (tmp_path / "README.md").read_text() == "mine" and summary.card == str(tmp_path / "rows.README.md")
    (tmp_path / "README.md").unlink()
    assert export(tmp_path, answered(1)).card == str(tmp_path / "README.md")
    assert export(tmp_path, answered(2)).card == str(tmp_path / "README.md"), "an earlier card of the same file"
    other = export_runs([tmp_path / "run"], tmp_path / "other-file.jsonl")
    assert other.card == str(tmp_path / "other-file.README.md")
    assert export_runs([tmp_path / "run"], tmp_path / "x.jsonl", card=False).card is None


def test_the_card_names_no_folder_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Words:
        """Counts words, as a tokenizer of a folder of its own would."""

        chat_template = "any"

        def apply_chat_template(self, chat: list[dict[str, str]], tokenize: bool) -> str:
            return " ".join(message["content"] for message in chat)

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[str]]:
            return {"input_ids": text.split()}

    tokenizers = SimpleNamespace(from_pretrained=lambda *_, **__: Words())
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoTokenizer=tokenizers))
    trace = answered(1)
    call = trace.calls[0].model_copy(update={"model": "/home/jane.doe/models/kind"})
    trace = trace.model_copy(update={"calls": [call, *trace.calls[1:]]})
    export(tmp_path, trace, tokenizer="/home/jane.doe/tokenizers/kind", max_length=1000)
    card = (tmp_path / "README.md").read_text()
    assert "jane.doe" not in card and str(tmp_path) not in card
    assert '"tokenizer": "kind"' in card and "- Tokens of `kind`" in card and "`kind`" in card.split("Models: ")[1]


def test_names_from_traces_are_no_markup_in_the_card(tmp_path: Path) -> None:
    hostile = "`</code>`|<script>alert(1)</script>\n# Heading\n```"
    call = a_scene().calls[0].model_dump() | {"model": hostile}
    export(tmp_path, answered(1, calls=[call], settings={"prompts": hostile}))
    card = (tmp_path / "README.md").read_text()
    assert "\n# Heading" not in card and card.count("```") == 4
    outside = [part for at, part in enumerate(card.split("`")) if at % 2 == 0]
    assert not any("<script>" in part for part in outside)


def test_same_input_same_bytes(tmp_path: Path) -> None:
    """In processes of their own: a set has another order in each."""
    run = run_of(tmp_path / "run", *(varied(number) for number in range(20)))
    program = (
        "import sys; from pathlib import Path\n"
        "from matrix_graph.traces.export import *\n"
        "o = ExportOptions(parts=frozenset(Include), validation=0.2, mix={'harmful': 10, 'simulation': 30})\n"
        "export_runs([Path(sys.argv[1])], Path(sys.argv[2]) / 'rows.jsonl', o)\n"
    )
    contents = []
    for seed in "12":
        out = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", program, str(run), str(out)], env=environment, check=True, timeout=60)
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1] and set(contents[0]) == {"rows.jsonl", "rows.validation.jsonl", "README.md"}


# ---- Parquet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", list(ExportFormat))
def test_parquet_holds_the_same_rows(tmp_path: Path, format: ExportFormat) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    run = run_of(tmp_path / "run", *(varied(number) for number in range(5)))
    options = ExportOptions.of(format=format, parts=None if format is ExportFormat.preference else EVERYTHING)
    export_runs([run], tmp_path / "rows.jsonl", options)
    export_runs([run], tmp_path / "rows.parquet", options)
    export_runs([run], tmp_path / "rows.data", options, file_type=FileType.parquet)
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist() == rows_of(tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.data").read_bytes() == (tmp_path / "rows.parquet").read_bytes()


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    run = run_of(tmp_path / "run", answered(1))
    with pytest.raises(PrerequisiteError, match="`pip install pyarrow`"):
        export_runs([run], tmp_path / "rows.parquet")


def test_tokens_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PrerequisiteError, match=r"pip install 'matrix-graph\[train\]'"):
        export(tmp_path, answered(1), tokenizer="any", max_length=5)


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def test_nothing_to_export(tmp_path: Path) -> None:
    failed = answered(1, status="failed", answer=None, revised=False, error=ERROR)
    with pytest.raises(ExportError, match="nothing to export: no scene was played yet"):
        export(tmp_path)
    with pytest.raises(ExportError, match="nothing to export: no scene came to an end, all 2 failed"):
        export(tmp_path, failed, failed)
    with pytest.raises(ExportError, match="of 1 finished scenes no row of cast is left"):
        export(tmp_path, answered(1), parts={Include.cast})
    with pytest.raises(TraceError, match="No traces can be read"):
        export_runs([tmp_path], tmp_path / "rows.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", answered(1), answered(2))
    content = (run / "traces.jsonl").read_bytes()
    (run / "traces.jsonl").write_bytes(content[:-20])
    summary = export_runs([run], tmp_path / "rows.jsonl")
    assert (
        summary.rows == 1 and summary.sources[0].sha256 == hashlib.sha256(content.split(b"\n")[0] + b"\n").hexdigest()
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 0}, "line 2: its schema version is 0; this release reads 1 to"),
        ({"schema_version": 99}, "line 2: its schema version is 99; .* Update matrix-graph"),
        ({"schema_version": 99, "calls": "new"}, "line 2: its schema version is 99"),
        ({"calls": [{}]}, r"line 2: not a trace .calls.0.purpose: Field required"),
        ({"answer": 5}, r"line 2: not a trace .answer: Input should be a valid string"),
    ],
)
def test_traces_that_are_none(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    run = run_of(tmp_path / "run", answered(1))
    wrong = json.loads(trace_line(answered(2))) | change
    with (run / "traces.jsonl").open("a") as file:
        file.write(json.dumps(wrong) + "\n")
    (tmp_path / "rows.jsonl").write_text("older")
    with pytest.raises(TraceError, match=says):
        export_runs([run], tmp_path / "rows.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "run"]
    assert (tmp_path / "rows.jsonl").read_text() == "older"


def test_what_is_read_is_never_overwritten(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", answered(1))
    content = (run / "traces.jsonl").read_bytes()
    for out in (run / "traces.jsonl", run / ".." / "run" / "traces.jsonl"):
        with pytest.raises(ConfigError, match="would be lost"):
            export_runs([run], out)
    helpful = helpful_file(tmp_path)
    with pytest.raises(ConfigError, match="would be lost"):
        export_runs([run], helpful, helpful=helpful)
    assert (run / "traces.jsonl").read_bytes() == content


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_nothing_but_a_file_is_replaced(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "rows.jsonl")
    mode = (tmp_path / "rows.jsonl").stat().st_mode
    with pytest.raises(ExportError, match=r"rows.jsonl cannot be written: it is (a folder|not a regular file)"):
        export(tmp_path, answered(1))
    assert (tmp_path / "rows.jsonl").stat().st_mode == mode


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    resource = pytest.importorskip("resource", reason="there are no such limits on this system")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize("mix", [None, {"harmful": 30}])
def test_a_full_disk_leaves_nothing(tmp_path: Path, name: str, mix: dict[str, int] | None) -> None:
    run = run_of(tmp_path / "run", *(answered(number, answer=words(number, 400)) for number in range(40)))
    (tmp_path / name).write_text("older")
    with full_disk(3_000), pytest.raises(MatrixGraphError, match="cannot be"):
        export_runs([run], tmp_path / name, ExportOptions.of(mix=mix))
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "run"]
    assert (tmp_path / name).read_text() == "older"


@pytest.mark.parametrize("sizes", [[], [5], [1 << 21], [(1 << 21) - 1, 1, 1], [1 << 23, 7], [900_000] * 9])
def test_hashes_taken_beside_the_work_are_the_same(sizes: list[int]) -> None:
    parts = [random.Random(at).randbytes(size) for at, size in enumerate(sizes)]
    digest = Digest()
    for part in parts:
        digest.update(part)
    assert digest.hexdigest() == hashlib.sha256(b"".join(parts)).hexdigest()


def test_progress_is_told(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", *(answered(number) for number in range(5)))
    size = (run / "traces.jsonl").stat().st_size
    told: list[tuple[int, int]] = []
    export_runs([run, run], tmp_path / "rows.jsonl", watch=lambda done, total: told.append((done, total)))
    assert len(told) == 10 and told[4] == (size, 2 * size) and told[-1] == (2 * size, 2 * size)
    assert told == sorted(told)
