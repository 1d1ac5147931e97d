"""Do the served model's preferences agree with transformers' own on (chosen, rejected) pairs?

    python benchmarks/logprobs.py PAIRS.jsonl --pairs 150
    python benchmarks/logprobs.py PAIRS.jsonl --base-url http://127.0.0.1:8000/v1 --model FOLDER --dtype bfloat16

Each pair's two answers are scored by a vLLM server, as `matrix-graph evaluate --pairs` does it, and by transformers in
float32 in this process. Printed are both preference accuracies by summed and by mean log-probability, in how many pairs
the two disagree on the winner, and the largest difference of a sum. Without --base-url a server is started with
`--dtype` (default: float32, in which sums must agree within 1e-3 nats a token; bfloat16: 0.05).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from _common import Report, add_model_options, heading, parser
from pydantic import SecretStr

from matrix_graph import ChatVLLM, VLLMServer
from matrix_graph.evaluate.loaders import load_questions
from matrix_graph.evaluate.measures import preference
from matrix_graph.evaluate.records import Question, ScoredText, ScoreRecord
from matrix_graph.evaluate.scoring import Scorer
from matrix_graph.models.bundled import resolve_model
from matrix_graph.models.server import ServerConfig

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
"""Nats a token."""
TEXTS: tuple[ScoredText, ScoredText] = ("chosen", "rejected")


async def by_server(options: argparse.Namespace, questions: list[Question]) -> list[ScoreRecord]:
    """The scores of a server."""
    async with AsyncExitStack() as stack:
        if options.base_url:
            model = ChatVLLM(base_url=options.base_url)
        else:
            config = ServerConfig(dtype=options.dtype)
            server = await stack.enter_async_context(VLLMServer(options.model, config=config, on_status=print))
            model = ChatVLLM(base_url=server.base_url, api_key=SecretStr(server.api_key), timeout=600)
        scorer = Scorer(model, "served")
        places = asyncio.Semaphore(16)

        async def score(question: Question, text: ScoredText) -> ScoreRecord:
            async with places:
                return await scorer.score(question, text)

        return await asyncio.gather(*(score(question, text) for question in questions for text in TEXTS))


def by_transformers(folder: Path | str, questions: list[Question]) -> list[ScoreRecord]:
    """The scores of transformers' own loss, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    records = []
    for question in questions:
        chat = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, return_dict=True)
        prompt = chat["input_ids"]
        for text in TEXTS:
            tokens = tokenizer(getattr(question, text), add_special_tokens=False)["input_ids"]
            labels = torch.tensor([[-100] * len(prompt) + tokens])
            with torch.no_grad():
                loss = model(torch.tensor([prompt + tokens]), labels=labels).loss if tokens else 0.0
            records.append(
                ScoreRecord(
                    candidate="transformers", question_id=question.id, text=text, logprob=-float(loss) * len(tokens),
                    tokens=len(tokens), prompt_tokens=len(prompt),
                )
            )  # fmt: skip
    return records


def compare(report: Report, served: list[ScoreRecord], own: list[ScoreRecord], tolerance: float) -> None:
    """Print both sides."""
    for name, records in (("served", served), ("transformers", own)):
        found = preference(records)
        report.say(f"{name}: pairs", found.pairs)
        report.say(f"{name}: accuracy by summed log-probability", found.by_sum or 0.0)
        report.say(f"{name}: accuracy by mean log-probability", found.by_mean or 0.0)
    sums = [{(r.question_id, r.text): r.logprob or 0.0 for r in records} for records in (served, own)]
    pairs = {record.question_id for record in own}
    other = sum(
        (sums[0][id, "chosen"] > sums[0][id, "rejected"]) != (sums[1][id, "chosen"] > sums[1][id, "rejected"])
        for id in pairs
    )
    report.check("pairs with another winner, in 150", 150 * other / len(pairs), at_most=1)
    counts = {(record.question_id, record.text): record.tokens for record in own}
    report.check(
        "texts with another number of tokens",
        sum(counts[record.question_id, record.text] != record.tokens for record in served),
        at_most=0,
    )
    report.say("largest difference of a sum", max(abs(sums[0][place] - sums[1][place]) for place in counts), "nats")
    worst = max(abs(sums[0][place] - sums[1][place]) / max(1, counts[place]) for place in counts)
    report.check("largest difference a token", worst, "nats", at_most=tolerance)


def main() -> int:
    """Measure; returns the exit code."""
    made = parser(__doc__)
    made.add_argument("file", type=Path, metavar="PAIRS.jsonl", help="rows with question, chosen and rejected")
    made.add_argument("--pairs", type=int, default=150, help="the first so many (default: 150)")
    made.add_argument("--dtype", choices=sorted(TOLERANCE), default="float32", help="of the server (default: float32)")
    add_model_options(made)
    options = made.parse_args()
    report = Report()
    questions = load_questions([options.file], answered=False, limit=options.pairs)
    served = asyncio.run(by_server(options, questions))
    heading(f"{len(questions)} pairs, server in {options.dtype}, transformers in float32")
    compare(report, served, by_transformers(resolve_model(options.model), questions), TOLERANCE[options.dtype])
    return report.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
