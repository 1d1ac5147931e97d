"""The whole way on real weights: scenes, rows, an adapter, and what both answer, on one server that goes on."""

import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from matrix_graph import ChatVLLM
from matrix_graph.align import AlignOptions, align
from matrix_graph.config import SceneConfig, Settings
from matrix_graph.evaluate.folder import read_answers
from matrix_graph.models.server import VLLMServer
from matrix_graph.train import read_record

pytestmark = pytest.mark.timeout(1200)

# Questions with short answers: the small model runs on with most others, and answers that were cut are not exported.
QUESTIONS = [
    "What is the capital of France?",
    "What is the capital of Japan?",
    "What is the capital of Spain?",
    "What is the capital of Italy?",
    "What is the capital of Germany?",
    "What is the capital of Egypt?",
    "What is the capital of India?",
    "What is the capital of Canada?",
]
RECIPE = "{max_steps: 3, batch_size: 2, accumulate: 1, learning_rate: 1.0e-3, max_length: 512, quantization: none}"


@pytest.mark.flaky(reruns=2)  # the small model may leave too few scenes to learn from
def test_from_questions_to_a_served_adapter(server: VLLMServer, tmp_path: Path) -> None:
    questions, recipe = tmp_path / "questions.jsonl", tmp_path / "recipe.yaml"
    questions.write_text("".join(json.dumps({"question": question}) + "\n" for question in QUESTIONS))
    recipe.write_text(RECIPE)
    out = tmp_path / "aligned"
    scene = SceneConfig(roles=1, steps=1, max_answer_tokens=256)
    settings = Settings(base_url=server.base_url, api_key=SecretStr(server.api_key), scene=scene)
    options = AlignOptions(recipe=str(recipe), name="aligned-for-a-test")
    try:
        record = align(questions, out, settings, options)
        assert record.done and record.bundled and record.model == server.model_name
        trained = read_record(out / "adapter")
        assert trained is not None and trained.steps == 3 and trained.model.fingerprint is not None
        answers = read_answers(out / "compare")
        assert {answer.candidate for answer in answers} == {"base", "aligned-for-a-test"}
        assert len(answers) >= 4 and all(answer.answer for answer in answers)
        model = ChatVLLM(base_url=server.base_url, api_key=server.api_key, model="aligned-for-a-test", max_tokens=8)
        assert model.invoke("Hello").text
        assert "not that the method aligns" in (out / "align.html").read_text()
        for stage in record.stages:
            print(f"{stage.name}: {stage.seconds} s, {stage.facts}")
        assert align(questions, out, settings, options).stages == record.stages
    finally:
        if "aligned-for-a-test" in server.adapters():
            server.unload_adapter("aligned-for-a-test")
