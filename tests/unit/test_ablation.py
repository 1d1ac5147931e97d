"""Ablation: which ways to play there are, and what is read from scenes that were really played."""

from pathlib import Path

import pytest

from matrix_graph import Rehearsal, SceneConfig
from matrix_graph.commands.ablation import _numbers
from matrix_graph.errors import ConfigError, TraceError
from matrix_graph.evaluate import folder as evaluation
from matrix_graph.evaluate.ablation import FULL, WITHOUT, AblationResults, variants, write_ablation
from matrix_graph.evaluate.candidates.rehearsal import RehearsalCandidate
from matrix_graph.evaluate.leaks import leaks
from matrix_graph.evaluate.records import Question
from matrix_graph.evaluate.results import write_results
from matrix_graph.evaluate.runner import Evaluation
from matrix_graph.evaluate.scene_measures import scene_measures
from matrix_graph.traces.store import read_traces
from tests.unit.scripted import ScriptedModel

CONFIG = SceneConfig(roles=3, steps=2, temperature=0)


def test_every_variant_differs_in_one_setting() -> None:
    found = variants(CONFIG, roles=[1, 3, 5], steps=[4], rounds=[1])
    assert [way.name for way in found] == [FULL, "roles=1", "roles=5", "steps=4", "rounds=1"]
    assert found[0].scene == CONFIG and found[0].changed == {}
    for way in found[1:]:
        differing = {k: v for k, v in way.scene.model_dump().items() if v != getattr(CONFIG, k)}
        assert differing == way.changed and len(differing) == 1


MODULATOR = pytest.mark.skipif(
    "modulator" not in SceneConfig.model_fields, reason="this SceneConfig has no modulator setting"
)


@MODULATOR
def test_the_modulator_can_be_done_without() -> None:
    found = variants(CONFIG, without=WITHOUT)
    assert [way.changed for way in found[1:]] == [{"modulator": part} for part in WITHOUT]


@MODULATOR
@pytest.mark.parametrize("part", WITHOUT)
async def test_scenes_without_a_part_of_the_modulator(part: str) -> None:
    (way,) = variants(CONFIG, without=[part])[1:]
    model = ScriptedModel(seed=5, plausible=0.5)
    traces = [(await Rehearsal(model, config=way.scene).ainvoke(f"How {n}?"))["trace"] for n in range(5)]
    events = [event for trace in traces for event in trace.events]
    judged = [call for trace in traces for call in trace.calls if call.purpose == "judge"]
    reflected = [call for trace in traces for call in trace.calls if call.purpose == "reflect"]
    seen_by_all = all(
        len(event.observers) == len(trace.cast.roles) - 1
        for trace in traces
        if trace.cast
        for event in trace.events
        if event.plausible
    )
    assert events and all(trace.settings["modulator"] == part and leaks(trace) == [] for trace in traces)
    assert all(event.plausible for event in events) == (part != "everyone_sees")
    assert seen_by_all == (part != "plausible_all")
    assert bool(judged) == (part != "off")
    if part == "off":
        assert not any(event.changes or event.consequence for event in events)
        assert len(reflected) == len(traces), "reflection judges by the actions alone"


def test_what_cannot_be_played_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to vary"):
        variants(CONFIG, roles=[3])
    with pytest.raises(ConfigError, match=r"roles=0.*\n.*greater than or equal to 1"):
        variants(CONFIG, roles=[0])
    with pytest.raises(ConfigError, match="there are plausible_all, everyone_sees, off"):
        variants(CONFIG, without=["eyes"])
    for wrong in ("1,x", "-1", "1.5", "999999", "²"):
        with pytest.raises(ConfigError, match="whole numbers"):
            _numbers("--roles", wrong)
    assert _numbers("--roles", " 1, 12,") == [1, 12]


async def play(folder: Path) -> None:
    ways = variants(CONFIG, roles=[1], steps=[4])
    questions = [Question(id=f"q{n}", question=f"How do I do {n}?") for n in range(24)]
    candidates = {way.name: RehearsalCandidate(scene=way.scene) for way in ways}
    async with Evaluation(questions, candidates, ScriptedModel(seed=3), out=folder, baseline=FULL) as run:
        await run.run()


async def test_an_ablation_that_was_played(tmp_path: Path) -> None:
    await play(tmp_path)
    write_results(tmp_path, baseline=FULL)
    found = write_ablation(tmp_path)
    assert [variant.name for variant in found.variants] == [FULL, "roles=1", "steps=4"]
    assert found.baseline == FULL and all(variant.quality.leaks == 0 for variant in found.variants)
    roles = found.variants[1].quality.measures["roles"]
    assert roles is not None and roles.mean <= 2
    traces = {trace.id: trace for trace in read_traces(tmp_path)}
    calls: dict[tuple[str, str], float] = {}
    for answer in evaluation.read_answers(tmp_path):
        trace = traces[answer.trace_id or ""]
        if trace.status != "failed":
            calls[answer.candidate, answer.question_id] = scene_measures(trace)["calls"]
    both = [q for name, q in calls if name == FULL and ("roles=1", q) in calls]
    expected = sum(calls["roles=1", q] - calls[FULL, q] for q in both) / len(both)
    (fewer,) = [d for d in found.differences if (d.variant, d.measure) == ("roles=1", "calls")]
    assert fewer.questions == len(both) > 2
    assert fewer.interval is not None and fewer.interval.estimate == pytest.approx(expected) and expected < 0
    assert AblationResults.model_validate_json((tmp_path / "ablation.json").read_bytes()) == found
    page, table = (tmp_path / "ablation.html").read_text(), (tmp_path / "ablation.md").read_text()
    assert page.count("<svg") == 8 and "steps=4" in page
    assert "| measure | rehearsal | roles=1 | steps=4 |" in table and "| leaks | 0 | 0 | 0 |" in table
    before = [(tmp_path / f"ablation.{end}").read_bytes() for end in ("json", "md", "html")]
    write_ablation(tmp_path)
    assert before == [(tmp_path / f"ablation.{end}").read_bytes() for end in ("json", "md", "html")]


async def test_an_evaluation_without_scenes_is_no_ablation(tmp_path: Path) -> None:
    from matrix_graph.evaluate.records import Plan

    plan = Plan(candidates={"base": {"method": "base"}}, judge=None, questions=0, version="1")
    (tmp_path / evaluation.PLAN_NAME).write_text(plan.model_dump_json())
    with pytest.raises(TraceError, match="without scenes"):
        write_ablation(tmp_path)
