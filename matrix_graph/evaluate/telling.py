"""Whether scenes tell their question: whether a reader could say which of all questions a scene was made from.

What always holds: a scene counts if its people, goals and plan are nearer to its own question than to any other of the
run, by an embedding model that the user names; the situation, which mostly repeats the question, is not read. By
chance one of as many scenes as there are questions would.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from matrix_graph.evaluate.embedding import Embedder, Vectors, embedded
from matrix_graph.records import Cast, Trace

NAME = "tells its question"
_ROWS = 1024
"""Scenes that are compared with all questions at once."""


async def tellings(
    traces: Iterable[Trace], embedder: Embedder, among: Iterable[str] = ()
) -> dict[str, dict[str, float]]:
    """Tell of each scene whether its own question is the nearest of all questions.

    Args:
        traces: of scenes; failed ones are passed over, and their questions stay among those to choose from.
        embedder: the embedding model.
        among: further questions to choose from, such as those of a run that are still to be played.

    Returns:
        By trace id: 1 or 0 under `NAME`; empty where there are fewer than two different questions.

    Raises:
        ModelError: the embedding model fails, or returns something else than one vector a text.
    """
    questions: dict[str, int] = {}
    for question in among:
        questions.setdefault(_line(question), len(questions))
    scenes: list[tuple[str, int, str]] = []
    for trace in traces:
        number = questions.setdefault(_line(trace.question), len(questions))
        if trace.cast is not None and trace.status != "failed":
            scenes.append((trace.id, number, told(trace.cast)))
    if len(questions) < 2 or not scenes:
        return {}
    asked = _unit(await embedded(embedder, list(questions)))
    played = _unit(await embedded(embedder, [text for _, _, text in scenes]))
    found = {}
    for start in range(0, len(scenes), _ROWS):
        near = played[start : start + _ROWS] @ asked.T
        for (id, number, _), row in zip(scenes[start : start + _ROWS], near, strict=True):
            found[id] = {NAME: float(row[number] > np.delete(row, number).max())}
    return found


def told(cast: Cast) -> str:
    """What is read of a scene: the plan, and who the people are and what they want."""
    people = [", ".join(part for part in (role.name, role.who, role.goal) if part) for role in cast.roles]
    return ". ".join([*cast.plan, *people])


def _line(text: str) -> str:
    return " ".join(text.split())


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = vectors / np.where(lengths == 0, 1, lengths)
    return unit
