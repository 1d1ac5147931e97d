"""Draw the graphs of `langgraph.json` for the README, offline: a Mermaid source of each, and with mermaid.js a picture.

    python docs/graphs/draw.py                                      # the sources alone
    npm pack mermaid && tar xzf mermaid-*.tgz package/dist/mermaid.min.js
    python docs/graphs/draw.py --mermaid package/dist/mermaid.min.js

Pictures need Playwright and a Chromium. Each says in its first line which source it was drawn from; a test tells when
a source or a picture is out of date.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from langgraph.graph import END, START

from matrix_graph.compose import studio

FOLDER = Path(__file__).parent
NAMES = tuple(json.loads((FOLDER.parents[1] / "langgraph.json").read_text(encoding="utf-8"))["graphs"])
_PAGE = "<!DOCTYPE html><html><body></body></html>"
_DRAW = """async ([name, source]) => {
    mermaid.initialize({startOnLoad: false, securityLevel: "strict", htmlLabels: false, deterministicIds: true,
        flowchart: {htmlLabels: false, curve: "basis"}, theme: "neutral", fontFamily: "Helvetica, Arial, sans-serif"});
    return (await mermaid.render(name, source)).svg;
}"""


def source_of(graph: Any) -> str:
    """The graph in Mermaid's language: a dotted line is a way that may be taken, two heads are a way back and forth."""
    drawable = graph.get_graph(xray=True)
    order = {name: number for number, name in enumerate(drawable.nodes)}
    lines = ["flowchart TD"]
    for name, number in order.items():
        shape = '(["{}"])' if name in (START, END) else '("{}")'
        lines.append(f"    n{number}{shape.format(name.strip('_'))}")
    edges = {(order[edge.source], order[edge.target]): edge.conditional for edge in drawable.edges}
    for (source, target), conditional in sorted(edges.items()):
        if (target, source) not in edges:
            lines.append(f"    n{source} {'-.->' if conditional else '-->'} n{target}")
        elif source < target:  # as one line with two heads, so that the picture follows the order of play downward
            lines.append(f"    n{source} <-.-> n{target}")
    return "\n".join(lines) + "\n"


def mark(source: str) -> str:
    """The first line of the picture drawn from this source."""
    return f"<!-- drawn from source {hashlib.sha256(source.encode()).hexdigest()[:16]} -->"


def pictures(sources: dict[str, str], mermaid: Path) -> dict[str, str]:
    """An SVG picture of each source, drawn by mermaid.js in a browser without a network."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("MATRIX_GRAPH_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content(_PAGE)
        page.add_script_tag(path=mermaid)
        drawn = {name: page.evaluate(_DRAW, [name, source]) for name, source in sources.items()}
        browser.close()
    return {name: _shorter(svg) for name, svg in drawn.items()}


def _shorter(svg: str) -> str:
    # On a page of a dark theme the lines would be dark on dark, and a picture needs no more than two decimals.
    return re.sub(r"(\d\.\d\d)\d+", r"\1", svg.replace('style="', 'style="background: #fff; ', 1))


def main() -> None:
    """Write the sources, and the pictures if mermaid.js is given."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mermaid", type=Path, help="mermaid.min.js; without it only the sources are written")
    options.add_argument("--out", type=Path, default=FOLDER, help="folder for the files")
    given = options.parse_args()
    sources = {name: source_of(getattr(studio, name)) for name in NAMES}
    for name, source in sources.items():
        (given.out / f"{name}.mmd").write_text(source, encoding="utf-8")
    if given.mermaid is not None:
        for name, picture in pictures(sources, given.mermaid).items():
            (given.out / f"{name}.svg").write_text(f"{mark(sources[name])}\n{picture}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
