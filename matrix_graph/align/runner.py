"""The map of an alignment: the stages that are not done yet, one after the other.

    OUT/run/ export/ adapter/ compare/   what each stage makes
    OUT/align.json, OUT/align.html       how it stands, for programs and for people

What always holds: what can be refused is refused before the first scene; each stage's end, good or bad, is in both
files before the next begins; only one alignment writes to a folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from matrix_graph.align.interrupts import run_here
from matrix_graph.align.job import Job
from matrix_graph.align.ledger import Ledger
from matrix_graph.align.options import AlignOptions, adapter_name, most_compared, of_one_template, recipe_for, scene_for
from matrix_graph.align.page import PAGE_NAME, write_page
from matrix_graph.align.playing import check_first_rows, count_questions
from matrix_graph.align.record import (
    FOLDERS,
    RECORD_NAME,
    STAGES,
    AlignRecord,
    Redone,
    StageName,
    StageRecord,
    read_align_record,
)
from matrix_graph.align.target import Target, given_target, own_target
from matrix_graph.align.voice import Voice
from matrix_graph.align.words import BUNDLED_NOTE, outcome, outlook
from matrix_graph.batch.jobs import StoppedError
from matrix_graph.batch.lock import RunLock
from matrix_graph.batch.words import duration
from matrix_graph.config import Settings, load_settings
from matrix_graph.errors import ConfigError
from matrix_graph.files import refuse_own_files
from matrix_graph.models.client.headers import without_login
from matrix_graph.options import require_folder
from matrix_graph.records import clean
from matrix_graph.train.base import require_extra

_DEFAULTS = AlignOptions()


def align(
    questions: str | Path,
    out: str | Path,
    settings: Settings | None = None,
    options: AlignOptions = _DEFAULTS,
    *,
    redo: Redone | None = None,
    console: Console | None = None,
) -> AlignRecord:
    """Rehearse questions, train an adapter on what came of it, and compare it with the base model.

    Given again, it does what is missing; with nothing missing it does nothing.

    Args:
        questions: a table as of `matrix-graph run`; a regular file.
        out: the folder of the alignment.
        settings: model, server and scenes; None: the environment's, else the small bundled model on a server of our
            own.
        options: everything else.
        redo: do this stage ("export", "train" or "compare") and those after it again, under the present settings; what
            they made is deleted.
        console: where people watch; None: standard error.

    Returns:
        The record, as `align.json` holds it, with every stage done.

    Raises:
        SettingsChangedError: the folder was begun with other questions or settings; says which, and what to do.
        ConfigError: questions, options or a folder that cannot be used.
        RunLockedError: another alignment writes there.
        PrerequisiteError: the `train` or `evaluate` extra or an engine is not installed; holds the command.
        ServerError: a server cannot be started, or takes no adapters.
        ExportError: the scenes give too few rows; says what to do.
        TrainingError: the training cannot go on.
        StoppedError: it was stopped on request.
        MatrixGraphError: as the stages' own commands.
    """
    out = Path(out)
    if redo is not None and redo not in get_args(Redone):
        raise ConfigError(f"{redo!r} cannot be done again by itself; {', '.join(get_args(Redone))} can.")
    require_folder(out)
    inputs = [Path(questions), *([options.held_out] if options.held_out else [])]
    refuse_own_files(inputs, out, (RECORD_NAME, PAGE_NAME, *(f"{folder}/*" for folder in FOLDERS.values())))
    with RunLock(out):
        known = read_align_record(out)
        job = _job(Path(questions), out, settings or load_settings(), options, known, console)
        return _Alignment(job, Ledger(job, known, redo)).carry_out()


class _Alignment:
    """One start of an alignment."""

    def __init__(self, job: Job, ledger: Ledger) -> None:
        self._job, self._ledger = job, ledger

    def carry_out(self) -> AlignRecord:
        """Do what is missing."""
        job, ledger = self._job, self._ledger
        if all(ledger.is_done(name) for name in STAGES):
            self._keep()
            job.voice.say(f"nothing to do: all {len(STAGES)} stages in {job.out} are done; see {job.out / PAGE_NAME}")
            return ledger.record
        self._check_beforehand()
        job.voice.say(f"{len(STAGES)} stages in {job.out}. {outlook(job, _questions(job))}")
        if job.target.bundled:
            job.voice.say(BUNDLED_NOTE)
        self._keep()
        for name, work in _works():
            if ledger.is_done(name):
                self._say_done_before(name)
                continue
            with self._stage(name) as stage:
                stage.facts = work(job)
        if ledger.is_done("compare"):
            self._say_done_before("serve")
            self._say_done_before("compare")
        else:
            run_here(self._serve_and_compare)
        return ledger.record

    async def _serve_and_compare(self) -> None:
        from matrix_graph.align import serving

        job = self._job
        url = job.settings.base_url
        async with AsyncExitStack() as server:
            with self._stage("serve") as stage:
                model = await server.enter_async_context(serving.serve(job))
                by = "a server of our own, until the comparison is over" if url is None else without_login(url)
                stage.facts = {"name": job.name, "base": job.target.name, "server": by}
            with self._stage("compare") as stage:
                stage.facts = await serving.compare(job, model)

    @contextmanager
    def _stage(self, name: StageName) -> Iterator[StageRecord]:
        """A stage from its beginning to its end, good or bad, as the record has it."""
        stage = self._ledger.begin(name)
        self._keep()
        voice, began = self._job.voice, time.monotonic()
        with voice.stage(STAGES.index(name) + 1, len(STAGES), name):
            voice.say("begins" if stage.starts == 1 else "goes on")
            try:
                yield stage
                self._ledger.note_files(stage)
            except BaseException as error:
                stopped = isinstance(error, StoppedError) or not isinstance(error, Exception)
                stage.state = "stopped" if stopped else "failed"
                stage.message = clean(str(error)) or type(error).__name__
                stage.seconds = round(stage.seconds + time.monotonic() - began, 1)
                with suppress(ConfigError):  # what it was stopped by is the news
                    self._keep()
                raise
            stage.state = "done"
            stage.seconds = round(stage.seconds + time.monotonic() - began, 1)
            self._keep()
            told = outcome(stage)
            voice.say(f"done in {duration(stage.seconds)}{f': {told}' if told else ''}")

    def _say_done_before(self, name: StageName) -> None:
        with self._job.voice.stage(STAGES.index(name) + 1, len(STAGES), name):
            self._job.voice.say(f"done before: {outcome(self._ledger.record.stage(name))}")

    def _check_beforehand(self) -> None:
        """What would stop a later stage is better known before hours of scenes."""
        if not self._ledger.is_done("run"):
            check_first_rows(self._job.questions)
        if not self._ledger.is_done("train"):
            require_extra()
        if not self._ledger.is_done("compare"):
            import matrix_graph.evaluate.statistics  # noqa: F401 - tells what is missing now, not after hours of training
        if self._job.options.held_out is not None:
            from matrix_graph.align.serving import held_out_questions

            held_out_questions(self._job)

    def _keep(self) -> None:
        self._ledger.keep()
        write_page(self._job.out, self._ledger.record)


def _works() -> list[tuple[StageName, Callable[[Job], dict[str, Any]]]]:
    """The stages that need no server with the adapter, in their order."""
    from matrix_graph.align.exporting import export_rows
    from matrix_graph.align.playing import play
    from matrix_graph.align.training import train

    return [("run", play), ("export", export_rows), ("train", train)]


def _job(
    questions: Path,
    out: Path,
    settings: Settings,
    options: AlignOptions,
    known: AlignRecord | None,
    console: Console | None,
) -> Job:
    """What was asked for, resolved."""
    target = _target(settings, known)
    scene = scene_for(settings, bundled=target.bundled)
    # A given server is asked by the name that it knows; our own is started with the weights.
    model = target.name if settings.base_url is not None else settings.model
    settings, recipe = of_one_template(settings, recipe_for(options, bundled=target.bundled))
    keeps_name = known is not None and options.name is None  # a folder may have been given another name
    return Job(
        questions=questions,
        out=out,
        settings=settings.model_copy(update={"scene": scene, "model": model}),
        options=options,
        target=target,
        recipe=recipe,
        compared=most_compared(options, bundled=target.bundled),
        name=known.name if known is not None and keeps_name else adapter_name(options, out, target.name),
        voice=Voice(console or Console(stderr=True, force_jupyter=False)),
    )


def _target(settings: Settings, known: AlignRecord | None) -> Target:
    if settings.base_url is None:
        return own_target(settings)
    if known is not None and known.done and settings.model in (None, known.model, known.weights):
        return Target(known.weights, known.model)  # there is nothing left that the server is needed for
    return given_target(settings)


def _questions(job: Job) -> int | None:
    return count_questions(job.questions, job.options.limit)
