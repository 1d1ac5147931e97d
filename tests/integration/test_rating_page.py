"""The rating page in a real browser: by keyboard alone, across a reload, offline, and back into verdicts."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from matrix_graph.evaluate.human import PAGE_NAME, import_ratings, make_rating_page
from matrix_graph.evaluate.human_report import human_reports
from matrix_graph.evaluate.records import AnswerRecord

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("MATRIX_GRAPH_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
NAUGHTY = '</script><img src=x onerror="document.title=1"><b>bold</b>'


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _without("playwright is not installed (pip install playwright)")
    if CHROMIUM is None:
        _without("no Chromium: none on the path, and MATRIX_GRAPH_CHROMIUM names none")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def _without(reason: str) -> None:
    if os.environ.get("CI_REQUIRE_BROWSER"):
        pytest.fail(f"CI_REQUIRE_BROWSER is set, and {reason}")
    pytest.skip(reason)


def answers(count: int = 20) -> list[AnswerRecord]:
    return [
        AnswerRecord(
            candidate=name,
            question_id=f"id-{n}",
            question=f"Question {n}? {NAUGHTY}",
            answer=f"{text} {n} {NAUGHTY}",
            calls=1,
            input_tokens=1,
            output_tokens=1,
            seconds=0.1,
            settings={},
        )
        for n in range(count)
        for name, text in (("the-base", "plain"), ("the-adapter", "better"))
    ]


class Watched:
    """A page, and all that it asked for, said or complained of."""

    def __init__(self, page: "Page", path: Path) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(path.as_uri())

    def left(self) -> str:
        return self.page.inner_text("#left")

    def choose_the_better(self) -> None:
        """One rating with one key: the digit for one side, the letter or the arrow for the other, in turn."""
        self.page.keyboard.press("1" if self.left().startswith("better") else "ArrowRight")


def begin(page: "Page", rater: str) -> None:
    page.keyboard.type(rater)  # the field has the focus
    page.keyboard.press("Enter")


def test_twenty_ratings_by_keyboard_alone_survive_a_reload_and_import(browser: "Browser", tmp_path: Path) -> None:
    key = make_rating_page(answers(), "the-base", tmp_path)
    context = browser.new_context(offline=True, accept_downloads=True)
    page = context.new_page()
    watched = Watched(page, tmp_path / PAGE_NAME)
    begin(page, "Ann a1 B2")  # keys of the page, typed into the field, rate nothing
    assert page.inner_text("#status") == "0 of 20 rated."
    for _ in range(9):
        watched.choose_the_better()
    page.keyboard.press("t")
    page.reload()
    assert page.inner_text("#status") == "10 of 20 rated."
    assert page.inner_text("#where") == "Question 11 of 20"
    page.keyboard.press("p")
    assert page.get_attribute("#choose-tie", "aria-pressed") == "true"
    watched.choose_the_better()  # on second thoughts
    for _ in range(10):
        watched.choose_the_better()
    assert page.inner_text("#status") == "20 of 20 rated. All are rated: save them with S."
    with page.expect_download() as download:
        page.keyboard.press("s")
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    verdicts = import_ratings([saved], key)
    assert len(verdicts) == 20 and {verdict.judge for verdict in verdicts} == {"Ann a1 B2"}
    assert {verdict.winner for verdict in verdicts} == {"first"} and verdicts[0].first == "the-adapter"
    (report,) = human_reports(verdicts)
    assert report.rates is not None and report.rates.win.estimate == 1 and report.rates.net.low > 0.7
    assert watched.errors == []
    assert {url.split(":")[0] for url in watched.requests} <= {"file", "blob"}
    context.close()


def test_nothing_in_the_page_tells_whose_answers_they_are(browser: "Browser", tmp_path: Path) -> None:
    key = make_rating_page(answers(6), "the-base", tmp_path)
    page = browser.new_page()
    watched = Watched(page, tmp_path / PAGE_NAME)
    begin(page, "Ann")
    seen = page.content() + (tmp_path / PAGE_NAME).read_text() + page.evaluate("JSON.stringify(localStorage)")
    for secret in ("the-base", "the-adapter", "id-0", key.salt):
        assert secret not in seen
    assert page.locator("img, b").count() == 0 and NAUGHTY in watched.left(), "answers are text, not markup"
    assert page.title() == "Which answer is better?"
    page.close()


def test_by_mouse_and_without_storage(browser: "Browser", tmp_path: Path) -> None:
    """A browser that keeps nothing says so, and the ratings can be saved all the same."""
    make_rating_page(answers(3), "the-base", tmp_path)
    page = browser.new_page()
    page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error('no') }})")
    Watched(page, tmp_path / PAGE_NAME)
    begin(page, "Bo")
    for name in ("#choose-left", "#choose-tie"):
        page.click(name)
    assert "This browser keeps nothing" in page.inner_text("#status")
    page.keyboard.press("Control+a")  # a shortcut of the browser is no rating
    with page.expect_download() as download:
        page.click("#save")
    content: dict[str, Any] = json.loads(Path(download.value.path()).read_text())
    assert [rating["choice"] for rating in content["ratings"]] == ["left", "tie"]
    page.close()


def test_a_key_that_is_held_down_rates_once(browser: "Browser", tmp_path: Path) -> None:
    make_rating_page(answers(5), "the-base", tmp_path)
    page = browser.new_page()
    Watched(page, tmp_path / PAGE_NAME)
    begin(page, "Cem")
    for _ in range(4):
        page.keyboard.down("1")  # further downs without an up are repeats
    page.keyboard.up("1")
    assert page.inner_text("#status") == "1 of 5 rated."
    page.close()


def test_the_page_reads_well_when_narrow_and_dark(browser: "Browser", tmp_path: Path) -> None:
    make_rating_page(answers(3), "the-base", tmp_path)
    context = browser.new_context(viewport={"width": 360, "height": 640}, color_scheme="dark")
    page = context.new_page()
    Watched(page, tmp_path / PAGE_NAME)
    begin(page, "Dee")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    context.close()
