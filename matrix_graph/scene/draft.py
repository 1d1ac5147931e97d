"""The first node: the question is checked, and the model answers it as it would without a rehearsal."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any, Literal

import matrix_graph
from matrix_graph.errors import SceneError
from matrix_graph.models.ask import describe, parse_text
from matrix_graph.records import clean
from matrix_graph.scene.prompts import digest
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.state import Plain, SceneState, plain


async def draft(stage: Stage, state: SceneState) -> Plain:
    """Begin the scene on a clean state, with the given draft or one of the model's own.

    The prompt is the question and nothing else, so that (question, answer) trains what a plain chat sends.
    """
    question, given = state.get("question"), _given(state, "draft")
    start: Plain = {
        "id": uuid.uuid4().hex,
        "created_at": datetime.now(UTC).isoformat(),
        "settings": {
            **plain(stage.config),
            "version": matrix_graph.__version__,
            "prompts": digest(),
        },
        "cast": _given(state, "cast"),
        "given": None,
        "round": 0,
        "events": [None],
        "consequences": [],
        "answer": None,
        "revised": False,
        "status": None,
        "error": None,
        "ended_by": None,
        "calls": [None],
        "failures": [None],
        "actions": [None],
        "passes": [None],
        "dialogues": None,
        "modulator": None,
        "inbox": {},
        "step": 0,
        "attempt": 0,
        "blocked": False,
        "reflection": None,
        "check": None,
    }
    if not isinstance(question, str) or not question.strip():
        error = SceneError(f"The question is empty or no text ({question!r}); give a text to answer.")
        return {**start, "question": str(question or ""), "draft": None, **failed(error)}
    if given is not None and not isinstance(given, str):
        error = SceneError(f"The draft is a {type(given).__name__}; give a text, or none to have one made.")
        return {**start, "draft": None, **failed(error)}
    start["question"] = question = clean(question)
    stage.emit({"type": "question", "question": question})
    if given := given if given and given.strip() else None:
        start["draft"] = clean(given)
    else:
        answer = await stage.ask("draft", [{"role": "user", "content": question}], parse_text, stage.answer_tokens)
        start["calls"] = [None, *answer.calls]
        start["draft"] = answer.value
        if answer.problem is not None:
            return {**start, "draft": None, "status": "failed", "error": answer.problem}
    stage.emit({"type": "draft", "draft": start["draft"], "given": given is not None})
    return {**start, "answer": start["draft"], "played": {**(state.get("played") or {}), "draft": start["draft"]}}


def _given(state: SceneState, key: Literal["draft", "cast"]) -> Any:
    """The draft or cast that came with this input; None if it is what an earlier scene left behind on the thread."""
    value, named = state.get(key), state.get("given")
    if named is not None:
        return value if key in named else None
    return None if value == (state.get("played") or {}).get(key) else value


def failed(error: Exception) -> Plain:
    """The state update that ends a scene with an error."""
    return {"status": "failed", "error": describe(error)}
