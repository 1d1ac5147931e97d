"""Rows made into the tensors' raw material, with an account of what was left out and why.

What always holds: every row is either in the examples or counted under a reason; no example is longer than the limit,
and none was cut to fit. Held in memory: 8 bytes a token.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from matrix_graph.train.errors import TrainingError
from matrix_graph.train.masks import Masker, PairExample, RowRefusedError
from matrix_graph.train.recipe import Recipe
from matrix_graph.train.rows import Chat, Method, Pair, file_sha256, read_chats, read_pairs

_MOST_REASONS = 50
_OTHER = "other reasons"


class DataAccount(BaseModel):
    """What became of a file's rows."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    file: str = Field(description="The file's name, without its folder.")
    sha256: str = Field(description="Of the file's bytes.")
    rows: int = Field(description="Rows in the file.")
    examples: int = Field(description="What is trained on; a row gives several where turns cannot be held together.")
    dropped: dict[str, int] = Field(description="Rows, or turns of rows, that are left out, by reason.")
    tokens: int = Field(description="Tokens of all examples.")
    taught_tokens: int = Field(description="Of these, the tokens with a loss.")


class Examples:
    """Growing columns of token lists, which cost 4 bytes a token rather than a Python object."""

    def __init__(self, columns: Iterable[str]) -> None:
        self._values = {name: array("i") for name in columns}
        self._ends = {name: array("q", [0]) for name in columns}
        self.count = 0

    def add(self, **columns: list[int]) -> None:
        """Append one example."""
        for name, values in columns.items():
            self._values[name].extend(values)
            self._ends[name].append(len(self._values[name]))
        self.count += 1

    def dataset(self) -> Any:
        """A `datasets.Dataset` of them."""
        import pyarrow as pa
        from datasets import Dataset

        lists = {
            name: pa.LargeListArray.from_arrays(
                pa.array(memoryview(self._ends[name]), pa.int64()), pa.array(memoryview(values), pa.int32())
            )
            for name, values in self._values.items()
        }
        return Dataset(pa.table(lists))


def prepare(path: Path, method: Method, masker: Masker, recipe: Recipe) -> tuple[Any, DataAccount]:
    """A file's rows as the trainer takes them.

    Args:
        path: rows as `read_chats` or `read_pairs` takes them.
        method: "sft" gives columns `input_ids` and `labels`, "dpo" `prompt_ids`, `chosen_ids` and `rejected_ids`.
        masker: tells what is learnt.
        recipe: its `max_length` is the limit, for DPO of the prompt with either answer.

    Returns:
        A `datasets.Dataset`, in the order of the file, and the account.

    Raises:
        TrainingError: a row of another format, or nothing is left to train on.
    """
    sha256 = file_sha256(path)
    dropped: Counter[str] = Counter()
    limit = recipe.max_length
    too_long = f"longer than {limit} tokens"
    rows = tokens = taught = 0
    columns = ("input_ids", "labels") if method == "sft" else ("prompt_ids", "chosen_ids", "rejected_ids")
    examples = Examples(columns)
    source: Iterable[Chat | Pair] = read_chats(path) if method == "sft" else read_pairs(path)
    for row in source:
        rows += 1
        try:
            made = masker.chat(row) if isinstance(row, Chat) else [masker.pair(row)]
        except RowRefusedError as error:
            _count(dropped, str(error))
            continue
        for example in made:
            if isinstance(example, PairExample):
                longest = len(example.prompt) + max(len(example.chosen), len(example.rejected))
                if longest > limit:
                    _count(dropped, too_long)
                    continue
                examples.add(prompt_ids=example.prompt, chosen_ids=example.chosen, rejected_ids=example.rejected)
                answers = len(example.chosen) + len(example.rejected)
                tokens, taught = tokens + 2 * len(example.prompt) + answers, taught + answers
            elif len(example.ids) > limit:
                _count(dropped, too_long)
            else:
                examples.add(input_ids=example.ids, labels=example.labels)
                tokens, taught = tokens + len(example.ids), taught + example.taught
    if not examples.count:
        raise TrainingError(_nothing_left(path, rows, dropped))
    account = DataAccount(
        file=path.name,
        sha256=sha256,
        rows=rows,
        examples=examples.count,
        dropped=dict(dropped.most_common()),
        tokens=tokens,
        taught_tokens=taught,
    )
    return examples.dataset(), account


def _count(dropped: Counter[str], reason: str) -> None:
    dropped[reason if reason in dropped or len(dropped) < _MOST_REASONS else _OTHER] += 1


def _nothing_left(path: Path, rows: int, dropped: Counter[str]) -> str:
    if not rows:
        return f"{path} holds no rows. Write some with `matrix-graph export`."
    reasons = "\n".join(f"  {number}: {reason}" for reason, number in dropped.most_common(5))
    return f"None of the {rows} rows in {path} can be trained on:\n{reasons}"
