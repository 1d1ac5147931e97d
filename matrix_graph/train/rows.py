"""Training rows as people keep them, read one by one and checked: the formats of `matrix-graph export`, and their kin.

What always holds: a row that is none of these is refused with its place, never guessed at; the text is taken as it
stands, to the letter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matrix_graph.errors import TableError
from matrix_graph.tables import Columns, is_blank, kind_of, whole_rows
from matrix_graph.train.errors import TrainingError

Method = Literal["sft", "dpo"]
Message = dict[str, str]

FORMATS = (
    'messages ({"messages": [{"role", "content"}]}), prompt and completion, sharegpt ({"conversations": [{"from", '
    '"value"}]}), alpaca ({"instruction", "input", "output"}), or, for DPO, prompt, chosen and rejected'
)
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_COLUMNS = Columns(
    needed=(
        ("messages",),
        ("prompt", "completion"),
        ("conversations",),
        ("instruction", "output"),
        ("chosen", "rejected"),
    ),
    optional=("taught", "system", "input", "history"),
    noun="rows to train on, such as `matrix-graph export` writes",
    allowed="a row is one JSON object",
)


@dataclass(frozen=True)
class Chat:
    """One row to imitate.

    Attributes:
        messages: `{"role", "content"}` each, roles "system", "user", "assistant".
        taught: the places of the messages that are learnt, ascending; all of them are the assistant's.
    """

    messages: list[Message]
    taught: tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """One row to prefer by.

    Attributes:
        prompt: what both answers answer.
        chosen: the better answer.
        rejected: the worse answer.
    """

    prompt: list[Message]
    chosen: str
    rejected: str


def read_chats(path: Path) -> Iterator[Chat]:
    """The rows of a file, for supervised training.

    Raises:
        TrainingError: a file that cannot be read or is empty, or a row of no known format; says where.
        PrerequisiteError: a Parquet file, and pyarrow is not installed.
    """
    for where, row in _read(path):
        try:
            yield _chat(row)
        except _WrongRowError as error:
            raise TrainingError(f"{where}: {error}") from error


def read_pairs(path: Path) -> Iterator[Pair]:
    """The rows of a file, for preference training.

    Raises:
        TrainingError: as `read_chats`.
        PrerequisiteError: as `read_chats`.
    """
    for where, row in _read(path):
        try:
            yield _pair(row)
        except _WrongRowError as error:
            raise TrainingError(f"{where}: {error}") from error


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        TrainingError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}. Give a file of rows.") from error


class _WrongRowError(Exception):
    """What is wrong with a row; its place is added by who reads."""


def _read(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        for place, row in whole_rows(path, _COLUMNS):
            where = f"{path}, {place}"
            if not isinstance(row, Mapping):
                raise TrainingError(f"{where}: a JSON object was expected; got {kind_of(row)}.")
            # A column that other rows have is null here, which is as if it were not there.
            yield where, {name: value for name, value in row.items() if value is not None}
    except TableError as error:
        raise TrainingError(f"The rows cannot be read: {error}") from error


def _chat(row: Mapping[str, Any]) -> Chat:
    if "chosen" in row:
        raise _WrongRowError("this is a preference row. Give --method dpo, or rows of another format.")
    if "messages" in row:
        messages = _messages(row["messages"], "messages")
        return _taught(messages, _named(row, len(messages), 0))
    if "prompt" in row and "completion" in row:
        prompt = _side(row["prompt"], "prompt", "user")
        messages = [*prompt, *_side(row["completion"], "completion", "assistant")]
        return _taught(messages, range(len(prompt), len(messages)))
    if "conversations" in row:
        messages = _conversations(row)
        return _taught(messages, _named(row, len(messages), len(messages) - len(row["conversations"])))
    if "instruction" in row and "output" in row:
        return _alpaca(row)
    raise _WrongRowError(f"its keys are {_keys(row)}; rows are {FORMATS}.")


def _pair(row: Mapping[str, Any]) -> Pair:
    if "chosen" not in row or "rejected" not in row:
        raise _WrongRowError(
            f"its keys are {_keys(row)}; DPO needs prompt, chosen and rejected. Export with `--format preference`."
        )
    chosen = _side(row["chosen"], "chosen", "assistant")
    rejected = _side(row["rejected"], "rejected", "assistant")
    if "prompt" in row:
        prompt = _side(row["prompt"], "prompt", "user")
    else:  # TRL's implicit form: both begin with the prompt
        prompt, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:] if rejected[:-1] == chosen[:-1] else []
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if len(side) != 1 or side[0]["role"] != "assistant":
            raise _WrongRowError(f"{name} must be one message of the assistant after the same prompt.")
    if not prompt:
        raise _WrongRowError("there is no prompt.")
    return Pair(prompt, chosen[0]["content"], rejected[0]["content"])


def _taught(messages: list[Message], among: Iterable[int]) -> Chat:
    places = tuple(place for place in among if messages[place]["role"] == "assistant")
    if not places:
        raise _WrongRowError("the assistant says nothing in it that could be learnt.")
    return Chat([{"role": m["role"], "content": m["content"]} for m in messages], places)


def _named(row: Mapping[str, Any], messages: int, shift: int) -> list[int]:
    """The places that `taught` names, as `matrix-graph export` writes it; without it, all of them."""
    named = row.get("taught")
    if named is None:
        return list(range(messages))
    if not isinstance(named, list) or not all(type(place) is int and 0 <= place < messages - shift for place in named):
        raise _WrongRowError(f"taught must be a list of places in the chat, from 0; got {_shown(named)}.")
    return [place + shift for place in sorted(set(named))]


def _side(value: Any, name: str, role: str) -> list[Message]:
    if isinstance(value, str):
        if is_blank(value):
            raise _WrongRowError(f"{name} is empty; a text with words is allowed.")
        return [{"role": role, "content": value}]
    return _messages(value, name)


def _messages(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise _WrongRowError(f"{name} must be a list of messages; got {_shown(value)}.")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise _WrongRowError(f"a message of {name} must have a role and a content of text; got {_shown(message)}.")
        if message.get("role") not in ("system", "user", "assistant"):
            raise _WrongRowError(f"roles are system, user and assistant; got {_shown(message.get('role'))}.")
    return value


def _conversations(row: Mapping[str, Any]) -> list[Message]:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise _WrongRowError(f"conversations must be a list; got {_shown(turns)}.")
    messages: list[Message] = []
    if isinstance(row.get("system"), str) and row["system"]:
        messages.append({"role": "system", "content": row["system"]})
    for turn in turns:
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in _SPEAKERS or not isinstance(turn.get("value"), str):
            raise _WrongRowError(f"a turn has `from` ({', '.join(_SPEAKERS)}) and `value`; got {_shown(turn)}.")
        messages.append({"role": _SPEAKERS[speaker], "content": turn["value"]})
    return messages


def _alpaca(row: Mapping[str, Any]) -> Chat:
    parts = {name: row.get(name) or "" for name in ("system", "instruction", "input", "output")}
    if wrong := [name for name, value in parts.items() if not isinstance(value, str)]:
        raise _WrongRowError(f"{wrong[0]} must be text; got {_shown(row[wrong[0]])}.")
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in history
    ):
        raise _WrongRowError(f"history must be a list of [question, answer]; got {_shown(history)}.")
    question = "\n\n".join(part for part in (parts["instruction"], parts["input"]) if part)
    for name, text in (("instruction", question), ("output", parts["output"])):
        if is_blank(text):
            raise _WrongRowError(f"{name} is empty; a text with words is allowed.")
    messages = [{"role": "system", "content": parts["system"]}] if parts["system"] else []
    for asked, answered in [*history, [question, parts["output"]]]:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return _taught(messages, [len(messages) - 1])  # the history is what was said before, not what is learnt


def _keys(row: Mapping[str, Any]) -> str:
    return _shown(", ".join(sorted(str(key) for key in row)) or "none")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
