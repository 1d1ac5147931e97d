"""An evaluation on disk: which file holds what, and how it is read.

What always holds: every file of records is JSON lines that are only appended to, whole or not at all; a torn last line
of a killed writer is passed over; of records with one name the last counts, since failed ones may be tried again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from matrix_graph.errors import TraceError
from matrix_graph.evaluate.records import AnswerRecord, Plan, Question, ScoreRecord, Verdict
from matrix_graph.traces.lines import is_json, repair_advice

PLAN_NAME = "evaluation.json"
QUESTIONS_NAME = "questions.jsonl"
ANSWERS_NAME = "answers.jsonl"
SCORES_NAME = "scores.jsonl"
VERDICTS_NAME = "verdicts.jsonl"
TRACES_NAME = "traces.jsonl"
"""The scenes of `rehearsal` candidates, each with the key "candidate" beside those of a trace."""
OWN_FILES = (
    PLAN_NAME, QUESTIONS_NAME, ANSWERS_NAME, SCORES_NAME, VERDICTS_NAME, TRACES_NAME, "rows.jsonl", "ratings.jsonl",
    "results.*", "timings.json", "ablation.*", "rating*", ".*",
)  # fmt: skip
"""All that an evaluation writes, which it must not read as its input."""

R = TypeVar("R", bound=BaseModel)


def read_plan(folder: Path) -> Plan:
    """What the evaluation in a folder set out to do.

    Raises:
        TraceError: there is none, or it cannot be read.
    """
    path = folder / PLAN_NAME
    try:
        return Plan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TraceError(
            f"{folder} holds no evaluation: {error.strerror or error}. "
            "Give the folder that `matrix-graph evaluate` was given as --out."
        ) from error
    except ValidationError as error:
        raise TraceError(f"{path} is not a plan of an evaluation: {_first(error)}") from error


def read_questions(folder: Path) -> list[Question]:
    """The questions of an evaluation, in their order. Raises TraceError as `read_records`."""
    return list(read_records(folder / QUESTIONS_NAME, Question))


def read_answers(folder: Path) -> list[AnswerRecord]:
    """All answers, by the plan's order of candidates, then of questions; those of no plan or question left out.

    Raises:
        TraceError: as `read_records` and `read_plan`.
    """
    candidates, questions = _order(folder)
    answers: dict[tuple[int, int], AnswerRecord] = {}
    for record in read_records(folder / ANSWERS_NAME, AnswerRecord):
        if record.candidate in candidates and record.question_id in questions:
            answers[candidates[record.candidate], questions[record.question_id]] = record
    return [answers[place] for place in sorted(answers)]


def read_scores(folder: Path) -> list[ScoreRecord]:
    """All scores, by the plan's order of candidates, then of questions, then of texts. Raises as `read_answers`."""
    candidates, questions = _order(folder)
    scores: dict[tuple[int, int, str], ScoreRecord] = {}
    for record in read_records(folder / SCORES_NAME, ScoreRecord):
        if record.candidate in candidates and record.question_id in questions:
            scores[candidates[record.candidate], questions[record.question_id], record.text] = record
    return [scores[place] for place in sorted(scores)]


def read_verdicts(folder: Path) -> list[Verdict]:
    """All verdicts, in a fixed order that does not depend on when they came. Raises TraceError as `read_records`."""
    verdicts: dict[tuple[str, str, str, str, str, int], Verdict] = {}
    for record in read_records(folder / VERDICTS_NAME, Verdict):
        place = (record.judge, record.first, record.second, record.question_id, record.order, record.repeat)
        verdicts[place] = record
    return [verdicts[place] for place in sorted(verdicts)]


def read_records(path: Path, kind: type[R]) -> Iterator[R]:
    """The records in a file, in the order in which they were written; none if there is no such file.

    Raises:
        TraceError: the file cannot be read, or a line other than a torn last one is not such a record.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.isspace() or (not line.endswith(b"\n") and not is_json(line)):
                    continue
                try:
                    yield kind.model_validate_json(line)
                except ValidationError as error:
                    raise TraceError(
                        f"{path}, line {number}: not a {kind.__name__} ({_first(error)}). {repair_advice(path)}"
                    ) from error
    except FileNotFoundError:
        return
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}.") from error


def _order(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    plan = read_plan(folder)
    questions = {question.id: place for place, question in enumerate(read_questions(folder))}
    return {name: place for place, name in enumerate(plan.candidates)}, questions


def _first(error: ValidationError) -> str:
    item = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in item['loc']) or 'line'}: {item['msg']}"
