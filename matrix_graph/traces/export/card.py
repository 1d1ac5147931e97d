"""The dataset card beside the rows: what is in them, where it came from, and what was left out and why.

What always holds: it depends on the traces and options alone, so that the same export writes the same card; nobody's
README is replaced but an earlier card of the same file; names out of traces stand in it as text, never as markup; and
no folder of the machine is named, since the card goes along with the data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matrix_graph
from matrix_graph.files import public_name
from matrix_graph.tables.writing import Column
from matrix_graph.traces.export.files import write_text
from matrix_graph.traces.export.options import ExportFormat, ExportOptions
from matrix_graph.traces.export.reading import Reader
from matrix_graph.traces.export.summary import Summary

_NAME = "README.md"
_HEAD = 16_384
"""Characters of an older card that are looked at for its mark."""

_FORMATS = {
    ExportFormat.messages: (
        "Each row is a whole chat in `messages`; `taught` holds the positions of the messages that the model itself "
        "said. Other messages of the assistant are worked examples and plan steps of the prompts. A trainer that "
        "learns every message of the assistant (TRL with `assistant_only_loss=True`) learns those too; `--format "
        "prompt-completion` gives rows with which any trainer learns the model's words alone."
    ),
    ExportFormat.prompt_completion: (
        "Each row is one call of the model, in TRL's conversational prompt-completion form: `prompt` as it was sent, "
        "`completion` as it came back. TRL's `SFTTrainer` takes the loss on the completion alone, whatever the chat "
        "template."
    ),
    ExportFormat.sharegpt: (
        "Each row is a chat in FastChat's form: `conversations`, human and gpt in turns. The system message, if there "
        "is one, stands in `system`, which FastChat's `train_with_template.py` reads and its `train.py` does not."
    ),
    ExportFormat.alpaca: (
        "Each row is one call: `instruction`, `input` (always empty) and `output`; where rows of the scenes are "
        "among them, `system` and `history` hold what was said before."
    ),
    ExportFormat.preference: (
        "Each row is a pair in TRL's conversational preference form: `chosen` is the answer after the scene, "
        "`rejected` the draft before it."
    ),
}
_KINDS = {
    "answer": "question and answer of a scene",
    "role": "what a role did in a scene",
    "modulator": "judgements of what really happens in a scene",
    "cast": "who and what is in a scene",
    "consequence": "what a scene shows, and the answer that follows from it",
    "helpful": "questions and answers of another file",
}
_COLUMNS = (
    "`kind` says what the row is, `speaker` which role speaks (empty if none), `trace_id` and `run` which scene of "
    "which run it comes from, `purpose` and `round` which call of it (`given`: an answer that came from outside; 0: no "
    "round)."
)


def card_path(out: Path) -> Path:
    """Where the card of a file goes: README.md, unless that is somebody else's."""
    readme = out.with_name(_NAME)
    try:
        with readme.open(encoding="utf-8", errors="replace") as file:
            mine = _mark(out.name) in file.read(_HEAD)
    except OSError:
        mine = not readme.exists()
    return readme if mine else out.with_name(f"{out.stem}.{_NAME}")


def write_card(
    path: Path, summary: Summary, options: ExportOptions, columns: dict[str, Column], reader: Reader
) -> None:
    """Write the card.

    Raises:
        ExportError: it cannot be written; the data is.
    """
    name = Path(summary.out).name
    parts = [
        f"---\n{_header(summary, columns)}---",
        f"{_mark(name)}\n# {_code(name)}",
        f"Training data made by matrix-graph {matrix_graph.__version__} from rehearsed scenes: around a question and a "
        "draft answer, one model plays the "
        "people whom the answer would touch, and what happens is used to revise the answer. The texts are model "
        "output.",
        f"## Rows\n\n{_FORMATS[options.format]} {_COLUMNS}",
        _table(("kind", "what it is", "rows"), [(kind, _KINDS[kind], f"{n:,}") for kind, n in summary.kinds.items()]),
        "## Files\n\n"
        + _table(
            ("file", "split", "rows", "bytes", "SHA-256"),
            [(_code(f.name), f.split, f"{f.rows:,}", f"{f.bytes:,}", f"`{f.sha256}`") for f in summary.files],
        ),
        f"## What was left out\n\n{_left_out(summary)}",
        f"## Where it comes from\n\n{_sources(summary, reader)}",
        f"## Options of the export\n\n{_fenced(_options(options))}",
        "## Settings of the scenes\n\n" + "\n\n".join(_settings(reader)),
    ]
    if summary.warnings:
        parts.insert(3, "\n".join(f"- **Note:** {warning}" for warning in summary.warnings))
    write_text(path, "\n\n".join(parts) + "\n")


def _left_out(summary: Summary) -> str:
    told = []
    failed, blocked = summary.scenes.get("failed", 0), summary.scenes.get("blocked", 0)
    if failed:
        told.append(f"- {failed:,} scenes that failed: never exported")
    told += [f"- {count:,} rows: {reason}" for reason, count in summary.dropped.items()]
    told.append(f"- Scenes read that were blocked, the plan being impossible: {blocked:,}")
    share = summary.cut_read / summary.offered if summary.offered else 0.0
    told.append(
        f"- Cut off at a token limit: {summary.cut_read:,} of {summary.offered:,} rows ({share:.1%}), of which "
        f"{summary.cut_off:,} were kept"
    )
    if summary.lengths:
        told.append(
            f"- Tokens of {_code(public_name(summary.lengths.tokenizer))}: {summary.lengths.tokens:,} in all rows, "
            f"{summary.lengths.longest:,} in the longest, {summary.lengths.longest_dropped:,} in the longest left out"
        )
    if summary.mix:
        told += [f"- Rows of {share} to draw from: {count:,}" for share, count in summary.mix.items()]
    return "\n".join(told)


def _sources(summary: Summary, reader: Reader) -> str:
    lines = [
        (_code(s.run), ", ".join(f"{n:,} {status}" for status, n in s.scenes.items()) or "none", f"`{s.sha256}`")
        for s in summary.sources
    ]
    models = ", ".join(_code(name) for name in sorted(set(map(public_name, reader.models)))) or "unknown"
    return f"Models: {models}\n\n" + _table(("run", "scenes", "SHA-256 of the traces"), lines)


def _options(options: ExportOptions) -> dict[str, Any]:
    told = options.model_dump(mode="json", exclude_none=True)
    return told if options.tokenizer is None else {**told, "tokenizer": public_name(options.tokenizer)}


def _settings(reader: Reader) -> list[str]:
    told = [
        f"{count:,} scenes:\n\n{_fenced(json.loads(settings))}"
        for settings, count in sorted(reader.settings.items(), key=lambda item: (-item[1], item[0]))
    ]
    return told or ["None were recorded."]


def _header(summary: Summary, columns: dict[str, Column]) -> str:
    lines = ["pretty_name: " + json.dumps(Path(summary.out).name), "tags:", "- matrix-graph", "- synthetic"]
    lines += ["task_categories:", "- text-generation", "size_categories:", f"- {_size(summary.rows)}"]
    lines += ["configs:", "- config_name: default", "  data_files:"]
    for file in summary.files:
        lines += [f"  - split: {file.split}", f"    path: {json.dumps(file.name)}"]
    lines += ["dataset_info:", "  features:"]
    for name, type in columns.items():
        lines += [f"  - name: {name}", *(f"    {line}" for line in _feature(type))]
    return "\n".join(lines) + "\n"


def _feature(type: Column) -> list[str]:
    if isinstance(type, str):
        return [f"dtype: {type}"]
    inner = type[0] if isinstance(type, list) else type
    if isinstance(inner, dict):
        fields = [
            line for name, field in inner.items() for line in (f"- name: {name}", *(f"  {x}" for x in _feature(field)))
        ]
        return ["list:", *fields]
    if isinstance(inner, list):
        return ["list:", *(f"  {line}" for line in _feature(inner))]
    return [f"list: {inner}"]


def _size(rows: int) -> str:
    steps = [(10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"), (10**7, "10M"), (10**8, "100M")]
    if rows < steps[0][0]:
        return "n<1K"
    for (_, low), (most, high) in pairwise(steps):
        if rows < most:
            return f"{low}<n<{high}"
    return "n>100M"


def _mark(name: str) -> str:
    # "--" ends a comment early in HTML; JSON leaves it, so it is written as an escape.
    return f"<!-- dataset card of {json.dumps(name).replace('-', chr(92) + 'u002d')} by matrix-graph export -->"


def _code(text: str) -> str:
    plain = "".join(character if character.isprintable() else "\ufffd" for character in text)[:200]
    return "`" + plain.replace("`", "'").replace("|", "\\|") + "`"


def _fenced(content: Any) -> str:
    # JSON has nothing that needs a backquote as such, so that no text in it can close the fence.
    return "```json\n" + json.dumps(content, indent=2, sort_keys=True).replace("`", "\\u0060") + "\n```"


def _table(head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    rows = [head, tuple("---" for _ in head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
