"""Rates and their intervals: how sure a table may be of what it says.

Why by hand: the questions are the units, so that all verdicts on one question are drawn together, and the interval has
to hold its promise at a few dozen questions. What always holds: the same values give the same interval, in whatever
order they come; an interval of rates lies within what a rate can be, and covers the truth in about 95 of 100
evaluations (`benchmarks/coverage_of_intervals.py`), also where nearly all or nearly none are won. numpy and scipy are
in the extra `evaluate`; without them, importing this module says how to get them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from matrix_graph.errors import PrerequisiteError

try:
    import numpy as np
    from scipy.special import stdtrit  # type: ignore[import-untyped]
except ImportError as error:
    raise PrerequisiteError(
        f"To compare candidates, with intervals, {error.name} is needed. Install it with: "
        "pip install 'matrix-graph[evaluate]'"
    ) from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 20_240_205
"""Of all resampling, so that the same records give the same tables."""
RESAMPLES = 10_000
CONFIDENCE = 0.95
_AT_ONCE = 4_000_000
"""Draws that are held in memory together."""


class Interval(BaseModel):
    """An estimate and the interval around it."""

    model_config = ConfigDict(frozen=True)

    estimate: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the value lies in the interval, its ends included."""
        return self.low - 1e-12 <= value <= self.high + 1e-12


class Outcome(NamedTuple):
    """What one question says about two candidates: 1, 0, 0 for a win; fractions where several judged it."""

    win: float
    tie: float
    lose: float


class Rates(BaseModel):
    """Win, tie and lose of one candidate against another, over questions."""

    model_config = ConfigDict(frozen=True)

    questions: int
    win: Interval
    tie: Interval
    lose: Interval
    net: Interval = Field(description="Win rate less lose rate, from -1 to 1; 0 is a tie.")


def rates(outcomes: Sequence[Outcome], *, resamples: int = RESAMPLES, seed: int = SEED) -> Rates | None:
    """Win, tie and lose rates with 95% bootstrap intervals, paired by question.

    The estimates are plain means. The intervals are percentiles of the means of resampled questions, to which two more
    questions are added: for a rate one question with and one without it, for the net rate half a win, half a loss and a
    tie (Agresti and Min, Statistics in Medicine 24, 2005, for the difference of paired proportions). Without them,
    intervals close to the ends are far too short: who wins all of ten questions would be sure to win always.

    Args:
        outcomes: one a question, each summing to 1; their order is of no consequence.
        resamples: how many resampled evaluations.
        seed: of the resampling.

    Returns:
        The rates; None without a question.

    Raises:
        ValueError: an outcome that is negative or does not sum to 1.
    """
    for outcome in outcomes:
        if min(outcome) < 0 or not math.isclose(sum(outcome), 1.0, abs_tol=1e-9):
            raise ValueError(f"{tuple(outcome)} is not an outcome: win, tie and lose must be at least 0 and sum to 1.")
    if not outcomes:
        return None
    shares = np.array(sorted(outcomes), dtype=float)
    observed = np.column_stack([shares, shares[:, 0] - shares[:, 2]])
    # Every question twice and the added two as four halves: all are drawn with the weight that they have.
    added = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0]])
    means = _resampled_means(
        np.concatenate([observed, observed, added]), draws=len(observed) + 2, resamples=resamples, seed=seed
    )
    win, tie, lose, net = (
        _percentiles(float(observed[:, column].mean()), means[:, column]) for column in range(observed.shape[1])
    )
    return Rates(questions=len(observed), win=win, tie=tie, lose=lose, net=net)


def mean_interval(values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = SEED) -> Interval | None:
    """The mean of any measure and its 95% interval, by resampling the values; for paired differences, give those.

    The percentiles are widened to what Student's t asks for at this number of values (Hesterberg, "What teachers should
    know about the bootstrap", arXiv 1411.5279, section 5.2).

    Args:
        values: one a question or scene, in any order.
        resamples: how many resampled samples.
        seed: of the resampling.

    Returns:
        Mean and interval; None with fewer than two values, which say nothing about their spread.
    """
    if len(values) < 2:
        return None
    observed = np.array(sorted(values), dtype=float)[:, None]
    means = _resampled_means(observed, draws=len(observed), resamples=resamples, seed=seed)
    tail = NormalDist().cdf(
        math.sqrt(len(observed) / (len(observed) - 1)) * float(stdtrit(len(observed) - 1, (1 - CONFIDENCE) / 2))
    )
    return _percentiles(float(observed.mean()), means[:, 0], tail)


def wilson(hits: int, total: int) -> Interval | None:
    """A share of independent questions, such as an accuracy, with Wilson's 95% score interval.

    Args:
        hits: how many of them.
        total: of how many.

    Returns:
        The share and its interval; None of none.

    Raises:
        ValueError: more hits than questions, or fewer than none.
    """
    if not 0 <= hits <= total:
        raise ValueError(f"{hits} of {total} is not a share.")
    if not total:
        return None
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    share, scale = hits / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Interval(
        estimate=share,
        low=max(0.0, middle - half) if hits else 0.0,
        high=min(1.0, middle + half) if hits < total else 1.0,
    )


def _resampled_means(rows: NDArray[np.float64], *, draws: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """The means of so many rows, drawn with replacement; one line of means a resample."""
    generator = np.random.Generator(np.random.PCG64(seed))
    means = np.empty((resamples, rows.shape[1]))
    step = max(1, _AT_ONCE // (draws * rows.shape[1]))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        means[start : start + size] = rows[generator.integers(len(rows), size=(size, draws))].mean(axis=1)
    return means


def _percentiles(estimate: float, means: NDArray[np.float64], tail: float = (1 - CONFIDENCE) / 2) -> Interval:
    low, high = np.quantile(means, [tail, 1 - tail])
    # Rounded, so that another order of summing in another release shows in no table.
    return Interval(estimate=round(estimate, 9), low=round(float(low), 9), high=round(float(high), 9))
