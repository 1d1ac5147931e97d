"""Summed log-probabilities against transformers' own loss, with real tokenizers and templates of four families.

The server's part is played by transformers in this process: it tokenizes as vLLM's `/tokenize` does and gives
`prompt_logprobs` of a tiny random model in float32. A real vLLM is compared in tests/real.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from matrix_graph.errors import ModelRequestError
from matrix_graph.evaluate.records import Question
from matrix_graph.evaluate.scoring import Scorer
from matrix_graph.models.chat_vllm import ChatVLLM
from tests.integration.tiny_models import FAMILIES, THINKING, chatml, tiny_model

JSON = dict[str, Any]
ANSWERS = [
    "Ask him kindly.",
    "Ask him kindly, and listen.\n\nThen wait a day.",
    "  two spaces first",
    "a newline last\n",
    "\n\nnewlines first",
    "你好, naïve café 🙂",
    "7",
    "[/INST] <|im_end|> are only words here?",
]


class Local:
    """`/tokenize` and `/v1/completions` of a tokenizer and a model in this process."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self._tokenizer, self._model = tokenizer, model

    async def post(self, path: str, body: JSON, read: Callable[[JSON], Any]) -> Any:
        if path == "/tokenize":
            return read({"tokens": self._tokens(body)})
        tokens = body["prompt"]
        with torch.no_grad():
            logprobs = self._model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        entries: list[Any] = [None]
        entries += [{str(token): {"logprob": float(logprobs[at, token])}} for at, token in enumerate(tokens[1:])]
        return read({"choices": [{"prompt_logprobs": entries}]})

    def _tokens(self, body: JSON) -> list[int]:
        if "prompt" in body:
            return list(self._tokenizer(body["prompt"], add_special_tokens=False)["input_ids"])
        try:
            got = self._tokenizer.apply_chat_template(
                body["messages"],
                add_generation_prompt=body["add_generation_prompt"],
                continue_final_message=body.get("continue_final_message", False),
                return_dict=True,
            )
        except ValueError as error:  # vLLM answers HTTP 400
            raise ModelRequestError(str(error), status=400) from error
        return list(got["input_ids"])


def from_the_loss(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Transformers' own cross entropy over the answer's tokens, summed."""
    labels = torch.tensor([[-100] * len(prompt) + answer])
    with torch.no_grad():
        loss = model(torch.tensor([prompt + answer]), labels=labels).loss
    return -float(loss) * len(answer)


@pytest.mark.parametrize("family", [*FAMILIES, "thinking"])
async def test_sum_agrees_with_the_loss_of_transformers(family: str, tmp_path: Path) -> None:
    tokenizer = chatml(THINKING) if family == "thinking" else FAMILIES[family]()
    model = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path, tokenizer), dtype=torch.float32).eval()
    scorer = Scorer(ChatVLLM(model="tiny", base_url="http://127.0.0.1:9/v1"), "base")
    scorer._client = Local(tokenizer, model)  # type: ignore[assignment]
    for answer in ANSWERS:
        question = Question(id="q", question="How do I calm my neighbour?", chosen=answer, rejected="No.")
        prompt = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, return_dict=True)
        got_prompt, got = await scorer.tokens("tiny", question.messages, answer)
        assert got_prompt == list(prompt["input_ids"])
        # What the tokens say is the answer, whole, but for the space that some templates put before it.
        said = tokenizer.decode(got_prompt + got)[len(tokenizer.decode(got_prompt)) :]
        assert said.removeprefix(" ") == answer.removeprefix(" "), (family, answer)
        record = await scorer.score(question, "chosen")
        assert record.tokens == len(got) and record.prompt_tokens == len(got_prompt)
        assert record.logprob == pytest.approx(from_the_loss(model, got_prompt, got), abs=1e-3)
