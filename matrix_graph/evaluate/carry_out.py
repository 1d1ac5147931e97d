"""An evaluation as a command carries it out: on a server that is started or given, watched, and stopped by signals.

What always holds: whatever can be refused is refused before a server is started; one Ctrl-C lets finish what is in
flight, two stop at once, and the same command goes on where it stopped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from matrix_graph.evaluate.options import JUDGE_KEY_VARIABLE
from matrix_graph.files import refuse_own_files
from matrix_graph.interrupts import interrupts
from matrix_graph.models.bundled.catalog import SMALL
from matrix_graph.options import settings_from

if TYPE_CHECKING:
    from pydantic import SecretStr
    from rich.console import Console

    from matrix_graph.config import Settings
    from matrix_graph.evaluate.candidates.roster import Roster
    from matrix_graph.evaluate.records import Question
    from matrix_graph.models.chat_vllm import ChatVLLM

_JUDGE = re.compile(r"(?P<url>https?://[^/]+(?:/[^:]*)?)(?::(?P<model>.+))?")


class Outcome(NamedTuple):
    """How an evaluation ended."""

    baseline: str
    """Whom the others are compared with."""
    failed: int
    """Answers, scores and verdicts that failed, in all starts together."""


def judge_from(text: str, model: ChatVLLM, headers: Mapping[str, SecretStr] | None = None) -> ChatVLLM:
    """The model that judges.

    Args:
        text: "base", a name that the model's server serves, `URL` or `URL:MODEL`.
        model: the one that the candidates share.
        headers: for requests to a judge on another server; None: those of the environment.

    Raises:
        ConfigError: a text that is none of these.
    """
    from pydantic import SecretStr

    from matrix_graph.errors import ConfigError
    from matrix_graph.models.chat_vllm import ChatVLLM
    from matrix_graph.models.client.headers import checked_key

    if text == "base":
        return model
    if "://" not in text:
        return model.model_copy(update={"model": text})
    match = _JUDGE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"The judge {text!r} is not of the form URL:MODEL, such as http://127.0.0.1:8000/v1:my-model."
        )
    key = os.environ.get(JUDGE_KEY_VARIABLE)
    given: dict[str, Any] = {name: getattr(model, name) for name in ("thinking", "max_thinking_tokens", "request")}
    if key:
        given["api_key"] = SecretStr(checked_key(key, JUDGE_KEY_VARIABLE))
    if headers is not None:
        given["default_headers"] = headers
    return ChatVLLM(base_url=match["url"], model=match["model"], **given)


def settings_of(
    config: Path | None,
    model: str | None,
    base_url: str | None,
    roles: int | None,
    steps: int | None,
    temperature: float | None,
    **of_the_model: Any,
) -> Settings:
    """The settings of a command; what is None was not given. Raises ConfigError as `load_settings`."""
    given = {"roles": roles, "steps": steps, "temperature": temperature}
    scene = {key: value for key, value in given.items() if value is not None}
    return settings_from(config, model, base_url, scene, **of_the_model)


def answering(settings: Settings) -> str | None:
    """The model that answers, as it was asked for; None: a server that runs already decides."""
    return settings.model or (None if settings.base_url else SMALL.source)


def carry_out(
    questions: Sequence[Question],
    roster: Roster,
    settings: Settings,
    out: Path,
    *,
    judge: str | None,
    **options: Any,
) -> Outcome:
    """Run an evaluation to its end, watched.

    Raises:
        MatrixGraphError: as `Evaluation.run`.
        typer.Exit: it was stopped (128 plus the signal's number).
    """
    import asyncio

    from rich.console import Console

    from matrix_graph.batch.process import collect_garbage_rarely, open_many_files
    from matrix_graph.evaluate.adapters import checked_folders
    from matrix_graph.evaluate.folder import OWN_FILES
    from matrix_graph.options import require_folder

    require_folder(out, results=True)
    refuse_own_files([Path(source) for source in {question.source for question in questions}], out, OWN_FILES)
    open_many_files()
    checked_folders(roster.adapters)
    collect_garbage_rarely()
    return asyncio.run(_watched(questions, roster, settings, out, judge, Console(stderr=True), options))


async def _watched(
    questions: Sequence[Question],
    roster: Roster,
    settings: Settings,
    out: Path,
    judge: str | None,
    console: Console,
    options: dict[str, Any],
) -> Outcome:
    from matrix_graph.batch.jobs import StoppedError
    from matrix_graph.connect import connected_model, steadfast
    from matrix_graph.evaluate.adapters import load_adapters, require_served
    from matrix_graph.evaluate.progress import ProgressView
    from matrix_graph.evaluate.runner import Evaluation

    with ProgressView(console) as view:
        async with connected_model(steadfast(_with_adapters(settings, roster)), view.status) as model:
            if settings.base_url is not None:
                await load_adapters(model, roster.adapters)
            await require_served(model, roster.served)
            if judge is not None and judge != "base" and "://" not in judge:
                await require_served(model, [judge])
            async with Evaluation(
                questions,
                roster.candidates,
                model,
                out=out,
                judge_model=judge_from(judge, model, settings.headers) if judge is not None else None,
                on_status=view.status,
                on_progress=view.show,
                **options,
            ) as evaluation:
                with interrupts(evaluation.drain, evaluation.stop, view.status, what="answers") as received:
                    try:
                        await evaluation.run()
                    except StoppedError as error:
                        view.status(str(error))
                        raise typer.Exit(128 + (received[0] if received else 15)) from error
            view.show(evaluation.progress)
    return Outcome(evaluation.baseline, evaluation.failed)


def _with_adapters(settings: Settings, roster: Roster) -> Settings:
    """Our own server loads adapters as it starts."""
    server = settings.server
    if roster.adapters:
        server = server.model_copy(update={"adapters": {**server.adapters, **roster.adapters}})
    return settings.model_copy(update={"server": server})
