"""Rows that were there before: exact ones by a hash, near ones by the word sequences that they share.

What always holds: of rows alike the first stays; the outcome depends on the rows and their order alone; and memory does
not grow, since what was seen is kept in a temporary database of 10 bytes a row, 1 to 4 kB for each answer, that is gone
when the process is. (Collections of MinHashes such as datasketch's keep several kB a row in memory.)

Two texts are compared by the sets of their three-word sequences (their Jaccard index, Broder 1997), estimated from the
128 smallest hashes of the two sets together: exact for texts of up to 64 words, to within 0.03 for longer ones. Texts
in scripts without spaces are compared by their characters; case and punctuation count for nothing. Most questions are
like no other, so an answer's hashes are computed only once a second question comes that may be like its own.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Sequence
from types import TracebackType
from typing import Self
from zlib import crc32

from matrix_graph.errors import ExportError

_CACHE_KILOBYTES = 16_384
_SKETCH = 128
_BANDS = 5
"""Keys by which rows that may be alike are found: of texts alike by nine tenths, one in 4,000 pairs shares none."""
_MOST_CANDIDATES = 16
"""Rows that are compared with, the latest first, for each key: some words stand in thousands of rows."""
_CANDIDATES = f"SELECT * FROM (SELECT id FROM bands WHERE key = ? ORDER BY id DESC LIMIT {_MOST_CANDIDATES})"
_LONGEST_WAITING = 4096
"""Bytes of an answer that waits, unhashed, for a question like its own."""
_MET = f"SELECT DISTINCT id FROM questions WHERE key IN ({','.join('?' * _BANDS)})"
_MOST_YOUNG = 100_000
"""Rows of which it is known without the database whether they were there; 7 MB."""
_MOST_VALUES = 500
"""In one order to the database."""
_PUNCTUATION = b".,;:!?\"'()[]{}*_`~-"
_LONGEST_WORD = 20
"""Characters a word on average; texts with longer ones have no spaces between words."""


class DuplicateFilter:
    """Tells whether a text was there before; a context manager.

    Args:
        threshold: how alike two texts must be to count as one, above 0; 1 compares nothing but equal texts.

    Raises:
        ExportError: the temporary folder is full or cannot be written to.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._rows = 0
        self._young: set[int] = set()
        self._spilled = False
        self._base: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        # A database without a name lives in the cache, and in a file that is unlinked already once it outgrows that.
        self._base = sqlite3.connect("", isolation_level=None)
        for order in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            f"PRAGMA cache_size = -{_CACHE_KILOBYTES}",
            "CREATE TABLE seen (key INTEGER PRIMARY KEY)",
            "CREATE TABLE sketches (id INTEGER PRIMARY KEY, asked BLOB, said BLOB)",
            "CREATE TABLE bands (key INTEGER, id INTEGER, PRIMARY KEY (key, id)) WITHOUT ROWID",
            "CREATE TABLE questions (key INTEGER PRIMARY KEY, id INTEGER)",
            "CREATE TABLE waiting (id INTEGER PRIMARY KEY, asked BLOB, answer BLOB)",
            "BEGIN",
        ):
            self._base.execute(order)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._base is not None:
            self._base.close()
            self._base = None

    def duplicates(self, rows: Sequence[tuple[str, ...]]) -> list[bool]:
        """Of each row, whether its very texts, in this order, were there before; from now on they were."""
        if not rows:
            return []
        # Python's own hash has 64 bits and a key of its own in each process, which decides nothing but where rows are
        # kept: among a hundred million rows, one is dropped wrongly once in some 4,000 exports.
        keys = [hash(texts) for texts in rows]
        young = self._young
        known = self._kept(keys) if self._spilled else ()
        was_there = []
        for key in keys:
            there = key in young or key in known
            was_there.append(there)
            if not there:
                young.add(key)
        if len(young) >= _MOST_YOUNG:
            for key in sorted(young):  # in order, which costs the database least
                self._run("INSERT INTO seen VALUES (?)", (key,))
            young.clear()
            self._spilled = True
        return was_there

    def _kept(self, keys: list[int]) -> set[int]:
        """Which of these keys stand in the database."""
        known: set[int] = set()
        for first in range(0, len(keys), _MOST_VALUES):
            some = keys[first : first + _MOST_VALUES]
            found = self._run(f"SELECT key FROM seen WHERE key IN ({','.join('?' * len(some))})", some)
            known.update(key for (key,) in found)
        return known

    def is_near_duplicate(self, question: str, answer: str) -> bool:
        """Whether there was nearly this question with nearly this answer before; if not, from now on there was.

        One refusal to a hundred questions is a hundred rows, and so are a hundred answers to one question.
        """
        if self._threshold >= 1:
            return False
        asked = sketch(question)
        marks = _representatives(asked)
        met = [number for (number,) in self._run(_MET, marks)]
        text = answer.encode("utf-8", "surrogatepass")
        if met or len(text) > _LONGEST_WAITING:
            for number in met:
                self._end_waiting(number)
            said = sketch(answer)
            if self._is_known(asked, said):
                return True
            self._rows += 1
            self._keep(self._rows, asked, said)
        else:
            self._rows += 1
            self._run("INSERT INTO waiting VALUES (?, ?, ?)", (self._rows, array("I", asked).tobytes(), text))
        places = ",".join(["(?, ?)"] * _BANDS)
        order = f"INSERT OR IGNORE INTO questions VALUES {places}"
        self._run(order, [value for mark in marks for value in (mark, self._rows)])
        return False

    def _is_known(self, asked: list[int], said: list[int]) -> bool:
        keys = _keys(asked, said)
        found = {number for (number,) in self._run(" UNION ALL ".join([_CANDIDATES] * len(keys)), keys)}
        for number in found:
            blobs = self._run("SELECT asked, said FROM sketches WHERE id = ?", (number,)).fetchone()
            pairs = zip((said, asked), (blobs[1], blobs[0]), strict=True)
            if all(alike(mine, array("I", blob)) >= self._threshold for mine, blob in pairs):
                return True
        return False

    def _keep(self, number: int, asked: list[int], said: list[int]) -> None:
        kept = (number, array("I", asked).tobytes(), array("I", said).tobytes())
        self._run("INSERT INTO sketches VALUES (?, ?, ?)", kept)
        keys = _keys(asked, said)
        places = ",".join(["(?, ?)"] * len(keys))
        self._run(f"INSERT INTO bands VALUES {places}", [value for key in keys for value in (key, number)])

    def _end_waiting(self, number: int) -> None:
        """Hash an answer that waited, if it still does."""
        row = self._run("SELECT asked, answer FROM waiting WHERE id = ?", (number,)).fetchone()
        if row is not None:
            self._run("DELETE FROM waiting WHERE id = ?", (number,))
            self._keep(number, array("I", row[0]).tolist(), sketch(row[1].decode("utf-8", "surrogatepass")))

    def _run(self, order: str, values: Sequence[int | bytes]) -> sqlite3.Cursor:
        if self._base is None:
            raise ValueError("The filter is not open; use it within `with`.")
        try:
            return self._base.execute(order, values)
        except sqlite3.OperationalError as error:
            raise ExportError(
                f"What was seen cannot be kept in the temporary folder: {error}. Make room there, name another in the "
                "variable TMPDIR, or export with --keep-duplicates."
            ) from error


def sketch(text: str) -> list[int]:
    """The smallest hashes of the three-word sequences of a text, in order; at least one."""
    plain = text.casefold()
    words = plain.encode("utf-8", "surrogatepass").translate(None, _PUNCTUATION).split()
    if len(plain) > _LONGEST_WORD * len(words):
        words = [character.encode("utf-8", "surrogatepass") for character in plain if not character.isspace()]
    if len(words) < 3:
        return [crc32(b" ".join(words))]
    return sorted(set(map(crc32, map(b" ".join, zip(words, words[1:], words[2:], strict=False)))))[:_SKETCH]


def _keys(asked: list[int], said: list[int]) -> list[int]:
    """By which rows are found whose questions and answers may both be alike; each at most once."""
    pairs = zip(_representatives(asked), _representatives(said), strict=True)
    return list({(first << 32 | second) - (1 << 63) for first, second in pairs})


def _representatives(hashes: list[int]) -> list[int]:
    """The smallest hash of each residue class: two texts share each with the probability by which they are alike.

    Short texts lack some classes; there the smallest of all stands in.
    """
    smallest: dict[int, int] = {}
    for hash in hashes:
        smallest.setdefault(hash % _BANDS, hash)
        if len(smallest) == _BANDS:
            break
    return [smallest.get(at, hashes[0]) for at in range(_BANDS)]


def alike(one: Sequence[int], other: Sequence[int]) -> float:
    """How alike two texts are, from 0 to 1, by their sketches."""
    left, right = set(one), set(other)
    # Beyond the largest hash of a cut-off sketch nothing is known of its text.
    union = sorted(left | right)[:_SKETCH]
    return len(left.intersection(right, union)) / len(union)
