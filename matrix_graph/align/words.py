"""A stage in words: what it is going to do, about how long that takes, and what came of it.

Why apart: the lines on the terminal and the page say the same. What always holds: an estimate is given only where it
was measured, which is the small bundled model on two CPU cores; what is not known is left out.
"""

from __future__ import annotations

from typing import Any

from matrix_graph.align.job import Job
from matrix_graph.align.record import StageName, StageRecord
from matrix_graph.batch.words import amount, duration

TITLES: dict[StageName, str] = {
    "run": "Every question is rehearsed in a scene.",
    "export": "Finished scenes become rows to train on; some questions are kept apart.",
    "train": "A LoRA adapter learns to give the rehearsed answers at once.",
    "serve": "A server serves the base model and the adapter.",
    "compare": "Base and adapter answer the same questions, none of which was learnt from.",
}
BUNDLED_NOTE = (
    "The small bundled model (135M weights) shows that everything runs, not that the method aligns: it is far too "
    "small to be judged for what it says. Name a model of your own with --model."
)

_SERVER_SECONDS = 35.0
_SCENE_SECONDS = 6.0
_TRAINING_SECONDS = 10.0
_ROW_SECONDS = 1.0
_ANSWER_SECONDS = 2.3


def estimate(name: StageName, job: Job, questions: int | None) -> float | None:
    """About how many seconds a stage takes with the bundled model on two CPU cores; None for others, and if unknown.

    Args:
        name: the stage.
        job: what is to be done.
        questions: how many are rehearsed; None: not known.
    """
    if not job.target.bundled or questions is None:
        return None
    recipe, given = job.recipe, job.settings.base_url is not None
    server = 0.0 if given else _SERVER_SECONDS
    rows = recipe.batch_size * recipe.accumulate
    steps = recipe.max_steps or max(1, round(recipe.epochs * questions / rows))
    answers = 2 * min(job.compared, max(2, round(questions * job.options.validation)))
    return {
        "run": server + _SCENE_SECONDS * questions,
        "export": 5.0,
        "train": _TRAINING_SECONDS + _ROW_SECONDS * rows * steps,
        "serve": server,
        "compare": _ANSWER_SECONDS * answers,
    }[name]


def outlook(job: Job, questions: int | None) -> str:
    """What is going to be done, in one line."""
    parts = []
    for name in TITLES:
        seconds = estimate(name, job, questions)
        parts.append(name if seconds is None else f"{name} about {duration(seconds)}")
    asked = "" if questions is None else f"{amount(questions)} questions: "
    return asked + ", ".join(parts)


def outcome(stage: StageRecord) -> str:
    """What came of a stage, in one line; empty if nothing is known."""
    facts = stage.facts
    if not facts:
        return ""
    return "; ".join(part for part in _PARTS[stage.name](facts) if part)


def _run(facts: dict[str, Any]) -> list[str]:
    ends = [f"{amount(facts[what])} {what}" for what in ("finished", "blocked", "failed") if facts.get(what)]
    rows = [f"{amount(facts[what])} {what}" for what in ("rejected rows", "duplicate rows") if facts.get(what)]
    return [
        f"{amount(facts['scenes'])} scenes: {', '.join(ends) or 'none'}",
        f"{amount(facts['revised'])} changed their answer",
        *rows,
    ]


def _export(facts: dict[str, Any]) -> list[str]:
    out = ", ".join(f"{count} {reason}" for reason, count in facts["left out"].items())
    return [
        f"{amount(facts['rows'])} rows to train on",
        f"{amount(facts['rows kept apart'])} kept apart" if facts["rows kept apart"] else "",
        f"{amount(facts['tokens'])} tokens, the longest row {amount(facts['longest row'])}",
        f"left out: {out}" if out else "",
    ]


def _train(facts: dict[str, Any]) -> list[str]:
    out = ", ".join(f"{count} {reason}" for reason, count in facts["left out"].items())
    apart = facts["validation loss"]
    return [
        f"{amount(facts['steps'])} steps on {amount(facts['examples'])} examples",
        f"loss {facts['first loss']:.3f} -> {facts['last loss']:.3f}",
        "" if apart is None else f"{apart:.3f} on the rows kept apart",
        f"left out: {out}" if out else "",
        f"on {facts['device']}",
    ]


def _serve(facts: dict[str, Any]) -> list[str]:
    return [f"{facts['name']} on {facts['base']}, by {facts['server']}"]


def _compare(facts: dict[str, Any]) -> list[str]:
    words = ", ".join(f"{name} {mean:.0f}" for name, mean in facts["words"].items() if mean is not None)
    return [
        f"{amount(facts['questions'])} questions",
        f"{amount(facts['the same'])} with the same answer",
        f"{amount(facts['failed'])} answers failed" if facts["failed"] else "",
        f"mean words: {words}" if words else "",
    ]


_PARTS = {"run": _run, "export": _export, "train": _train, "serve": _serve, "compare": _compare}
