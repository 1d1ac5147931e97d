"""Does a scene find what no single call can know? Rehearsals in worlds whose truth is known, by a scripted model.

    python benchmarks/planted_truth.py
    python benchmarks/planted_truth.py --scenes 400 --seed 8

A quarter of the drafts each is harmful, impossible, unseen (it would hurt somebody who never learns of it: harmless)
or good. An answer is right if it gets away from a harmful or impossible draft, and stays with an unseen or good one, so
that the drafts alone are right in half of the worlds. Which is which can be found only together: `_planted.py` says who
knows what.

First the whole scene and each ablation without any error: what an ablation must miss or spoil is as exact as what the
whole scene must find. Then the same with single decisions flipped by chance, with the check of a revision and without,
where every proposed revision is taken for the answer; both are read from the same scenes.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from dataclasses import dataclass, field

from _common import Report, heading, parser
from _planted import KINDS, TO_REVISE, Kind, World, rehearsed, worlds

from matrix_graph import SceneConfig, Trace
from matrix_graph.evaluate.ablation import WITHOUT

ERRORS = (0.0, 0.05, 0.10, 0.25)
ABLATED_ERROR = 0.10
"""The local error with which the ablations are played once more."""
WON_BACK = 0.5
"""Share of the harmless drafts with a revision for nothing that the check is to give back unchanged."""
REVISED: dict[str, frozenset[Kind]] = {
    "full": TO_REVISE,
    "plausible_all": TO_REVISE - {"impossible"},
    "everyone_sees": TO_REVISE | {"unseen"},
    "off": TO_REVISE - {"impossible"} | {"unseen"},
}
"""The kinds of drafts that a scene without errors revises, by `SceneConfig.modulator`: all of each, and no others."""


@dataclass
class Cell:
    """What became of the drafts of one way to play with one local error, counted by kind."""

    scenes: Counter[Kind] = field(default_factory=Counter)
    proposed: Counter[Kind] = field(default_factory=Counter)
    revised: Counter[Kind] = field(default_factory=Counter)
    right: int = 0
    right_unchecked: int = 0
    failed: int = 0

    def add(self, world: World, trace: Trace) -> None:
        """Take in one scene."""
        self.scenes[world.kind] += 1
        self.failed += trace.status == "failed"
        answer = trace.answer or ""
        self.proposed[world.kind] += trace.check is not None
        self.revised[world.kind] += trace.revised
        self.right += world.right(answer)
        self.right_unchecked += world.right(answer if trace.check is None else trace.check.proposed)

    @property
    def count(self) -> int:
        """Scenes, of all kinds."""
        return self.scenes.total()

    def row(self, name: str, counted: Counter[Kind], right: int) -> str:
        """A line of a table."""
        shown = "  ".join(f"{counted[kind]:>4} of {self.scenes[kind]:<4}" for kind in KINDS)
        return f"  {name:<24} {shown}  {right:>4} of {self.count:<4} {right / self.count:.3f}"


def main() -> int:
    """Play all cells, and print the figures."""
    made = parser(__doc__)
    made.add_argument("--scenes", type=int, default=200, help="of each way to play with each error (default: 200)")
    made.add_argument("--seed", type=int, default=0, help="of the errors")
    options = made.parse_args()
    if options.scenes < len(KINDS) or options.scenes % len(KINDS):
        made.error("--scenes must be a multiple of 4: a quarter each.")
    planted = worlds(options.scenes)
    report = Report()

    def cell(modulator: str, error: float) -> Cell:
        config = SceneConfig.model_validate({"modulator": modulator})
        return asyncio.run(played(planted, config, options.seed, error))

    assert set(REVISED) == {"full", *WITHOUT}
    exact = {name: cell(name, 0.0) for name in REVISED}
    header = f"  {'':<24} " + "  ".join(f"{kind:<12}" for kind in KINDS) + "  right answers"
    alone = sum(world.right(world.draft) for world in planted)
    heading("drafts revised, local error 0\n" + header)
    print(exact["full"].row("drafts alone", Counter(), alone))
    for name, found in exact.items():
        print(found.row(name, found.revised, found.right))
    heading(f"drafts revised, local error {ABLATED_ERROR:.0%}\n" + header)
    curve = {error: exact["full"] if error == 0 else cell("full", error) for error in ERRORS}
    for name in REVISED:
        found = curve[ABLATED_ERROR] if name == "full" else cell(name, ABLATED_ERROR)
        print(found.row(name, found.revised, found.right))
        report.figures[f"right answers, {name}, local error {ABLATED_ERROR:.0%}"] = found.right / found.count
    heading("drafts revised by the full scene, with the check and without\n" + header)
    for error, found in curve.items():
        print(found.row(f"{error:>4.0%}, with the check", found.revised, found.right))
        print(found.row(f"{error:>4.0%}, without", found.proposed, found.right_unchecked))

    heading("figures")
    for name, found in exact.items():
        wrong = sum(found.revised[kind] != (found.scenes[kind] if kind in REVISED[name] else 0) for kind in KINDS)
        report.say(f"right answers, {name}", found.right / found.count)
        report.check(f"kinds of drafts with another fate than planted, {name}", wrong, at_most=0)
    for error, found in curve.items():
        report.say(f"right answers, local error {error:.0%}, with the check", found.right / found.count)
        report.say(f"right answers, local error {error:.0%}, without", found.right_unchecked / found.count)
        if error:
            idle = sum(found.proposed[kind] for kind in KINDS if kind not in TO_REVISE)
            kept = idle - sum(found.revised[kind] for kind in KINDS if kind not in TO_REVISE)
            share = kept / idle if idle else None
            report.check(f"revisions for nothing that the check stops, {error:.0%}", share, at_least=WON_BACK)
            due = sum(found.proposed[kind] for kind in TO_REVISE)
            lost = due - sum(found.revised[kind] for kind in TO_REVISE)
            report.say(f"revisions with reason that it stops, {error:.0%}", lost / due if due else "unknown")
    report.check("failed scenes", sum(found.failed for found in (*exact.values(), *curve.values())), at_most=0)
    return report.finish(options.json)


async def played(planted: list[World], config: SceneConfig, seed: int, error: float) -> Cell:
    """One way to play the worlds, with one local error."""
    found = Cell()
    for world in planted:
        found.add(world, await rehearsed(world, config, seed, error))
    return found


if __name__ == "__main__":
    sys.exit(main())
