"""Questions from files and from the hub, whatever layout their authors gave them.

Why: the papers' question sets name their columns in six ways, and what counts as harmful or chosen is known from the
set alone. What always holds: a row becomes a `Question` or an error that names its place; ids are distinct over all;
the order is that of the files. A hub name is looked up only where no file has that name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from matrix_graph.errors import ConfigError, PrerequisiteError
from matrix_graph.evaluate.layouts import COLUMNS, LAYOUTS, Layout, layout_of, to_question
from matrix_graph.evaluate.records import Question
from matrix_graph.records import escaped
from matrix_graph.tables import kind_of, whole_rows

NEEDS_DATASETS = "Hub names need datasets. Install it with: pip install 'matrix-graph[evaluate]'"


def load_questions(
    names: Sequence[str | Path],
    *,
    answered: bool = True,
    harmful: bool | None = None,
    limit: int | None = None,
) -> list[Question]:
    """All questions of several files or hub names.

    Args:
        names: files (JSON lines, a JSON array, CSV, TSV or Parquet, packed with gzip or not), or names of `LAYOUTS`
            such as `Anthropic/hh-rlhf`; `NAME#PART` takes one split or subset of a hub name, such as
            `Anthropic/hh-rlhf#harmless-base/test`.
        answered: whether candidates answer them; else their known answers are scored alone.
        harmful: whether good answers refuse them; None leaves it to the set.
        limit: the first so many of each; None: all.

    Raises:
        ConfigError: a file cannot be read, a name is unknown, or a row is no question.
        PrerequisiteError: a package is missing; holds the command.
    """
    questions: dict[str, Question] = {}
    for name in names:
        found = 0
        for question in islice(_from(str(name)), limit):
            found += 1
            own = question.model_copy(
                update={"answered": answered, **({} if harmful is None else {"harmful": harmful})}
            )
            _add(questions, own)
        if not found:
            raise ConfigError(f"{name} holds no question. Give JSON lines with the key question, or a known layout.")
    if not answered:
        for question in questions.values():
            if question.reference is None and (question.chosen is None or question.rejected is None):
                raise ConfigError(
                    f"The row {question.id} of {question.source} has nothing to score: neither chosen and rejected nor "
                    "reference. Give it with --questions to have it answered."
                )
    return list(questions.values())


def merged(*parts: Iterable[Question]) -> list[Question]:
    """Questions of several calls of `load_questions` in one list.

    Raises:
        ConfigError: two different questions have one id and one source.
    """
    questions: dict[str, Question] = {}
    for part in parts:
        for question in part:
            _add(questions, question)
    return list(questions.values())


def _add(questions: dict[str, Question], question: Question) -> None:
    if not _is_other(questions.get(question.id), question):
        known = questions.get(question.id)
        if known is None or question.answered:
            questions[question.id] = question
        return
    # Sets number their rows from 1: the source tells them apart.
    named = question.model_copy(update={"id": f"{Path(question.source).name}:{question.id}"})
    if questions[question.id].source == question.source or _is_other(questions.get(named.id), named):
        raise ConfigError(
            f"Two different rows of {question.source} have the id {question.id}. "
            "Give each row an id of its own, or none to have one made."
        )
    questions[named.id] = named


def _is_other(known: Question | None, question: Question) -> bool:
    """Whether a question of the same id is another one; whether it is answered or scored alone does not matter."""
    return known is not None and known.model_copy(update={"answered": question.answered}) != question


def _from(name: str) -> Iterator[Question]:
    path = Path(name)
    if path.is_file():
        layout: Layout | None = None
        for where, row in whole_rows(path, COLUMNS):
            row = {"question": row} if isinstance(row, str) else row
            if layout is None:
                layout = layout_of(row)
            yield _question(row, layout, escaped(str(path)), where)
        return
    hub, _, part = name.partition("#")
    known = {known.casefold(): layout for known, layout in LAYOUTS.items()}
    if hub.casefold() not in known:
        raise ConfigError(f"{name} is neither a file nor a known hub name. Known: {', '.join(LAYOUTS)}.")
    layout = known[hub.casefold()]
    for number, row in enumerate(_rows_of_hub(layout, part), 1):
        yield _question(row, layout, hub, f"row {number}")


def _question(row: Any, layout: Layout, source: str, where: str) -> Question:
    if not isinstance(row, Mapping):
        raise ConfigError(f"{source}, {where}: the row is {kind_of(row)}; {COLUMNS.allowed}.")
    try:
        question = to_question(row, layout)
    except ValueError as error:
        raise ConfigError(f"{source}, {where}: {error}") from error
    if not question.id:
        content = f"{question.text}\n{question.chosen}\n{question.rejected}\n{question.reference}"
        question = question.model_copy(update={"id": hashlib.sha256(content.encode()).hexdigest()[:16]})
    return question.model_copy(update={"source": source})


def _rows_of_hub(layout: Layout, part: str) -> Iterable[Any]:
    subset, _, split = part.rpartition("/")
    if part and not subset and split not in ("train", "test", "validation"):
        subset, split = part, ""
    layout = replace(layout, subset=subset or layout.subset, split=split or layout.split)
    options: dict[str, Any] = {"split": layout.split}
    if layout.files is not None:
        options = {"data_files": layout.files, "split": "train"}
    elif layout.subset:
        options["data_dir" if layout.subset_is_folder else "name"] = layout.subset
    assert layout.hub is not None  # it was found by its hub name
    return _loaded(layout.hub, f"{layout.hub} cannot be loaded from the hub", **options)


def _loaded(path: str, trouble: str, **options: Any) -> Iterable[Any]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise PrerequisiteError(NEEDS_DATASETS) from error
    try:
        rows: Iterable[Any] = load_dataset(path, **options)
    except Exception as error:  # the hub's client, its caches and parsers raise types of their own
        raise ConfigError(
            f"{trouble}: {type(error).__name__}: {error}. A local copy can be given as a file."
        ) from error
    return rows
