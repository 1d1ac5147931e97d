"""The page's frame: markup, looks and script as one HTML text that fetches nothing and runs nothing but this script.

What always holds: the policy in the page allows exactly the script and the looks that stand here, by their hashes, and
no connection, frame, form, plug-in or picture; and no text of a trace is part of this frame.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import NamedTuple

_SCRIPTS = ("elements", "blocks", "differences", "list", "lanes", "calls", "scene", "comparison", "keys", "main")
"""In the order in which they are joined: each uses what stands before it."""


class Frame(NamedTuple):
    """What stands before and after the blocks of data."""

    before_list: str
    """Up to where the blocks stand that the list needs."""
    before_scenes: str
    """The script, which begins its work while the browser still reads the scenes after it."""
    after: str


def frame() -> Frame:
    """The page without data."""
    markup = _asset("report.html")
    looks = _asset("report.css")
    script = "(() => {\n'use strict';\n" + "\n".join(_asset(f"{name}.js") for name in _SCRIPTS) + "\n})();\n"
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(looks)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
        ]
    )
    before, _, after = markup.partition("<!-- data -->\n")
    before = before.replace("<!-- policy -->", policy).replace("/* looks */", looks)
    return Frame(before, f"<script>{script}</script>\n", after)


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
