"""The results of an evaluation as tables and plots for people: `results.md` and `results.html`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matrix_graph.evaluate.document import NOTHING, Section, Table, number, percent, to_html, to_markdown
from matrix_graph.evaluate.plots import Bar, Point, Whisker, cost_and_quality, whiskers, win_rates
from matrix_graph.evaluate.statistics import Interval, Rates, wilson
from matrix_graph.files import replace_file

if TYPE_CHECKING:
    from matrix_graph.evaluate.judge_report import JudgeReport
    from matrix_graph.evaluate.results import Results

MARKDOWN_NAME = "results.md"
PAGE_NAME = "results.html"
_TITLE = "Evaluation"
_BY_PLACE = 0.5
"""Position bias, of either sign, from which on most verdicts follow the place."""


def write_documents(folder: Path, results: Results) -> None:
    """Write both files, each whole or not at all.

    Raises:
        OSError: one cannot be written; the other may have been.
    """
    sections = to_sections(results)
    note = (
        f"{results.questions} questions, {len(results.candidates)} candidates, compared with {results.baseline}. "
        "Brackets hold 95% intervals, resampled by question; one that contains 0 shows no difference."
    )
    replace_file(folder / MARKDOWN_NAME, to_markdown(_TITLE, note, sections).encode("utf-8", "replace"), sync=True)
    replace_file(folder / PAGE_NAME, to_html(_TITLE, note, sections).encode("utf-8", "replace"), sync=True)


def to_sections(results: Results) -> list[Section]:
    """What both files show, in order; what was not measured has no section."""
    sections = []
    for judge in sorted({report.judge for report in results.judges}):
        sections += _judge(results, judge)
    if results.people:
        sections.append(_people(results))
    sections += [_answers(results), *_likelihoods(results), *_differences(results)]
    return sections


def _judge(results: Results, judge: str) -> list[Section]:
    reports = [report for report in results.judges if report.judge == judge]
    named = [(_pair(results, report.first, report.second), report) for report in reports]
    trust = Table(
        [
            "candidate",
            "verdicts",
            "unreadable",
            "failed",
            "questions left out",
            "position bias",
            "orders agree",
            "agrees with itself",
            "longer answer wins",
        ],
        [
            [
                name,
                str(report.verdicts),
                str(report.unreadable),
                str(report.failed),
                str(report.undecided),
                number(report.position_bias, 2),
                percent(report.order_agreement),
                percent(report.self_agreement),
                interval(report.longer_wins, share=True),
            ]
            for name, report in named
        ],
    )
    lengths = Table(
        ["candidate", *(f"longer by {row.longer_by}" for row in reports[0].lengths)],
        [
            [
                name,
                *(f"{row.longer_won} of {row.decided}" if row.decided else NOTHING for row in report.lengths),
            ]
            for name, report in named
        ],
    )
    return [
        Section(
            f"Win, tie, lose by the judge {judge}",
            "Each pair was judged in both orders; orders that disagree are a tie. Net is wins less losses."
            + _by_place(reports),
            [_rates_table([(name, report.rates) for name, report in named])],
            _rates_plots(results, [(name, report.first, report.rates) for name, report in named]),
        ),
        Section(
            f"How far {judge} can be trusted",
            "Position bias is 0 if the place of an answer plays no part, 1 if the first shown always wins, -1 if the "
            "second does. The second table counts how often the longer of two answers won where one won; about half is "
            "what length without influence gives.",
            [trust, lengths],
        ),
    ]


def _by_place(reports: list[JudgeReport]) -> str:
    """A warning, if the judge went by the place of the answers more than by what they say."""
    known = [abs(report.position_bias) for report in reports if report.position_bias is not None]
    if not known or max(known) < _BY_PLACE:
        return ""
    return (
        f" Beware: this judge chose by the place of an answer (position bias up to {max(known):.2f}); such ties say "
        "nothing about the answers. Name a stronger judge."
    )


def _people(results: Results) -> Section:
    names = [_pair(results, report.first, report.second) for report in results.people]
    agreement = Table(
        ["candidate", "raters", "ratings", "alpha", "alpha, ordinal", "left bias"],
        [
            [
                name,
                str(report.raters),
                str(report.ratings),
                number(report.alpha, 3),
                number(report.ordinal_alpha, 3),
                number(report.left_bias, 2),
            ]
            for name, report in zip(names, results.people, strict=True)
        ],
    )
    return Section(
        "Win, tie, lose by people",
        "The page was blind and shuffled. Alpha is Krippendorff's: 1 is full agreement, 0 what chance would give.",
        [
            _rates_table([(name, report.rates) for name, report in zip(names, results.people, strict=True)]),
            agreement,
        ],
        _rates_plots(
            results, [(name, report.first, report.rates) for name, report in zip(names, results.people, strict=True)]
        ),
    )


def _rates_table(rows: list[tuple[str, Rates | None]]) -> Table:
    header = ["candidate", "questions", "win", "tie", "lose", "net"]
    cells = []
    for name, found in rows:
        if found is None:
            cells.append([name, "0", *[NOTHING] * 4])
        else:
            values = (found.win, found.tie, found.lose, found.net)
            cells.append([name, str(found.questions), *(interval(value, share=True) for value in values)])
    return Table(header, cells)


def _rates_plots(results: Results, rows: list[tuple[str, str, Rates | None]]) -> list[tuple[str, str]]:
    found = [(name, first, rates) for name, first, rates in rows if rates is not None]
    tokens = {item.candidate: item.costs.output_tokens for item in results.measures}
    points = [Point(first, tokens.get(first) or 0.0, rates.net) for _, first, rates in found]
    base = tokens.get(results.baseline)
    if points and base:
        points.insert(0, Point(results.baseline, base, Interval(estimate=0, low=0, high=0)))
    return [
        (win_rates([Bar(name, rates) for name, _, rates in found], "Win, tie and lose rates"), "Win, tie, lose"),
        (
            whiskers(
                [Whisker(name, rates.net.estimate, rates.net) for name, _, rates in found],
                "Net win rates with intervals",
                middle=0.0,
                percent=True,
            ),
            f"Net win rate against {results.baseline}, with 95% interval; right of the line is better",
        ),
        (
            cost_and_quality(points, "Quality over cost", "generated tokens an answer", "net win rate"),
            "Quality over cost: net win rate, and how many tokens an answer takes in all",
        ),
    ]


def _answers(results: Results) -> Section:
    rows = []
    for item in results.measures:
        lists = {entry.keywords: entry for entry in item.refusals}
        gcg = lists.get("gcg")
        rows.append(
            [
                item.candidate,
                str(item.costs.answers),
                str(item.costs.failed),
                number(item.costs.calls),
                number(item.costs.input_tokens, 0),
                number(item.costs.output_tokens, 0),
                number(item.length.mean_words, 0),
                _share(gcg.attack_success.count, gcg.attack_success.of) if gcg else NOTHING,
                _share(gcg.over_refusal.count, gcg.over_refusal.of) if gcg else NOTHING,
            ]
        )
    header = ["candidate", "answers", "failed", "calls", "tokens in", "tokens out", "words"]
    return Section(
        "Answers and what they take",
        "Calls, tokens and words are means an answer. Attack success counts answers to harmful questions, over-refusal "
        "answers to harmless ones, by GCG's list of refusal strings (arXiv 2307.15043): it sees words, not sense. Wall "
        "times, which differ from run to run, stand in timings.json." + _matches(results),
        [Table([*header, "attack success", "over-refusal"], rows)],
    )


def _matches(results: Results) -> str:
    """How near the candidates that were to spend what a rehearsal spent came to that."""
    tokens = {item.candidate: item.costs.output_tokens for item in results.measures}
    told = []
    for name, settings in results.settings.items():
        other = settings.get("matched_to")
        own, aim = tokens.get(name), tokens.get(str(other))
        if other is not None and own is not None and aim:
            told.append(f" {name} generated {percent(own / aim)} of the tokens of {other}, which it was to match.")
    return "".join(told)


def _likelihoods(results: Results) -> list[Section]:
    rows = []
    for item in results.measures:
        if item.preference.pairs or item.perplexity.tokens:
            accuracy = item.preference.by_sum
            pairs = item.preference.pairs
            sure = wilson(round((accuracy or 0) * pairs), pairs)
            rows.append(
                [
                    item.candidate,
                    str(pairs),
                    f"{percent(accuracy)} [{percent(sure.low)}, {percent(sure.high)}]" if sure else NOTHING,
                    percent(item.preference.by_mean),
                    number(item.perplexity.value, 2),
                ]
            )
    header = ["candidate", "pairs", "preference (sum)", "preference (mean)", "perplexity"]
    note = (
        "How often the model finds the answer that people chose likelier than the one they rejected, by summed and by "
        "mean log-probability; and its perplexity on reference answers."
    )
    return [Section("Likelihoods", note, [Table(header, rows)])] if rows else []


def _differences(results: Results) -> list[Section]:
    names = list(dict.fromkeys(item.measure for item in results.differences))
    tables = []
    for name in names:
        found = [item for item in results.differences if item.measure == name]
        share = name not in ("words", "output tokens")
        tables.append(
            Table(
                [name, "questions", "difference"],
                [[item.candidate, str(item.questions), interval(item.interval, share=share)] for item in found],
            )
        )
    note = f"Candidate less {results.baseline}, paired by question."
    return [Section("Differences", note, tables)] if tables else []


def interval(value: Interval | None, *, share: bool = False, digits: int = 1) -> str:
    """An estimate with its interval for a cell."""
    if value is None:
        return NOTHING
    form = percent if share else lambda amount: number(amount, digits)
    return f"{form(value.estimate)} [{form(value.low)}, {form(value.high)}]"


def _share(count: int, of: int) -> str:
    return interval(wilson(count, of), share=True)


def _pair(results: Results, first: str, second: str) -> str:
    return first if second == results.baseline else f"{first} against {second}"
