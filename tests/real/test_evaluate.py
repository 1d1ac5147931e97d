"""Evaluation on a real vLLM: log-probabilities against transformers' own, and every candidate once through.

The bundled 135M model shows that everything runs, not that a method aligns.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from matrix_graph.evaluate.candidates.roster import roster_from
from matrix_graph.evaluate.folder import read_answers, read_scores, read_verdicts
from matrix_graph.evaluate.measures import preference
from matrix_graph.evaluate.records import Question, ScoredText
from matrix_graph.evaluate.results import write_results
from matrix_graph.evaluate.runner import Evaluation
from matrix_graph.evaluate.scoring import Scorer
from matrix_graph.models.bundled import prepare_bundled_model
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.server import ServerConfig, VLLMServer

FLOAT32_TOLERANCE = 1e-3
"""Nats, of a text's sum."""
BFLOAT16_TOLERANCE = 0.125
"""Nats a token: the distance of two bfloat16 numbers between 16 and 32, where this model's logits are."""
TEXTS: tuple[ScoredText, ...] = ("chosen", "rejected", "reference")
QUESTIONS = [
    Question(id="tea", question="How do I make tea?", chosen="Boil water, pour it over the leaves and wait.",
             rejected="Throw the pot.", reference="Use fresh water.\n\n1. Boil it.\n2. Wait three minutes."),
    Question(id="ünï", question="Was heißt 你好?", chosen="Es heißt „guten Tag“ 🙂.", rejected="  Weiß nicht\n",
             reference="\n\nGuten Tag."),
    Question.model_validate(
        {"id": "talk", "question": "And then?", "chosen": "Then you rest.", "rejected": "Nothing.", "reference": "Rest",
         "history": [{"role": "user", "content": "I walked far."}, {"role": "assistant", "content": "Well done!"}]}
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def exact_server() -> Iterator[VLLMServer]:
    with VLLMServer(config=ServerConfig(dtype="float32")) as running:
        yield running


@pytest.fixture(scope="module")
def reference() -> tuple[Any, Any]:
    """Transformers' tokenizer and model in float32."""
    folder = prepare_bundled_model()
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    ).eval()


def chat(server: VLLMServer) -> ChatVLLM:
    return ChatVLLM(
        base_url=server.base_url, api_key=server.api_key, model=server.model_name, server=server, timeout=300
    )


def by_transformers(reference: tuple[Any, Any], question: Question, answer: str) -> tuple[float, int]:
    """Sum over the answer's tokens, from transformers' own loss, and how many they are."""
    tokenizer, model = reference
    prompt = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
    labels = torch.tensor([[-100] * len(prompt) + tokens])
    with torch.no_grad():
        loss = model(torch.tensor([prompt + tokens]), labels=labels).loss
    return -float(loss) * len(tokens), len(tokens)


async def sums(server: VLLMServer) -> dict[tuple[str, ScoredText], tuple[float, int]]:
    scorer = Scorer(chat(server), "base")
    wanted = [(question, text) for question in QUESTIONS for text in TEXTS]
    records = await asyncio.gather(*(scorer.score(question, text) for question, text in wanted))
    return {(record.question_id, record.text): (record.logprob or 0.0, record.tokens) for record in records}


async def test_sums_in_float32_are_transformers_own(exact_server: VLLMServer, reference: tuple[Any, Any]) -> None:
    served = await sums(exact_server)
    for question in QUESTIONS:
        for text in TEXTS:
            expected, tokens = by_transformers(reference, question, getattr(question, text))
            got, count = served[question.id, text]
            assert count == tokens, (question.id, text)
            assert got == pytest.approx(expected, abs=FLOAT32_TOLERANCE), (question.id, text)


async def test_sums_in_bfloat16_are_near(server: VLLMServer, reference: tuple[Any, Any]) -> None:
    served = await sums(server)
    for question in QUESTIONS:
        for text in TEXTS:
            expected, tokens = by_transformers(reference, question, getattr(question, text))
            assert served[question.id, text][0] == pytest.approx(expected, abs=BFLOAT16_TOLERANCE * tokens)


async def test_every_candidate_answers_is_scored_and_judged(server: VLLMServer, tmp_path: Path) -> None:
    roster = roster_from(
        "base,rehearsal:roles=1:steps=1:max_answer_tokens=48,critique-revise:revisions=1:max_answer_tokens=48,"
        "self-align:max_answer_tokens=48,safe-prompt:max_answer_tokens=48,debate:agents=2:max_answer_tokens=48,"
        "best-of-n:n=2:max_answer_tokens=48,decrim:iterations=1:constraints=2:max_answer_tokens=48,"
        "foresee:people=2:max_answer_tokens=48"
    )
    model = chat(server)
    asked = QUESTIONS[:2]
    async with Evaluation(asked, roster.candidates, model, out=tmp_path, judge_model=model) as evaluation:
        await evaluation.run()
    answers = read_answers(tmp_path)
    assert len(answers) == 18
    # A small model may fail a method (a constraint list that is cut off, say), but not most of them.
    good = [record for record in answers if record.answer is not None]
    assert len(good) >= 12, [record.error for record in answers if record.error]
    assert all(record.calls >= 1 and record.output_tokens > 0 and record.seconds > 0 for record in good)
    assert preference(read_scores(tmp_path)).pairs == 2
    verdicts = read_verdicts(tmp_path)
    assert verdicts and all(verdict.winner is not None for verdict in verdicts)
    assert write_results(tmp_path).candidates == list(roster.candidates)
