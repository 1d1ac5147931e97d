"""The rating page's files: what they hide, what they refuse, and what people's choices add up to."""

import json
import re
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest

from matrix_graph.errors import ConfigError
from matrix_graph.evaluate.human import (
    KEY_NAME,
    PAGE_NAME,
    Key,
    import_ratings,
    make_rating_page,
    read_key,
)
from matrix_graph.evaluate.human_report import agreement, human_reports
from matrix_graph.evaluate.records import AnswerRecord, Verdict

SALT = "5a17" * 8


def answers(count: int = 12) -> list[AnswerRecord]:
    return [
        AnswerRecord(
            candidate=name,
            question_id=f"question-{n}",
            question=f"What is {n}? </script><b>&",
            answer=f"{text} {n} </script><img src=x>",
            calls=1,
            input_tokens=1,
            output_tokens=1,
            seconds=0.1,
            settings={},
        )
        for n in range(count)
        for name, text in (("secret-base", "plain"), ("secret-adapter", "better"))
    ]


def study(folder: Path) -> dict[str, Any]:
    page = (folder / PAGE_NAME).read_text()
    match = re.search(r'<script type="application/json" id="study">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    return json.loads(match[1])  # type: ignore[no-any-return]


def rate(folder: Path, who: str, choose: Any, **more: Any) -> Path:
    data = study(folder)
    ratings = [{"item": item["id"], "choice": choose(item)} for item in data["items"]]
    content = {"format": "matrix-graph-ratings", "version": 1, "page": data["page"], "rater": who, "ratings": ratings}
    path = folder / f"{who}.json"
    path.write_text(json.dumps(content | more))
    return path


def likes(text: str) -> Any:
    return lambda item: "left" if item["left"].startswith(text) else "right"


def test_the_page_tells_nobody_whose_answers_they_are(tmp_path: Path) -> None:
    key = make_rating_page(answers(), "secret-base", tmp_path, salt=SALT)
    page = (tmp_path / PAGE_NAME).read_text()
    assert "secret" not in page and "question-" not in page and SALT not in page
    items = study(tmp_path)["items"]
    assert {item["id"] for item in items} == key.items.keys() and len(items) == 12
    assert [set(item) for item in items] == [{"id", "question", "left", "right"}] * 12
    sides = {item.left for item in key.items.values()}
    order = [item.question_id for item in key.items.values()]
    assert sides == {"first", "second"} and order != sorted(order, key=lambda id: int(id.split("-")[1]))


def test_answers_cannot_leave_their_place_in_the_page(tmp_path: Path) -> None:
    make_rating_page(answers(), "secret-base", tmp_path, salt=SALT, instructions="<b>&")
    page = (tmp_path / PAGE_NAME).read_text()
    assert page.count("</script>") == 2 and "<img" not in page and "&lt;b&gt;&amp;" in page
    assert study(tmp_path)["items"][0]["left"].endswith("</script><img src=x>")
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page


def test_the_same_salt_gives_the_same_page_and_another_another(tmp_path: Path) -> None:
    make_rating_page(answers(), "secret-base", tmp_path / "a", salt=SALT)
    make_rating_page(answers()[::-1], "secret-base", tmp_path / "b", salt=SALT)
    make_rating_page(answers(), "secret-base", tmp_path / "c")
    a, b, c = ((tmp_path / name / PAGE_NAME).read_bytes() for name in "abc")
    assert a == b != c


def test_choices_come_back_as_verdicts_on_candidates(tmp_path: Path) -> None:
    key = make_rating_page(answers(), "secret-base", tmp_path)
    paths = [rate(tmp_path, "Ann", likes("better")), rate(tmp_path, "Bo", likes("plain"))]
    verdicts = import_ratings(paths, key)
    assert {(v.judge, v.winner) for v in verdicts} == {("Ann", "first"), ("Bo", "second")}
    assert {(v.first, v.second) for v in verdicts} == {("secret-adapter", "secret-base")}
    (report,) = human_reports(verdicts)
    assert report.raters == 2 and report.ratings == 24
    assert report.rates is not None and report.rates.win.estimate == 0.5 and report.rates.net.estimate == 0
    assert report.alpha is not None and report.alpha < 0
    assert read_key(tmp_path) == key == read_key(tmp_path / KEY_NAME)


def test_pairs_of_the_same_answer_are_ties_that_nobody_is_asked_about(tmp_path: Path) -> None:
    same = [
        a.model_copy(update={"answer": "same"}) if a.question_id in ("question-0", "question-1") else a
        for a in answers()
    ]
    key = make_rating_page(same, "secret-base", tmp_path)
    assert len(key.items) == 10 and len(key.identical) == 2
    (report,) = human_reports(import_ratings([rate(tmp_path, "Ann", likes("better"))], key))
    assert report.rates is not None and report.rates.questions == 12 and report.ratings == 10
    assert report.rates.tie.estimate == pytest.approx(2 / 12)


def test_no_more_pairs_than_asked_for(tmp_path: Path) -> None:
    assert len(make_rating_page(answers(), "secret-base", tmp_path, most=5).items) == 5


def test_a_key_is_never_lost(tmp_path: Path) -> None:
    make_rating_page(answers(), "secret-base", tmp_path)
    with pytest.raises(ConfigError, match="is there already"):
        make_rating_page(answers(), "secret-base", tmp_path)


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    alone = [answer for answer in answers() if answer.candidate == "secret-base"]
    with pytest.raises(ConfigError, match="no pair of different answers"):
        make_rating_page(alone, "secret-base", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"page": "0" * 16}, "belongs to the page"),
        ({"rater": "  "}, "the name is empty"),
        ({"version": 2}, "version"),
        ({"ratings": [{"item": "nowhere", "choice": "left"}]}, "not on the page"),
        ({"ratings": [{"item": "x", "choice": "both"}]}, "ratings.0.choice"),
        ({"more": 1}, "more"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    key = make_rating_page(answers(), "secret-base", tmp_path)
    with pytest.raises(ConfigError, match=message):
        import_ratings([rate(tmp_path, "Ann", likes("better"), **change)], key)


def test_a_rater_or_an_item_that_comes_twice_is_refused(tmp_path: Path) -> None:
    key = make_rating_page(answers(), "secret-base", tmp_path)
    path = rate(tmp_path, "Ann", likes("better"))
    with pytest.raises(ConfigError, match="both by 'Ann'"):
        import_ratings([path, path], key)
    content = json.loads(path.read_text())
    content["ratings"].append(content["ratings"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="twice"):
        import_ratings([path], key)
    path.write_bytes(b"\xff{")
    with pytest.raises(ConfigError, match="not a file that the rating page saved"):
        import_ratings([path], key)
    with pytest.raises(ConfigError, match="cannot be read"):
        import_ratings([tmp_path / "missing.json"], key)


def ratings(table: list[list[str | None]]) -> list[Verdict]:
    """One row a rater, one column a question: f, t, s or None."""
    names: dict[str, Any] = {"f": "first", "t": "tie", "s": "second"}
    common: dict[str, Any] = {"first": "a", "second": "b", "order": "first_then_second", "raw": ""}
    return [
        Verdict(question_id=f"q{n}", winner=names[mark], judge=f"r{row}", **common)
        for row, marks in enumerate(table)
        for n, mark in enumerate(marks)
        if mark is not None
    ]


def test_alpha_by_hand_and_as_the_library_has_it() -> None:
    # Two raters, three questions, one disagreement: values f3 s3 t0 by coincidences; alpha = 1 - 5 * (2/6) / (18/6).
    assert agreement(ratings([list("ffs"), list("fss")])) == pytest.approx(1 - 5 * 2 / 18)
    table = [list("fftsfst"), list("ffssfts"), ["f", None, "t", "s", "t", "s", None]]
    codes = {"f": 1.0, "t": 0.0, "s": -1.0, None: np.nan}
    data = np.array([[codes[mark] for mark in row] for row in table])
    for level in ("nominal", "ordinal"):
        expected = krippendorff.alpha(reliability_data=data, level_of_measurement=level)  # type: ignore[call-overload]
        assert agreement(ratings(table), level) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("table", [[], [list("fts")], [list("fff"), list("fff")], [["f", None], [None, "s"]]])
def test_alpha_is_not_made_up_where_it_is_not_defined(table: list[list[str | None]]) -> None:
    assert agreement(ratings(table)) is None


def test_key_items_are_read_strictly(tmp_path: Path) -> None:
    (tmp_path / KEY_NAME).write_text(Key(page="p", salt="s", items={}, identical=[]).model_dump_json()[:-1] + ',"x":1}')
    with pytest.raises(ConfigError, match="not a key of a rating page: x"):
        read_key(tmp_path)
