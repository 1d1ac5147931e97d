"""The loss as a picture: an SVG of a few kilobytes, drawn without a library.

What always holds: the same points give the same bytes, and the file needs nothing from the network.
"""

from __future__ import annotations

from collections.abc import Sequence

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 40, 48
_TICKS = 5
_MOST_POINTS = 1000


def loss_picture(training: Points, validation: Points = ()) -> str:
    """An SVG of the loss.

    Args:
        training: (step, loss), steps ascending; at least one.
        validation: likewise; empty if there is none.
    """
    shown = _thinned(training)
    steps = [step for step, _ in (*shown, *validation)]
    losses = [loss for _, loss in (*shown, *validation)]
    last, highest = max(steps), max(*losses, 1e-9) * 1.05

    def place(step: float, loss: float) -> str:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last
        y = _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * loss / highest
        return f"{x:.1f},{y:.1f}"

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12" role="img"><title>Loss by training step</title>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for tick in range(_TICKS + 1):
        x, _ = place(last * tick / _TICKS, 0).split(",")
        _, y = place(0, highest * tick / _TICKS).split(",")
        lines.append(f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        lines.append(
            f'<text x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end">{_short(highest * tick / _TICKS)}</text>'
            f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{_short(last * tick / _TICKS)}</text>'
        )
    lines.append(f'<text x="{_WIDTH / 2:g}" y="{_HEIGHT - 10}" text-anchor="middle">step</text>')
    for name, points, colour, offset in (("training", shown, "#1f5fa8", 0), ("validation", validation, "#c0561a", 120)):
        if not points:
            continue
        path = " ".join(place(step, loss) for step, loss in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if len(points) <= 50:
            centres = (place(step, loss).split(",") for step, loss in points)
            lines += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in centres]
        lines.append(f'<text x="{_LEFT + offset}" y="24" fill="{colour}">{name} loss</text>')
    return "\n".join([*lines, "</svg>", ""])


def _thinned(points: Points) -> list[tuple[float, float]]:
    """At most so many points, the last one among them: a picture has no room for more."""
    apart = -(-len(points) // _MOST_POINTS)
    return [points[n] for n in range((len(points) - 1) % apart, len(points), apart)]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
