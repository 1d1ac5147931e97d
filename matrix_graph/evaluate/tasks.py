"""The tasks of an evaluation: an answer, a score, a verdict, each from what is asked to the line that is kept.

What always holds: a task never raises for what a model does, it records it; it raises where the same would happen to
every task of its kind: a server that refuses the key or no longer serves the name, a machine without memory or files.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from langchain_core.language_models import BaseChatModel

from matrix_graph.batch.folder import identity
from matrix_graph.batch.lookout import why_refused
from matrix_graph.errors import BatchError, ModelError, ModelRequestError
from matrix_graph.evaluate.asking import Asker
from matrix_graph.evaluate.candidates.budget import Budgeted
from matrix_graph.evaluate.candidates.candidate import Candidate
from matrix_graph.evaluate.folder import ANSWERS_NAME, SCORES_NAME, TRACES_NAME, VERDICTS_NAME
from matrix_graph.evaluate.judge import Judge, Judgement
from matrix_graph.evaluate.records import AnswerRecord, Question, ScoredText, ScoreRecord
from matrix_graph.evaluate.scoring import Scorer
from matrix_graph.models.ask import describe
from matrix_graph.models.complete import request_settings
from matrix_graph.records import Problem, Trace

JSON = dict[str, object]


@dataclass(frozen=True, slots=True)
class Finished:
    """What a task leaves behind.

    Attributes:
        lines: to be kept, each with the name of its file, in this order.
        failed: whether it counts as failed.
    """

    lines: tuple[tuple[str, bytes], ...]
    failed: bool


class Task(Protocol):
    """Something that calls the model and ends with records."""

    async def run(self) -> Finished:
        """Do it; raise only for what is wrong with this machine or with the server as a whole."""


@dataclass(frozen=True)
class Answerer:
    """A candidate, ready to answer.

    Attributes:
        name: by which people know it.
        candidate: how it answers.
        model: that answers, patient with its server.
        served: by which name the server knows that model.
        settings: all that decides how it answers.
        given_model: as the evaluation was given it, to ask why a server refuses.
    """

    name: str
    candidate: Candidate
    model: BaseChatModel
    served: str
    settings: JSON
    given_model: BaseChatModel

    def trace_id(self, question: Question) -> str:
        """The id of this candidate's scene on a question: the same in every run."""
        return identity(question.text, None, {"candidate": self.name, "question": question.id, **self.settings})

    def within(self, tokens: int) -> Answerer:
        """The same with a budget of generated tokens for one question, which its answer's settings tell."""
        assert isinstance(self.candidate, Budgeted)  # no other can be matched
        candidate = self.candidate.within(tokens)
        return replace(self, candidate=candidate, settings={**self.settings, "tokens": candidate.tokens})

    async def refuse(self, problem: Problem) -> None:
        """Raise if the server refuses not only this call, but all of this candidate's.

        Raises:
            ModelError: it does; says why.
        """
        if problem.type != ModelRequestError.__name__:
            return
        reason = await why_refused(self.given_model, self.served)
        if reason is not None:
            raise ModelError(f"{reason} Nothing that was finished is lost; then start the same command again.")


@dataclass(frozen=True)
class AnswerTask:
    """One candidate answers one question.

    Attributes:
        answerer: the candidate.
        question: to be answered.
        scene: its scene from an earlier start that was killed before the answer was kept; None: there is none.
    """

    answerer: Answerer
    question: Question
    scene: Trace | None = None

    async def run(self) -> Finished:
        """Answer it."""
        if self.scene is not None:
            record = _of_scene(self.answerer, self.question, self.scene)
            return Finished(((ANSWERS_NAME, record.to_line()),), record.answer is None)
        candidate = self.answerer.candidate
        asker = Asker(self.answerer.model, temperature=candidate.temperature, max_tokens=candidate.max_answer_tokens)
        answer: str | None = None
        problem: Problem | None = None
        started = time.monotonic()
        try:
            answer = await candidate.answer(self.question, asker)
        except (OSError, MemoryError) as error:
            raise _of_this_machine(error) from error
        except Exception as error:  # noqa: BLE001 - one answer must not end all others, whatever a model raises
            problem = Problem(**describe(error))
            await self.answerer.refuse(asker.scene.error if asker.scene and asker.scene.error else problem)
        seconds = time.monotonic() - started
        if asker.scene is not None:
            about = {
                "id": self.answerer.trace_id(self.question),
                "candidate": self.answerer.name,
                "question_id": self.question.id,
            }
            trace = asker.scene.model_copy(update=about)
            record = _of_scene(self.answerer, self.question, trace)
            # The scene first: an answer whose scene is lost could not be explained.
            lines = ((TRACES_NAME, trace.to_json_line().encode()), (ANSWERS_NAME, record.to_line()))
            return Finished(lines, record.answer is None)
        exchanges = asker.exchanges
        record = AnswerRecord(
            candidate=self.answerer.name,
            question_id=self.question.id,
            question=self.question.text,
            answer=answer,
            calls=len(exchanges),
            input_tokens=sum(exchange.input_tokens for exchange in exchanges),
            output_tokens=asker.output_tokens,
            seconds=seconds,
            error=problem,
            settings=self.answerer.settings,
            exchanges=exchanges,
        )
        return Finished(((ANSWERS_NAME, record.to_line()),), answer is None)


@dataclass(frozen=True)
class ScoreTask:
    """One model scores one known answer."""

    answerer: Answerer
    scorer: Scorer
    question: Question
    text: ScoredText

    async def run(self) -> Finished:
        """Score it."""
        try:
            record = await self.scorer.score(self.question, self.text)
        except (OSError, MemoryError) as error:
            raise _of_this_machine(error) from error
        except Exception as error:  # noqa: BLE001 - as an answer's
            problem = Problem(**describe(error))
            await self.answerer.refuse(problem)
            record = ScoreRecord(
                candidate=self.answerer.name,
                question_id=self.question.id,
                text=self.text,
                logprob=None,
                tokens=0,
                prompt_tokens=0,
                error=problem,
            )
        record = record.model_copy(update={"settings": score_settings(self.answerer, self.question, self.text)})
        return Finished(((SCORES_NAME, record.to_line()),), record.logprob is None)


@dataclass(frozen=True)
class VerdictTask:
    """One judgement in one order.

    Attributes:
        judge: who judges.
        judgement: what.
        refuse: raises if the judge's server refuses all calls.
    """

    judge: Judge
    judgement: Judgement
    refuse: Callable[[Problem], Awaitable[None]] = field(repr=False)

    async def run(self) -> Finished:
        """Judge it."""
        try:
            verdict = await self.judge.verdict(self.judgement)
        except (OSError, MemoryError) as error:
            raise _of_this_machine(error) from error
        if verdict.error is not None:
            await self.refuse(verdict.error)
        return Finished(((VERDICTS_NAME, verdict.to_line()),), verdict.error is not None)


def score_settings(answerer: Answerer, question: Question, text: ScoredText) -> JSON:
    """All that decides a score: the model, the conversation and the text."""
    content = json.dumps([question.messages, getattr(question, text)]).encode()
    return {
        "model": answerer.candidate.model,
        "served": answerer.served,
        "content": hashlib.sha256(content).hexdigest()[:16],
        **request_settings(answerer.model),
    }


def texts_of(question: Question) -> list[ScoredText]:
    """The known answers of a question that are to be scored: both of a pair or none, and the reference."""
    texts: list[ScoredText] = []
    if question.chosen is not None and question.rejected is not None:
        texts += ["chosen", "rejected"]
    if question.reference is not None:
        texts.append("reference")
    return texts


def plain(settings: object) -> object:
    """Settings as JSON gives them back, so that they can be compared with those of a record."""
    return json.loads(json.dumps(settings))


def _of_scene(answerer: Answerer, question: Question, trace: Trace) -> AnswerRecord:
    """The answer of a rehearsal, from its trace alone."""
    good = trace.status != "failed" and trace.answer is not None
    problem = trace.error or Problem(type="SceneError", message="The scene failed and gave no reason.")
    return AnswerRecord(
        candidate=answerer.name,
        question_id=question.id,
        question=question.text,
        # A draft is not passed off as what came of a scene.
        answer=trace.answer if good else None,
        calls=len(trace.calls),
        input_tokens=trace.usage.input_tokens,
        output_tokens=trace.usage.output_tokens,
        seconds=trace.seconds,
        error=None if good else problem,
        settings=answerer.settings,
        trace_id=trace.id,
    )


def _of_this_machine(error: BaseException) -> BatchError:
    return BatchError(
        f"The evaluation cannot go on on this machine: {error!r}. Nothing that was finished is lost. "
        "Mend that (open files: ulimit -n, or a lower --max-requests), then start the same command again."
    )
