"""Training data from traces: rows that equal what stands in the traces, character by character.

Only scenes that came to an end are exported; a failed scene teaches nothing. Every row is a chat in the "messages"
form that TRL and others take, with where it came from beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from matrix_graph.errors import ExportError
from matrix_graph.records import Call, Trace


class ExportFormat(StrEnum):
    """The shape of a row."""

    messages = "messages"


class Include(StrEnum):
    """What else to export beside (question, answer)."""

    scene = "scene"


Row = dict[str, Any]


def rows(traces: Iterable[Trace], *, scene: bool = False) -> Iterator[Row]:
    """Training rows of the scenes that came to an end.

    Args:
        traces: read one by one, never held together.
        scene: also every role's and the modulator's dialogue.

    Yields:
        `{"messages": [{"role", "content"}], "kind": "answer" | "role" | "modulator", "speaker", "trace_id"}`; `speaker`
        is the role's name, or "" for the others.
    """
    for trace in traces:
        if trace.status == "failed" or trace.answer is None:
            continue
        yield {
            "messages": [
                {"role": "user", "content": trace.question},
                {"role": "assistant", "content": trace.answer},
            ],
            "kind": "answer",
            "speaker": "",
            "trace_id": trace.id,
        }
        if scene:
            yield from _dialogues(trace)


def export(traces: Iterable[Trace], out: Path, *, scene: bool = False) -> int:
    """Write training rows as JSON lines; the file appears whole or not at all.

    Args:
        traces: read one by one.
        out: the file to write; its folder is made if need be, an older file of that name replaced.
        scene: also every role's and the modulator's dialogue.

    Returns:
        The number of rows.

    Raises:
        ExportError: no scene came to an end, or the file cannot be written.
    """
    part = out.with_name(f".{out.name}.part")
    count = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            for row in rows(traces, scene=scene):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        if count:
            part.replace(out)
    except (OSError, UnicodeEncodeError) as error:
        raise ExportError(f"{out} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    if not count:
        raise ExportError("There is nothing to export: no scene came to an end, all failed or there are none.")
    return count


def _dialogues(trace: Trace) -> Iterator[Row]:
    """Every dialogue of roles and modulator once: a call that stands whole in a later prompt is left out."""
    spoken = [call for call in trace.calls if call.purpose in ("act", "judge", "recap") and call.error is None]
    prompts = [_chat(call)[:-1] for call in spoken]
    for number, call in enumerate(spoken):
        chat = _chat(call)
        if any(prompt[: len(chat)] == chat for prompt in prompts[number + 1 :]):
            continue
        speaks = call.role if call.purpose == "act" or (call.purpose == "recap" and call.role) else None
        yield {
            "messages": chat,
            "kind": "role" if speaks else "modulator",
            "speaker": speaks or "",
            "trace_id": trace.id,
        }


def _chat(call: Call) -> list[dict[str, str]]:
    chat = [{"role": str(message.role), "content": message.content} for message in call.messages]
    return [*chat, {"role": "assistant", "content": call.completion}]
