"""Tables and plots as one Markdown file and one web page, from the same parts.

What always holds: the page is one file that loads nothing and runs nothing; names that people or models chose are
escaped in both; the same parts give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from matrix_graph.evaluate.human import content_hash

NOTHING = "–"
"""What stands in a cell for what was not measured."""
_MARKUP = re.compile(r"([\\`*_\[\]<>|#~!&])")


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        header: of the columns; the first names the rows.
        rows: texts, as many as the header has.
        prose: the cells are sentences rather than numbers.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the document under a heading of its own.

    Attributes:
        title: the heading.
        note: what one must know to read it; plain text.
        tables: stand in both files.
        plots: (SVG of `plots`, caption); stand in the page alone.
    """

    title: str
    note: str = ""
    tables: Sequence[Table] = ()
    plots: Sequence[tuple[str, str]] = ()


def to_markdown(title: str, note: str, sections: Sequence[Section]) -> str:
    """The document as Markdown with its tables."""
    lines = [f"# {_plain(title)}", "", _plain(note), ""]
    for section in sections:
        lines += [f"## {_plain(section.title)}", ""]
        if section.note:
            lines += [_plain(section.note), ""]
        for table in section.tables:
            lines.append("| " + " | ".join(_plain(cell) for cell in table.header) + " |")
            lines.append("| --- |" + (" --- |" if table.prose else " ---: |") * (len(table.header) - 1))
            lines += ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in table.rows]
            lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def to_html(title: str, note: str, sections: Sequence[Section]) -> str:
    """The document as one self-contained web page with tables and plots."""
    style = files("matrix_graph.evaluate").joinpath("page", "results.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; style-src '{content_hash(style)}'; base-uri 'none'; form-action 'none'"
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>",
        f'<h1>{escape(title)}</h1>\n<p class="note">{escape(note)}</p>',
    ]
    for section in sections:
        parts.append(f"<section>\n<h2>{escape(section.title)}</h2>")
        if section.note:
            parts.append(f'<p class="note">{escape(section.note)}</p>')
        for plot, caption in section.plots:
            if plot:
                parts.append(f"<figure>{plot}<figcaption>{escape(caption)}</figcaption></figure>")
        parts += [_html_table(table, section.title) for table in section.tables]
        parts.append("</section>")
    return "\n".join([*parts, "</main>\n</body>\n</html>\n"])


def number(value: float | None, digits: int = 1) -> str:
    """A number for a cell."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share for a cell, in percent."""
    return NOTHING if value is None else f"{100 * value:.1f}%"


def _html_table(table: Table, name: str) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    body = "\n".join(
        "<tr>"
        + f'<th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    kind = ' class="prose"' if table.prose else ""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(name)}">'
        f"<table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _plain(text: str) -> str:
    """A text in which nothing is markup, on one line."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
