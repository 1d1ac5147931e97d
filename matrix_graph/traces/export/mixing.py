"""Shares of a mix: so many rows of each, drawn by a hash.

What always holds: which rows are drawn depends on the seed and on the rows themselves, not on the order in which they
come; drawn rows keep that order. Memory is some hundred bytes for each row drawn, however many there are to draw from;
the rows wait in a temporary file.
"""

from __future__ import annotations

import hashlib
import heapq
import io
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic_core import from_json, to_json

from matrix_graph.errors import ExportError
from matrix_graph.traces.export.pieces import Kind, Piece


def share_of(kind: Kind) -> str:
    """The share of the mix that a kind of row belongs to."""
    return {"helpful": "helpful", "answer": "harmful"}.get(kind, "simulation")


class Mixer:
    """Draws the rows of each share; a context manager.

    Args:
        shares: the most rows of each.
        seed: of the drawing.
        folder: where the rows wait; the file there has no name.
    """

    def __init__(self, shares: dict[str, int], seed: int, folder: Path) -> None:
        self._shares = shares
        self._seed = str(seed).encode()
        self._folder = folder
        self._drawn: dict[str, list[tuple[int, int]]] = {share: [] for share in shares}
        self.seen: dict[str, int] = dict.fromkeys(shares, 0)

    def __enter__(self) -> Self:
        self._file = tempfile.TemporaryFile(dir=self._folder, prefix=".mix-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # it would write once more what found no room before
            self._file.close()

    def offer(self, piece: Piece) -> None:
        """Take a row into the draw, if its share is wanted."""
        share = share_of(piece.kind)
        if share not in self._shares:
            return
        self.seen[share] += 1
        # A heap of the smallest numbers has its largest on top if they are negative.
        drawn, number = self._drawn[share], -self._lot(piece)
        if len(drawn) >= self._shares[share]:
            if number <= drawn[0][0]:
                return
            heapq.heapreplace(drawn, (number, self._keep(piece)))
        else:
            heapq.heappush(drawn, (number, self._keep(piece)))

    def drawn(self) -> Iterator[Piece]:
        """The rows that were drawn, in the order in which they came."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._refusal(error) from error
        for at in sorted(at for drawn in self._drawn.values() for _, at in drawn):
            self._file.seek(at)
            yield Piece(**from_json(self._file.readline()))

    def _keep(self, piece: Piece) -> int:
        try:
            at = self._file.seek(0, io.SEEK_END)
            self._file.write(to_json(asdict(piece)) + b"\n")
        except OSError as error:
            raise self._refusal(error) from error
        return at

    def _refusal(self, error: OSError) -> ExportError:
        return ExportError(f"Rows drawn for the mix cannot be kept in {self._folder}: {error}. Make room there.")

    def _lot(self, piece: Piece) -> int:
        texts = [
            self._seed,
            piece.kind.encode(),
            *(m["content"].encode("utf-8", "surrogatepass") for m in piece.messages),
        ]
        return int.from_bytes(hashlib.sha256(b"\x00".join(texts)).digest()[:8], "big")
