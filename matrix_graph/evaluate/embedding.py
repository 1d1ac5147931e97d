"""Texts as vectors, by an embedding model that the user names: one on a server, or one in a folder.

What always holds: one vector a text, all of one length. A folder is one that sentence-transformers wrote; its pooling
and its limit of tokens are followed, with transformers alone, and nothing in it is run as code.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pydantic import SecretStr

from matrix_graph.errors import ConfigError, ModelError, PrerequisiteError
from matrix_graph.models.client.headers import headers_from_environment, plain_headers
from matrix_graph.models.client.http import HTTPClient

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError as error:
    raise PrerequisiteError("Embeddings need numpy. Install it with: pip install 'matrix-graph[evaluate]'") from error

Vectors = NDArray[np.float64]
"""One vector a row."""

_AT_ONCE = 64
"""Texts in one request or pass."""
_URL_AND_MODEL = re.compile(r"(?P<url>https?://[^/]+/[^:]*):(?P<model>.+)")
_TRANSFORMER, _POOLING, _NORMALIZE = "Transformer", "Pooling", "Normalize"


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
        headers: sent with every request; None: those of the environment (MATRIX_GRAPH_HEADERS).
        give_up_after: seconds in which a request that failed is tried again.

    Raises:
        ConfigError: HTTP cannot carry the key or a header.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: SecretStr | None = None,
        headers: Mapping[str, SecretStr] | None = None,
        give_up_after: float = 30.0,
    ) -> None:
        key = api_key.get_secret_value() if api_key else None
        sent = plain_headers(headers_from_environment() if headers is None else headers)
        self._client = HTTPClient(base_url, key=key, headers=sent, give_up_after=give_up_after)
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


class FolderEmbedder:
    """Embeddings from a model in a folder that sentence-transformers wrote, such as all-MiniLM-L6-v2.

    Args:
        folder: with `modules.json`, or else with a transformers model whose token vectors are averaged.

    Raises:
        PrerequisiteError: torch or transformers is missing.
        ConfigError: the folder holds no model of a kind that is known here.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise PrerequisiteError(
                f"An embedding model in a folder needs {error.name}. Install it with: pip install 'matrix-graph[train]'"
            ) from error
        self._torch = torch
        parts = {_TRANSFORMER: folder} | _parts(folder)
        pooling = _pooling(_json(parts[_POOLING] / "config.json")) if _POOLING in parts else {"mean"}
        if pooling not in ({"mean"}, {"cls"}):
            raise ConfigError(
                f"{folder} pools by {', '.join(sorted(pooling)) or 'nothing'}; mean or cls is known here."
            )
        self._mean = pooling == {"mean"}
        limit = _json(parts[_TRANSFORMER] / "sentence_bert_config.json").get("max_seq_length")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(parts[_TRANSFORMER], local_files_only=True)
            with _no_progress_bar():
                self._model: Any = AutoModel.from_pretrained(parts[_TRANSFORMER], local_files_only=True).eval()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder} holds no embedding model that transformers can load: {error}") from error
        longest = getattr(self._model.config, "max_position_embeddings", None)
        self._limit = min(int(n) for n in (limit, longest, self._tokenizer.model_max_length) if n)

    async def aembed_documents(self, texts: list[str], /) -> list[list[float]]:
        """One vector of length 1 a text."""
        return await asyncio.to_thread(self._embed, texts)

    def _embed(self, texts: list[str]) -> list[list[float]]:
        torch = self._torch
        vectors: list[list[float]] = []
        for start in range(0, len(texts), _AT_ONCE):
            batch = self._tokenizer(
                texts[start : start + _AT_ONCE],
                padding=True,
                truncation=True,
                max_length=self._limit,
                return_tensors="pt",
            )
            with torch.inference_mode():
                tokens = self._model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1).float()
            pooled = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9) if self._mean else tokens[:, 0]
            # Only directions are compared, so that length 1 is right for models without such a last part, too.
            vectors += torch.nn.functional.normalize(pooled, dim=1).tolist()
        return vectors


def embedder_from(text: str, *, api_key: SecretStr | None = None) -> Embedder:
    """The embedding model that a user names.

    Args:
        text: a folder, or URL:MODEL of a server.
        api_key: the server's; None sends none.

    Raises:
        ConfigError: it is neither, or the folder holds no model of a kind that is known.
        PrerequisiteError: torch or transformers is missing for a folder.
    """
    match = _URL_AND_MODEL.fullmatch(text)
    if match is not None:
        return ServerEmbedder(match["url"], match["model"], api_key=api_key)
    if Path(text).is_dir():
        return FolderEmbedder(Path(text))
    raise ConfigError(
        f"The embedding model {text!r} is neither a folder nor of the form URL:MODEL, such as "
        "http://127.0.0.1:8001/v1:my-embedder."
    )


async def embedded(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """The vectors of texts, one a row.

    Raises:
        ModelError: the embedding model fails, or returns something else than one vector a text.
    """
    rows = await embedder.aembed_documents(list(texts))
    if len(rows) != len(texts) or len({len(row) for row in rows}) != 1:
        raise ModelError(
            f"The embedding model returned {len(rows)} vectors for {len(texts)} texts; one of the same length for each "
            "is needed."
        )
    return np.array(rows, dtype=float)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar of its own over the lines of a command."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _parts(folder: Path) -> dict[str, Path]:
    """The folders of a model's parts, by the last word of their types; empty of a bare transformers model.

    Raises:
        ConfigError: there are others than a transformer, a pooling and a normalization, or they lie elsewhere.
    """
    found = {}
    for part in _json(folder / "modules.json") or []:
        kind, path = str(part["type"]).rpartition(".")[2], (folder / str(part["path"])).resolve()
        if kind not in (_TRANSFORMER, _POOLING, _NORMALIZE) or not path.is_relative_to(folder.resolve()):
            raise ConfigError(f"{folder} has a part {kind!r}; transformer, pooling and normalization are known here.")
        found[kind] = path
    return found


def _pooling(config: dict[str, Any]) -> set[str]:
    """The ways in which a model pools the vectors of its tokens."""
    old = {
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for name, value in config.items()
        if name.startswith("pooling_mode_") and value is True
    }
    return old | ({str(config["pooling_mode"])} if config.get("pooling_mode") else set())


def _json(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error


def _vectors(body: dict[str, Any], count: int) -> list[list[float]]:
    """The vectors in a reply, in the order of the texts. Raises ValueError, TypeError or LookupError for garbage."""
    data = body["data"]
    if not isinstance(data, list) or len(data) != count:
        raise ValueError(f"{count} embeddings were asked for")
    ordered = sorted(data, key=lambda item: int(item["index"]))
    vectors = [[float(value) for value in item["embedding"]] for item in ordered]
    if not all(math.isfinite(value) for vector in vectors for value in vector):
        raise ValueError("a value of an embedding is not finite")
    return vectors
