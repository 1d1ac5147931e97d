"""`matrix-graph export`: finished scenes of some run folders as training data."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matrix_graph.errors import ConfigError
from matrix_graph.options import JsonOption
from matrix_graph.tables.writing import FileType
from matrix_graph.traces.export.options import ExportFormat, Include, TooLong

if TYPE_CHECKING:
    from matrix_graph.traces.export.summary import Summary

_LINE_SECONDS = 10.0
"""How often a line says how far it is where there is no terminal."""
_DRAW_SECONDS = 0.1


def export(
    directories: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders with traces.jsonl, or such files; rows come in their order.", metavar="DIR..."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="The file to write, as its ending says: .jsonl, .json, .csv, .tsv (each also .gz) or .parquet.",
        ),
    ],
    format: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            "-f",
            help="The shape of a row: `messages` a whole chat (TRL); `prompt-completion` one model call, which every "
            "TRL trainer learns by its completion alone; `sharegpt` FastChat's; `alpaca`; `preference` answer over "
            "draft, for DPO (TRL).",
        ),
    ] = ExportFormat.messages,
    include: Annotated[
        list[Include] | None,
        typer.Option(
            help="What to export beside the answers: `roles` and `modulator` are their dialogues (`scene` is both), "
            "`cast` the calls that set a scene up, `consequences` those that say what it showed and revise the answer; "
            "`simulation` is all of these. May be repeated."
        ),
    ] = None,
    only: Annotated[
        list[Include] | None,
        typer.Option(help="As --include, but nothing else: `--only cast` leaves answers out, too."),
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(
            help="The most rows of each share, drawn with --seed, such as `helpful=6000,harmful=6000,simulation=6000`: "
            "rows of --helpful, answers, and the rest of the scenes.",
            metavar="SHARES",
        ),
    ] = None,
    helpful: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines, JSON, CSV, TSV or Parquet with the columns question and answer, to mix in.",
            metavar="FILE",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the drawing for --mix.")] = 0,
    validation: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.99,
            help="The share of questions kept apart, in NAME.validation.ENDING: all rows of a question are on one "
            "side, and stay there when rows are added.",
        ),
    ] = 0.0,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="The model to train, as --model of `train` takes it: lengths are in its tokens.", metavar="MODEL"
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="The longest row, in tokens of --tokenizer; none is ever cut.")
    ] = None,
    too_long: Annotated[TooLong, typer.Option(help="What to do with a longer row.")] = TooLong.drop,
    near_duplicates: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1,
            help="Questions with answers this alike, by the word sequences they share, are one; the first stays. 1: "
            "only exact duplicates go.",
        ),
    ] = 0.9,
    keep_duplicates: Annotated[bool, typer.Option("--keep-duplicates", help="Drop no duplicates at all.")] = False,
    blocked: Annotated[
        bool | None,
        typer.Option(
            "--blocked/--no-blocked",
            help="Whether to export scenes whose plan turned out impossible. Default: yes, but not as preference "
            "pairs.",
        ),
    ] = None,
    cut_off: Annotated[
        bool,
        typer.Option(
            "--cut-off/--no-cut-off",
            help="Whether to export rows that teach what was cut off at a token limit. Default: no.",
        ),
    ] = False,
    file_type: Annotated[
        FileType | None, typer.Option(help="How rows are written. Default: by the ending of --out.")
    ] = None,
    card: Annotated[
        bool, typer.Option("--card/--no-card", help="Whether to write the dataset card, README.md beside the rows.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Turn finished scenes into training data.

    Failed scenes are left out, and so are duplicates, and what people or agents said in a role's place. Each row says
    which scene it comes from; README.md beside the rows says what is in them and what was left out, and why. The same
    traces and options give the same bytes.

        matrix-graph export runs/first --include scene --out sft.jsonl

        matrix-graph export runs/first runs/second --format preference --out pairs.parquet --validation 0.1

        matrix-graph export runs/big --out sft.jsonl --helpful qa.jsonl --mix helpful=600,harmful=600,simulation=600

        matrix-graph export runs/big --out sft.jsonl --format prompt-completion --tokenizer org/model --max-length 1024
    """
    from matrix_graph.models.bundled import bundled_model, prepare_bundled_model
    from matrix_graph.traces.export import export_runs
    from matrix_graph.traces.export.options import ExportOptions, parse_mix

    if include and only:
        raise ConfigError("--include adds to the answers, --only leaves them out; give one of the two.")
    parts = frozenset(only) if only else frozenset({Include.answers, *include}) if include else None
    options = ExportOptions.of(
        format=format,
        parts=parts,
        blocked=blocked,
        cut_off=cut_off,
        mix=None if mix is None else parse_mix(mix),
        seed=seed,
        near_duplicates=near_duplicates,
        keep_duplicates=keep_duplicates,
        tokenizer=tokenizer,
        max_length=max_length,
        too_long=too_long,
        validation=validation,
    )
    if tokenizer is not None and (bundled := bundled_model(tokenizer)) is not None:
        prepare_bundled_model(bundled.key, echo=lambda line: typer.echo(line, err=True))  # before the bar is drawn
    with _progress() as watch:
        summary = export_runs(directories, out, options, helpful=helpful, file_type=file_type, card=card, watch=watch)
    for warning in summary.warnings:
        typer.echo(f"Note: {warning}", err=True)
    if as_json:
        typer.echo(json.dumps(summary.model_dump(mode="python")))  # a name need not be UTF-8
        return
    typer.echo(f"{_rows(_of(summary, 'train'))} in {out}")
    for file in summary.files:
        if file.split == "validation":
            typer.echo(f"{_rows(file.rows)} in {out.with_name(file.name)}")
    if summary.dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary.dropped.items())
        typer.echo(f"left out: {reasons}", err=True)
    if summary.card and Path(summary.card).name != "README.md":
        typer.echo(f"the dataset card is {summary.card}: the README.md there is another's", err=True)


def _of(summary: Summary, split: str) -> int:
    return sum(file.rows for file in summary.files if file.split == split)


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line every few seconds elsewhere; both on standard error."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        shown = (TextColumn("exporting"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*shown, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("export", total=None)
            yield _seldom(_DRAW_SECONDS, lambda done, total: bar.update(task, completed=done, total=total))
    else:
        began = time.monotonic()

        def tell(done: int, total: int) -> None:
            left = (time.monotonic() - began) * (total - done) / max(1, done)
            typer.echo(f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB read, about {left:.0f} s left", err=True)

        yield _seldom(_LINE_SECONDS, tell)


def _seldom(seconds: float, tell: Callable[[int, int], object]) -> Callable[[int, int], None]:
    due = time.monotonic() + seconds

    def watch(done: int, total: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + seconds
            tell(done, total)

    return watch
