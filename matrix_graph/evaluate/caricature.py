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
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import SecretStr

from matrix_graph.errors import ModelError, PrerequisiteError
from matrix_graph.models.client.http import HTTPClient
from matrix_graph.records import Trace

try:
    import numpy as np
except ImportError as error:
    raise PrerequisiteError("Caricature needs numpy. Install it with: pip install 'matrix-graph[evaluate]'") from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float64]

MEASURES = {
    "individuation": "how often an action is nearer to its role's other actions than to the others'; 0.5 is chance",
    "exaggeration": "where actions lie between the topic without a persona (0) and the profile itself (1)",
}
CLOSEST = 0.05
_AT_ONCE = 64
"""Texts in one request."""
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s*|\n+")


class Embedder(Protocol):
    """What turns texts into vectors; LangChain's `Embeddings` do."""

    async def aembed_documents(self, texts: list[str], /) -> list[list[float]]:
        """One vector a text, all of one length."""


class ServerEmbedder:
    """Embeddings from an OpenAI-compatible server's `/v1/embeddings`, such as vLLM's with an embedding model.

    Args:
        base_url: root of the API, with /v1.
        model: the name of the embedding model there.
        api_key: bearer token; None sends none.
        give_up_after: seconds in which a request that failed is tried again.
    """

    def __init__(
        self, base_url: str, model: str, *, api_key: SecretStr | None = None, give_up_after: float = 30.0
    ) -> None:
        key = api_key.get_secret_value() if api_key else None
        self._client = HTTPClient(base_url, key=key, give_up_after=give_up_after)
        self._model = model

    async def aembed_documents(self, texts: list[str], /) -> list[list[float]]:
        """One vector a text.

        Raises:
            ModelError: the server cannot be reached, or refuses.
        """
        vectors: list[list[float]] = []
        for start in range(0, len(texts), _AT_ONCE):
            part = texts[start : start + _AT_ONCE]
            body = {"model": self._model, "input": part, "encoding_format": "float"}
            vectors += await self._client.post("embeddings", body, partial(_vectors, count=len(part)))
        return vectors


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
    rows = await embedder.aembed_documents(texts)
    if len(rows) != len(texts) or len({len(row) for row in rows}) != 1:
        raise ModelError(
            f"The embedding model returned {len(rows)} vectors for {len(texts)} texts; one of the same length for each "
            "is needed."
        )
    place = dict(zip(texts, np.array(rows, dtype=float), strict=True))

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


def _vectors(body: dict[str, Any], count: int) -> list[list[float]]:
    """The vectors in a reply, in the order of the texts. Raises ValueError, TypeError or LookupError for garbage."""
    data = body["data"]
    if not isinstance(data, list) or len(data) != count:
        raise ValueError(f"{count} embeddings were asked for")
    ordered = sorted(data, key=lambda item: int(item["index"]))
    return [[float(value) for value in item["embedding"]] for item in ordered]
