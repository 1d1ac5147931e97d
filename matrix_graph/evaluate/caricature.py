"""Caricature: whether roles are somebody, or their profile blown up. After CoMPosT (arXiv 2310.11501), with embeddings.

CoMPosT compares simulations of a persona on a topic with two defaults: the topic without the persona, and the persona
without the topic. A trace has both: question and draft are the model on the topic without a persona; a role's traits
and goal are the persona without the topic. What differs from the paper: the axis between the two runs from the mean of
one default's sentences to that of the other's, instead of through words picked from them; and a role is told apart from
the other roles of its scene, instead of from a default persona, by the nearest mean instead of a random forest, since a
scene has few actions.

individuation: how often an action is nearer to the mean of its role's other actions than to the mean of all others'
    (balanced accuracy, each action left out in turn). 0.5 is chance, 1 is telling everybody apart.
exaggeration: where a role's actions lie on the axis. 0 is the topic without the persona, 1 the profile itself.
Both high together is a caricature (CoMPosT, section 3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np

from matrix_graph.evaluate.embedding import Embedder, Vectors, embedded
from matrix_graph.records import Trace

CLOSEST = 0.05
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s*|\n+")


async def caricatures(traces: Iterable[Trace], embedder: Embedder) -> dict[str, dict[str, float]]:
    """Individuation and exaggeration of each scene: the means over its roles.

    Args:
        traces: of scenes; failed ones are passed over.
        embedder: the embedding model.

    Returns:
        By trace id: "individuation" and "exaggeration", each where the scene has enough actions to tell.

    Raises:
        ModelError: the embedding model fails, or returns something else than one vector a text.
    """
    found = {}
    for trace in traces:
        if trace.status == "failed" or trace.cast is None:
            continue
        found[trace.id] = await _of_scene(trace, embedder)
    return found


async def _of_scene(trace: Trace, embedder: Embedder) -> dict[str, float]:
    assert trace.cast is not None  # the caller's part
    topic = [*sentences(trace.question), *sentences(trace.draft or "")]
    actions = {
        role.name: [event.action for event in trace.events if event.role == role.name] for role in trace.cast.roles
    }
    personas = {role.name: [*sentences(role.traits), *sentences(role.goal)] for role in trace.cast.roles}
    texts = list(dict.fromkeys([*topic, *_flat(personas.values()), *_flat(actions.values())]))
    if not texts:
        return {}
    place = dict(zip(texts, await embedded(embedder, texts), strict=True))

    def vectors(some: Sequence[str]) -> Vectors:
        return np.array([place[text] for text in some])

    apart, blown_up = [], []
    for name, own in actions.items():
        others = [action for other, theirs in actions.items() if other != name for action in theirs]
        if len(own) > 1 and len(others) > 1:
            apart.append(individuation(vectors(own), vectors(others)))
        if own and topic and personas[name]:
            value = exaggeration(vectors(own), vectors(personas[name]), vectors(topic))
            if value is not None:
                blown_up.append(value)
    result = {}
    if apart:
        result["individuation"] = fmean(apart)
    if blown_up:
        result["exaggeration"] = fmean(blown_up)
    return result


def individuation(own: Vectors, others: Vectors) -> float:
    """Balanced accuracy of telling a role's actions from others' by the nearest mean, each left out in turn.

    Args:
        own: at least two vectors, one a row.
        others: likewise.
    """
    right = []
    for mine, theirs in ((own, others), (others, own)):
        hits = []
        for row in range(len(mine)):
            rest = np.delete(mine, row, axis=0)
            near, far = _cosine(mine[row], rest.mean(axis=0)), _cosine(mine[row], theirs.mean(axis=0))
            hits.append(0.5 if near == far else float(near > far))
        right.append(fmean(hits))
    return fmean(right)


def exaggeration(actions: Vectors, persona: Vectors, topic: Vectors) -> float | None:
    """Where actions lie on the axis from topic to persona: 0 as the topic, 1 as the persona.

    None where topic and persona are so close that there is no axis to speak of (cosines nearer than `CLOSEST`).
    """
    axis = persona.mean(axis=0) - topic.mean(axis=0)
    mine, full, none = (fmean(_cosine(row, axis) for row in rows) for rows in (actions, persona, topic))
    return (mine - none) / (full - none) if full - none > CLOSEST else None


def sentences(text: str) -> list[str]:
    """The sentences of a text, as punctuation and line breaks part them."""
    return [part.strip() for part in _SENTENCE.split(text) if part.strip()]


def _cosine(one: Vectors, other: Vectors) -> float:
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norm if norm else 0.0


def _flat(lists: Iterable[Sequence[str]]) -> list[str]:
    return [text for texts in lists for text in texts]
