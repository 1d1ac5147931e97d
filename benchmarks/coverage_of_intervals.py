"""How often the 95% intervals of an evaluation hold the truth, over many simulated evaluations.

    python benchmarks/coverage_of_intervals.py [--evaluations 1000]

Draws evaluations whose true win, tie and lose rates are known, and counts how often each interval of
`matrix_graph.evaluate.statistics.rates` holds the true value. `several` has three verdicts a question that hang
together, as raters' do: what an interval that took verdicts for the units would get wrong. Leaves with code 1 if the
net win rate's coverage is outside of 93 to 97 percent anywhere with 100 questions or more.
"""

import argparse
import sys

import numpy as np

from matrix_graph.evaluate.statistics import Outcome, rates

TRUTHS = ((0.33, 0.34, 0.33), (0.5, 0.2, 0.3), (0.3, 0.6, 0.1), (0.85, 0.1, 0.05), (0.08, 0.9, 0.02))
RAW = (Outcome(1, 0, 0), Outcome(0, 1, 0), Outcome(0, 0, 1))


def main() -> None:
    """Simulate, print the table, and leave with code 1 if the promise does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=2000)
    options = parser.parse_args()
    generator = np.random.default_rng(20_240_205)
    print("questions  true win/tie/lose   kind     win    tie    lose   net    mean width of net")
    worst = []
    for questions in (20, 50, 100, 200):
        for truth in TRUTHS:
            for kind in ("single", "several"):
                found = simulate(questions, truth, kind == "several", options, generator)
                name = "/".join(f"{share:g}" for share in truth)
                shown = "  ".join(f"{100 * found[key]:.1f}" for key in ("win", "tie", "lose", "net"))
                print(f"{questions:9}  {name:17}  {kind:7}  {shown}   {found['width']:.3f}", flush=True)
                if questions >= 100:
                    worst.append(abs(found["net"] - 0.95))
    print(f"net win rate, 100 questions or more: at worst {100 * max(worst):.1f} points from 95%")
    sys.exit(max(worst) > 0.02)


def simulate(
    questions: int,
    truth: tuple[float, float, float],
    several: bool,
    options: argparse.Namespace,
    generator: np.random.Generator,
) -> dict[str, float]:
    """The coverage of each interval, and the mean width of the net rate's."""
    hits = dict.fromkeys(("win", "tie", "lose", "net"), 0)
    width = 0.0
    for _ in range(options.evaluations):
        if several:
            # Half of the questions are judged alike by all three, the others by each for themselves.
            alike = generator.random(questions) < 0.5
            kinds = generator.choice(3, p=truth, size=(questions, 3))
            kinds[alike] = kinds[alike, :1]
            outcomes = [Outcome(*(float((row == kind).mean()) for kind in range(3))) for row in kinds]
        else:
            outcomes = [RAW[kind] for kind in generator.choice(3, p=truth, size=questions)]
        found = rates(outcomes, resamples=options.resamples)
        assert found is not None
        for key, value in zip(hits, (*truth, truth[0] - truth[2]), strict=True):
            hits[key] += getattr(found, key).holds(value)
        width += found.net.high - found.net.low
    return {key: count / options.evaluations for key, count in hits.items()} | {"width": width / options.evaluations}


if __name__ == "__main__":
    main()
