"""An alignment's own decisions: what is done, what may change, what is kept apart, and what the page shows."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from matrix_graph.align.exporting import fitting_share
from matrix_graph.align.job import Job
from matrix_graph.align.ledger import Ledger
from matrix_graph.align.options import AlignOptions, adapter_name, most_compared, recipe_for, scene_for
from matrix_graph.align.page import to_html, write_page
from matrix_graph.align.record import (
    RECORD_NAME,
    STAGES,
    AlignRecord,
    marks,
    read_align_record,
    unchanged,
    write_align_record,
)
from matrix_graph.align.runner import align
from matrix_graph.align.serving import with_adapter
from matrix_graph.align.target import Target, own_target
from matrix_graph.align.training import _error
from matrix_graph.align.voice import Voice
from matrix_graph.align.words import estimate, outcome, outlook
from matrix_graph.config import Settings, load_settings
from matrix_graph.errors import ConfigError, ExportError, PrerequisiteError, ServerError, SettingsChangedError
from matrix_graph.evaluate.records import AnswerRecord, Plan, Question
from matrix_graph.traces.export.options import Include
from matrix_graph.traces.export.pipeline import is_validation
from matrix_graph.train.errors import TrainingError
from matrix_graph.train.recipe import RECIPES, Recipe

HOSTILE = '</td></table><script>alert(1)</script><img src=x onerror="alert(2)">{{7*7}} & "quoted" \x1b[31m \u202egnp'


def job_of(folder: Path, **changes: Any) -> Job:
    questions = folder / "questions.jsonl"
    if not questions.exists():
        questions.write_text('{"question": "How?"}\n')
    out = folder / "out"
    out.mkdir(exist_ok=True)
    given: dict[str, Any] = {
        "questions": questions,
        "out": out,
        "settings": Settings(),
        "options": AlignOptions(),
        "target": Target("/models/kind-8b", "kind-8b"),
        "recipe": Recipe(),
        "compared": 100,
        "name": "out",
        "voice": Voice(Console(file=io.StringIO())),
    }
    return Job(**{**given, **changes})


def finish(job: Job, ledger: Ledger, *names: str) -> None:
    """Do stages, as far as their files go."""
    made = {
        "run": [job.run / "traces.jsonl"],
        "export": [job.rows, job.held_rows],
        "train": [job.adapter / "adapter_model.safetensors", job.adapter / "adapter_config.json"],
        "serve": [],
        "compare": [job.compare / "answers.jsonl"],
    }
    for name in STAGES:
        if name not in names:
            continue
        stage = ledger.begin(name)
        for path in made[name]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"made by {name}")
        ledger.note_files(stage)
        stage.state = "done"
        ledger.keep()


def done(ledger: Ledger) -> list[str]:
    return [name for name in STAGES if ledger.is_done(name)]


# ---- the split ------------------------------------------------------------------------------------------------------


@given(st.lists(st.text("abc \u00df", min_size=1, max_size=8), min_size=1, max_size=40), st.floats(0.001, 0.999))
def test_two_questions_are_kept_apart_and_one_is_learnt_from(questions: list[str], share: float) -> None:
    different = {" ".join(question.split()).casefold() for question in questions}
    if len(different) < 3:
        with pytest.raises(ExportError, match=f"{len(different)} different question"):
            fitting_share(questions, share)
        return
    found = fitting_share(questions, share)
    held = sum(is_validation(question, found) for question in different)
    asked_for = sum(is_validation(question, share) for question in different)
    assert 0 < found < 1 and 2 <= held < len(different)
    assert found == share if 2 <= asked_for < len(different) else held == 2


# ---- what is asked for ----------------------------------------------------------------------------------------------


def test_the_bundled_model_gets_small_scenes_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MATRIX_GRAPH_SCENE__ROLES", raising=False)
    scene = scene_for(load_settings(None, scene={"steps": 5}), bundled=True)
    assert (scene.roles, scene.steps, scene.max_answer_tokens) == (2, 5, 384)
    assert scene_for(load_settings(None), bundled=False) == load_settings(None).scene
    monkeypatch.setenv("MATRIX_GRAPH_SCENE__ROLES", "3")
    assert scene_for(load_settings(None), bundled=True).roles == 3
    assert recipe_for(AlignOptions(), bundled=True) == RECIPES["smoke"]
    assert recipe_for(AlignOptions(), bundled=False) == RECIPES["paper"]
    assert recipe_for(AlignOptions(recipe="8b"), bundled=True) == RECIPES["8b"]
    assert (most_compared(AlignOptions(), bundled=True), most_compared(AlignOptions(), bundled=False)) == (8, 100)
    assert own_target(Settings()).bundled and not Target("/models/kind-8b", "kind-8b").bundled


def test_the_adapter_has_a_name_that_everybody_takes() -> None:
    assert adapter_name(AlignOptions(), Path("runs/my first: try"), "kind") == "my-first-try"
    assert adapter_name(AlignOptions(), Path("runs/base"), "kind") == "base-adapter"
    assert adapter_name(AlignOptions(), Path("runs/kind"), "kind") == "kind-adapter"
    assert adapter_name(AlignOptions(), Path("runs/???"), "kind") == "adapter"
    assert adapter_name(AlignOptions(name="kind-2"), Path("runs/x"), "kind") == "kind-2"
    for name in ("base", "kind", "a=b", "a,b", "", "x" * 61, "../up"):
        with pytest.raises(ConfigError, match="cannot be called"):
            adapter_name(AlignOptions(name=name), Path("runs/x"), "kind")


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="validation"):
        AlignOptions.of(validation=1.0)
    with pytest.raises(ConfigError, match=r"serve.*cannot be done again"):
        align("questions.jsonl", "nowhere", redo="serve")  # type: ignore[arg-type]
    assert not Path("nowhere").exists()


def test_our_server_has_room_for_the_adapters_rank(tmp_path: Path) -> None:
    for rank, room in ((8, 16), (16, 16), (20, 32), (512, 512)):
        server = with_adapter(job_of(tmp_path, recipe=Recipe(rank=rank)), tmp_path).server
        assert server.max_lora_rank == room and server.enable_lora and server.adapters == {"out": tmp_path}


# ---- the record and the ledger --------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    assert read_align_record(tmp_path) is None
    record = AlignRecord(questions="q\ud800.jsonl", model="m", weights=None, bundled=True, name="n", settings={})
    write_align_record(tmp_path, record)
    known = read_align_record(tmp_path)
    assert known is not None and known.model_dump(exclude={"questions"}) == record.model_dump(exclude={"questions"})
    content = json.loads((tmp_path / RECORD_NAME).read_text())
    content["schema_version"] = 2
    (tmp_path / RECORD_NAME).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"no `align` of this release(.|\n)*schema_version"):
        read_align_record(tmp_path)
    (tmp_path / RECORD_NAME).write_text("{")
    with pytest.raises(ConfigError, match="Name another --out"):
        read_align_record(tmp_path)


def test_files_are_known_by_hash_and_traces_by_size(tmp_path: Path) -> None:
    rows, traces = tmp_path / "rows.jsonl", tmp_path / "traces.jsonl"
    rows.write_text("one")
    traces.write_text("one")
    known = marks(tmp_path, [rows, traces, tmp_path / "missing"])
    assert set(known) == {"rows.jsonl", "traces.jsonl"} and unchanged(tmp_path, known)
    traces.write_text("two")
    assert unchanged(tmp_path, known)
    rows.write_text("two")
    assert not unchanged(tmp_path, known)
    rows.write_text("one")
    traces.write_text("three")
    assert not unchanged(tmp_path, known)
    traces.unlink()
    assert not unchanged(tmp_path, known)


def test_what_was_made_of_something_else_is_made_again(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    ledger = Ledger(job, None, None)
    finish(job, ledger, *STAGES)
    assert done(Ledger(job, read_align_record(job.out), None)) == list(STAGES)

    job.rows.write_text("other rows")  # somebody changed them: all that follows from them is void
    ledger = Ledger(job, read_align_record(job.out), None)
    assert done(ledger) == ["run", "train", "serve", "compare"]
    finish(job, ledger, "export")
    assert done(ledger) == list(STAGES)  # the same rows again: what was made of them still holds

    (job.run / "traces.jsonl").write_text("more scenes than before")
    ledger = Ledger(job, read_align_record(job.out), None)
    assert "run" not in done(ledger)
    stage = ledger.begin("run")
    assert (job.run / "traces.jsonl").read_text() == "more scenes than before"  # scenes are never deleted
    ledger.note_files(stage)
    stage.state = "done"
    assert done(ledger) == ["run", "train", "serve", "compare"]
    stage = ledger.begin("export")
    assert not job.rows.exists()
    job.rows.parent.mkdir()
    job.rows.write_text("new rows")
    ledger.note_files(stage)
    stage.state = "done"
    assert done(ledger) == ["run", "export", "serve"]
    ledger.begin("train")
    assert not job.adapter.exists() and stage.starts == 1 and done(ledger) == ["run", "export"]


def test_a_stage_that_was_killed_goes_on_with_what_it_has(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    ledger = Ledger(job, None, None)
    finish(job, ledger, "run", "export")
    ledger.begin("train")
    ledger.keep()
    (job.adapter / "checkpoints").mkdir(parents=True)
    again = Ledger(job, read_align_record(job.out), None)
    assert done(again) == ["run", "export"]
    assert again.begin("train").starts == 2 and (job.adapter / "checkpoints").exists()


def test_changed_settings_are_refused_with_what_to_do(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    finish(job, Ledger(job, None, None), *STAGES)
    scenes = Settings(scene={"roles": 2})  # type: ignore[arg-type]
    with pytest.raises(SettingsChangedError, match=r"run\.scene\.roles: 3 -> 2\nGive .* name another --out\.$"):
        Ledger(job_of(tmp_path, settings=scenes), read_align_record(job.out), None)
    trained = job_of(tmp_path, recipe=RECIPES["8b"], options=AlignOptions(include=frozenset({Include.roles})))
    with pytest.raises(SettingsChangedError, match=r'export\.include: \[\] -> \["roles"\](.|\n)*--redo export'):
        Ledger(trained, read_align_record(job.out), None)
    other = job_of(tmp_path, recipe=RECIPES["8b"].model_copy(update={"max_length": 1024}))
    with pytest.raises(SettingsChangedError, match=r"train\.recipe\.alpha: 16\.0 -> 32(.|\n)*--redo train"):
        Ledger(other, read_align_record(job.out), None)
    with pytest.raises(SettingsChangedError, match="--redo train"):
        Ledger(other, read_align_record(job.out), "compare")
    ledger = Ledger(other, read_align_record(job.out), "train")
    assert done(ledger) == ["run", "export"]
    ledger.begin("train")
    assert not job.adapter.exists() and job.rows.exists() and (job.run / "traces.jsonl").exists()
    job.questions.write_text('{"question": "Why?"}\n')
    with pytest.raises(SettingsChangedError, match=r"run\.questions"):
        Ledger(job, read_align_record(job.out), None)


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    job.adapter.mkdir()
    with pytest.raises(ConfigError, match=r"holds adapter, but no align\.json"):
        Ledger(job, None, None)
    with pytest.raises(ConfigError, match=r"cannot be read: No such file"):
        Ledger(job_of(tmp_path, questions=tmp_path / "missing.jsonl"), None, None)
    with pytest.raises(ConfigError, match="not a regular file"):
        Ledger(job_of(tmp_path, questions=tmp_path), None, None)


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_every_line_says_its_stage() -> None:
    stream = io.StringIO()
    voice = Voice(Console(file=stream, width=40))
    voice.say("before")
    with voice.stage(2, 5, "export"):
        voice.console.print("part", end="")
        voice.console.print(" of a line\nanother")
        voice.say("long " * 20 + "\x1b[31mred\nand more")
    voice.say("after")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "before" and lines[-1] == "after"
    assert lines[1:3] == ["2 of 5, export: part of a line", "2 of 5, export: another"]
    assert len(lines) == 5 and lines[3].startswith("2 of 5, export: long long") and "\x1b" not in lines[3]


def test_estimates_are_given_where_they_were_measured(tmp_path: Path) -> None:
    bundled = job_of(tmp_path, target=Target(None, "SmolLM2"), recipe=RECIPES["smoke"], compared=8)
    seconds = {name: estimate(name, bundled, 24) for name in STAGES}
    assert all(value is not None and value > 0 for value in seconds.values())
    assert sum(value or 0 for value in seconds.values()) < 1800  # the promise for 24 questions
    assert "run about" in outlook(bundled, 24) and "24 questions" in outlook(bundled, 24)
    assert estimate("run", job_of(tmp_path), 24) is None and "about" not in outlook(job_of(tmp_path), 24)
    assert estimate("run", bundled, None) is None


def test_a_trainings_end_becomes_an_error_of_its_kind() -> None:
    told = [json.dumps({"type": "PrerequisiteError", "message": "run `pip install x`"})]
    assert isinstance(_error(1, told), PrerequisiteError) and str(_error(1, told)) == "run `pip install x`"
    assert isinstance(_error(1, [json.dumps({"type": "Unknown", "message": "m"})]), TrainingError)
    assert isinstance(_error(1, [json.dumps({"type": "ServerError", "message": "m"})]), ServerError)
    assert "signal 9" in str(_error(-9, [])) and "memory" in str(_error(-9, []))
    assert "exit code 3" in str(_error(3, ["not JSON"]))
    assert isinstance(_error(130, []), KeyboardInterrupt)


# ---- the page -------------------------------------------------------------------------------------------------------

FACTS: dict[str, dict[str, Any]] = {
    "run": {"scenes": 24, "finished": 22, "blocked": 1, "failed": 1, "revised": 9, "rejected rows": 2},
    "export": {
        "rows": 20, "rows kept apart": 2, "left out": {"too long": 1}, "tokens": 4000, "longest row": 300,
    },
    "train": {
        "steps": 20, "examples": 20, "first loss": 3.2, "last loss": 1.1, "validation loss": None, "left out": {},
        "device": "cpu",
    },
    "serve": {"name": "out", "base": "m", "server": HOSTILE},
    "compare": {"questions": 2, "failed": 1, "the same": 1, "words": {"base": 12.4, "out": None}},
}  # fmt: skip


class Page(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def finished(folder: Path) -> AlignRecord:
    record = AlignRecord(questions=HOSTILE, model=HOSTILE, weights=None, bundled=True, name="out", settings={"run": {}})
    for stage in record.stages:
        stage.state, stage.starts, stage.seconds, stage.facts = "done", 2, 61.0, FACTS[stage.name]
    compare = folder / "compare"
    compare.mkdir()
    ids = ["q0", "q1"]
    plan = Plan(candidates={"base": {}, "out": {}}, questions=2, version="0")
    (compare / "evaluation.json").write_text(plan.model_dump_json())
    questions = [Question(id=id, question=HOSTILE) for id in ids]
    (compare / "questions.jsonl").write_bytes(b"".join(question.to_line() + b"\n" for question in questions))
    answers = [
        AnswerRecord(
            candidate=name, question_id=id, question=HOSTILE, answer=answer, calls=1, input_tokens=1, output_tokens=1,
            seconds=1.0, settings={},
        )
        for name, id, answer in [
            ("base", "q0", HOSTILE), ("out", "q0", HOSTILE), ("base", "q1", "a base answer"), ("out", "q1", None),
        ]
    ]  # fmt: skip
    (compare / "answers.jsonl").write_bytes(b"".join(answer.to_line() + b"\n" for answer in answers))
    (folder / "run").mkdir()
    (folder / "run" / "report.html").write_text("")
    return record


def test_the_page_shows_everything_as_text_alone(tmp_path: Path) -> None:
    record = finished(tmp_path)
    html = to_html(tmp_path, record)
    page = Page(html)
    text = {"h1", "h2", "h3", "p", "b", "span", "a", "pre", "details", "summary", "ol", "li", "div"}
    table = {"table", "thead", "tbody", "tr", "th", "td"}
    assert page.tags <= text | table | {"html", "head", "meta", "title", "style", "body", "main", "section"}
    assert not {name for name in page.attributes if name.startswith("on") or name == "style"}
    assert page.links == ["run/report.html"]  # the others are not there
    assert page.text.count("<script>alert(1)</script>") >= 4 and "\x1b" not in html and "\u202e" not in html
    assert "the same as the base model's" in page.text and "no answer" in page.text
    assert "shows that everything runs, not that the method aligns" in page.text
    assert "24 scenes: 22 finished, 1 blocked, 1 failed; 9 changed their answer; 2 rejected rows." in page.text
    assert "loss 3.200 -> 1.100" in page.text and "2 starts" in page.text
    assert "matrix-graph serve --adapter out=adapter" in page.text
    style = re.search(r"<style>(.*)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in html
    assert "prefers-color-scheme: dark" in style[1] and "url(" not in style[1] and "@import" not in style[1]


def test_the_page_of_an_alignment_that_failed(tmp_path: Path) -> None:
    record = AlignRecord(questions="q", model="m", weights="/m", bundled=False, name="out", settings={})
    write_page(tmp_path, record)
    page = Page((tmp_path / "align.html").read_text())
    assert page.text.count("waiting") == 5 and "Side by side" not in page.text and "135M" not in page.text
    stage = record.stage("run")
    stage.state, stage.message = "failed", HOSTILE
    text = Page(to_html(tmp_path, record)).text
    assert "<script>alert(1)</script>" in text and "And now" not in text
    assert outcome(stage) == ""
    (tmp_path / "align.html").unlink()
    (tmp_path / "align.html").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_page(tmp_path, record)
