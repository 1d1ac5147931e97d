"""Plays one question of a batch: from a row to the line that is kept.

What always holds: it never raises for what happens in a scene; the trace's id is the question's identity; a scene whose
question was set aside has failed, whatever else became of it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from langchain_core.language_models import BaseChatModel

from matrix_graph.batch.rows import Row
from matrix_graph.compose.rehearsal import Rehearsal
from matrix_graph.config import SceneConfig
from matrix_graph.errors import BatchError
from matrix_graph.models.ask import describe
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.turn import Visitor
from matrix_graph.records import Cast, Problem, Status, Trace, Usage
from matrix_graph.traces.store import trace_line

_BLIP_SECONDS = 60.0
"""How long a call is tried again whose server is well."""
_CALL_SECONDS = 1800.0
"""How long a call may take, from request to reply, on a server that is full."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Played:
    """A scene that has ended.

    Attributes:
        key: the identity of its question.
        status: how it ended.
        seconds: how long it took.
        calls: its model calls.
        line: its trace, as `traces.jsonl` holds it, without newline.
        cut: whether its answer ended at its limit of tokens.
    """

    key: str
    status: Status
    seconds: float
    calls: int
    line: bytes
    cut: bool = False

    @property
    def trace(self) -> Trace:
        """Its trace."""
        return Trace.model_validate_json(self.line)


class Player(Protocol):
    """Something that plays questions."""

    async def play(self, row: Row, key: str, visitor: Visitor) -> Played:
        """Play one question; `visitor` is its scene in traffic."""


class ScenePlayer:
    """Plays on this process's event loop.

    Args:
        model: the one chat model that plays everybody.
        name: its name at the server.
        lifeline: what a `ChatVLLM` turns to when it has lost its server.
        cast: who is in the scenes; None has the model cast each.
        config: settings and limits.
    """

    def __init__(
        self, model: BaseChatModel, *, name: str, lifeline: object, cast: Cast | None, config: SceneConfig
    ) -> None:
        self._config = config
        if isinstance(model, ChatVLLM):
            # The patience of a run: the server's absences are the traffic's business.
            patience = {
                "give_up_after": min(_BLIP_SECONDS, model.give_up_after),
                "timeout": model.timeout if "timeout" in model.model_fields_set else _CALL_SECONDS,
            }
            model = model.model_copy(update={**patience, "model": name, "server": lifeline})
        self._rehearsal = Rehearsal(model, cast=cast, config=config)

    async def play(self, row: Row, key: str, visitor: Visitor) -> Played:
        """Play one question."""
        with visitor.here():
            try:
                result = await self._rehearsal.ainvoke({"question": row.question, "draft": row.draft})
                trace: Trace = result["trace"]
            except (OSError, MemoryError) as error:
                # This machine's fault, which the next question would meet too.
                raise BatchError(
                    f"A scene cannot be played on this machine: {error!r}. Nothing that was finished is lost. "
                    "Mend that (open files: ulimit -n, or a lower --max-requests), then start the same command again."
                ) from error
            except Exception as error:  # noqa: BLE001 - one scene must not end all others
                _log.exception("a scene broke off")
                trace = _broken(row, self._config, error)
        return _played(row, key, trace, visitor.condemned)


def broken_off(row: Row, key: str, config: SceneConfig, error: Exception) -> Played:
    """A question that could not be played, for a reason of ours."""
    return _played(row, key, _broken(row, config, error))


def _played(row: Row, key: str, trace: Trace, condemned: Exception | None = None) -> Played:
    own: dict[str, Any] = {"id": key} if row.id is None else {"id": key, "question_id": row.id}
    if condemned is not None:
        own |= {"status": "failed", "revised": False, "answer": trace.draft}
        own["error"] = Problem(**describe(condemned))
    trace = trace.model_copy(update=own)
    return Played(
        key, trace.status, trace.seconds, len(trace.calls), trace_line(trace), trace.status != "failed" and trace.cut
    )


def _broken(row: Row, config: SceneConfig, error: Exception) -> Trace:
    """The trace of a scene that broke off for a reason of ours."""
    return Trace(
        id="",
        question=row.question,
        draft=row.draft,
        answer=row.draft,
        revised=False,
        status="failed",
        error=Problem(**describe(error)),
        cast=None,
        events=[],
        calls=[],
        settings=config.model_dump(mode="json"),
        usage=Usage(),
        seconds=0.0,
        created_at=datetime.now(UTC),
    )
