"""Rows to train on, made of the records of methods that work by training: RLCD and mistake analysis.

Why apart: these methods are compared as adapters; to get there their data are made with the same model, by the same
runner, and trained with `matrix-graph train`. What always holds: a row is made of an answer that did not fail, and its
prompt is what a plain chat would send, without the hints that led to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matrix_graph.errors import ExportError
from matrix_graph.evaluate.candidates.mistake_analysis import MistakeAnalysis
from matrix_graph.evaluate.candidates.rlcd import ContrastPair
from matrix_graph.evaluate.prompts import fill
from matrix_graph.evaluate.records import AnswerRecord, Exchange, Question
from matrix_graph.files import replace_file

Row = dict[str, Any]


def training_rows(questions: Iterable[Question], answers: Iterable[AnswerRecord]) -> Iterator[Row]:
    """Rows that TRL takes as they are.

    Args:
        questions: of the evaluation.
        answers: as `folder.read_answers` gives them; those of other methods and failed ones are passed over.

    Yields:
        For RLCD conversational preference rows (`prompt`, `chosen`, `rejected`: lists of messages; `DPOTrainer`,
        `RewardTrainer`); a pair of equal texts gives none. For mistake analysis rows of `messages` (`SFTTrainer`). All
        have an `id`.
    """
    known = {question.id: question for question in questions}
    for record in answers:
        make = _ROWS.get(str(record.settings.get("method")))
        if make is None or record.answer is None or record.question_id not in known:
            continue
        row = make(known[record.question_id], _last_of_each_step(record.exchanges))
        if row is not None:
            yield {"id": record.question_id, **row}


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines, the file whole or not at all.

    Returns:
        How many there were.

    Raises:
        ExportError: there are none, or the file cannot be written.
    """
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if not lines:
        raise ExportError("No answer gives a row to train on: every one failed, or its two texts are equal.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, ("\n".join(lines) + "\n").encode(), sync=True)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}. Name another file.") from error
    return len(lines)


def _preference(question: Question, said: dict[str, Exchange]) -> Row | None:
    if not said.keys() >= {"positive", "negative"} or said["positive"].completion == said["negative"].completion:
        return None
    return {
        "prompt": question.messages,
        "chosen": _assistant(said["positive"]),
        "rejected": _assistant(said["negative"]),
    }


def _analysis(question: Question, said: dict[str, Exchange]) -> Row | None:
    if not said.keys() >= {"careless", "analyse"}:
        return None
    asked = fill("mistake_analysis", "train", question=question.text, answer=said["careless"].completion)
    return {"messages": [{"role": "user", "content": asked}, *_assistant(said["analyse"])]}


_ROWS: dict[str, Callable[[Question, dict[str, Exchange]], Row | None]] = {
    ContrastPair.method: _preference,
    MistakeAnalysis.method: _analysis,
}


def _assistant(exchange: Exchange) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": exchange.completion}]


def _last_of_each_step(exchanges: Sequence[Exchange]) -> dict[str, Exchange]:
    """The exchanges that were used: of one that was repeated, the repetition."""
    return {exchange.step: exchange for exchange in exchanges if exchange.error is None}
