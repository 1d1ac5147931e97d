"""Results from records: by hand, the same bytes from the same records, and nothing in them is markup."""

import json
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from matrix_graph.errors import ConfigError, TraceError
from matrix_graph.evaluate import folder as evaluation
from matrix_graph.evaluate.document import Section, Table, to_html, to_markdown
from matrix_graph.evaluate.human import write_ratings
from matrix_graph.evaluate.plots import Bar, Point, Whisker, cost_and_quality, whiskers, win_rates
from matrix_graph.evaluate.records import AnswerRecord, Plan, Question, ScoreRecord, Verdict, Winner
from matrix_graph.evaluate.results import Results, write_results
from matrix_graph.evaluate.statistics import Interval, Outcome, rates

EVIL = 'a|b<script>alert("1")</script>'
FILES = ("results.json", "results.md", "results.html")


def records(names: tuple[str, ...] = ("base", "new"), count: int = 20) -> dict[str, list[Any]]:
    questions = [Question(id=f"q{n}", question=f"What {n}?", harmful=n % 2 == 0) for n in range(count)]
    answers = [
        AnswerRecord(
            candidate=name,
            question_id=question.id,
            question=question.question,
            answer="I'm sorry, I cannot help." if name == names[0] else "word " * (place + 5),
            calls=1 + place,
            input_tokens=10,
            output_tokens=10 * (1 + place),
            seconds=random.random(),
            settings={},
        )
        for place, name in enumerate(names)
        for question in questions
    ]
    verdicts = [
        verdict(question.id, name, names[0], order, "first" if n % 4 else "second")
        for name in names[1:]
        for n, question in enumerate(questions)
        for order in ("first_then_second", "second_then_first")
    ]
    scores = [
        ScoreRecord(candidate=name, question_id=q.id, text=text, logprob=value, tokens=4, prompt_tokens=9)
        for place, name in enumerate(names)
        for n, q in enumerate(questions)
        for text, value in (("chosen", -4.0), ("rejected", -5.0 if n % 2 or place else -3.0))
    ]
    return {"questions": questions, "answers": answers, "verdicts": verdicts, "scores": scores}


def verdict(question: str, first: str, second: str, order: Any, winner: Winner | None, judge: str = "j") -> Verdict:
    return Verdict(
        question_id=question, first=first, second=second, order=order, winner=winner, raw=str(winner), judge=judge
    )


def put(folder: Path, kept: dict[str, list[Any]], names: tuple[str, ...] = ("base", "new")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        candidates={name: {"method": "plain"} for name in names},
        judge=None,
        questions=len(kept["questions"]),
        version="1",
    )
    (folder / evaluation.PLAN_NAME).write_text(plan.model_dump_json())
    for name, rows in kept.items():
        (folder / f"{name}.jsonl").write_bytes(b"".join(row.to_line() + b"\n" for row in rows))
    return folder


def test_the_numbers_by_hand(tmp_path: Path) -> None:
    found = write_results(put(tmp_path, records()))
    assert found.baseline == "base" and found.candidates == ["base", "new"]
    (judge,) = found.judges
    assert judge.rates is not None and judge.rates.win.estimate == 0.75 and judge.rates.net.estimate == 0.5
    assert judge.rates.net.low < 0.5 < judge.rates.net.high
    differences = {item.measure: item for item in found.differences}
    # The base refuses everything; 10 of the 20 questions are harmful, and 10 are not.
    assert differences["attack success"].questions == 10
    assert differences["attack success"].interval is not None
    assert differences["attack success"].interval.estimate == 1
    assert differences["over-refusal"].interval is not None and differences["over-refusal"].interval.estimate == -1
    assert differences["output tokens"].interval == Interval(estimate=10, low=10, high=10)
    assert differences["preference accuracy (sum)"].interval is not None
    assert differences["preference accuracy (sum)"].interval.estimate == 0.5
    assert found.measures[0].preference.by_sum == 0.5 and found.measures[1].preference.by_sum == 1
    assert Results.model_validate_json((tmp_path / "results.json").read_bytes()) == found


def test_the_same_records_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    kept = records()
    one = put(tmp_path / "one", kept)
    write_results(one)
    for name in ("answers", "verdicts", "scores"):
        random.Random(4).shuffle(kept[name])
    kept["verdicts"].insert(3, kept["verdicts"][7])  # asked again after a kill
    two = put(tmp_path / "two", kept)
    write_results(two)
    write_results(two)
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_wall_times_stand_apart(tmp_path: Path) -> None:
    kept = records()
    one = put(tmp_path / "one", kept)
    write_results(one)
    slow = [answer.model_copy(update={"seconds": 99.0}) for answer in kept["answers"]]
    two = put(tmp_path / "two", {**kept, "answers": slow})
    write_results(two)
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert json.loads((two / "timings.json").read_bytes()) == {"base": 99.0, "new": 99.0}


def test_names_are_no_markup_and_the_page_loads_nothing(tmp_path: Path) -> None:
    names = ("base", EVIL)
    write_results(put(tmp_path, records(names), names))
    page = (tmp_path / "results.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import""", page)
    table = (tmp_path / "results.md").read_text()
    assert EVIL not in table and "a\\|b\\<script\\>" in table
    for before, line in pairwise(table.splitlines()):
        if before.startswith("|") and line.startswith("|"):
            bars = [len(re.findall(r"(?<!\\)\|", row)) for row in (before, line)]
            assert bars[0] == bars[1], line


def test_people_and_a_judge_stand_side_by_side(tmp_path: Path) -> None:
    kept = records()
    put(tmp_path, kept)
    write_ratings(
        tmp_path,
        [verdict(f"q{n}", "new", "base", "first_then_second", "first", judge=who) for n in range(6) for who in "ab"],
    )
    found = write_results(tmp_path)
    (people,) = found.people
    assert people.raters == 2 and people.ratings == 12 and people.alpha is None
    assert people.rates is not None and people.rates.questions == 6 and people.rates.win.estimate == 1
    assert "by people" in (tmp_path / "results.md").read_text() and found.judges


def test_an_evaluation_that_has_only_begun_has_results(tmp_path: Path) -> None:
    kept: dict[str, list[Any]] = {**records(), "answers": [], "verdicts": [], "scores": []}
    found = write_results(put(tmp_path, kept))
    assert found.measures[0].costs.answers == 0 and found.measures[0].length.mean_words is None
    assert found.differences == [] and "–" in (tmp_path / "results.md").read_text()


def test_verdicts_that_cannot_be_used_are_shown(tmp_path: Path) -> None:
    kept = records()
    kept["verdicts"] = [item.model_copy(update={"winner": None, "raw": "who knows"}) for item in kept["verdicts"]]
    found = write_results(put(tmp_path, kept))
    assert found.judges[0].rates is None and found.judges[0].unreadable == 40 and found.judges[0].undecided == 20
    assert "| new | 0 |" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize("by_place", [True, False])
def test_a_judge_that_goes_by_the_place_is_warned_of_beside_its_rates(tmp_path: Path, by_place: bool) -> None:
    kept = records()
    if by_place:
        turned = {"first_then_second": "first", "second_then_first": "second"}
        kept["verdicts"] = [row.model_copy(update={"winner": turned[row.order]}) for row in kept["verdicts"]]
    write_results(put(tmp_path, kept))
    for name in ("results.md", "results.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert ("chose by the place of an answer (position bias up to 1.00)" in text) == by_place


def test_a_baseline_that_is_no_candidate_and_a_folder_without_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are base, new"):
        write_results(put(tmp_path, records()), baseline="bsae")
    with pytest.raises(TraceError, match="no evaluation"):
        write_results(tmp_path / "nowhere")


def test_plots_show_what_they_are_given() -> None:
    found = rates([Outcome(1, 0, 0)] * 3 + [Outcome(0, 0, 1)])
    assert found is not None
    bars = win_rates([Bar("new", found)], "Rates")
    widths = {
        kind: float(width)
        for kind, width in re.findall(r'<rect class="(\w+)" x="[\d.]+" y="\d+" width="([\d.]+)"', bars)
    }
    assert widths["win"] == pytest.approx(3 * widths["lose"], abs=0.2) and widths["tie"] == 0
    assert 'aria-label="Rates. new: win 75%, tie 0%, lose 25%"' in bars
    dots = whiskers([Whisker("a", 1.0, None), Whisker("b", 3.0, Interval(estimate=3, low=2, high=4))], "W", middle=0.0)
    assert dots.count("<circle") == 2 and dots.count('class="whisker"') == 1
    one, two = (float(x) for x in re.findall(r'<circle class="dot" cx="([\d.]+)"', dots))
    assert one < two
    net = Interval(estimate=0.5, low=0.2, high=0.8)
    cloud = cost_and_quality([Point("x", 10, net), Point("y", 1000, net), Point("free", 0, net)], "C", "cost", "net")
    left, right = (float(x) for x in re.findall(r'<circle class="dot" cx="([\d.]+)"', cloud))
    assert left < right and "free" not in cloud
    assert (win_rates([], "t"), whiskers([], "t"), cost_and_quality([], "t", "c", "q")) == ("", "", "")
    flat = whiskers([Whisker("a", 0.0, None)], "W")
    assert "nan" not in flat and "inf" not in flat


def test_a_document_in_both_forms() -> None:
    section = Section("Part *one*", "a & b", [Table(["name", "n"], [["x_y", "1"]])], [("<svg></svg>", "It & that")])
    text = to_markdown("T", "note", [section])
    assert "## Part \\*one\\*" in text and "| x\\_y | 1 |" in text and "svg" not in text
    page = to_html("T", "note", [section])
    assert "<figcaption>It &amp; that</figcaption>" in page and '<th scope="row">x_y</th><td>1</td>' in page
