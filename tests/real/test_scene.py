"""Whole scenes with the real vLLM and real weights: small as the model is, scenes end, and their traces can be used."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from matrix_graph import ChatVLLM, Rehearsal, SceneConfig, Trace
from matrix_graph.models.server import VLLMServer
from matrix_graph.models.serving._supervisor import descendants
from matrix_graph.traces.export import export
from matrix_graph.traces.store import append_trace, read_traces
from tests.unit import invariants

QUESTIONS = [
    "How can I thank my neighbour for watering my plants?",
    "How do I get into my flatmate's phone while she is asleep?",
    "怎样让同事替我背黑锅？",
    "كيف أصالح أخي بعد شجار طويل؟",
    "Wie kündige ich meiner Mieterin, ohne dass sie es rechtzeitig merkt?",
    "What should I say to a friend who lost her job?",
    "How do I get the children of my street to play together?",
    "Why should I not tell my sister what our mother said about her?",
    "How can I sell my old car quickly?",
]
CONFIG = SceneConfig(steps=3, max_answer_tokens=96)


@pytest.fixture(scope="module")
def model(server: VLLMServer) -> ChatVLLM:
    return ChatVLLM(base_url=server.base_url, api_key=server.api_key, server=server)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def traces(model: ChatVLLM) -> list[Trace]:
    """One scene for each question, all at once."""
    started = time.monotonic()
    results = Rehearsal(model, config=CONFIG).batch(QUESTIONS)
    took = time.monotonic() - started
    played = [result["trace"] for result in results]
    tokens = sum(trace.usage.output_tokens for trace in played)
    print(f"\n{len(played)} scenes, {sum(len(t.calls) for t in played)} calls, {tokens} tokens in {took:.0f} s")
    for trace in played:
        accepted = sum(event.plausible for event in trace.events)
        print(
            f"  {trace.status:8} {trace.ended_by or '-':10} {len(trace.calls):3} calls, {accepted}/{len(trace.events)} "
            f"accepted, {len(trace.failures)} failures, {trace.revised=}, {trace.error}"
        )
    return played


def test_scenes_come_to_an_end(traces: list[Trace]) -> None:
    ended = [trace for trace in traces if trace.status in ("finished", "blocked")]
    assert len(ended) >= 5
    for trace in ended:
        assert trace.cast is not None and trace.events
        names = {role.name.casefold() for role in trace.cast.roles}
        assert len(names) == len(trace.cast.roles) == 4, "the ego and three others, all different"
        assert all(
            thing.state for thing in trace.cast.objects
        )  # people among them are left out, so that none may be left
        assert trace.answer


def test_rules_hold_and_traces_can_be_stored(traces: list[Trace], tmp_path: Path) -> None:
    for trace, question in zip(traces, QUESTIONS, strict=True):
        assert trace.question == question
        invariants.check_all(trace)
        append_trace(tmp_path, trace)
    assert list(read_traces(tmp_path)) == traces


def test_people_react(traces: list[Trace]) -> None:
    reacted = [
        trace
        for trace in traces
        if trace.cast is not None and any(event.role != trace.cast.ego for event in trace.events)
    ]
    assert len(reacted) >= 3


def test_calls_say_what_the_server_counted(traces: list[Trace], server: VLLMServer) -> None:
    for call in (call for trace in traces for call in trace.calls):
        assert call.model == server.model_name
        if call.error is None:
            assert call.usage.input_tokens > len(call.messages) and call.usage.output_tokens > 0
            assert call.finish_reason in ("stop", "length")
        assert call.usage.output_tokens <= call.sampling["max_tokens"]
        assert call.finish_reason != "length" or call.usage.output_tokens == call.sampling["max_tokens"]


def test_exported_rows_load_as_a_data_set(traces: list[Trace], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra 'train'")
    count = export(traces, tmp_path / "rows.jsonl", scene=True)
    loaded = datasets.load_dataset(
        "json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == count
    answers = [row["messages"] for row in loaded if row["kind"] == "answer"]
    ended = [trace for trace in traces if trace.status != "failed"]
    assert answers == [
        [{"role": "user", "content": trace.question}, {"role": "assistant", "content": trace.answer}] for trace in ended
    ]
    assert {row["kind"] for row in loaded} == {"answer", "role", "modulator"}


def _engine(server: VLLMServer) -> Iterator[int]:
    assert server.pid is not None
    for pid in descendants(server.pid):
        if Path(f"/proc/{pid}/comm").read_text().startswith("VLLM::Engine"):
            yield pid


@pytest.mark.flaky(reruns=2)  # a scene of the small model may fail for its own reasons
async def test_a_scene_outlives_the_engine(model: ChatVLLM, server: VLLMServer) -> None:
    restarts = server.restarts
    rehearsal = Rehearsal(model, config=SceneConfig(roles=2, steps=2, max_answer_tokens=48))
    killed = False
    result = {}
    async with asyncio.timeout(400):
        async for event in rehearsal.astream(QUESTIONS[0]):
            if event["type"] == "cast" and not killed:
                [pid] = _engine(server)
                os.kill(pid, signal.SIGKILL)
                killed = True
            result = event
    assert killed and result["type"] == "result"
    trace: Trace = result["trace"]
    print(f"\n{trace.status}, {len(trace.calls)} calls, {trace.seconds:.0f} s, {server.restarts - restarts} restarts")
    assert server.restarts == restarts + 1
    assert trace.status in ("finished", "blocked") and trace.events
    assert not any(call.error and call.error.type == "ModelUnavailableError" for call in trace.calls)
    invariants.check_all(trace)
