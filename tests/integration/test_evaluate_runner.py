"""Evaluations over real HTTP: everything asked once, whatever happens to server, program and disk in between."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from matrix_graph.errors import ConfigError, ModelError, ModelUnavailableError, SettingsChangedError
from matrix_graph.evaluate.adapters import load_adapters, require_served
from matrix_graph.evaluate.candidates.roster import roster_from
from matrix_graph.evaluate.carry_out import judge_from
from matrix_graph.evaluate.folder import (
    ANSWERS_NAME,
    TRACES_NAME,
    read_answers,
    read_scores,
    read_verdicts,
)
from matrix_graph.evaluate.measures import preference
from matrix_graph.evaluate.records import Question
from matrix_graph.evaluate.results import write_results
from matrix_graph.evaluate.runner import Evaluation
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.traces.store import read_traces
from tests.integration.model_server import Fault, ModelServer
from tests.unit.scripted import ScriptedModel
from tests.unit.test_adapter import make_adapter

ALL = (
    "base,rehearsal:roles=1:steps=1,critique-revise:revisions=1,self-align,safe-prompt,debate:agents=2,best-of-n:n=2,"
    "decrim:iterations=1,foresee,best-of-n:tokens=matched"
)
COMMAND = (
    "import typer\n"
    "from matrix_graph.commands.evaluate import evaluate\n"
    "from matrix_graph.commands.contrast import contrast\n"
    "from matrix_graph.errors import MatrixGraphError\n"
    "app = typer.Typer(); app.command()(evaluate); app.command()(contrast)\n"
    "try:\n    app()\n"
    "except MatrixGraphError as error:\n    typer.echo(f'error: {error}', err=True); raise SystemExit(1)\n"
)


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


class ScoringServer(ModelServer):
    """With `/tokenize` that gives characters, and log-probabilities: -1 a character, -2 one of the word "bad"."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scored: list[dict[str, Any]] = []
        self.routes += [web.post("/tokenize", self._characters), web.post("/v1/completions", self._completions)]

    async def _characters(self, request: web.Request) -> web.Response:
        body = await request.json()
        text = body.get("prompt")
        if text is None:
            text = "".join(f"<{turn['role']}>{turn['content']}" for turn in body["messages"])
            text += "<assistant>" if body["add_generation_prompt"] else ""
        return web.json_response({"tokens": [ord(letter) for letter in text]})

    async def _completions(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.scored.append(body)
        text = "".join(chr(token) for token in body["prompt"])
        worth = [-1.0] * len(text)
        if (at := text.find("bad")) >= 0:
            worth[at : at + 3] = [-2.0] * 3
        entries = [{str(token): {"logprob": value}} for token, value in zip(body["prompt"], worth, strict=True)]
        return web.json_response({"choices": [{"prompt_logprobs": [None, *entries[1:]], "text": ""}]})


def model_of(server: ModelServer, **options: Any) -> ChatVLLM:
    return ChatVLLM(base_url=server.base_url, **options)


def questions(count: int, **more: Any) -> list[Question]:
    return [
        Question.model_validate({"id": f"q{number}", "question": f"Why is {number} fair?", **more})
        for number in range(count)
    ]


async def run(asked: list[Question], candidates: str, model: Any, out: Path, **options: Any) -> Evaluation:
    async with Evaluation(asked, roster_from(candidates).candidates, model, out=out, **options) as evaluation:
        await evaluation.run()
    return evaluation


def started(folder: Path, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    import os

    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "VLLM_API_KEY": "", **environment},
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


async def asked(server: ModelServer, count: int) -> None:
    """Wait until a server was asked so often."""

    def wait() -> None:
        while len(server.calls) < count:
            time.sleep(0.005)

    await asyncio.wait_for(asyncio.to_thread(wait), 20)


def write_questions(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"id": f"q{n}", "question": f"Why is {n} fair?"}) + "\n" for n in range(count)))
    return path


# ---- all is asked, once -------------------------------------------------------------------------------------------


async def test_every_candidate_answers_every_question_within_the_limit(server: ModelServer, tmp_path: Path) -> None:
    server.delay = 0.005
    evaluation = await run(questions(6), ALL, model_of(server), tmp_path, max_requests=7)
    answers = read_answers(tmp_path)
    assert len(answers) == 10 * 6 and all(record.answer for record in answers)
    assert server.peak_in_flight <= 7 and evaluation.failed == 0
    # Costs are what the server saw: its call and not one more.
    assert sum(record.calls for record in answers) == len(server.calls) == evaluation.progress.calls
    assert sum(len(record.exchanges) for record in answers if record.trace_id is None) + sum(
        len(trace.calls) for trace in read_traces(tmp_path / TRACES_NAME)
    ) == len(server.calls)
    sent = {json.dumps(body["messages"]) for body in server.bodies}
    kept = {
        json.dumps([message.model_dump() for message in exchange.messages])
        for record in answers
        for exchange in record.exchanges
    }
    assert kept <= sent
    count = len(server.calls)
    await run(questions(6), ALL, model_of(server), tmp_path)
    assert len(server.calls) == count


async def test_more_candidates_and_questions_later_ask_for_what_is_new(server: ModelServer, tmp_path: Path) -> None:
    await run(questions(3), "base", model_of(server), tmp_path)
    await run(questions(4), "base,safe-prompt", model_of(server), tmp_path)
    assert len(server.calls) == 3 + 1 + 4
    assert len(read_answers(tmp_path)) == 8


async def test_the_same_answers_whatever_the_concurrency(tmp_path: Path) -> None:
    results = []
    for name, requests, delay in (("one", 1, 0.0), ("many", 32, 0.01)):
        with ModelServer(delay=delay) as server:
            await run(questions(4), ALL, model_of(server), tmp_path / name, max_requests=requests)
        write_results(tmp_path / name)
        results.append((tmp_path / name / "results.json").read_bytes())
    assert results[0] == results[1]


async def test_any_chat_model_can_be_evaluated(tmp_path: Path) -> None:
    model = ScriptedModel()
    known = questions(3, chosen="good", rejected="bad")
    await run(known, "base,critique-revise:revisions=1,best-of-n:n=2", model, tmp_path, judge_model=model)
    assert len(read_answers(tmp_path)) == 9 and read_scores(tmp_path) == []
    assert len(read_verdicts(tmp_path)) == 2 * 3 * 2
    with pytest.raises(ConfigError, match="use ChatVLLM"):
        await run(known, "debate:model=kind", model, tmp_path / "other")


# ---- the same tokens as the rehearsal ----------------------------------------------------------------------------


MATCHED = "best-of-n:tokens=matched,base,rehearsal:roles=1:steps=1,critique-revise:tokens=matched"


async def test_matched_candidates_spend_what_the_rehearsal_spent_on_the_same_question(tmp_path: Path) -> None:
    model = ScriptedModel()
    await run(questions(4), MATCHED, model, tmp_path)
    answers = {(record.candidate, record.question_id): record for record in read_answers(tmp_path)}
    for name in ("best-of-n:tokens=matched", "critique-revise:tokens=matched"):
        for question in questions(4):
            record, aim = answers[name, question.id], answers["rehearsal:roles=1:steps=1", question.id].output_tokens
            assert record.settings["tokens"] == aim > 20 and abs(record.output_tokens - aim) <= 4
            assert record.settings["matched_to"] == "rehearsal:roles=1:steps=1"
    count = len(model.log)
    await run(questions(4), MATCHED, model, tmp_path)
    assert len(model.log) == count
    write_results(tmp_path)
    assert "of the tokens of rehearsal:roles=1:steps=1, which it was to match" in (tmp_path / "results.md").read_text()


async def test_a_rehearsal_that_is_played_again_is_matched_again(tmp_path: Path) -> None:
    model = ScriptedModel()
    await run(questions(2), MATCHED, model, tmp_path)
    before = {record.candidate: record for record in read_answers(tmp_path) if record.question_id == "q1"}
    longer = before["rehearsal:roles=1:steps=1"].model_copy(update={"output_tokens": 300})
    with (tmp_path / ANSWERS_NAME).open("ab") as file:
        file.write(longer.to_line() + b"\n")
    count = len(model.log)
    await run(questions(2), MATCHED, model, tmp_path)
    after = {record.candidate: record for record in read_answers(tmp_path) if record.question_id == "q1"}
    for name in ("best-of-n:tokens=matched", "critique-revise:tokens=matched"):
        assert after[name].settings["tokens"] == 300 and abs(after[name].output_tokens - 300) <= 4
    assert len(model.log) == count + sum(record.calls for name, record in after.items() if "matched" in name)


# ---- scores ---------------------------------------------------------------------------------------------------------


async def test_known_answers_are_scored_by_base_and_adapters_alone(tmp_path: Path) -> None:
    with ScoringServer(models=("fake-model", "kind")) as server:
        known = [
            Question(id="a", question="?", chosen="good", rejected="bad", answered=False),
            Question(id="b", question="?", chosen="bad", rejected="good one", reference="four"),
            Question(id="c", question="?", chosen="only", answered=True),
        ]
        await run(known, "base,kind,safe-prompt", model_of(server), tmp_path)
        scores = read_scores(tmp_path)
        assert [(score.candidate, score.question_id, score.text) for score in scores] == [
            (name, *place)
            for name in ("base", "kind")
            for place in (("a", "chosen"), ("a", "rejected"), ("b", "chosen"), ("b", "reference"), ("b", "rejected"))
        ]
        assert [score.logprob for score in scores[:5]] == [-4.0, -6.0, -6.0, -4.0, -8.0]
        assert [score.tokens for score in scores[:5]] == [4, 3, 3, 4, 8]
        got = preference(score for score in scores if score.candidate == "base")
        assert (got.by_sum, got.by_mean) == (1.0, 0.5)
        assert {body["model"] for body in server.scored} == {"fake-model", "kind"}
        assert {record.question_id for record in read_answers(tmp_path)} == {"b", "c"}
        count = len(server.scored)
        await run(known, "base,kind,safe-prompt", model_of(server), tmp_path)
        assert len(server.scored) == count
        changed = [known[0].model_copy(update={"chosen": "better"}), *known[1:]]
        with pytest.raises(SettingsChangedError):
            await run(changed, "base,kind,safe-prompt", model_of(server), tmp_path)
        await run(changed, "base,kind,safe-prompt", model_of(server), tmp_path, force_new_settings=True)
        assert len(server.scored) == count + 2


async def test_a_server_that_cannot_score_is_recorded_and_answers_go_on(server: ModelServer, tmp_path: Path) -> None:
    evaluation = await run(questions(2, reference="x"), "base", model_of(server), tmp_path)
    assert evaluation.failed == 2 and all(record.answer for record in read_answers(tmp_path))
    assert all(score.error is not None and score.logprob is None for score in read_scores(tmp_path))


# ---- the judge --------------------------------------------------------------------------------------------------


async def test_a_judge_comes_later_and_judges_again_what_has_changed(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> str | None:
        return "A" if body.get("structured_outputs", {}).get("choice") else None

    with ModelServer(reply=reply) as server:
        await run(questions(3), "base,safe-prompt", model_of(server), tmp_path)
        count = len(server.calls)
        await run(questions(3), "base,safe-prompt", model_of(server), tmp_path, judge_model=model_of(server))
        assert len(server.calls) == count + 6
        verdicts = read_verdicts(tmp_path)
        assert {verdict.order: verdict.winner for verdict in verdicts} == {
            "first_then_second": "first",
            "second_then_first": "second",
        }
        results = write_results(tmp_path)
        assert results.baseline == "base"
        line = read_answers(tmp_path)[0].model_copy(update={"answer": "another"}).to_line()
        with (tmp_path / ANSWERS_NAME).open("ab") as file:
            file.write(line + b"\n")
        await run(questions(3), "base,safe-prompt", model_of(server), tmp_path, judge_model=model_of(server))
        assert len(server.calls) == count + 8


async def test_a_judge_on_another_server(tmp_path: Path) -> None:
    with ModelServer() as server, ModelServer(models=("judge-model",)) as other:
        model = model_of(server)
        judge = judge_from(f"{other.base_url}:judge-model", model)
        await run(questions(2), "base,safe-prompt", model, tmp_path, judge_model=judge)
        assert len(other.calls) == 4 and len(server.calls) == 4
        assert {verdict.judge for verdict in read_verdicts(tmp_path)} == {"judge-model"}


def test_how_a_judge_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ChatVLLM(model="base-model", base_url="http://127.0.0.1:1/v1", api_key=SecretStr("own"))
    assert judge_from("base", model) is model
    assert judge_from("kind", model).model == "kind"
    monkeypatch.setenv("MATRIX_GRAPH_JUDGE_API_KEY", "other")
    far = judge_from("https://host:8000/v1:org/name:2", model)
    assert (far.base_url, far.model) == ("https://host:8000/v1", "org/name:2")
    assert far.api_key is not None and far.api_key.get_secret_value() == "other"
    assert judge_from("http://host:8000/v1", model).model is None
    with pytest.raises(ConfigError, match="URL:MODEL"):
        judge_from("ftp://host/x", model)


# ---- what goes wrong ------------------------------------------------------------------------------------------------


async def test_a_question_that_is_refused_fails_alone_and_can_be_asked_again(tmp_path: Path) -> None:
    broken = True

    def reply(body: dict[str, Any]) -> Fault | None:
        return Fault(400, "too odd") if broken and "Why is 1 " in json.dumps(body) else None

    with ModelServer(reply=reply) as server:
        evaluation = await run(questions(3), "base,debate:agents=2", model_of(server), tmp_path)
        failed = [record for record in read_answers(tmp_path) if record.answer is None]
        assert evaluation.failed == 2 and {record.question_id for record in failed} == {"q1"}
        assert all(record.error is not None and "too odd" in record.error.message for record in failed)
        broken = False
        count = len(server.calls)
        again = await run(questions(3), "base,debate:agents=2", model_of(server), tmp_path)
        assert len(server.calls) == count and again.failed == 2
        retried = await run(questions(3), "base,debate:agents=2", model_of(server), tmp_path, retry_failed=True)
        assert retried.failed == 0 and len(server.calls) == count + 1 + 4
        assert all(record.answer for record in read_answers(tmp_path)) and len(read_answers(tmp_path)) == 6


async def test_nothing_fails_while_the_server_is_away(tmp_path: Path) -> None:
    server = ModelServer(delay=0.02)
    with server:
        task = asyncio.create_task(
            run(questions(20), "base,critique-revise:revisions=1", model_of(server), tmp_path, max_requests=4)
        )
        await asked(server, 20)
        await asyncio.to_thread(server.stop)
    await asyncio.sleep(0.5)
    with server:
        evaluation = await asyncio.wait_for(task, 30)
    assert evaluation.failed == 0 and len(read_answers(tmp_path)) == 40


async def test_a_server_that_stays_away_ends_the_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    server = ModelServer(delay=0.02)
    with server:
        task = asyncio.create_task(
            run(questions(20), "base", model_of(server), tmp_path, max_requests=4, give_up_after=0.5)
        )
        await asked(server, 8)
        await asyncio.to_thread(server.stop)
    with pytest.raises(ModelUnavailableError, match="give-up-after"):
        await asyncio.wait_for(task, 30)
    kept = read_answers(tmp_path)
    assert 4 <= len(kept) < 20 and all(record.answer for record in kept)
    with server:
        await run(questions(20), "base", model_of(server), tmp_path)
    assert len(read_answers(tmp_path)) == 20


async def test_a_question_that_kills_the_server_is_set_aside_and_the_others_are_answered(tmp_path: Path) -> None:
    deadly = threading.Event()

    def reply(body: dict[str, Any]) -> Fault | None:
        if "Why is 3 " not in json.dumps(body):
            return None
        deadly.set()
        return Fault(hang=5)

    server = ModelServer(delay=0.01, reply=reply)
    over = False

    def bring_it_back() -> None:
        while not over:
            if deadly.wait(0.05):
                server.stop()
                deadly.clear()
                time.sleep(0.2)
                server.__enter__()

    with server:
        keeper = threading.Thread(target=bring_it_back, daemon=True)
        keeper.start()
        try:
            evaluation = await asyncio.wait_for(run(questions(8), "base", model_of(server), tmp_path), 60)
        finally:
            over = True
            await asyncio.to_thread(keeper.join)
        answers = read_answers(tmp_path)
    failed = [record for record in answers if record.answer is None]
    assert len(answers) == 8 and evaluation.failed == 1
    assert [record.question_id for record in failed] == ["q3"]
    assert failed[0].error is not None and failed[0].error.type == "CrashingQuestionError"


async def test_a_name_that_is_no_longer_served_ends_the_run(server: ModelServer, tmp_path: Path) -> None:
    server.models = ["fake-model", "kind"]
    async with Evaluation(questions(3), roster_from("base,kind").candidates, model_of(server), out=tmp_path) as one:
        server.models = ["fake-model"]
        with pytest.raises(ModelError, match="no longer serves kind"):
            await one.run()
    assert all(record.candidate == "base" for record in read_answers(tmp_path))


async def test_a_scene_whose_answer_was_not_kept_is_not_played_again(server: ModelServer, tmp_path: Path) -> None:
    name = "rehearsal:roles=1:steps=1"
    await run(questions(2), name, model_of(server), tmp_path)
    before = read_answers(tmp_path)
    path = tmp_path / ANSWERS_NAME
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])  # killed between a scene and its answer
    count = len(server.calls)
    await run(questions(2), name, model_of(server), tmp_path)
    assert len(server.calls) == count and read_answers(tmp_path) == before
    assert len(list(read_traces(tmp_path / TRACES_NAME))) == 2


def test_what_cannot_be_evaluated(tmp_path: Path) -> None:
    model = ScriptedModel()
    with pytest.raises(ConfigError, match="at least one"):
        Evaluation([], roster_from("base").candidates, model, out=tmp_path)
    with pytest.raises(ConfigError, match="same id"):
        Evaluation(questions(1) * 2, roster_from("base").candidates, model, out=tmp_path)
    with pytest.raises(ConfigError, match="not a candidate"):
        Evaluation(questions(1), roster_from("base").candidates, model, out=tmp_path, baseline="x")
    with pytest.raises(ConfigError, match="at least 1"):
        Evaluation(questions(1), roster_from("base").candidates, model, out=tmp_path, max_requests=0)


# ---- adapters -----------------------------------------------------------------------------------------------------


def adapter(folder: Path) -> Path:
    return make_adapter(folder)


async def test_adapters_are_loaded_once_and_only_under_a_name_of_their_own(server: ModelServer, tmp_path: Path) -> None:
    model = model_of(server)
    kind = adapter(tmp_path / "kind")
    await load_adapters(model, {"kind": kind})
    await load_adapters(model, {"kind": kind})
    assert server.adapters == {"kind": str(kind.resolve())}
    await require_served(model, ["kind", "fake-model"])
    from matrix_graph.errors import ServerError

    with pytest.raises(ServerError, match="another name"):
        await load_adapters(model, {"kind": adapter(tmp_path / "other")})
    with pytest.raises(ServerError, match="does not exist"):
        await load_adapters(model, {"x": tmp_path / "missing"})
    with pytest.raises(ConfigError, match="neither a method nor served"):
        await require_served(model, ["cruel"])


# ---- the command --------------------------------------------------------------------------------------------------


def test_killed_and_started_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_questions(tmp_path / "q.jsonl", 12)
    arguments = ("evaluate", "--questions", "q.jsonl", "--candidates", ALL, "--judge", "base", "--max-requests", 8)
    with ModelServer(delay=0.02) as server:
        whole = ended(started(tmp_path, *arguments, "--out", "whole", "--base-url", server.base_url, "--human"))
        assert whole[0] == 0, whole
        count = len(server.calls)
        kills = 0
        for least in (30, 150, 300):
            server.reset()
            process = started(tmp_path, *arguments, "--out", "killed", "--base-url", server.base_url)
            while len(server.calls) < least and process.poll() is None:
                time.sleep(0.005)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.communicate()
        last = ended(started(tmp_path, *arguments, "--out", "killed", "--base-url", server.base_url, "--json"))
        assert last[0] == 0 and kills >= 2, last
        again = ended(started(tmp_path, *arguments, "--out", "killed", "--base-url", server.base_url))
        assert again[0] == 0
    for name in ("results.json", "results.md", "results.html"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert json.loads(last[1])["candidates"][0] == "base"
    assert (tmp_path / "whole" / "rating.html").exists() and not (tmp_path / "killed" / "rating.html").exists()
    assert (
        sum(record.calls for record in read_answers(tmp_path / "whole")) + len(read_verdicts(tmp_path / "whole"))
        == count
    )


def test_one_interrupt_finishes_what_is_in_flight(tmp_path: Path) -> None:
    write_questions(tmp_path / "q.jsonl", 40)
    arguments = ("evaluate", "-q", "q.jsonl", "--candidates", "base", "--max-requests", 4, "--out", "out")
    with ModelServer(delay=0.1) as server:
        process = started(tmp_path, *arguments, "--base-url", server.base_url)
        while len(server.calls) < 8:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        code, _, err = ended(process)
        assert code == 130 and "in flight finish first" in err
        assert len(read_answers(tmp_path / "out")) == len(server.calls) < 40
        assert ended(started(tmp_path, *arguments, "--base-url", server.base_url))[0] == 0
        assert len(server.calls) == 40


EACH = """
import json, sys, typer
from matrix_graph.errors import MatrixGraphError
from matrix_graph.commands.evaluate import evaluate
from matrix_graph.commands.contrast import contrast
app = typer.Typer(); app.command()(evaluate); app.command()(contrast)
for arguments in json.loads(sys.argv[1]):
    try:
        app(arguments, standalone_mode=False)
    except MatrixGraphError as error:
        typer.echo(f"error: {error}", err=True)
"""
REFUSALS = [
    (("evaluate", "--out", "o"), "There is no question"),
    (("evaluate", "-q", "q.jsonl", "--candidates", "best-of-n:m=1", "--out", "o"), "Its settings"),
    (("evaluate", "-q", "q.jsonl", "--candidates", "kind=nowhere", "--out", "o"), "does not exist"),
    (("evaluate", "-q", "nothing.jsonl", "--out", "o"), "neither a file nor a known hub name"),
    (("evaluate", "-q", "q.jsonl", "--baseline", "x", "--out", "o"), "not a candidate"),
    (("evaluate", "-q", "q.jsonl", "--candidates", "cruel", "--out", "o"), "neither a method nor served"),
    (("evaluate", "-q", "q.jsonl", "--judge", "cruel", "--out", "o"), "neither a method nor served"),
    (("evaluate", "-q", "q.jsonl", "--out", "q.jsonl"), "cannot be made"),
]


def test_refusals_say_what_to_do_and_cost_no_call(tmp_path: Path) -> None:
    write_questions(tmp_path / "q.jsonl", 2)
    with ModelServer() as server:
        given = [[*arguments, "--base-url", server.base_url] for arguments, _ in REFUSALS]
        done = subprocess.run(
            [sys.executable, "-c", EACH, json.dumps(given)], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        errors = done.stderr.split("error: ")[1:]
        assert server.calls == [] and done.stdout == ""
    assert len(errors) == len(REFUSALS), done.stderr
    for error, (_, says) in zip(errors, REFUSALS, strict=True):
        assert says in error and "Traceback" not in error


def test_rows_to_train_on(tmp_path: Path) -> None:
    write_questions(tmp_path / "q.jsonl", 5)
    with ModelServer() as server:
        for method, keys in (("rlcd", {"prompt", "chosen", "rejected"}), ("mistake-analysis", {"messages"})):
            arguments = ("contrast", "-q", "q.jsonl", "--method", method, "--out", method, "--json")
            code, out, _ = ended(started(tmp_path, *arguments, "--base-url", server.base_url))
            rows = [json.loads(line) for line in (tmp_path / method / "rows.jsonl").read_text().splitlines()]
            assert code == 0 and json.loads(out)["rows"] == len(rows) == 5
            assert all(row.keys() == {"id"} | keys for row in rows)
        assert len(server.calls) == 20
