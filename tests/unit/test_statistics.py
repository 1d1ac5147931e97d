"""Rates and intervals: by hand, against scipy and statsmodels, and by how often they hold the truth."""

import math
import random
import sys

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.proportion import proportion_confint

from matrix_graph.errors import PrerequisiteError
from matrix_graph.evaluate.statistics import Outcome, mean_interval, rates, wilson

WIN, TIE, LOSE = Outcome(1, 0, 0), Outcome(0, 1, 0), Outcome(0, 0, 1)


def test_estimates_are_plain_means() -> None:
    found = rates([WIN, WIN, TIE, LOSE, Outcome(0.5, 0.25, 0.25)])
    assert found is not None
    assert found.questions == 5
    assert found.win.estimate == pytest.approx(2.5 / 5)
    assert found.tie.estimate == pytest.approx(1.25 / 5)
    assert found.lose.estimate == pytest.approx(1.25 / 5)
    assert found.net.estimate == pytest.approx(1.25 / 5)


def test_the_interval_is_scipys_percentile_bootstrap_of_the_questions_and_the_added_two() -> None:
    outcomes = [WIN] * 30 + [TIE] * 25 + [LOSE] * 15
    found = rates(outcomes)
    assert found is not None
    # Twice each question and the four halves, of which scipy draws as many as there are: twice too many.
    doubled = np.array([1.0] * 60 + [0.0] * 50 + [-1.0] * 30 + [1.0, 0.0, 0.0, -1.0])
    theirs = scipy.stats.bootstrap(
        (doubled,), np.mean, method="percentile", n_resamples=9_999, rng=np.random.default_rng(1)
    ).confidence_interval
    middle = doubled.mean()
    assert found.net.low == pytest.approx(middle + (theirs.low - middle) * math.sqrt(2), abs=0.02)
    assert found.net.high == pytest.approx(middle + (theirs.high - middle) * math.sqrt(2), abs=0.02)


def test_the_mean_interval_is_close_to_scipys_bootstrap_and_to_students_t() -> None:
    values = list(np.random.default_rng(3).normal(5, 2, size=40))
    found = mean_interval(values)
    assert found is not None and found.estimate == pytest.approx(np.mean(values))
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1))
    student = scipy.stats.t.interval(0.95, 39, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert found.low <= theirs.confidence_interval.low + 0.02, "widened for few values"
    assert (found.low, found.high) == pytest.approx(student, abs=0.08)


@pytest.mark.parametrize(("hits", "total"), [(0, 7), (7, 7), (3, 7), (60, 100), (1, 1)])
def test_wilson_is_statsmodels(hits: int, total: int) -> None:
    found = wilson(hits, total)
    assert found is not None
    low, high = proportion_confint(hits, total, alpha=0.05, method="wilson")
    assert (found.estimate, found.low, found.high) == pytest.approx((hits / total, low, high))


def test_the_order_of_questions_is_of_no_consequence_and_the_seed_fixes_all() -> None:
    outcomes = [WIN] * 9 + [TIE] * 20 + [LOSE] * 13
    shuffled = random.Random(5).sample(outcomes, len(outcomes))
    assert rates(outcomes) == rates(shuffled)
    assert rates(outcomes) != rates(outcomes, seed=1)
    values = [0.5, 3.25, 8.0, 1.0]
    assert mean_interval(values) == mean_interval(values[::-1])


def test_a_rate_is_resampled_with_one_question_with_and_one_without_it() -> None:
    found = rates([WIN] * 12 + [LOSE] * 8)
    assert found is not None
    low, high = (scipy.stats.binom.ppf(tail, 22, 13 / 22) / 22 for tail in (0.025, 0.975))
    assert (found.win.low, found.win.high) == pytest.approx((low, high), abs=1 / 22 + 1e-9)
    assert found.lose.low == pytest.approx(1 - found.win.high, abs=1 / 22 + 1e-9)


def test_winning_all_of_ten_is_not_winning_always() -> None:
    found = rates([WIN] * 10)
    assert found is not None
    assert found.win.estimate == 1 and found.win.high == 1 and 0.6 < found.win.low < 0.95


def test_ties_alone_hold_a_tie() -> None:
    found = rates([TIE] * 50)
    assert found is not None
    assert found.net.estimate == 0 and found.net.holds(0) and found.net.low < 0 < found.net.high


@pytest.mark.parametrize("truth", [(0.33, 0.34, 0.33), (0.5, 0.2, 0.3), (0.85, 0.1, 0.05), (0.08, 0.9, 0.02)])
def test_intervals_hold_the_truth_in_95_of_100_evaluations(truth: tuple[float, float, float]) -> None:
    generator = np.random.default_rng(11)
    hits = {"win": 0, "lose": 0, "net": 0}
    times = 200
    for counts in generator.multinomial(100, truth, size=times):
        found = rates([WIN] * counts[0] + [TIE] * counts[1] + [LOSE] * counts[2], resamples=600)
        assert found is not None
        hits["win"] += found.win.holds(truth[0])
        hits["lose"] += found.lose.holds(truth[2])
        hits["net"] += found.net.holds(truth[0] - truth[2])
    # Three standard errors of 200 evaluations around the promise; the long run is in benchmarks/.
    assert 0.95 - 0.046 <= hits["net"] / times <= 0.95 + 0.046, hits
    assert min(hits.values()) / times >= 0.95 - 0.046, hits


def test_no_question_gives_no_rates() -> None:
    assert rates([]) is None and wilson(0, 0) is None and mean_interval([1.0]) is None


@pytest.mark.parametrize("wrong", [Outcome(1, 1, 0), Outcome(-0.5, 1, 0.5), Outcome(0, 0, 0)])
def test_an_outcome_that_is_none_is_refused(wrong: Outcome) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        rates([WIN, wrong])


def test_more_hits_than_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="8 of 7"):
        wilson(8, 7)


def test_without_numpy_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matrix_graph.evaluate.statistics")
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(PrerequisiteError, match=r"numpy.*pip install 'matrix-graph\[evaluate\]'"):
        import matrix_graph.evaluate.statistics  # noqa: F401
