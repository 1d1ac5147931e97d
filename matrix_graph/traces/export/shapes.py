"""The forms that trainers take, each with where a row came from beside it.

`messages`           {"messages"}: TRL's conversational form; `taught` says which messages the model itself said
`prompt-completion`  {"prompt", "completion"}: TRL's prompt-completion form, one row a model call, the loss on the
                     completion alone, whatever the chat template
`sharegpt`           {"id", "conversations", "system"}: FastChat's, human and gpt in turns, with `taught` as above
`alpaca`             {"instruction", "input", "output"}, and `system` and `history` as LLaMA-Factory has them where rows
                     of the scenes are wanted, one row a model call
`preference`         {"prompt", "chosen", "rejected"}: TRL's conversational preference form

What always holds: all rows of a file have the same columns, none is ever null, and texts stand in them unchanged.
"""

from __future__ import annotations

from matrix_graph.tables.writing import Column, Row
from matrix_graph.traces.export.options import SIMULATION, ExportFormat, Parts
from matrix_graph.traces.export.pieces import Chat, Piece

_CHAT: Column = [{"role": "string", "content": "string"}]
_SOURCE: dict[str, Column] = {
    "kind": "string",
    "speaker": "string",
    "trace_id": "string",
    "purpose": "string",
    "round": "int64",
    "run": "string",
}
_COLUMNS: dict[ExportFormat, dict[str, Column]] = {
    ExportFormat.messages: {"messages": _CHAT, "taught": ["int64"]},
    ExportFormat.prompt_completion: {"prompt": _CHAT, "completion": _CHAT},
    ExportFormat.sharegpt: {
        "id": "string",
        "conversations": [{"from": "string", "value": "string"}],
        "system": "string",
        "taught": ["int64"],
    },
    ExportFormat.alpaca: {"instruction": "string", "input": "string", "output": "string"},
    ExportFormat.preference: {"prompt": _CHAT, "chosen": _CHAT, "rejected": _CHAT},
}
_ALPACA_DIALOGUE: dict[str, Column] = {"system": "string", "history": [["string"]]}
_NAMES = {"user": "human", "assistant": "gpt"}


def columns(format: ExportFormat, parts: Parts) -> dict[str, Column]:
    """The columns of a file, in order, with their types."""
    dialogue = _ALPACA_DIALOGUE if format is ExportFormat.alpaca and parts & SIMULATION else {}
    return {**_COLUMNS[format], **dialogue, **_SOURCE}


def shaped(piece: Piece, format: ExportFormat, *, dialogue: bool = False, number: int = 0) -> Row:
    """A piece as a row.

    Args:
        piece: what to write.
        format: the form.
        dialogue: whether alpaca rows have the columns `system` and `history`.
        number: of the row in the whole export; it makes the id of a ShareGPT row.
    """
    if format is ExportFormat.messages:
        row: Row = {"messages": piece.messages, "taught": piece.taught}
    elif format is ExportFormat.prompt_completion:
        row = {"prompt": piece.messages[:-1], "completion": piece.messages[-1:]}
    elif format is ExportFormat.sharegpt:
        system, chat = _system(piece.messages)
        turns = [{"from": _NAMES[message["role"]], "value": message["content"]} for message in chat]
        row = {"id": f"{piece.trace_id or piece.run}-{number}", "conversations": turns, "system": system}
        row["taught"] = [at - len(piece.messages) + len(chat) for at in piece.taught]
    elif format is ExportFormat.alpaca:
        row = _alpaca(piece, dialogue)
    else:
        rejected = [{"role": "assistant", "content": piece.rejected}]
        row = {"prompt": piece.messages[:-1], "chosen": piece.messages[-1:], "rejected": rejected}
    row.update(
        kind=piece.kind,
        speaker=piece.speaker,
        trace_id=piece.trace_id,
        purpose=piece.purpose,
        round=piece.round,
        run=piece.run,
    )
    return row


def _alpaca(piece: Piece, dialogue: bool) -> Row:
    system, chat = _system(piece.messages)
    row: Row = {"instruction": chat[-2]["content"], "input": "", "output": chat[-1]["content"]}
    if dialogue:
        texts = [message["content"] for message in chat[:-2]]
        row.update(system=system, history=[list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)])
    return row


def _system(messages: Chat) -> tuple[str, Chat]:
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return "", messages
