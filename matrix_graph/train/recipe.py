"""How an adapter is trained: every setting that changes its weights, and the recipes that come with the package.

What always holds: a recipe says all of it, so that the same rows, model, recipe and machine give the same adapter; the
files `configs/train-*.yaml` equal the recipes here, which need no file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matrix_graph.config import explain
from matrix_graph.errors import ConfigError

Quantization = Literal["auto", "4bit", "none"]


class Recipe(BaseModel):
    """Settings of one training. The defaults are the paper's recipe (MATRIX, arXiv 2402.05699, appendix)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=8, ge=1, le=512, description="Rank of the adapter's matrices (PEFT's `r`).")
    alpha: float = Field(default=16, gt=0, description="The adapter counts alpha / rank times.")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Share of the adapter's inputs that is left out.")
    target_modules: Literal["all-linear"] | list[str] = Field(
        default="all-linear", description="Layers that get an adapter, by the end of their name; all but the head."
    )
    epochs: float = Field(default=3, gt=0, description="How often each row is seen.")
    max_steps: int | None = Field(default=None, ge=1, description="Steps after which it ends; null: epochs decide.")
    learning_rate: float = Field(default=2e-5, gt=0, description="The highest learning rate.")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = Field(
        default="cosine", description="How the learning rate falls after the warm-up."
    )
    warmup: float = Field(default=0.03, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    batch_size: int = Field(default=1, ge=1, description="Rows at once on each device.")
    accumulate: int = Field(default=8, ge=1, description="Batches that make one step.")
    max_length: int = Field(default=1024, ge=8, description="Tokens of a row; longer rows are left out, never cut.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this norm.")
    beta: float = Field(default=0.1, gt=0, description="DPO alone: how strongly the base model is kept to.")
    quantization: Quantization = Field(
        default="auto", description="Base weights while training: 4bit (QLoRA, needs a GPU), none, or 4bit on a GPU."
    )
    gradient_checkpointing: bool = Field(
        default=True, description="Whether activations are computed twice to save memory; on a GPU alone."
    )
    checkpoint_every: int | None = Field(
        default=None, ge=1, description="Steps between checkpoints; null: ten in all, at most 200 steps apart."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default={}, description="Handed to the chat template, such as enable_thinking: false; serve with the same."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Decides order, dropout and the adapter's first weights.")


RECIPES = {
    "paper": Recipe(),
    "smoke": Recipe(
        epochs=1,
        max_steps=20,
        learning_rate=1e-3,
        schedule="linear",
        batch_size=2,
        accumulate=2,
        max_length=512,
        quantization="none",
        gradient_checkpointing=False,
    ),
    "8b": Recipe(
        rank=16,
        alpha=32,
        learning_rate=1e-4,
        batch_size=4,
        accumulate=4,
        max_length=4096,
        chat_template_kwargs={"enable_thinking": False},
    ),
}
"""The recipes that `--recipe` knows by name; `configs/train-NAME.yaml` is each with its reasons."""


def load_recipe(name_or_path: str | Path = "paper") -> Recipe:
    """A recipe by its name, or from a YAML file with the fields of `Recipe`; what a file leaves out is the paper's.

    Raises:
        ConfigError: no such recipe, an unreadable file, an unknown setting or a value out of range.
    """
    if (known := RECIPES.get(str(name_or_path))) is not None:
        return known
    path = Path(name_or_path).expanduser()
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"There is no recipe {str(name_or_path)!r}. Known are {', '.join(RECIPES)}; or give a YAML file, such as "
            "configs/train-smoke.yaml."
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Recipe.model_validate({} if content is None else content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The recipe {path} cannot be read: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"The recipe {path} cannot be used:\n{explain(error)}") from error
