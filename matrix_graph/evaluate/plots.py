"""Plots as SVG, drawn by hand: a page that needs no library, no font and no network, and the same bytes every time.

What always holds: every number in a plot stands in a table of the same page too; colours come from the page's style, so
that light and dark both read well, and no plot is told by colour alone; labels are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from matrix_graph.evaluate.statistics import Interval, Rates

_WIDTH, _ROW, _LABEL = 760, 34, 190
_LONGEST_LABEL = 26


class Bar(NamedTuple):
    """One comparison in a plot of win rates."""

    label: str
    rates: Rates


class Whisker(NamedTuple):
    """One estimate with its interval; without one, the estimate alone."""

    label: str
    estimate: float
    interval: Interval | None


class Point(NamedTuple):
    """One candidate in a plot of quality over cost."""

    label: str
    cost: float
    quality: Interval


def win_rates(bars: Sequence[Bar], title: str) -> str:
    """Win, tie and lose as stacked bars; empty without any."""
    left, right = _LABEL, _WIDTH - 110
    height = 46 + _ROW * len(bars)
    parts = _axis([0, 0.25, 0.5, 0.75, 1], lambda x: left + x * (right - left), height - 24, percent=True)
    for row, bar in enumerate(bars):
        y = 10 + row * _ROW
        start = float(left)
        parts.append(_label(bar.label, y + 17))
        for kind in ("win", "tie", "lose"):
            share = getattr(bar.rates, kind).estimate
            width = share * (right - left)
            parts.append(f'<rect class="{kind}" x="{start:.1f}" y="{y}" width="{width:.1f}" height="24"/>')
            if width > 34:
                parts.append(
                    f'<text class="on-{kind}" x="{start + width / 2:.1f}" y="{y + 16}" text-anchor="middle">'
                    f"{100 * share:.0f}%</text>"
                )
            start += width
        parts.append(f'<text class="quiet" x="{right + 10}" y="{y + 16}">n = {bar.rates.questions}</text>')
    return _svg(parts, height, title, "; ".join(_spoken(bar) for bar in bars)) if bars else ""


def whiskers(rows: Sequence[Whisker], title: str, *, middle: float | None = None, percent: bool = False) -> str:
    """Estimates with their intervals, one a row; empty without any.

    Args:
        rows: from top to bottom.
        title: read out in place of the picture.
        middle: where a line marks "no difference"; None draws none.
        percent: shares of one, shown in percent.
    """
    if not rows:
        return ""
    ends = [value for row in rows for value in _ends(row)] + ([] if middle is None else [middle])
    ticks = _ticks(min(ends), max(ends))
    left, right = _LABEL, _WIDTH - 110

    def x(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left)

    height = 46 + _ROW * len(rows)
    parts = _axis(ticks, x, height - 24, percent=percent)
    if middle is not None:
        parts.append(f'<line class="middle" x1="{x(middle):.1f}" x2="{x(middle):.1f}" y1="4" y2="{height - 24}"/>')
    for number, row in enumerate(rows):
        y = 22 + number * _ROW
        parts.append(_label(row.label, y + 5))
        low, high = _ends(row)
        if row.interval is not None:
            parts.append(f'<line class="whisker" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot" cx="{x(row.estimate):.1f}" cy="{y}" r="5"/>')
        shown = _number(row.estimate, percent=percent, whole=False)
        parts.append(f'<text class="quiet" x="{right + 10}" y="{y + 5}">{shown}</text>')
    spoken = "; ".join(f"{row.label}: {_number(row.estimate, percent=percent, whole=False)}" for row in rows)
    return _svg(parts, height, title, spoken)


def cost_and_quality(points: Sequence[Point], title: str, cost: str, quality: str) -> str:
    """Quality over cost, the cost on a logarithmic scale; empty without any point.

    Args:
        points: one a candidate; those whose cost is not positive are left out.
        title: read out in place of the picture.
        cost: what the horizontal axis shows.
        quality: what the vertical axis shows, in percent.
    """
    points = [point for point in points if point.cost > 0]
    if not points:
        return ""
    left, right, top, bottom = 70, _WIDTH - 130, 16, 330
    ends = [value for point in points for value in (point.quality.low, point.quality.high)]
    ticks = _ticks(min(*ends, 0.0), max(*ends, 0.0))
    lowest = math.floor(math.log10(min(point.cost for point in points)))
    highest = max(math.ceil(math.log10(max(point.cost for point in points))), lowest + 1)

    def x(value: float) -> float:
        return left + (math.log10(value) - lowest) / (highest - lowest) * (right - left)

    def y(value: float) -> float:
        return bottom - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (bottom - top)

    parts: list[str] = []
    for tick in ticks:
        kind = "middle" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text class="quiet" x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.0f}%</text>'
        )
    for power in range(lowest, highest + 1):
        parts.append(
            f'<text class="quiet" x="{x(10**power):.1f}" y="{bottom + 20}" text-anchor="middle">{10**power:g}</text>'
        )
    for label_y, point in zip(_apart([y(p.quality.estimate) for p in points]), points, strict=True):
        across, up = x(point.cost), y(point.quality.estimate)
        parts.append(
            f'<line class="whisker" x1="{across:.1f}" x2="{across:.1f}" '
            f'y1="{y(point.quality.low):.1f}" y2="{y(point.quality.high):.1f}"/>'
        )
        parts.append(f'<circle class="dot" cx="{across:.1f}" cy="{up:.1f}" r="5"/>')
        parts.append(f'<text x="{across + 9:.1f}" y="{label_y + 4:.1f}">{escape(_cut(point.label))}</text>')
    parts.append(
        f'<text class="quiet" x="{(left + right) / 2}" y="{bottom + 42}" text-anchor="middle">{escape(cost)}</text>'
    )
    parts.append(
        f'<text class="quiet" x="16" y="{(top + bottom) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {(top + bottom) / 2})">{escape(quality)}</text>'
    )
    spoken = "; ".join(f"{p.label}: cost {p.cost:.0f}, {100 * p.quality.estimate:.0f}%" for p in points)
    return _svg(parts, bottom + 54, title, spoken)


def _svg(parts: Sequence[str], height: int, title: str, spoken: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(f"{title}. {spoken}")}">'
        + "".join(parts)
        + "</svg>"
    )


def _axis(ticks: Sequence[float], x: Callable[[float], float], bottom: int, *, percent: bool) -> list[str]:
    parts = []
    step = ticks[1] - ticks[0]
    whole = percent and step >= 0.01
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{bottom}"/>')
        parts.append(
            f'<text class="quiet" x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">'
            f"{_number(tick, percent=percent, whole=whole)}</text>"
        )
    return parts


def _label(text: str, y: float) -> str:
    return f'<text x="{_LABEL - 10}" y="{y:.1f}" text-anchor="end">{escape(_cut(text))}</text>'


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"


def _ends(row: Whisker) -> tuple[float, float]:
    return (row.estimate, row.estimate) if row.interval is None else (row.interval.low, row.interval.high)


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers from at most `low` to at least `high`."""
    span = high - low or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _number(value: float, *, percent: bool, whole: bool) -> str:
    if percent:
        return f"{100 * value:.0f}%" if whole else f"{100 * value:.1f}%"
    return f"{value:.3g}"


def _apart(places: Sequence[float]) -> list[float]:
    """The places moved down as far as labels need that would else stand on each other."""
    moved = list(places)
    last = -math.inf
    for number in sorted(range(len(places)), key=lambda n: places[n]):
        last = moved[number] = max(places[number], last + 16)
    return moved


def _spoken(bar: Bar) -> str:
    share = bar.rates
    return (
        f"{bar.label}: win {100 * share.win.estimate:.0f}%, tie {100 * share.tie.estimate:.0f}%, "
        f"lose {100 * share.lose.estimate:.0f}%"
    )
