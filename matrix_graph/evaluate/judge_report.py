"""What verdicts add up to, and how far the judge who gave them can be trusted.

What always holds: a question counts only with usable verdicts in both orders; orders that disagree are a tie; verdicts
that cannot be used are counted beside the rates. A judge that goes by the place of an answer shows in `position_bias`,
one that goes by length in `longer_wins`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from matrix_graph.evaluate.judge import ORDERS, key_of
from matrix_graph.evaluate.records import AnswerRecord, Order, Verdict, Winner
from matrix_graph.evaluate.statistics import Interval, Outcome, Rates, rates, wilson

_LENGTH_STEPS = (("up to a quarter", 1.25), ("up to double", 2.0), ("more than double", float("inf")))
"""How much longer the longer answer is, in characters."""


class LengthRow(BaseModel):
    """Who won where one answer was longer than the other by so much."""

    model_config = ConfigDict(frozen=True)

    longer_by: str
    decided: int = Field(description="Questions won or lost, ties left out.")
    longer_won: int


class JudgeReport(BaseModel):
    """One judge's verdicts on one candidate against another, and how far they can be trusted."""

    model_config = ConfigDict(frozen=True)

    judge: str
    first: str
    second: str
    rates: Rates | None = Field(description="Null if no question has a usable verdict in both orders.")
    verdicts: int
    unreadable: int = Field(description="Replies that were not a verdict.")
    failed: int = Field(description="Calls that brought no reply.")
    undecided: int = Field(description="Questions left out, since no repeat has a usable verdict in both orders.")
    position_bias: float | None = Field(
        description="Share of usable verdicts for the answer shown first, less that for the one shown second: 1 always "
        "the first, -1 always the second, 0 no bias. Null without a usable verdict."
    )
    order_agreement: float | None = Field(
        description="Share of pairs of verdicts that name the same winner in both orders. Null without a pair."
    )
    self_agreement: float | None = Field(
        description="Share of repeats that equal the first verdict on the very same prompt. Null without repeats."
    )
    longer_wins: Interval | None = Field(
        description="Share of decided questions that the longer answer won: 0.5 if length plays no part. Null of none."
    )
    lengths: list[LengthRow]


def judge_reports(verdicts: Iterable[Verdict], answers: Iterable[AnswerRecord] = ()) -> list[JudgeReport]:
    """What each judge says about each two candidates.

    Args:
        verdicts: of any judges, in any order; of two with one key the last counts.
        answers: what was judged, for the table of lengths.

    Returns:
        One report for each judge and two candidates, sorted by their names.
    """
    groups: dict[tuple[str, str, str], dict[tuple[str, str, str, Order, int], Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.judge, verdict.first, verdict.second), {})[key_of(verdict)] = verdict
    lengths = {(a.candidate, a.question_id): len(a.answer) for a in answers if a.answer is not None}
    return [_report(*names, list(groups[names].values()), lengths) for names in sorted(groups)]


def _report(
    judge: str, first: str, second: str, verdicts: Sequence[Verdict], lengths: dict[tuple[str, str], int]
) -> JudgeReport:
    outcomes = outcomes_by_question(verdicts)
    usable = [verdict for verdict in verdicts if verdict.winner is not None]
    places = [_place(verdict) for verdict in usable]
    pairs = _pairs(verdicts)
    decided = [
        (question, outcome.win > outcome.lose)
        for question, outcome in outcomes.items()
        if outcome.win != outcome.lose and (first, question) in lengths and (second, question) in lengths
    ]
    table, longer = _length_table([(lengths[first, q], lengths[second, q], won) for q, won in decided])
    return JudgeReport(
        judge=judge,
        first=first,
        second=second,
        rates=rates(list(outcomes.values())),
        verdicts=len(verdicts),
        unreadable=sum(verdict.winner is None and verdict.error is None for verdict in verdicts),
        failed=sum(verdict.error is not None for verdict in verdicts),
        undecided=len({verdict.question_id for verdict in verdicts} - outcomes.keys()),
        position_bias=_share(places.count("A") - places.count("B"), len(usable)),
        order_agreement=_share(sum(one == other for _, one, other in pairs), len(pairs)),
        self_agreement=_retest(usable),
        longer_wins=longer,
        lengths=table,
    )


def outcomes_by_question(verdicts: Iterable[Verdict]) -> dict[str, Outcome]:
    """One judge's win, tie and lose of `first` by question id: the mean over repeats; disagreement of orders is a tie.

    Questions without a usable verdict in both orders are left out.
    """
    outcomes: dict[str, list[Winner]] = {}
    for question, one, other in _pairs(verdicts):
        outcomes.setdefault(question, []).append(one if one == other else "tie")
    return {question: outcome_of(outcomes[question]) for question in sorted(outcomes)}


def outcome_of(winners: Sequence[Winner]) -> Outcome:
    """Several verdicts on one question as one outcome."""
    return Outcome(*(winners.count(kind) / len(winners) for kind in ("first", "tie", "second")))


def _pairs(verdicts: Iterable[Verdict]) -> list[tuple[str, Winner, Winner]]:
    """(question id, winner in one order, winner in the other) wherever both are usable."""
    found: dict[tuple[str, int], dict[Order, Winner]] = {}
    for verdict in verdicts:
        if verdict.winner is not None:
            found.setdefault((verdict.question_id, verdict.repeat), {})[verdict.order] = verdict.winner
    return [
        (question, both["first_then_second"], both["second_then_first"])
        for (question, _), both in sorted(found.items())
        if len(both) == len(ORDERS)
    ]


def _place(verdict: Verdict) -> str:
    if verdict.winner == "tie":
        return "tie"
    return "A" if (verdict.winner == "first") == (verdict.order == "first_then_second") else "B"


def _retest(usable: Sequence[Verdict]) -> float | None:
    originals = {(v.question_id, v.order): v.winner for v in usable if v.repeat == 0}
    again = [v for v in usable if v.repeat and (v.question_id, v.order) in originals]
    return _share(sum(v.winner == originals[v.question_id, v.order] for v in again), len(again))


def _length_table(decided: Sequence[tuple[int, int, bool]]) -> tuple[list[LengthRow], Interval | None]:
    """Rows of (length of first, length of second, whether first won), in characters."""
    ratios = [(max(one, two) / max(1, min(one, two)), (one > two) == won) for one, two, won in decided if one != two]
    rows, at_least = [], 1.0
    for label, most in _LENGTH_STEPS:
        inside = [longer_won for ratio, longer_won in ratios if at_least < ratio <= most]
        rows.append(LengthRow(longer_by=label, decided=len(inside), longer_won=sum(inside)))
        at_least = most
    return rows, wilson(sum(longer_won for _, longer_won in ratios), len(ratios))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
