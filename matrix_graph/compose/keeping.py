"""Where an app's traces go: to the graph's store or into a folder, never into its checkpoints.

Why: a trace is 100 kB or more, and a checkpointer writes the whole state again at every step of every turn. What always
holds: nothing is kept unless it was asked for; a trace that could not be kept is told, and costs nobody the answer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from langgraph.config import get_config
from langgraph.store.base import BaseStore

from matrix_graph.errors import ConfigError
from matrix_graph.models.ask import describe
from matrix_graph.records import Trace
from matrix_graph.traces.store import FILE_NAME, append_trace

STORE = "store"
NAMESPACE = ("matrix_graph", "rehearsals")
"""Where traces lie in a store. An item's key is the trace's id, its value `{"thread_id", "trace", "when_calls"}`."""

Kept = Literal["store", "folder"]
Traces = Literal["store"] | str | os.PathLike[str]
"""Where traces go: "store", which is the store that the graph was compiled with, or a folder."""


class TraceKeeper:
    """Keeps the traces of an app where its developer wants them.

    Args:
        traces: "store", a folder, or None: nothing is kept.

    Raises:
        ConfigError: another kind of value, or a path that is not a folder.
    """

    def __init__(self, traces: Traces | None) -> None:
        if traces is not None and not isinstance(traces, str | os.PathLike):
            raise ConfigError(
                f'traces is a {type(traces).__name__}; allowed are None (keep none), "store" (the store that the graph '
                "is compiled with), or a folder."
            )
        if traces == "":
            raise ConfigError('traces is an empty text; give "store", a folder, or None to keep none.')
        self._to_store = traces == STORE
        self._folder = None if traces is None or self._to_store else Path(traces).expanduser().absolute()
        if self._folder is not None and self._folder.exists() and not self._folder.is_dir():
            raise ConfigError(f"The traces cannot go to {self._folder}: it is not a folder. Give a folder.")

    def check(self, store: BaseStore | None) -> None:
        """Make sure that there is a store, if traces go there.

        Raises:
            ConfigError: there is none.
        """
        if self._to_store and store is None:
            raise ConfigError(
                'traces="store", and this graph has no store. Give it one, such as create_agent(..., '
                f"store=InMemoryStore()); or name a folder, which gets a {FILE_NAME}."
            )

    def keep(
        self, trace: Trace, when_calls: Sequence[Mapping[str, Any]], store: BaseStore | None
    ) -> tuple[Kept | None, dict[str, str] | None]:
        """Keep one trace.

        Args:
            trace: of a scene that has ended.
            when_calls: the model calls that decided whether it was played. A folder keeps the trace alone.
            store: the graph's.

        Returns:
            Where it lies, None if it was not kept; and `{"type", "message"}` if that failed.
        """
        try:
            if self._to_store and store is not None:
                store.put(NAMESPACE, trace.id, _item(trace, when_calls), index=False)
                return "store", None
            if self._folder is not None:
                append_trace(self._folder, trace)
                return "folder", None
        except Exception as error:  # noqa: BLE001 - a store of others may raise anything
            return None, _failure(error)
        return None, None

    async def akeep(
        self, trace: Trace, when_calls: Sequence[Mapping[str, Any]], store: BaseStore | None
    ) -> tuple[Kept | None, dict[str, str] | None]:
        """Keep one trace; see `keep`."""
        if not self._to_store or store is None:
            return await asyncio.to_thread(self.keep, trace, when_calls, store)
        try:
            await store.aput(NAMESPACE, trace.id, _item(trace, when_calls), index=False)
        except Exception as error:  # noqa: BLE001 - as above
            return None, _failure(error)
        return "store", None


def _item(trace: Trace, when_calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"thread_id": _thread(), "trace": trace.model_dump(mode="json"), "when_calls": [*map(dict, when_calls)]}


def _thread() -> str | None:
    """The thread of the running graph; None without one."""
    try:
        thread = get_config().get("configurable", {}).get("thread_id")
    except RuntimeError:  # called by hand
        return None
    return None if thread is None else str(thread)


def _failure(error: Exception) -> dict[str, str]:
    problem = describe(error)
    return {**problem, "message": f"The trace could not be kept: {problem['message']}"}
