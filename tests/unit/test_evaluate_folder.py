"""An evaluation on disk: what counts as done, what is refused, what a killed writer leaves."""

from pathlib import Path
from typing import Any

import pytest

from matrix_graph.errors import ConfigError, RunLockedError, SettingsChangedError, TraceError
from matrix_graph.evaluate.folder import (
    ANSWERS_NAME,
    PLAN_NAME,
    read_answers,
    read_plan,
    read_questions,
    read_scores,
    read_verdicts,
)
from matrix_graph.evaluate.records import AnswerRecord, Plan, Question, ScoreRecord, Verdict
from matrix_graph.evaluate.store import EvaluationStore


def answer(candidate: str, question: str, text: str | None, **more: Any) -> AnswerRecord:
    return AnswerRecord(
        candidate=candidate, question_id=question, question="?", answer=text, calls=1, input_tokens=1, output_tokens=1,
        seconds=1.0, settings={"method": "base"}, **more,
    )  # fmt: skip


def plan(*names: str, **settings: Any) -> Plan:
    return Plan(
        candidates={name: settings or {"method": "base"} for name in names}, questions=2, version="0", judge=None
    )


QUESTIONS = [Question(id="b", question="second?"), Question(id="a", question="first?", chosen="x", rejected="y")]


def begun(folder: Path, *names: str) -> EvaluationStore:
    store = EvaluationStore(folder)
    with store:
        store.begin(plan(*(names or ("base", "other"))), QUESTIONS)
    return store


def test_answers_come_in_the_plans_order_and_the_last_of_a_name_counts(tmp_path: Path) -> None:
    begun(tmp_path)
    records = [
        answer("other", "a", "1"), answer("base", "a", None), answer("base", "b", "2"), answer("base", "a", "3"),
        answer("gone", "a", "4"), answer("base", "gone", "5"),
    ]  # fmt: skip
    with EvaluationStore(tmp_path) as store:
        store.keep([(ANSWERS_NAME, record.to_line()) for record in records])
    got = [(record.candidate, record.question_id, record.answer) for record in read_answers(tmp_path)]
    assert got == [("base", "b", "2"), ("base", "a", "3"), ("other", "a", "1")]
    assert [question.id for question in read_questions(tmp_path)] == ["b", "a"]
    assert list(read_plan(tmp_path).candidates) == ["base", "other"]


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{", b"[]"])
def test_a_plan_that_cannot_be_read_is_not_passed_over(tmp_path: Path, content: bytes) -> None:
    begun(tmp_path)
    with EvaluationStore(tmp_path) as store:
        store.keep([(ANSWERS_NAME, answer("base", "a", "kept").to_line())])
    (tmp_path / PLAN_NAME).write_bytes(content)
    with (
        EvaluationStore(tmp_path) as store,
        pytest.raises(ConfigError, match=r"evaluation.json holds no plan.*--force"),
    ):
        store.begin(plan("base"), QUESTIONS)
    with pytest.raises(TraceError, match=r"evaluation.json is not a plan"):
        read_plan(tmp_path)
    assert (tmp_path / PLAN_NAME).read_bytes() == content
    with EvaluationStore(tmp_path, force_new_settings=True) as store:
        store.begin(plan("base"), QUESTIONS)
    assert [record.answer for record in read_answers(tmp_path)] == ["kept"]


def test_the_order_of_writing_changes_nothing(tmp_path: Path) -> None:
    scores = [
        ScoreRecord.model_validate(
            {"candidate": c, "question_id": q, "text": t, "logprob": -1.0, "tokens": 1, "prompt_tokens": 1}
        )
        for c in ("base", "other") for q in ("a", "b") for t in ("rejected", "chosen")
    ]  # fmt: skip
    judged = {"first": "other", "second": "base", "winner": "tie", "raw": ""}
    verdicts = [
        Verdict.model_validate({**judged, "question_id": question, "order": order})
        for question in ("a", "b")
        for order in ("second_then_first", "first_then_second")
    ]
    read = []
    for name, turn in (("one", 1), ("two", -1)):
        folder = tmp_path / name
        begun(folder)
        with EvaluationStore(folder) as store:
            store.keep([("scores.jsonl", record.to_line()) for record in scores[::turn]])
            store.keep([("verdicts.jsonl", record.to_line()) for record in verdicts[::turn]])
        read.append((read_scores(folder), read_verdicts(folder)))
    assert read[0] == read[1] and len(read[0][0]) == 8 and len(read[0][1]) == 4


def test_a_torn_last_line_is_passed_over_and_cut_off_by_the_next_writer(tmp_path: Path) -> None:
    begun(tmp_path)
    path = tmp_path / ANSWERS_NAME
    path.write_bytes(answer("base", "a", "1").to_line() + b"\n" + answer("base", "b", "2").to_line()[:-30])
    assert [record.answer for record in read_answers(tmp_path)] == ["1"]
    with EvaluationStore(tmp_path) as store:
        assert store.answered(retry_failed=False).keys() == {("base", "a")}
        store.keep([(ANSWERS_NAME, answer("base", "b", "3").to_line())])
    assert [record.answer for record in read_answers(tmp_path)] == ["3", "1"]


def test_a_foreign_line_is_an_error_with_its_place(tmp_path: Path) -> None:
    begun(tmp_path)
    (tmp_path / ANSWERS_NAME).write_text('{"candidate": "base"}\n')
    with pytest.raises(TraceError, match=r"answers\.jsonl, line 1: not a AnswerRecord"):
        read_answers(tmp_path)
    with pytest.raises(TraceError, match="holds no evaluation"):
        read_answers(tmp_path / "nowhere")


def test_failed_ones_are_asked_again_only_if_wanted(tmp_path: Path) -> None:
    begun(tmp_path)
    with EvaluationStore(tmp_path) as store:
        store.keep([(ANSWERS_NAME, answer("base", "a", None).to_line())])
        assert len(store.answered(retry_failed=False)) == 1 and store.answered(retry_failed=True) == {}
        assert store.failed({"base"}, {"a", "b"}) == 1 and store.failed({"other"}, {"a"}) == 0
        store.keep([(ANSWERS_NAME, answer("base", "a", "better").to_line())])
        assert len(store.answered(retry_failed=True)) == 1 and store.failed({"base"}, {"a"}) == 0


def test_other_settings_are_refused_new_names_are_not(tmp_path: Path) -> None:
    begun(tmp_path, "base")
    with EvaluationStore(tmp_path) as store:
        store.begin(plan("base", "more"), [*QUESTIONS, Question(id="c", question="third?")])
        with pytest.raises(SettingsChangedError, match=r"base\.temperature: None -> 0\.9"):
            store.begin(plan("base", method="base", temperature=0.9), QUESTIONS)
        with pytest.raises(SettingsChangedError, match="the question a has another text"):
            store.begin(plan("base"), [QUESTIONS[1].model_copy(update={"rejected": "z"})])
        assert list(read_plan(tmp_path).candidates) == ["base", "more"]
    with EvaluationStore(tmp_path, force_new_settings=True) as store:
        store.begin(plan("base", method="base", temperature=0.9), QUESTIONS)
    assert read_plan(tmp_path).candidates == {"base": {"method": "base", "temperature": 0.9}}


def test_one_evaluation_at_a_time(tmp_path: Path) -> None:
    with EvaluationStore(tmp_path), pytest.raises(RunLockedError), EvaluationStore(tmp_path):
        pass
    with EvaluationStore(tmp_path):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"), EvaluationStore(tmp_path / "file" / "sub"):
        pass
