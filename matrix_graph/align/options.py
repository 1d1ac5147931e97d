"""What can be asked of an alignment, and what follows from it for each stage.

What always holds: all that decides what a stage makes stands under that stage, as plain JSON, so that changed settings
are told from those that it was begun with.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matrix_graph.align.record import StageName, file_hash
from matrix_graph.config import SceneConfig, Settings, explain
from matrix_graph.errors import ConfigError
from matrix_graph.models.thoughts import ENABLE, KWARGS
from matrix_graph.traces.export.options import Include
from matrix_graph.train.recipe import Recipe, load_recipe

LEAST_HELD = 2
"""Questions that the comparison has at least."""
_BUNDLED_SCENE: dict[str, Any] = {"roles": 2, "steps": 2, "max_answer_tokens": 384}
"""What fits a model of 135M weights on two cores: small scenes, and answers that the smoke recipe's rows have room
for."""
_MOST_COMPARED, _MOST_COMPARED_BUNDLED = 100, 8
_NOT_IN_NAMES = re.compile(r"[^\w.+-]+")
_LONGEST_NAME = 60


class AlignOptions(BaseModel):
    """What may be asked of an alignment beside questions, model and scenes.

    Raises:
        ConfigError: a value out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str | None = Field(
        default=None, description='A name or YAML file of `load_recipe`; null: "smoke" for the bundled model, "paper".'
    )
    include: frozenset[Include] = Field(
        default=frozenset(), description="Parts of the scenes that are trained on beside the answers."
    )
    validation: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="The share of questions that is kept from training and compared on; of few questions as much more "
        "or less as makes two.",
    )
    held_out: Path | None = Field(
        default=None, description="A file of questions to compare on; null: those that were kept from training."
    )
    most_compared: int | None = Field(
        default=None, ge=1, description="The most questions of the comparison; null: 100, with the bundled model 8."
    )
    limit: int | None = Field(default=None, ge=1, description="The first so many rows of the questions; null: all.")
    name: str | None = Field(
        default=None, description="By which requests name the adapter; null: the name of the folder."
    )

    @classmethod
    def of(cls, **given: Any) -> Self:
        """The options from plain values.

        Raises:
            ConfigError: a value out of range.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            raise ConfigError(f"Options that cannot be used:\n{explain(error)}") from error


def scene_for(settings: Settings, *, bundled: bool) -> SceneConfig:
    """The scenes' settings: with the bundled model small ones, where nobody said otherwise."""
    if not bundled:
        return settings.scene
    small = {name: value for name, value in _BUNDLED_SCENE.items() if name not in settings.scene.model_fields_set}
    return settings.scene.model_copy(update=small)


def recipe_for(options: AlignOptions, *, bundled: bool) -> Recipe:
    """The training's recipe.

    Raises:
        ConfigError: as `load_recipe`.
    """
    return load_recipe(options.recipe or ("smoke" if bundled else "paper"))


def of_one_template(settings: Settings, recipe: Recipe) -> tuple[Settings, Recipe]:
    """Settings and recipe that hand the same to the chat template: what is played is what is taught and compared.

    Raises:
        ConfigError: they contradict each other.
    """
    asked, taught = settings.fixed_request.get(KWARGS, {}), recipe.chat_template_kwargs
    for name in asked.keys() & taught.keys():
        if asked[name] != taught[name]:
            raise ConfigError(
                f"The recipe trains with {KWARGS} {name}: {json.dumps(taught[name])}, and the settings ask the model "
                f"with {json.dumps(asked[name])}; scenes must be played as they are taught. Leave one of them out"
                + (" (the setting is `thinking`)." if name == ENABLE else ".")
            )
    together = {**asked, **taught}
    if not together:
        return settings, recipe
    return (
        settings.model_copy(update={"request": {**settings.request, KWARGS: together}}),
        recipe.model_copy(update={"chat_template_kwargs": together}),
    )


def most_compared(options: AlignOptions, *, bundled: bool) -> int:
    """How many questions the comparison has at most."""
    return options.most_compared or (_MOST_COMPARED_BUNDLED if bundled else _MOST_COMPARED)


def adapter_name(options: AlignOptions, out: Path, base: str) -> str:
    """By which requests name the adapter.

    Raises:
        ConfigError: a name that a server, or an evaluation, cannot use.
    """
    from matrix_graph.evaluate.candidates.roster import METHODS

    taken = {*METHODS, base}
    if options.name is not None:
        if options.name in taken or _NOT_IN_NAMES.search(options.name) or not 0 < len(options.name) <= _LONGEST_NAME:
            raise ConfigError(
                f"The adapter cannot be called {options.name!r}: 1 to {_LONGEST_NAME} letters, digits and .+-_ are "
                f"allowed, but none of {', '.join(sorted(taken))}."
            )
        return options.name
    name = _NOT_IN_NAMES.sub("-", out.resolve().name)[:_LONGEST_NAME].strip("-") or "adapter"
    return f"{name}-adapter" if name in taken else name


def stage_settings(
    questions: Path,
    options: AlignOptions,
    *,
    model: str,
    name: str,
    scene: SceneConfig,
    recipe: Recipe,
    compared: int,
    request: dict[str, Any],
) -> dict[StageName, dict[str, Any]]:
    """All that decides what each stage makes, as plain JSON.

    Args:
        questions: the file of questions.
        options: as they were given.
        model: what the base model is known by.
        name: by which requests name the adapter.
        scene: of every scene.
        recipe: of the training.
        compared: the most questions of the comparison.
        request: the fields of every request to the model that were set.

    Raises:
        ConfigError: a file of questions cannot be read.
    """
    from matrix_graph.evaluate.candidates.roster import longest_of

    held_out = options.held_out
    asked = {"request": request} if request else {}
    return {
        "run": {
            "questions": _hash(questions),
            "limit": options.limit,
            "model": model,
            "scene": scene.model_dump(mode="json"),
            **asked,
        },
        "export": {
            "include": sorted(options.include),
            "validation": None if held_out else options.validation,
            "longest row": recipe.max_length,
        },
        "train": {"recipe": recipe.model_dump(mode="json")},
        "serve": {},
        "compare": {
            "questions": _hash(held_out) if held_out else None,
            "most questions": compared,
            "name": name,
            "temperature": scene.temperature,
            "max_answer_tokens": longest_of(scene, model),
            **asked,
        },
    }


def _hash(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is not a regular file. `align` reads its questions at each start: name one.")
        return file_hash(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}. Name a file of questions.") from error
