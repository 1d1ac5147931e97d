"""The command `human`: a blind rating page from an evaluation's answers, and people's ratings back into it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matrix_graph.options import JsonOption


def human(
    run: Annotated[Path, typer.Argument(help="Folder of an evaluation.", metavar="RUN")],
    ratings: Annotated[
        list[Path] | None,
        typer.Argument(help="What raters saved, a file each. Without any, the page is made.", metavar="[RATINGS]..."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Whom the others are compared with. [default: base, else the first]"),
    ] = None,
    most: Annotated[
        int | None, typer.Option("--limit", min=1, help="Pairs on the page at most, chosen by chance. Default: all.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Have people compare answers: make the page, then take in what they saved.

    Give rating.html to the raters, by any way that files go; it works offline. Keep rating-key.json to yourself: it
    alone tells whose answers they are.

        matrix-graph human runs/compare

        matrix-graph human runs/compare ratings-*.json
    """
    import json

    if not ratings:
        count, paths = make_page(run, baseline=baseline, most=most)
        if as_json:
            typer.echo(json.dumps({"pairs": count, "page": str(paths[0]), "key": str(paths[1])}))
        typer.echo(
            f"kept: {paths[0]} ({count} pairs; give it to the raters), {paths[1]} (keep it to yourself)", err=True
        )
        return
    from matrix_graph.evaluate.human import import_ratings, read_key, write_ratings
    from matrix_graph.evaluate.results import write_results
    from matrix_graph.evaluate.results_document import interval

    path = write_ratings(run, import_ratings(ratings, read_key(run)))
    results = write_results(run, baseline=baseline)
    if as_json:
        typer.echo(json.dumps([report.model_dump(mode="json") for report in results.people]))
    else:
        for report in results.people:
            alpha = "not defined" if report.alpha is None else f"{report.alpha:.3f}"
            net = interval(report.rates.net if report.rates else None, share=True)
            typer.echo(
                f"{report.first} against {report.second}: net {net}; "
                f"{report.raters} raters, {report.ratings} ratings, alpha {alpha}"
            )
    typer.echo(f"kept: {path}, {run / 'results.html'}", err=True)


def make_page(run: Path, *, baseline: str | None = None, most: int | None = None) -> tuple[int, tuple[Path, Path]]:
    """Make the rating page of an evaluation, unless it is there already.

    Args:
        run: the evaluation's folder.
        baseline: the candidate that the others are compared with; None: "base" if it takes part, else the first.
        most: pairs on the page at most.

    Returns:
        How many pairs the page shows; the page and its key.

    Raises:
        TraceError: the folder holds no evaluation.
        ConfigError: there is nothing to compare, or the folder cannot be written.
    """
    from matrix_graph.evaluate.folder import read_answers, read_plan
    from matrix_graph.evaluate.human import KEY_NAME, PAGE_NAME, make_rating_page, read_key

    paths = (run / PAGE_NAME, run / KEY_NAME)
    if all(path.exists() for path in paths):
        return len(read_key(run).items), paths
    candidates = list(read_plan(run).candidates)
    chosen = baseline or ("base" if "base" in candidates else next(iter(candidates), ""))
    return len(make_rating_page(read_answers(run), chosen, run, most=most).items), paths
