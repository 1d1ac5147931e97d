"""The folder of an evaluation while it runs: what is there already, and where new records go.

What always holds: only one evaluation writes there; lines are whole; a folder that was begun under other settings is
not gone on with unless that is asked for; no record is ever changed or removed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from matrix_graph.batch.lock import RunLock
from matrix_graph.errors import ConfigError, SettingsChangedError
from matrix_graph.evaluate.folder import (
    ANSWERS_NAME,
    PLAN_NAME,
    QUESTIONS_NAME,
    SCORES_NAME,
    TRACES_NAME,
    VERDICTS_NAME,
    read_records,
)
from matrix_graph.evaluate.judge import key_of
from matrix_graph.evaluate.records import AnswerRecord, Order, Plan, Question, ScoreRecord, Verdict
from matrix_graph.files import read_object, replace_file
from matrix_graph.records import Trace
from matrix_graph.traces.file_lock import require_locks
from matrix_graph.traces.lines import LineWriter
from matrix_graph.traces.store import read_traces

_MOST_CHANGES = 8


class EvaluationStore:
    """The folder; a context manager that holds its lock.

    Args:
        directory: made if need be.
        force_new_settings: go on although candidates had other settings.

    Raises:
        ConfigError: when entered: the folder cannot be made or written.
        TraceError: when entered: its file system cannot lock files.
        RunLockedError: when entered: another run writes there.
    """

    def __init__(self, directory: Path, *, force_new_settings: bool = False) -> None:
        self.directory = directory
        self._force_new_settings = force_new_settings
        self._resources = ExitStack()
        self._writers: dict[str, LineWriter] = {}

    def __enter__(self) -> Self:
        with ExitStack() as resources:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                require_locks(self.directory)
                resources.enter_context(RunLock(self.directory))
            except OSError as error:
                raise ConfigError(
                    f"The folder {self.directory} cannot be made or written: {error}. "
                    "Make room or grant access there, or name another --out."
                ) from error
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writers.clear()
        self._resources.close()

    def begin(self, plan: Plan, questions: Sequence[Question]) -> None:
        """Write down what is going to be done.

        Raises:
            SettingsChangedError: a candidate or a question of the same name was another one before.
            ConfigError: it cannot be written, or what the evaluation was begun with cannot be read.
        """
        if not self._force_new_settings:
            changes = self._changes(plan, questions)
            if changes:
                raise SettingsChangedError(
                    f"The evaluation in {self.directory} was begun otherwise:\n"
                    + "".join(f"  {change}\n" for change in changes[:_MOST_CHANGES])
                    + "Use another --out, or --force-new-settings to go on here (what was answered under the old "
                    "settings will be answered again under the new ones)."
                )
        try:
            replace_file(
                self.directory / QUESTIONS_NAME,
                b"".join(question.to_line() + b"\n" for question in questions),
                sync=True,
            )
            replace_file(self.directory / PLAN_NAME, plan.model_dump_json(indent=1).encode() + b"\n", sync=True)
        except OSError as error:
            raise ConfigError(
                f"{self.directory} cannot be written: {error}. Make room or grant access there."
            ) from error

    def keep(self, lines: Sequence[tuple[str, bytes]]) -> None:
        """Append lines, each with the name of its file; on return they are on the disk.

        Raises:
            TraceError: one could not be written; nothing of it was kept.
        """
        for name, line in lines:
            if name not in self._writers:
                self._writers[name] = self._resources.enter_context(LineWriter(self.directory / name))
            self._writers[name].write(line)

    # ---- what is there already ------------------------------------------------------------------------------------

    def answered(self, *, retry_failed: bool) -> dict[tuple[str, str], tuple[str, Any]]:
        """Question text and settings of every answer, by candidate and question id; without failed ones if asked."""
        return {
            (record.candidate, record.question_id): (record.question, record.settings)
            for record in read_records(self.directory / ANSWERS_NAME, AnswerRecord)
            if not (retry_failed and record.answer is None)
        }

    def spent(self, candidate: str) -> dict[str, int]:
        """Generated tokens of a candidate's answers, failed ones included, by question id."""
        return {
            record.question_id: record.output_tokens
            for record in read_records(self.directory / ANSWERS_NAME, AnswerRecord)
            if record.candidate == candidate
        }

    def scored(self, *, retry_failed: bool) -> dict[tuple[str, str, str], Any]:
        """Settings of every score, by candidate, question id and text."""
        return {
            (record.candidate, record.question_id, record.text): record.settings
            for record in read_records(self.directory / SCORES_NAME, ScoreRecord)
            if not (retry_failed and record.logprob is None)
        }

    def judged(
        self, judge: str, *, retry_failed: bool
    ) -> dict[tuple[str, str, str, Order, int], tuple[list[dict[str, str]], Any]]:
        """Prompt and settings of every verdict of a judge, by `Judgement.key`."""
        return {
            key_of(record): ([message.model_dump() for message in record.messages], record.settings)
            for record in read_records(self.directory / VERDICTS_NAME, Verdict)
            if record.judge == judge and not (retry_failed and record.error is not None)
        }

    def failed(self, candidates: Set[str], questions: Set[str]) -> int:
        """How many answers and scores of these candidates and questions failed, the last of each name counted."""
        answers = {
            (record.candidate, record.question_id): record.answer is None
            for record in read_records(self.directory / ANSWERS_NAME, AnswerRecord)
        }
        scores = {
            (record.candidate, record.question_id, record.text): record.logprob is None
            for record in read_records(self.directory / SCORES_NAME, ScoreRecord)
        }
        places = [*answers.items(), *scores.items()]
        return sum(lost for place, lost in places if place[0] in candidates and place[1] in questions)

    def scenes(self, *, retry_failed: bool) -> dict[str, Trace]:
        """Scenes without an answer, by id: of a program that was killed between the two."""
        path = self.directory / TRACES_NAME
        if not path.exists():
            return {}
        answered = {record.trace_id for record in read_records(self.directory / ANSWERS_NAME, AnswerRecord)}
        return {
            trace.id: trace
            for trace in read_traces(path)
            if trace.id not in answered and not (retry_failed and trace.status == "failed")
        }

    def _changes(self, plan: Plan, questions: Sequence[Question]) -> list[str]:
        """What has another meaning than when the folder was begun; new names are not a change."""
        path = self.directory / PLAN_NAME
        before = read_object(path)
        if before is None:
            if path.exists():
                raise ConfigError(
                    f"{path} holds no plan of an evaluation. It tells under which settings the evaluation was begun. "
                    "Use another --out, or --force-new-settings to go on here under the present ones (what was "
                    "answered under the same settings is not asked again)."
                )
            return []
        changes = []
        old = before.get("candidates")
        for name, settings in json.loads(plan.model_dump_json())["candidates"].items():
            known = old.get(name) if isinstance(old, dict) else None
            if isinstance(known, dict) and known != settings:
                keys = sorted(key for key in known.keys() | settings.keys() if known.get(key) != settings.get(key))
                changes += [f"{name}.{key}: {known.get(key)!r} -> {settings.get(key)!r}" for key in keys]
        texts = {question.id: question for question in questions}
        for question in read_records(self.directory / QUESTIONS_NAME, Question):
            now = texts.get(question.id)
            if now is not None and _content(now) != _content(question):
                changes.append(f"the question {question.id} has another text or other known answers")
        return changes


def _content(question: Question) -> object:
    return question.text, question.chosen, question.rejected, question.reference
