"""The commands human, quality and ablation, the embedding client and the judge, over real HTTP."""

import asyncio
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from aiohttp import web
from typer.testing import CliRunner, Result

from matrix_graph import ChatVLLM, Rehearsal, SceneConfig
from matrix_graph.commands.ablation import ablation
from matrix_graph.commands.human import human
from matrix_graph.commands.quality import quality
from matrix_graph.errors import MatrixGraphError, ModelError
from matrix_graph.evaluate.caricature import caricatures
from matrix_graph.evaluate.embedding import ServerEmbedder
from matrix_graph.evaluate.judge import Judge, judgements
from matrix_graph.evaluate.judge_report import judge_reports
from matrix_graph.traces.store import append_trace
from tests.integration.model_server import ModelServer
from tests.integration.scenes import busy, purpose
from tests.unit.scripted import ScriptedModel
from tests.unit.test_results import put, records


def command(function: Callable[..., None], *arguments: str) -> Result:
    app = typer.Typer()
    app.command()(function)
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit | MatrixGraphError):
        raise result.exception
    return result


async def embed(request: web.Request) -> web.Response:
    """Vectors that depend on the words alone, in another order than asked for, as the API allows."""
    body = await request.json()
    if body["model"] != "embedder":
        return web.json_response({"error": {"message": "no such model"}}, status=404)
    data = []
    for index, text in enumerate(body["input"]):
        vector = [0.0] * 16
        for word in re.findall(r"\w+", text.casefold()):
            vector[zlib.crc32(word.encode()) % 16] += 1
        data.append({"index": index, "embedding": vector})
    return web.json_response({"data": data[::-1]})


@pytest.fixture
def server() -> Iterator[ModelServer]:
    server = ModelServer(reply=busy)
    server.routes.append(web.post("/v1/embeddings", embed))
    with server:
        yield server


async def scenes(folder: Path, count: int) -> None:
    for seed in range(count):
        model = ScriptedModel(seed=seed, plausible=0.9)
        append_trace(folder, (await Rehearsal(model, config=SceneConfig(roles=2, steps=3)).ainvoke("How?"))["trace"])


async def test_embeddings_come_in_the_order_of_the_texts_however_many(server: ModelServer) -> None:
    embedder = ServerEmbedder(server.base_url, "embedder", give_up_after=1)
    texts = [f"word{n}" for n in range(150)]
    vectors = await embedder.aembed_documents(texts)
    assert [vector.index(1.0) for vector in vectors] == [zlib.crc32(text.encode()) % 16 for text in texts]
    assert len([path for _, path in server.requests if path == "/v1/embeddings"]) == 3
    with pytest.raises(ModelError, match="no such model"):
        await ServerEmbedder(server.base_url, "other", give_up_after=1).aembed_documents(["x"])


async def test_embeddings_that_are_garbage_are_refused() -> None:
    async def one_too_few(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"index": 0, "embedding": [1.0, 2.0]}]})

    server = ModelServer()
    server.routes.append(web.post("/v1/embeddings", one_too_few))
    with server, pytest.raises(ModelError):
        await ServerEmbedder(server.base_url, "embedder", give_up_after=0.2).aembed_documents(["a", "b"])


async def test_quality_with_caricature_on_the_command_line(server: ModelServer, tmp_path: Path) -> None:
    await scenes(tmp_path, 4)
    model = f"{server.base_url}:embedder"
    found = await asyncio.to_thread(command, quality, str(tmp_path), "--embeddings", model, "--json")
    assert found.exit_code == 0, found.output
    content = json.loads(found.stdout)
    assert content["scenes"] == 4 and content["leaks"] == 0
    assert content["measures"]["exaggeration"]["scenes"] >= 1
    shown = await asyncio.to_thread(command, quality, str(tmp_path))
    assert "4 scenes, 0 failed, 0 leaks" in shown.stdout and "repetition" in shown.stdout
    assert "exaggeration" not in shown.stdout


async def test_quality_of_scenes_that_leak_leaves_with_code_1(tmp_path: Path) -> None:
    await scenes(tmp_path, 3)
    file = tmp_path / "traces.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    trace, call = next((t, c) for t in lines for c in t["calls"] if c["purpose"] == "act")
    other = next(role["name"] for role in trace["cast"]["roles"] if role["name"] != call["role"])
    call["messages"][-1]["content"] += f"\n- {other}: thinks of something else"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = await asyncio.to_thread(command, quality, str(tmp_path))
    assert found.exit_code == 1 and "1 leak\n" in found.stdout and f"leak in {trace['id']}" in found.stderr


@pytest.mark.parametrize("wrong", ["embedder", "ftp://x/v1:m", "http://x/v1", "http://x/v1:"])
def test_an_embedding_model_of_another_form_is_refused(tmp_path: Path, wrong: str) -> None:
    found = command(quality, str(tmp_path), "--embeddings", wrong)
    assert isinstance(found.exception, MatrixGraphError) and "URL:MODEL" in str(found.exception)


def test_people_on_the_command_line(tmp_path: Path) -> None:
    put(tmp_path, records())
    made = command(human, str(tmp_path), "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["pairs"] == 20
    page = (tmp_path / "rating.html").read_bytes()
    again = command(human, str(tmp_path), "--json")
    assert json.loads(again.stdout)["pairs"] == 20 and (tmp_path / "rating.html").read_bytes() == page
    match = re.search(r'id="study">(.*?)</script>', page.decode())
    assert match is not None
    study = json.loads(match[1])
    files = []
    for rater in ("Ann", "Bo"):
        ratings = [
            {"item": item["id"], "choice": "left" if item["left"].startswith("word") else "right"}
            for item in study["items"]
        ]
        content = {"format": "matrix-graph-ratings", "version": 1, "page": study["page"], "rater": rater}
        files.append(tmp_path / f"{rater}.json")
        files[-1].write_text(json.dumps({**content, "ratings": ratings}))
    found = command(human, str(tmp_path), *map(str, files))
    assert found.exit_code == 0, found.output
    assert "new against base: net 100.0%" in found.stdout and "2 raters, 40 ratings" in found.stdout
    assert json.loads((tmp_path / "results.json").read_text())["people"][0]["ratings"] == 40


async def test_chat_vllm_judges_within_the_three_words(server: ModelServer) -> None:
    kept = records()
    judge = Judge(ChatVLLM(base_url=server.base_url, model="fake-model"))
    verdicts = [await judge.verdict(one) for one in judgements(kept["answers"], "base")]
    assert all(body["structured_outputs"] == {"choice": ["A", "B", "tie"]} for body in server.bodies)
    assert [[m.content for m in v.messages] for v in verdicts] == [
        [message["content"] for message in body["messages"]] for body in server.bodies
    ]
    (report,) = judge_reports(verdicts, kept["answers"])
    assert report.verdicts == 40 and report.unreadable == report.failed == 0
    assert report.rates is not None and report.rates.questions == 20 and report.rates.net.holds(0)
    assert all(v.input_tokens > 0 and v.settings["judge"] == "fake-model" for v in verdicts)


def test_an_ablation_on_the_command_line_goes_on_where_it_stopped(server: ModelServer, tmp_path: Path) -> None:
    questions, out = tmp_path / "q.jsonl", tmp_path / "out"
    questions.write_text("".join(json.dumps({"id": f"q{n}", "question": f"How do I {n}?"}) + "\n" for n in range(3)))
    arguments: list[Any] = ["-q", str(questions), "--roles", "1", "--rounds", "1", "--judge", "base"]
    arguments += ["-o", str(out), "--base-url", server.base_url, "--json"]
    found = command(ablation, *arguments)
    assert found.exit_code == 0, found.output
    content = json.loads(found.stdout)
    assert [variant["name"] for variant in content["variants"]] == ["rehearsal", "roles=1", "rounds=1"]
    assert {variant["quality"]["scenes"] for variant in content["variants"]} == {3}
    assert {report["first"] for report in json.loads((out / "results.json").read_text())["judges"]} == {
        "roles=1",
        "rounds=1",
    }
    before, asked = (out / "ablation.json").read_bytes(), len(server.bodies)
    assert {purpose(body) for body in server.bodies} >= {"draft", "cast", "act", "judge"}
    again = command(ablation, *arguments)
    assert again.exit_code == 0 and len(server.bodies) == asked
    assert (out / "ablation.json").read_bytes() == before


async def test_caricature_of_scenes_from_a_server(server: ModelServer, tmp_path: Path) -> None:
    model = ChatVLLM(base_url=server.base_url)
    trace = (await Rehearsal(model, config=SceneConfig(roles=2, steps=3)).ainvoke("How do I ask?"))["trace"]
    assert trace.status == "finished"
    found = await caricatures([trace], ServerEmbedder(server.base_url, "embedder"))
    assert 0 <= found[trace.id]["individuation"] <= 1
