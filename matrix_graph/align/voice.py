"""What an alignment says: every line with its stage before it, whichever part of the package says it.

Why: five programs' worth of lines follow one another, and one line of a log should tell where it belongs. On a terminal
the bars of the stages stand below a heading instead, since a prefix would break them.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from rich.console import Console

from matrix_graph.batch.words import single_line


class Voice:
    """Says lines; for any thread.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._prefix = ""

    @contextmanager
    def stage(self, number: int, of: int, name: str) -> Iterator[None]:
        """All that is said meanwhile is said by that stage."""
        before, whole = self._prefix, self.console
        self._prefix = f"{number} of {of}, {name}: "
        if not whole.is_terminal:
            named = NamedLines(whole.file, self._prefix)
            self.console = Console(
                file=cast(IO[str], named), width=whole.width, force_terminal=False, force_jupyter=False
            )
        try:
            yield
        finally:
            self.console, self._prefix = whole, before

    def say(self, line: str) -> None:
        """One line, without anything in it that a terminal would obey."""
        prefix = self._prefix if self.console.is_terminal else ""
        self.console.print(f"{prefix}{single_line(line)}", markup=False, highlight=False, emoji=False, soft_wrap=True)


class NamedLines(io.TextIOBase):
    """A stream that puts a name before each line.

    Args:
        stream: where the lines go.
        prefix: what stands before each.
    """

    def __init__(self, stream: IO[str], prefix: str) -> None:
        self._stream, self._prefix = stream, prefix
        self._writing = threading.Lock()
        self._begun = False

    def write(self, text: str) -> int:
        """Write a text, which may be a part of a line or several."""
        with self._writing:
            for line in text.splitlines(keepends=True):
                self._stream.write(line if self._begun else f"{self._prefix}{line}")
                self._begun = not line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        """Pass on what is held."""
        self._stream.flush()

    def writable(self) -> bool:
        """It is."""
        return True
