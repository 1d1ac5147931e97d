"""What speaks against an export before it begins, and why there is nothing to export in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matrix_graph.errors import ConfigError
from matrix_graph.tables.formats import stem_of
from matrix_graph.traces.export.options import SIMULATION, ExportFormat, ExportOptions, Include
from matrix_graph.traces.store import FILE_NAME


def validation_path(out: Path) -> Path:
    """Where the rows for validation go."""
    stem = stem_of(out.name)
    return out.with_name(f"{stem}.validation{out.name[len(stem) :]}")


def check_helpful(options: ExportOptions, helpful: Path | None) -> None:
    """Whether there are helpful rows exactly where they are wanted.

    Raises:
        ConfigError: there are not.
    """
    wanted = "helpful" in (options.mix or {})
    if wanted and helpful is None:
        raise ConfigError("The mix has a share of helpful rows; give the file that they are in with --helpful FILE.")
    if helpful is not None and options.mix is not None and not wanted:
        raise ConfigError("--helpful is given, but the mix has no helpful share; add helpful=N, or leave it out.")
    if helpful is not None and options.format is ExportFormat.preference:
        raise ConfigError("Helpful rows have no rejected answer and make no preference pairs; leave out --helpful.")


def check_out(paths: Sequence[Path], out: Path, helpful: Path | None) -> None:
    """Whether nothing that is read would be overwritten.

    Raises:
        ConfigError: something would.
    """
    read = {
        (path / FILE_NAME if path.is_dir() else path).resolve() for path in [*paths, *([helpful] if helpful else [])]
    }
    for path in (out, validation_path(out)):
        if path.resolve() in read:
            raise ConfigError(f"{path} is read by this export and would be lost. Name another file with --out.")


def why_nothing(scenes: Counter[str], dropped: dict[str, int], options: ExportOptions) -> str:
    """Why an export has no rows, and what to do."""
    if not scenes:
        return "There is nothing to export: no scene was played yet. Play some with `matrix-graph run`."
    if set(scenes) == {"failed"}:
        return (
            f"There is nothing to export: no scene came to an end, all {scenes['failed']} failed. "
            "`matrix-graph status` says why."
        )
    told = [f"{count} {status}" for status, count in sorted(scenes.items())]
    why = "; ".join(f"{reason}: {count}" for reason, count in dropped.items())
    wanted = ", ".join(sorted(options.chosen_parts & (SIMULATION | {Include.answers})))
    pairs = options.format is ExportFormat.preference
    hint = (
        " Preference pairs are made of finished scenes that revised their draft (--blocked adds blocked ones)."
        if pairs
        else ""
    )
    if dropped.get("cut off at a token limit"):
        hint += " Answers that were cut off are left out; play with a larger max_answer_tokens, or give --cut-off."
    return (
        f"There is nothing to export: of {', '.join(told)} scenes no row of {wanted} is left"
        + (f" ({why})." if why else ".")
        + hint
    )
