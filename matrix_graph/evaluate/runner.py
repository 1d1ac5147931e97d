"""An evaluation from questions to records: every candidate answers every question, scores its pairs, and is judged.

What always holds: what is recorded under the same settings is never asked again; a record is on the disk before it
counts; deep candidates begin first, so that the quick ones fill the server until the end; killed and started again, the
records lead to the same results as if it had run through. Candidates that spend what a rehearsal spent begin when it
is done; verdicts begin when all answers are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables.config import (
    ensure_config,
    get_async_callback_manager_for_config,
    set_config_context,
)

import matrix_graph
from matrix_graph.batch import lookout
from matrix_graph.batch.jobs import Jobs
from matrix_graph.errors import ConfigError, ModelError, ModelRequestError
from matrix_graph.evaluate.candidates.budget import is_matched, matched_to
from matrix_graph.evaluate.candidates.candidate import Candidate
from matrix_graph.evaluate.candidates.plain import Plain
from matrix_graph.evaluate.candidates.rehearsal import RehearsalCandidate
from matrix_graph.evaluate.folder import read_answers
from matrix_graph.evaluate.judge import Judge, Judgement, judgements
from matrix_graph.evaluate.progress import Progress
from matrix_graph.evaluate.records import Plan, Question
from matrix_graph.evaluate.scoring import Scorer
from matrix_graph.evaluate.servers import Servers, patient
from matrix_graph.evaluate.store import EvaluationStore
from matrix_graph.evaluate.tasks import (
    Answerer,
    AnswerTask,
    Finished,
    ScoreTask,
    Task,
    VerdictTask,
    plain,
    score_settings,
    texts_of,
)
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.complete import request_settings
from matrix_graph.models.system_role import folded
from matrix_graph.models.traffic import Traffic
from matrix_graph.models.turn import Visitor
from matrix_graph.models.wrapped import chat_model
from matrix_graph.records import Problem

T = TypeVar("T")


class Evaluation:
    """One evaluation; an async context manager.

        async with Evaluation(questions, roster.candidates, model, out="runs/first") as evaluation:
            await evaluation.run()

    Args:
        questions: with distinct ids.
        candidates: by name.
        model: the one model that all share; only `ChatVLLM` has adapters and scores known answers.
        out: the folder; the same folder again goes on there.
        judge_model: compares the answers; None: nobody does.
        baseline: whom the judge compares the others with; None: "base" if it takes part, else the first.
        judge_repeats: how often each prompt of the judge is asked, for its agreement with itself.
        max_requests: model calls in flight at most; None: what the server's cache has room for, 64 if it does not tell.
        give_up_after: seconds that the server may be away (`ChatVLLM` only); no answer fails meanwhile.
        retry_failed: ask again for answers, scores and verdicts that failed in earlier starts.
        force_new_settings: go on in a folder whose candidates had other settings; their answers are made anew.
        on_status: gets a line when something happens.
        on_progress: gets the progress whenever a job has ended.

    Raises:
        ConfigError: nothing to do, ids that are not distinct, an unknown baseline, no rehearsal to match, or a
            limit that cannot be.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        candidates: Mapping[str, Candidate],
        model: BaseChatModel,
        *,
        out: str | Path,
        judge_model: BaseChatModel | None = None,
        baseline: str | None = None,
        judge_repeats: int = 1,
        max_requests: int | None = None,
        give_up_after: float = 3600.0,
        retry_failed: bool = False,
        force_new_settings: bool = False,
        on_status: Callable[[str], object] | None = None,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> None:
        if not questions or not candidates:
            raise ConfigError("An evaluation needs at least one question and one candidate.")
        if len({question.id for question in questions}) < len(questions):
            raise ConfigError("Two questions have the same id; give each its own (`loaders.merged` sees to that).")
        if baseline is not None and baseline not in candidates:
            raise ConfigError(f"The baseline {baseline!r} is not a candidate; there are {', '.join(candidates)}.")
        for name, limit in (("max_requests", max_requests), ("judge_repeats", judge_repeats)):
            if limit is not None and limit < 1:
                raise ConfigError(f"{name} is {limit}; it must be at least 1.")
        adapters = [name for name, candidate in candidates.items() if candidate.model is not None]
        if adapters and not isinstance(model, ChatVLLM):
            raise ConfigError(
                f"{adapters[0]!r} names an adapter, which {type(model).__name__} cannot ask; use ChatVLLM."
            )
        self._matched_to = matched_to(candidates)
        self.directory = Path(out)
        self.progress = Progress()
        self.baseline = baseline or ("base" if "base" in candidates else next(iter(candidates)))
        self._questions, self._candidates = list(questions), dict(candidates)
        self._model = chat_model(model, "Evaluation")
        self._judge_model = None if judge_model is None else chat_model(judge_model, "Evaluation (judge_model)")
        self._judge_repeats = judge_repeats
        self._retry_failed, self._force_new_settings = retry_failed, force_new_settings
        self._on_status, self._on_progress = on_status or _ignore, on_progress or _ignore
        self._writer = ThreadPoolExecutor(1, "evaluation")
        self._resources = ExitStack()
        self._servers = Servers(
            max_requests,
            give_up_after=give_up_after,
            on_status=self._on_status,
            on_absence=self._absent,
            on_call=self.progress.call_ended,
        )
        self._judge_name = ""
        self._jobs: Jobs[Finished] | None = None
        self._draining = False
        self._failed_before = 0

    # ---- before and after -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self._prepare()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _prepare(self) -> None:
        self._base_name = await lookout.served_name(self._model)
        traffic = await self._servers.traffic_of(self._model)
        self._answerers = [self._answerer(name, candidate, traffic) for name, candidate in self._candidates.items()]
        self._answers_traffic = self._judge_traffic = traffic
        self._judge: Judge | None = None
        if self._judge_model is not None:
            self._judge_name = await lookout.served_name(self._judge_model)
            self._judge_traffic = await self._servers.traffic_of(self._judge_model)
            self._judge = Judge(
                patient(self._judge_model, self._judge_name, self._judge_traffic), name=self._judge_name
            )
        plan = Plan(
            candidates={answerer.name: answerer.settings for answerer in self._answerers},
            judge=self._judge.settings if self._judge else None,
            questions=len(self._questions),
            version=matrix_graph.__version__,
        )
        store = EvaluationStore(self.directory, force_new_settings=self._force_new_settings)
        self._store: EvaluationStore = await self._in_writer(self._resources.enter_context, store)
        await self._in_writer(self._store.begin, plan, self._questions)

    async def _close(self) -> None:
        await self._servers.close()
        await self._in_writer(self._resources.close)
        self._writer.shutdown(wait=True)

    @property
    def failed(self) -> int:
        """How many answers, scores and verdicts failed, in all starts together."""
        return self._failed_before + self.progress.failed

    # ---- from outside ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Do all that is missing.

        Raises:
            StoppedError: it was stopped before it was done.
            ModelUnavailableError: a server was away for too long; start again to go on.
            ModelError: a server refuses every call.
            TraceError: a record could not be written; start again to go on.
        """
        config = ensure_config()
        # Who listens is asked once; without it each call would ask, which costs more than the call.
        config["callbacks"] = get_async_callback_manager_for_config(config)
        with set_config_context(config) as context:
            await asyncio.create_task(self._run(), context=context)

    def drain(self) -> None:
        """Begin nothing more; what is in flight finishes."""
        self._draining = True
        if self._jobs is not None:
            self._jobs.drain()

    def stop(self) -> None:
        """Stop at once. What was in flight is done again by the next run."""
        self._draining = True
        if self._jobs is not None:
            self._jobs.stop()

    # ---- the stages -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._failed_before = await self._in_writer(self._count_failed)
        tasks, before = await self._in_writer(self._missing)
        await self._stage("answers", tasks, before, self._answers_traffic)
        if self._matched_to is not None:
            spent = await self._in_writer(self._store.spent, self._matched_to)
            tasks, before = await self._in_writer(self._missing, spent)
            await self._stage("matched answers", tasks, before, self._answers_traffic)
        if self._judge is not None:
            verdicts, before = await self._in_writer(self._missing_verdicts, self._judge)
            await self._stage("verdicts", verdicts, before, self._judge_traffic)

    async def _stage(self, stage: str, tasks: list[Task], before: int, traffic: Traffic) -> None:
        self.progress.begin(stage, before + len(tasks), before)
        self._on_progress(self.progress)
        self._jobs = Jobs(traffic, self._keep, self.progress, calls=lambda: self.progress.calls)
        if self._draining:
            self._jobs.drain()
        await self._jobs.run(partial(_carried_out, task) for task in tasks)

    async def _keep(self, finished: Finished) -> None:
        try:
            await self._in_writer(self._store.keep, finished.lines)
        except BaseException:
            self.progress.put_back()
            raise
        self.progress.job_ended(failed=finished.failed)
        self._on_progress(self.progress)

    def _count_failed(self) -> int:
        """What failed in earlier starts and is not asked again."""
        if self._retry_failed:
            return 0
        names, ids = set(self._candidates), {question.id for question in self._questions}
        return self._store.failed(names, ids)

    def _missing(self, spent: Mapping[str, int] | None = None) -> tuple[list[Task], int]:
        """Answers and scores that are not there yet, the deepest first; and how many are.

        Args:
            spent: tokens that the rehearsal generated, by question id, for the candidates that match it and no others;
                None: for all others.
        """
        answered = self._store.answered(retry_failed=self._retry_failed)
        scored = self._store.scored(retry_failed=self._retry_failed)
        scenes = self._store.scenes(retry_failed=self._retry_failed)
        tasks: list[tuple[int, Task]] = []
        before = 0
        for answerer in self._answerers:
            if is_matched(answerer.candidate) != (spent is not None):
                continue
            for question in self._questions:
                if not question.answered:
                    continue
                asked = answerer if spent is None else answerer.within(spent[question.id])
                if answered.get((answerer.name, question.id)) == (question.text, plain(asked.settings)):
                    before += 1
                    continue
                played = isinstance(answerer.candidate, RehearsalCandidate)
                scene = scenes.get(answerer.trace_id(question)) if played else None
                tasks.append((answerer.candidate.depth, AnswerTask(asked, question, scene)))
            if not isinstance(answerer.candidate, Plain) or not isinstance(answerer.model, ChatVLLM):
                continue
            scorer = Scorer(answerer.model, answerer.name)
            for question in self._questions:
                for text in texts_of(question):
                    if scored.get((answerer.name, question.id, text)) == plain(
                        score_settings(answerer, question, text)
                    ):
                        before += 1
                    else:
                        tasks.append((0, ScoreTask(answerer, scorer, question, text)))
        tasks.sort(key=lambda task: -task[0])
        return [task for _, task in tasks], before

    def _missing_verdicts(self, judge: Judge) -> tuple[list[Task], int]:
        """Verdicts that are not there yet; and how many are."""
        judged = self._store.judged(judge.name, retry_failed=self._retry_failed)
        settings = plain(judge.settings)
        tasks: list[Task] = []
        before = 0
        for judgement in judgements(read_answers(self.directory), self.baseline, repeats=self._judge_repeats):
            known = judged.get(judgement.key)
            # As sent, the prompt may have been without a system role.
            if known is not None and (folded(known[0]), known[1]) == (folded(_asked(judge, judgement)), settings):
                before += 1
            else:
                tasks.append(VerdictTask(judge, judgement, self._refuse_judge))
        return tasks, before

    async def _refuse_judge(self, problem: Problem) -> None:
        if problem.type == ModelRequestError.__name__ and self._judge_model is not None:
            reason = await lookout.why_refused(self._judge_model, self._judge_name)
            if reason is not None:
                raise ModelError(f"The judge: {reason} Nothing that was finished is lost; then start again.")

    def _answerer(self, name: str, candidate: Candidate, traffic: Traffic) -> Answerer:
        served = candidate.model or self._base_name
        matched = {"matched_to": self._matched_to} if is_matched(candidate) else {}
        return Answerer(
            name=name,
            candidate=candidate,
            model=patient(self._model, served, traffic),
            served=served,
            settings={**candidate.settings, "served": served, **matched, **request_settings(self._model)},
            given_model=self._model,
        )

    def _absent(self, away: bool) -> None:
        self.progress.away = away
        self._on_progress(self.progress)

    async def _in_writer(self, function: Callable[..., T], *arguments: Any) -> T:
        # One thread for all that touches the files: in order, and without the event loop waiting for the disk.
        return await asyncio.get_running_loop().run_in_executor(self._writer, function, *arguments)


async def _carried_out(task: Task, visitor: Visitor) -> Finished:
    with visitor.here():
        return await task.run()


def _asked(judge: Judge, judgement: Judgement) -> list[dict[str, str]]:
    """What the judge is shown; a verdict on other answers does not count."""
    shown = [judgement.first, judgement.second]
    if judgement.order == "second_then_first":
        shown.reverse()
    return judge.messages(judgement.first.question, shown[0].answer or "", shown[1].answer or "")


def _ignore(*_: object) -> None:
    """Nobody wants to know."""
