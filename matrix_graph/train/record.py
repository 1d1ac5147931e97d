"""What a finished training says about itself: `training.json` for programs, `README.md` for people.

What always holds: `training.json` is written last, so that a folder that has it has all the rest; the data and the base
model are named by hashes; no text of a row and no folder of the machine stands in either, since both go along with the
adapter.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matrix_graph.config import explain
from matrix_graph.models.bundled.catalog import PREFIX
from matrix_graph.models.serving.weights import Fingerprint
from matrix_graph.train.dataset import DataAccount
from matrix_graph.train.errors import TrainingError
from matrix_graph.train.recipe import Recipe
from matrix_graph.train.rows import Method

RECORD_NAME = "training.json"


class BaseModelAccount(BaseModel):
    """What was trained on top of."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = Field(description="A hub id, or a folder's last part.")
    load_as: str | None = Field(
        default=None,
        description="What `--model` takes for it on any machine, a hub id or a bundled model; null: its folder alone.",
    )
    revision: str | None = Field(description="The hub's commit; null where it is not known.")
    fingerprint: Fingerprint | None = Field(description="Of the weights; null if they are not safetensors files.")
    files: dict[str, str] = Field(description="SHA-256 of each file with weights.")


class LossPoint(BaseModel):
    """The mean loss a token (SFT) or a pair (DPO) of the steps since the point before."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    step: int
    loss: float
    learning_rate: float | None = None


class TrainingRecord(BaseModel):
    """All that is known of a training that ended well."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: Literal[1] = 1
    identity: str = Field(description="SHA-256 of all that decides the weights: the same training is known by it.")
    method: Method
    model: BaseModelAccount
    data: DataAccount
    validation: DataAccount | None
    recipe: Recipe
    device: str = Field(description='What it ran on: "cpu", or a GPU\'s name.')
    quantization: Literal["4bit", "none"] = Field(description="Of the base weights while training.")
    processes: int = Field(description="One a GPU.")
    steps: int
    loss: list[LossPoint]
    validation_loss: list[LossPoint]
    starts: int = Field(description="1, and 1 more for each time that it was resumed.")
    seconds: float = Field(description="Time in training, over all starts, work that was lost to a kill left out.")
    created_at: datetime = Field(description="When it ended, UTC.")
    versions: dict[str, str] = Field(description="Of the libraries that decide the weights.")

    @property
    def first_loss(self) -> float:
        """The loss of the first steps."""
        return self.loss[0].loss

    @property
    def last_loss(self) -> float:
        """The loss of the last steps."""
        return self.loss[-1].loss


def read_record(folder: Path) -> TrainingRecord | None:
    """The record of a finished training; None if the folder has none.

    Raises:
        TrainingError: there is one, but no training has written it.
    """
    path = folder / RECORD_NAME
    try:
        return TrainingRecord.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise TrainingError(f"{path} was written by no training of ours:\n{explain(error)}") from error


def model_card(record: TrainingRecord, name: str) -> str:
    """The text of the adapter's `README.md`.

    Args:
        record: what it is about.
        name: the adapter's name, such as its folder's.
    """
    base = _plain(record.model.name)
    lines = [
        "---",
        f"base_model: {json.dumps(record.model.name)}",
        "library_name: peft",
        "pipeline_tag: text-generation",
        f"tags: [lora, {record.method}, matrix-graph]",
        "---",
        f"# {_plain(name)}",
        "",
        f"A LoRA adapter for `{base}`, trained with matrix-graph on rehearsed answers "
        f"({'imitation' if record.method == 'sft' else 'preference, DPO'}).",
        "",
        "## Data",
        "",
        *_data_lines("training", record.data),
        *(_data_lines("validation", record.validation) if record.validation else []),
        "",
        "The loss falls on what the assistant says and on the token that ends its turn, on nothing else.",
        "",
        "## Training",
        "",
        f"{record.steps} steps in {record.seconds:.0f} s on {_plain(record.device)}, {record.processes} process"
        f"{'es' if record.processes > 1 else ''}, base weights {_WEIGHTS[record.quantization]}. Loss "
        f"{record.first_loss:.3f} at the beginning, {record.last_loss:.3f} at the end.",
        "",
        "![Loss by training step](loss.svg)",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {key} | `{_plain(json.dumps(value))}` |" for key, value in record.recipe.model_dump().items()),
        "",
        "The base model's weights, by which another base is told apart:",
        "",
        *(f"- `{_plain(file)}` SHA-256 `{sha256}`" for file, sha256 in record.model.files.items()),
        "",
        f"`{RECORD_NAME}` has every loss and the versions of the libraries.",
        "",
        "## Use",
        "",
        *_use_lines(record),
    ]
    if record.recipe.chat_template_kwargs:
        kwargs = json.dumps(record.recipe.chat_template_kwargs)
        lines += [f"Requests must hand the same to the chat template: `chat_template_kwargs = {_plain(kwargs)}`.", ""]
    return "\n".join(lines)


_WEIGHTS = {"4bit": "in 4 bits (QLoRA)", "none": "as they are"}


def _use_lines(record: TrainingRecord) -> list[str]:
    """How to load the adapter on any machine: the base model is always given by hand."""
    model, base = record.model, record.model.load_as or "BASE"
    bundled = base.startswith(PREFIX)
    serve = [f"matrix-graph serve --model {base} --adapter NAME=FOLDER   # requests then name NAME as their model"]
    served = "BASE" if bundled else base
    serve += [f"vllm serve {served} --enable-lora --max-lora-rank {record.recipe.rank} --lora-modules NAME=FOLDER"]
    if bundled:
        given = [
            "from matrix_graph.models.bundled import prepare_bundled_model",
            "",
            f"base = prepare_bundled_model({json.dumps(base.removeprefix(PREFIX))})",
        ]
    else:
        given = ["", f"base = {json.dumps(base)}"]
    revision = f", revision={json.dumps(model.revision)}" if model.load_as and model.revision else ""
    lines = [
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        *given,
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base{revision}), "FOLDER")',
        "```",
        "",
        "```bash",
        *serve,
        "```",
        "",
    ]
    if model.load_as is not None and not bundled:
        return ["FOLDER is this folder.", "", *lines]
    where = (
        "The base model is prepared on each machine, and BASE is the folder that `base` names below"
        if bundled
        else "BASE is the base model on your machine, its folder or its hub id; it was a folder where this was trained"
    )
    told = (
        f"FOLDER is this folder. {where}. Give the base by hand, as here: `adapter_config.json` tells its name alone, "
        f"`{_plain(model.name)}`. `AutoPeftModelForCausalLM` and vLLM's `VLLM_LORA_RESOLVER_CACHE_DIR` look for the "
        "base by that name, and may not find it."
    )
    return [told, "", *lines]


def _data_lines(what: str, data: DataAccount) -> list[str]:
    return [
        f"- {what}: `{_plain(data.file)}`, SHA-256 `{data.sha256}`",
        f"  - {data.rows} rows, {data.examples} examples, {data.tokens} tokens, {data.taught_tokens} with a loss",
        *(f"  - left out, {number}: `{_plain(reason)}`" for reason, number in data.dropped.items()),
    ]


def _plain(text: str) -> str:
    """Text that ends no line, code span or table cell."""
    return " ".join(text.split()).replace("`", "'").replace("|", "/")
