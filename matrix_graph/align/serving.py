"""The stages `serve` and `compare`: a server that has the adapter, and what base and adapter answer on it.

What always holds: the server has the adapter that stands in the folder now, not one of the same name from before; no
question that was learnt from is compared on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from matrix_graph.align.exporting import answer_rows
from matrix_graph.align.interrupts import interruptible
from matrix_graph.align.job import Job
from matrix_graph.align.target import endpoint_of
from matrix_graph.config import Settings
from matrix_graph.errors import ConfigError, ModelError
from matrix_graph.evaluate.records import AnswerRecord, Question
from matrix_graph.models.server import ServerConfig
from matrix_graph.models.serving.adapter import check_adapter_folder

if TYPE_CHECKING:
    from matrix_graph.models.chat_vllm import ChatVLLM

_SECONDS = 10.0
BASE = "base"
"""By which the comparison names the base model."""


@asynccontextmanager
async def serve(job: Job) -> AsyncIterator[ChatVLLM]:
    """A model on a server that has the adapter: our own, until the context is left, or the given one, for good.

    Raises:
        MatrixGraphError: the server cannot be started or reached, or refuses the adapter.
    """
    from matrix_graph.connect import connected_model, steadfast
    from matrix_graph.evaluate.adapters import load_adapters, require_served

    folder = check_adapter_folder(job.adapter, max_rank=None)
    settings = job.settings if job.settings.base_url is not None else with_adapter(job, folder)
    async with connected_model(steadfast(settings), job.voice.say) as model:
        if job.settings.base_url is not None:
            await asyncio.to_thread(_unload_older, job, folder)
            await load_adapters(model, {job.name: folder})
        await require_served(model, [job.name])
        yield model


def with_adapter(job: Job, folder: Path) -> Settings:
    """Settings of a server that loads the adapter when it starts, and has room for its rank."""
    server = job.settings.server
    ranks = get_args(ServerConfig.model_fields["max_lora_rank"].annotation)
    rank = next((rank for rank in ranks if rank >= max(job.recipe.rank, server.max_lora_rank)), ranks[-1])
    update = {"adapters": {**server.adapters, job.name: folder}, "enable_lora": True, "max_lora_rank": rank}
    return job.settings.model_copy(update={"server": server.model_copy(update=update)})


def _unload_older(job: Job, folder: Path) -> None:
    """Take off what the server loaded from the same folder before: it may have been trained again meanwhile."""
    endpoint = endpoint_of(job.settings)
    for one in endpoint.served(_SECONDS):
        if one.name == job.name and one.path is not None and Path(one.path) == folder:
            endpoint.unload_adapter(job.name)


def questions_to_compare(job: Job) -> list[Question]:
    """The questions that both answer: those kept apart, or those of the file that was given, less what was learnt.

    Raises:
        ConfigError: none is left.
    """
    learnt = {_folded(question) for _, question, _ in answer_rows(job.rows)}
    asked = held_out_questions(job) if job.options.held_out is not None else _kept_apart(job)
    left = [question for question in asked if _folded(question.question) not in learnt]
    if len(left) < len(asked):
        job.voice.say(f"note: {len(asked) - len(left)} questions were learnt from, and are not compared on")
    if not left:
        raise ConfigError(
            f"All questions of {job.options.held_out} were learnt from, so that nothing can be compared on them. Give "
            "others with --questions, and --redo compare."
        )
    return left[: job.compared]


def held_out_questions(job: Job) -> list[Question]:
    """The questions of the file that was given.

    Raises:
        ConfigError: it cannot be read, or holds none.
    """
    from matrix_graph.evaluate.loaders import load_questions

    assert job.options.held_out is not None  # the caller knows
    texts = ("chosen", "rejected", "reference")  # what could be scored besides is another command's business
    return [
        question.model_copy(update=dict.fromkeys(texts)) for question in load_questions([str(job.options.held_out)])
    ]


async def compare(job: Job, model: ChatVLLM) -> dict[str, Any]:
    """Have base and adapter answer what they have not answered yet, and write the results.

    Returns:
        How many questions there were, how many answers failed or are the same.

    Raises:
        ModelError: one of the two answered nothing at all.
        AlignStoppedError: it was stopped on request.
        MatrixGraphError: as `Evaluation.run`.
    """
    from matrix_graph.batch.process import collect_garbage_rarely, open_many_files
    from matrix_graph.evaluate.candidates.roster import roster_from
    from matrix_graph.evaluate.folder import read_answers
    from matrix_graph.evaluate.progress import ProgressView
    from matrix_graph.evaluate.results import write_results
    from matrix_graph.evaluate.runner import Evaluation
    from matrix_graph.models.complete import name_of

    questions = questions_to_compare(job)
    roster = roster_from(f"{BASE},{job.name}={job.adapter}", job.settings.scene, model=name_of(model))
    open_many_files()
    collect_garbage_rarely()
    with ProgressView(job.voice.console) as view:
        async with Evaluation(
            questions,
            roster.candidates,
            model,
            out=job.compare,
            baseline=BASE,
            on_status=view.status,
            on_progress=view.show,
        ) as evaluation:
            with interruptible(evaluation.drain, evaluation.stop, view.status):
                await evaluation.run()
    results = write_results(job.compare, baseline=BASE)
    answers: dict[str, dict[str, AnswerRecord]] = {BASE: {}, job.name: {}}
    for record in read_answers(job.compare):
        answers[record.candidate][record.question_id] = record
    for name, own in answers.items():
        if all(record.answer is None for record in own.values()):
            problem = next((record.error for record in own.values() if record.error is not None), None)
            raise ModelError(
                f"{name} answered none of {len(questions)} questions"
                + (f": {problem.message}" if problem else "")
                + ". Look at the server's log; --redo compare asks once more."
            )
    pairs = [
        (answers[BASE][id].answer, answers[job.name][id].answer) for id in answers[BASE] if id in answers[job.name]
    ]
    return {
        "questions": len(questions),
        "failed": sum(answer is None for pair in pairs for answer in pair),
        "the same": sum(one == other and one is not None for one, other in pairs),
        "words": {item.candidate: item.length.mean_words for item in results.measures},
    }


def _kept_apart(job: Job) -> list[Question]:
    return [Question(id=trace_id, question=question) for trace_id, question, _ in answer_rows(job.held_rows)]


def _folded(question: str) -> str:
    return " ".join(question.split()).casefold()
