"""Models that think, and models without a system role, over real HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from matrix_graph import Rehearsal, SceneConfig
from matrix_graph.evaluate.judge import Judge, judgements
from matrix_graph.evaluate.records import AnswerRecord
from matrix_graph.models.wrapped import chat_model
from matrix_graph.records import Trace
from matrix_graph.scene.stage import Stage
from tests.integration.model_server import ModelServer
from tests.integration.random_reply import Reply
from tests.integration.scenes import busy, client
from tests.integration.strict_servers import KINDS as SERVERS
from tests.integration.strict_servers import StrictServer
from tests.integration.test_align import Place
from tests.integration.test_align import tiny as tiny
from tests.integration.thinking import MARK, Kind, thinks, without_system

KINDS: tuple[Kind, ...] = ("field", "tags", "closing tag")
SMALL = SceneConfig(roles=1, steps=1, max_action_tokens=16)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_scene_of_a_model_that_thinks(kind: Kind) -> None:
    with ModelServer(reply=thinks(busy, kind)) as server:
        trace: Trace = (await Rehearsal(client(server), config=SMALL).ainvoke("How?"))["trace"]
        assert trace.status == "finished", trace.error
        assert all(call.reasoning and MARK in call.reasoning for call in trace.calls)
        bare = [call.model_copy(update={"reasoning": None}) for call in trace.calls]
        assert MARK not in trace.model_copy(update={"calls": bare}).to_json_line()
        assert MARK not in json.dumps(server.bodies)  # it was shown to nobody
        # The first reply shows that it thinks; from then on every limit grows, as the record says.
        recorded = [call.sampling["max_tokens"] for call in trace.calls]
        assert sorted(recorded) == sorted(body["max_tokens"] for body in server.bodies)
        assert recorded[0] == 1536 and min(recorded[1:]) > 4000


@pytest.mark.parametrize(("thinking", "sent"), [("off", False), ("on", True)])
async def test_the_setting_reaches_every_call(thinking: str, sent: bool) -> None:
    with ModelServer(reply=thinks(busy, "field")) as server:
        model = client(server, thinking=thinking, max_thinking_tokens=300, request={"top_k": 20})
        trace: Trace = (await Rehearsal(model, config=SMALL).ainvoke("How?"))["trace"]
        assert trace.status == "finished", trace.error
        assert {body["chat_template_kwargs"]["enable_thinking"] for body in server.bodies} == {sent}
        assert {body["top_k"] for body in server.bodies} == {20}
        assert all((call.reasoning is not None) == sent for call in trace.calls)
        drafted = server.bodies[0]["max_tokens"]
        assert drafted == (1536 + 300 if sent else 1536)


async def test_a_judge_that_is_found_to_think_gets_room(tmp_path: Path) -> None:
    def replies(body: object) -> Reply:
        return Reply("A", reasoning=f"{MARK} " * 40)

    def answer(candidate: str) -> AnswerRecord:
        return AnswerRecord(
            candidate=candidate, question_id="q", question="How?", answer=candidate,
            calls=1, input_tokens=1, output_tokens=1, seconds=0.0, settings={},
        )  # fmt: skip

    with ModelServer(reply=replies) as server:
        judgement = next(iter(judgements([answer("one"), answer("two")], "two")))
        verdict = await Judge(client(server)).verdict(judgement)
        assert verdict.winner is not None and verdict.raw == "A" and verdict.error is None
        assert MARK not in verdict.model_dump_json()
        assert [body["max_tokens"] for body in server.bodies] == [16, 16 + 4096]
        server.reset()
        stubborn = await Judge(client(server, max_thinking_tokens=0)).verdict(judgement)
        assert stubborn.winner is None and stubborn.error is not None
        assert "went into the model's reasoning" in stubborn.error.message


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unfinished_thought_is_no_answer(kind: Kind) -> None:
    with ModelServer(reply=thinks(busy, kind)) as server:
        config = SceneConfig(roles=1, steps=1, max_answer_tokens=20)
        model = client(server, thinking="on", max_thinking_tokens=20)
        trace: Trace = (await Rehearsal(model, config=config).ainvoke("How?"))["trace"]
        assert trace.status == "failed" and trace.draft is None and trace.error is not None
        assert "went into the model's reasoning" in trace.error.message
        assert "Set `thinking: off`, or raise `max_thinking_tokens` (now 20)" in trace.error.message


@pytest.mark.parametrize("kind", ["field", "tags"])
async def test_streams_have_reasoning_blocks(kind: Kind) -> None:
    with ModelServer(reply=thinks(lambda body: "Yes, it is.", kind)) as server:
        chunks = [chunk async for chunk in client(server).astream("Is it?")]
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole = whole + chunk
        assert whole.text == "Yes, it is." and len(chunks) > 3
        assert [block["type"] for block in whole.content_blocks] == ["reasoning", "text"]
        assert MARK in whole.additional_kwargs["reasoning_content"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_of_a_choice_that_is_sent_as_a_schema_has_its_reasoning(kind: Kind) -> None:
    with StrictServer(SERVERS["SGLang"]) as server:
        server.reply = thinks(lambda body: None, kind)
        asked = client(server).astream("Is it?", structured_outputs={"choice": ["yes", "no"]})
        (chunk,) = [chunk async for chunk in asked if chunk.content or chunk.additional_kwargs]
    assert chunk.text in ("yes", "no") and MARK in chunk.additional_kwargs["reasoning_content"]


async def test_a_wrapped_model_that_thinks_has_room_beside_a_limit_that_is_bound_to_it() -> None:
    with ModelServer(reply=thinks(busy, "field")) as server:
        model = client(server, thinking="on", max_thinking_tokens=300)
        bound = model.bind(max_tokens=700).with_retry(stop_after_attempt=1)
        trace: Trace = (await Rehearsal(bound, config=SMALL).ainvoke("How?"))["trace"]
        assert trace.status == "finished", trace.error
        assert {body["max_tokens"] for body in server.bodies} == {1000}
        assert {call.sampling["max_tokens"] for call in trace.calls} == {1000}
        server.reset()
        without = model.bind(max_tokens=700, max_thinking_tokens=0)
        await Rehearsal(without, config=SMALL).ainvoke("How?")
        assert {body["max_tokens"] for body in server.bodies} == {700}
        stage = Stage(chat_model(bound, "a test"), SMALL, lambda event: None)
        assert await stage._thinking_room() == 300


@pytest.mark.parametrize("stream", [False, True])
async def test_the_system_text_is_folded_where_it_is_refused(stream: bool) -> None:
    with ModelServer(reply=without_system(busy)) as server:
        model = client(server, streaming=stream)
        trace: Trace = (await Rehearsal(model, config=SMALL).ainvoke("How?"))["trace"]
        assert trace.status in ("finished", "blocked"), trace.error  # chance decides what is plausible
        refused = [call for call in server.calls if call.status == 400]
        assert 1 <= len(refused) <= 2  # two calls are the first ones, side by side
        sent = [body["messages"] for call, body in zip(server.calls, server.bodies, strict=True) if call.status == 200]
        recorded = [[message.model_dump() for message in call.messages] for call in trace.calls]
        assert sorted(recorded, key=str) == sorted(sent, key=str)
        again: Trace = (await Rehearsal(client(server), config=SMALL).ainvoke("How?"))["trace"]
        assert again.status in ("finished", "blocked")
        assert [call for call in server.calls if call.status == 400] == refused  # found out once
        branch = await Rehearsal(client(server), config=SMALL).awhat_if(
            trace, round=1, verdict=(trace.events[0].role, False, "nobody is at home")
        )
        assert branch["status"] != "failed", branch["error"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["field", "tags"])
def test_align_from_end_to_end_with_a_model_that_thinks(kind: Kind, tiny: Path, tmp_path: Path) -> None:
    place = Place(tmp_path, tiny, count=4)
    with ModelServer(reply=thinks(busy, kind), models=("tiny",)) as server:
        code, _, errors = place.finish("--base-url", server.base_url)
        assert code == 0, errors
        assert MARK not in json.dumps(server.bodies)
    assert all(stage.state == "done" for stage in place.record.stages)
    held = {path.name for path in place.out.rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()}
    assert held == {"traces.jsonl"}
    assert (place.out / "export" / "sft.jsonl").exists() and (place.out / "compare" / "answers.jsonl").exists()
