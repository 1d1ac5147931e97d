"""What people's ratings add up to, and how far the raters agree.

What always holds: the question is the unit, so that ten raters of one question weigh as much as one rater of another;
pairs that nobody was shown, since the answers are the same, are ties in the rates and no part of the agreement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from matrix_graph.errors import PrerequisiteError
from matrix_graph.evaluate.judge_report import outcome_of
from matrix_graph.evaluate.records import Verdict, Winner
from matrix_graph.evaluate.statistics import Rates, rates

_VALUES: dict[Winner, float] = {"second": -1.0, "tie": 0.0, "first": 1.0}


class HumanReport(BaseModel):
    """People's ratings of one candidate against another."""

    model_config = ConfigDict(frozen=True)

    first: str
    second: str
    raters: int
    ratings: int = Field(description="Choices that people made.")
    rates: Rates | None
    alpha: float | None = Field(
        description="Krippendorff's alpha with win, tie and lose as names: 1 full agreement, 0 as by chance, below 0 "
        "worse. Null where it is not defined: fewer than two raters of any question, or one answer by everybody."
    )
    ordinal_alpha: float | None = Field(description="Likewise with lose < tie < win in order.")
    left_bias: float | None = Field(
        description="Share of choices for the answer on the left, less that for the right; 0 is none."
    )


def human_reports(ratings: Iterable[Verdict]) -> list[HumanReport]:
    """What people say about each two candidates.

    Args:
        ratings: as `human.import_ratings` gives them.

    Returns:
        One report for each two candidates, sorted by their names.

    Raises:
        PrerequisiteError: the library krippendorff is missing.
    """
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for rating in ratings:
        groups.setdefault((rating.first, rating.second), []).append(rating)
    return [_report(first, second, groups[first, second]) for first, second in sorted(groups)]


def _report(first: str, second: str, ratings: Sequence[Verdict]) -> HumanReport:
    by_question: dict[str, list[Winner]] = {}
    for rating in ratings:
        if rating.winner is not None:
            by_question.setdefault(rating.question_id, []).append(rating.winner)
    chosen = [rating for rating in ratings if rating.settings.get("shown", True) and rating.winner is not None]
    left = sum(_side(rating) == "left" for rating in chosen)
    right = sum(_side(rating) == "right" for rating in chosen)
    return HumanReport(
        first=first,
        second=second,
        raters=len({rating.judge for rating in ratings}),
        ratings=len(chosen),
        rates=rates([outcome_of(winners) for winners in by_question.values()]),
        alpha=agreement(chosen, "nominal"),
        ordinal_alpha=agreement(chosen, "ordinal"),
        left_bias=(left - right) / len(chosen) if chosen else None,
    )


def agreement(ratings: Iterable[Verdict], level: Literal["nominal", "ordinal"] = "nominal") -> float | None:
    """Krippendorff's alpha over raters and questions, by the library krippendorff.

    Args:
        ratings: of the same two candidates; raters may leave questions out.
        level: of measurement.

    Returns:
        Alpha; None where it is not defined.

    Raises:
        PrerequisiteError: the library is missing.
    """
    try:
        import krippendorff
        import numpy as np
    except ImportError as error:
        raise PrerequisiteError(
            f"The agreement of raters needs {error.name}. Install it with: pip install 'matrix-graph[evaluate]'"
        ) from error
    values = {(r.judge, r.question_id): _VALUES[r.winner] for r in ratings if r.winner is not None}
    raters, questions = (sorted({names[part] for names in values}) for part in (0, 1))
    table = np.array([[values.get((rater, question), np.nan) for question in questions] for rater in raters])
    if not values:
        return None
    pairable = table[:, (~np.isnan(table)).sum(axis=0) > 1]
    if len(np.unique(pairable[~np.isnan(pairable)])) < 2:
        return None
    return round(float(krippendorff.alpha(reliability_data=table, level_of_measurement=level)), 9)


def _side(rating: Verdict) -> str:
    if rating.winner == "tie":
        return "tie"
    return "left" if (rating.winner == "first") == (rating.order == "first_then_second") else "right"
