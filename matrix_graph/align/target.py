"""Whom an alignment is about: the weights that are trained, and the name by which a server knows them.

Why: with a server of our own both follow from `--model`; a server that already runs has weights of its own, and an
adapter that was trained on others would be worthless. What always holds: what can be told before the first scene is
told then, since scenes take hours: weights that are not here, a server that takes no adapters, a missing package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from matrix_graph.config import Settings
from matrix_graph.errors import ConfigError, ServerError
from matrix_graph.models.bundled import MODEL_NAME, bundled_model, check_model_folder
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.serving.endpoint import AdapterRefusedError, Endpoint, ServedModel
from matrix_graph.models.serving.launch import served_name

_SECONDS = 10.0
_NOBODY = "matrix-graph-asks-whether-adapters-can-be-loaded"


@dataclass(frozen=True)
class Target:
    """The model of an alignment.

    Attributes:
        weights: what is trained: a folder, a hub id, or `bundled:NAME`, perhaps not unpacked yet; None: `bundled:135m`.
        name: by which a server knows the base model.
    """

    weights: str | None
    name: str

    @property
    def bundled(self) -> bool:
        """Whether it is the small bundled model, which shows that everything runs and nothing more."""
        return self.weights is None or Path(self.weights).name == MODEL_NAME


def own_target(settings: Settings) -> Target:
    """The model that a server of our own will serve.

    Raises:
        ServerError: `model` is a folder without a model, or no bundled model.
    """
    if (bundled := bundled_model(settings.model)) is not None:
        return Target(None if bundled.name == MODEL_NAME else bundled.source, bundled.name)
    assert settings.model is not None  # that means a bundled one
    folder = check_model_folder(settings.model)
    weights = settings.model if folder is None else str(folder.resolve())
    return Target(weights, served_name(weights))


def given_target(settings: Settings) -> Target:
    """The model of a server that already runs, once it is known that the server takes adapters.

    Raises:
        ServerError: it does not answer, refuses the key, or does not take adapters while it runs; or `model` is not
            a bundled model that exists.
        ConfigError: its weights are not known or not here, or `model` names others.
    """
    endpoint = endpoint_of(settings)
    listed = endpoint.served(_SECONDS)
    require_adapters(endpoint)
    bases = [one for one in listed if one.base is None]
    wanted = settings.model
    bundled = bundled_model(wanted) if wanted is not None else None
    if bundled is not None:
        wanted = bundled.name
    folder = bundled.folder if bundled else check_model_folder(wanted) if wanted is not None else None
    weights = wanted if folder is None else str(folder.resolve())
    base = _base(bases, wanted, weights)
    if base is None:
        names = ", ".join(one.name for one in bases) or "no model"
        raise ConfigError(
            f"The server at {endpoint.shown_url} serves {names}, and --model names {wanted!r}. Name the weights that "
            "it serves, or leave --model out."
        )
    if bundled is not None:
        weights = bundled.source
    elif weights is None or (folder is None and base.path is not None and wanted == base.name):
        weights = _weights_of(base, endpoint)
    return Target(weights, base.name)


def endpoint_of(settings: Settings) -> Endpoint:
    """The endpoint of the server that already runs.

    Raises:
        ConfigError: `base_url` is not an address.
    """
    try:
        model = ChatVLLM(base_url=settings.base_url or "", **settings.connection)
        address = urlsplit(model.base_url)
        host, port = address.hostname or "", address.port or 0
    except ValueError as error:
        raise ConfigError(
            f"--base-url {settings.base_url!r} is not an address such as http://127.0.0.1:8000/v1."
        ) from error
    root = model.base_url.removesuffix("/v1")
    return Endpoint(host, port, api_key=model.request_key or "", url=root, headers=model.request_headers)


def require_adapters(endpoint: Endpoint) -> None:
    """Find out whether a server takes adapters while it runs, by having it unload one that it does not have.

    Raises:
        ServerError: it does not; holds how to start one that does.
    """
    try:
        endpoint.unload_adapter(_NOBODY)
    except AdapterRefusedError:
        return  # it knows what an adapter is
    except ServerError as error:
        raise ServerError(
            f"{error} `align` needs that: it loads what it has trained, to compare it with the base model. Without "
            "--base-url it starts such a server itself."
        ) from error


def _base(bases: list[ServedModel], wanted: str | None, weights: str | None) -> ServedModel | None:
    """The served model that is meant."""
    if wanted is None:
        return bases[0] if bases else None
    named = [one for one in bases if wanted in (one.name, one.path) or weights == one.path]
    if named:
        return named[0]
    # A server that does not tell where it has its weights from may have them from anywhere.
    untold = [one for one in bases if one.path is None]
    return untold[0] if len(bases) == 1 and untold else None


def _weights_of(base: ServedModel, endpoint: Endpoint) -> str:
    path = base.path
    if path is None:
        raise ConfigError(
            f"The server at {endpoint.shown_url} does not tell which weights {base.name} has, and training needs them. "
            "Name their folder or hub id with --model."
        )
    if Path(path).is_absolute() and not Path(path).is_dir():
        raise ConfigError(
            f"The server at {endpoint.shown_url} has its weights from {path}, which is not on this machine, and "
            "training needs them. Name a folder with the same weights with --model."
        )
    return path
