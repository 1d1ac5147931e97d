"""`align.html`: what happened in each stage, and what base and adapter answer to the same questions, side by side.

What always holds: the page is one file that loads nothing and runs nothing; whatever a model, a person or a server has
said stands in it as text alone; it is made of `align.json` and of the stages' own records, and says nothing of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from html import escape
from importlib.resources import files
from pathlib import Path

from matrix_graph.align.record import FOLDERS, AlignRecord, StageName, StageRecord
from matrix_graph.align.words import BUNDLED_NOTE, TITLES, outcome
from matrix_graph.batch.words import duration
from matrix_graph.errors import ConfigError, MatrixGraphError
from matrix_graph.evaluate.folder import read_answers
from matrix_graph.evaluate.human import content_hash
from matrix_graph.files import replace_file
from matrix_graph.live import safe
from matrix_graph.train.picture import loss_picture
from matrix_graph.train.record import read_record

PAGE_NAME = "align.html"
_REPORTS: dict[StageName, tuple[str, str]] = {
    "run": ("run/report.html", "the scenes"),
    "export": ("export/README.md", "the dataset card"),
    "train": ("adapter/README.md", "the adapter's card"),
    "compare": ("compare/results.html", "the measures"),
}
_STATES = {"waiting": "quiet", "running": "warn", "done": "good", "stopped": "warn", "failed": "bad"}


def write_page(folder: Path, record: AlignRecord) -> None:
    """Replace the page.

    Args:
        folder: of the alignment.
        record: how it stands.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        replace_file(folder / PAGE_NAME, to_html(folder, record).encode("utf-8", "replace"), sync=False)
    except OSError as error:
        raise ConfigError(
            f"{folder / PAGE_NAME} cannot be written: {error.strerror or error}. Make room, and give the same command "
            "again: it goes on where it stopped."
        ) from error


def to_html(folder: Path, record: AlignRecord) -> str:
    """The page as one text.

    Args:
        folder: of the alignment, for the records that its stages have left.
        record: how it stands.
    """
    style = files("matrix_graph.align").joinpath("align.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; style-src '{content_hash(style)}'; base-uri 'none'; form-action 'none'"
    title = f"{record.name}: from questions to a tuned model"
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">\n<meta name="color-scheme" content="light dark">',
        f"<title>{_text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>",
        f"<h1>{_text(title)}</h1>",
        f'<p class="quiet">Base model <b>{_text(record.model)}</b>, questions <b>{_text(record.questions)}</b>. Begun '
        f"{record.created_at:%Y-%m-%d %H:%M} UTC, as of {record.updated_at:%Y-%m-%d %H:%M} UTC.</p>",
    ]
    if record.bundled:
        parts.append(f'<p class="notice">{_text(BUNDLED_NOTE)}</p>')
    parts += [_stages(folder, record), _loss(folder, record), _answers(folder, record), _further(record)]
    settings = json.dumps(record.settings, indent=2, ensure_ascii=False)
    parts.append(f"<details><summary>All settings</summary><pre>{_text(settings)}</pre></details>")
    return "\n".join([*(part for part in parts if part), "</main>\n</body>\n</html>\n"])


def _stages(folder: Path, record: AlignRecord) -> str:
    items = "\n".join(_stage(folder, stage) for stage in record.stages)
    seconds = duration(sum(stage.seconds for stage in record.stages))
    return (
        f'<section>\n<h2>What happened</h2>\n<ol class="stages">\n{items}\n</ol>\n'
        f'<p class="quiet">{seconds} in all, over all starts but those that were killed.</p>\n</section>'
    )


def _stage(folder: Path, stage: StageRecord) -> str:
    took = f"{duration(stage.seconds)}" if stage.seconds else ""
    if stage.starts > 1:
        took += f"{', ' if took else ''}{stage.starts} starts"
    lines = [
        f'<li><h3>{stage.name} <span class="state {_STATES[stage.state]}">{stage.state}</span> '
        f'<span class="quiet">{_text(took)}</span></h3>',
        f'<p class="quiet">{_text(TITLES[stage.name])}</p>',
    ]
    if told := outcome(stage):
        lines.append(f"<p>{_text(told)}.</p>")
    if stage.message:
        lines.append(f'<p class="said bad">{_text(stage.message)}</p>')
    if stage.name in _REPORTS:
        place, what = _REPORTS[stage.name]
        if (folder / place).is_file():
            lines.append(f'<p><a href="{place}">{what}</a></p>')
    return "".join([*lines, "</li>"])


def _loss(folder: Path, record: AlignRecord) -> str:
    if record.stage("train").state != "done":
        return ""
    with suppress(MatrixGraphError):  # what cannot be shown is not a reason to show nothing
        training = read_record(folder / FOLDERS["train"])
        if training is not None and training.loss:
            picture = loss_picture(
                [(point.step, point.loss) for point in training.loss],
                [(point.step, point.loss) for point in training.validation_loss],
            )
            return (
                f'<section>\n<h2>How the loss fell</h2>\n<figure class="loss">{picture}<figcaption>Mean loss of a '
                "token that the assistant says, by training step.</figcaption></figure>\n</section>"
            )
    return ""


def _answers(folder: Path, record: AlignRecord) -> str:
    if record.stage("compare").state != "done":
        return ""
    base: dict[str, tuple[str, str | None]] = {}
    tuned: dict[str, str | None] = {}
    with suppress(MatrixGraphError):
        for answer in read_answers(folder / FOLDERS["compare"]):
            if answer.candidate == record.name:
                tuned[answer.question_id] = answer.answer
            else:
                base[answer.question_id] = (answer.question, answer.answer)
    rows = "\n".join(
        f'<tr><th scope="row">{_said(question)}</th>'
        f"<td>{_answer(one)}</td><td>{_answer(tuned.get(place), one)}</td></tr>"
        for place, (question, one) in base.items()
    )
    heads = "".join(f'<th scope="col">{_text(head)}</th>' for head in ("question", "base", record.name))
    return (
        '<section>\n<h2>Side by side</h2>\n<p class="quiet">None of these questions was learnt from. A few answers '
        "show what changed, not whether it is better: that takes `matrix-graph evaluate` with a judge, or people "
        '(`--human`).</p>\n<div class="wide" role="region" tabindex="0" aria-label="Answers side by side">'
        f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>\n</section>"
    )


def _answer(answer: str | None, other: str | None = None) -> str:
    if answer is None:
        return '<p class="bad">no answer</p>'
    same = '<p class="quiet">the same as the base model\'s</p>' if answer == other else ""
    return _said(answer) + same


def _further(record: AlignRecord) -> str:
    if not record.done:
        return ""
    model = "" if record.weights is None else " --model MODEL"
    serve = f"matrix-graph serve{model} --adapter {record.name}=adapter"
    test = f"matrix-graph evaluate --questions FILE --candidates base,{record.name}=adapter --judge base --out DIR"
    return (
        f"<section>\n<h2>And now</h2>\n<p>In this folder:</p>\n<pre>{_lines([serve, test + model])}</pre>\n</section>"
    )


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(_text(line) for line in lines)


def _said(text: str) -> str:
    """Words of a person or a model, with their line ends, in the direction that they are written in."""
    return f'<p class="said" dir="auto">{_text(text)}</p>'


def _text(text: str) -> str:
    return escape(safe(text))
