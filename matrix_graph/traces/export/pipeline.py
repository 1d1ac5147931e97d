"""The map of an export: from run folders to files, row by row.

What always holds: nothing is written under its own name until everything is; and what was left out is counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from matrix_graph.errors import ExportError
from matrix_graph.records import Trace
from matrix_graph.tables.writing import FileType, Row, Writing, writing_of
from matrix_graph.traces.export.card import card_path, write_card
from matrix_graph.traces.export.checks import check_helpful, check_out, validation_path, why_nothing
from matrix_graph.traces.export.duplicates import DuplicateFilter
from matrix_graph.traces.export.files import DataFile
from matrix_graph.traces.export.helpful import helpful_pieces
from matrix_graph.traces.export.lengths import Tokenizer
from matrix_graph.traces.export.mixing import Mixer
from matrix_graph.traces.export.options import (
    ExportFormat,
    ExportOptions,
    Include,
    Parts,
    TooLong,
    expanded,
)
from matrix_graph.traces.export.pieces import Dropped, Piece, pieces
from matrix_graph.traces.export.reading import Reader
from matrix_graph.traces.export.scenes import scene_of
from matrix_graph.traces.export.shapes import columns, shaped
from matrix_graph.traces.export.summary import File, Lengths, Summary

Watch = Callable[[int, int], None]

_QUESTION_AND_ANSWER = ("answer", "helpful")


def rows(traces: Iterable[Trace], *, scene: bool = False) -> Iterator[Row]:
    """Training rows of the scenes that came to an end, as chats, with nothing dropped.

    Args:
        traces: read one by one, never held together.
        scene: also every role's and the modulator's dialogue.

    Yields:
        `{"messages": [{"role", "content"}], "taught": [position], "kind": "answer" | "role" | "modulator", "speaker",
        "trace_id", "purpose", "round", "run"}`; `speaker` is the role's name, or "" for the others; `taught` are the
        messages that the model itself said.
    """
    for trace in traces:
        for piece in pieces(scene_of(trace), _parts(scene), Dropped()):
            yield shaped(piece, ExportFormat.messages)


def export(traces: Iterable[Trace], out: Path, *, scene: bool = False) -> int:
    """Write `rows` as JSON lines; the file appears whole or not at all.

    Args:
        traces: read one by one.
        out: the file to write; its folder is made if need be, an older file of that name replaced.
        scene: also every role's and the modulator's dialogue.

    Returns:
        The number of rows.

    Raises:
        ExportError: no scene came to an end, or the file cannot be written.
    """
    with ExitStack() as stack:
        file = DataFile(out, Writing(FileType.jsonl, packed=False), columns(ExportFormat.messages, _parts(scene)))
        stack.callback(file.discard)
        for row in rows(traces, scene=scene):
            file.write(row)
        if not file.rows:
            raise ExportError("There is nothing to export: no scene came to an end, all failed or there are none.")
        count = file.finish().rows
        file.publish()
    return count


def export_runs(
    paths: Sequence[Path],
    out: Path,
    options: ExportOptions | None = None,
    *,
    helpful: Path | None = None,
    file_type: FileType | None = None,
    card: bool = True,
    watch: Watch | None = None,
) -> Summary:
    """Export the scenes of some run folders, and say in a dataset card what came of it.

    Args:
        paths: run folders, or files of traces; rows come in their order.
        out: the file to write; rows for validation go to `NAME.validation.ENDING` beside it.
        options: what to export, and how; None takes the answers as chats.
        helpful: a file with more questions and answers; its rows come first.
        file_type: how rows are written; None goes by the ending of `out`: `.jsonl`, `.json`, `.csv`, `.tsv`, each also
            packed (`.gz`), or `.parquet`.
        card: whether a dataset card is written.
        watch: told after each scene how many bytes of how many are read.

    Returns:
        What came of it.

    Raises:
        ConfigError: options that do not fit together, an ending that cannot be written, or a tokenizer that cannot be
            used.
        ExportError: there is nothing to export, a row is too long and must not be, or a file cannot be written.
        PrerequisiteError: a package is needed that is not installed.
        TraceError: traces that cannot be read.
    """
    options = options or ExportOptions()
    check_helpful(options, helpful)
    check_out(paths, out, helpful)
    writing = writing_of(out, file_type)
    work = _Export(options, Reader(paths, watch), helpful)
    with ExitStack() as stack:
        train = DataFile(out, writing, work.columns)
        stack.callback(train.discard)
        held = None
        if options.validation:
            held = DataFile(validation_path(out), writing, work.columns)
            stack.callback(held.discard)
        work.run(stack, train, held)
        summary = work.summary(out, train, held)
        for file in (held, train):
            if file is not None and file.rows:
                file.publish()
        if held is not None and not held.rows:
            held.path.unlink(missing_ok=True)  # of an earlier export: its questions may be among those to train on now
    if card:
        path = card_path(out)
        summary = summary.model_copy(update={"card": str(path)})
        write_card(path, summary, options, work.columns, work.reader)
    return summary


CUT_OFF = "cut off at a token limit"
"""Why a row is left out."""
MOST_CUT = 0.05
"""The share of rows that may be cut off without a warning."""


def is_validation(question: str, share: float) -> bool:
    """Whether a question is kept apart; it depends on the question alone, case and white space ignored."""
    folded = " ".join(question.split()).casefold().encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(folded).digest()[:8], "big") < share * 2**64


class _Export:
    """One export on its way."""

    def __init__(self, options: ExportOptions, reader: Reader, helpful: Path | None) -> None:
        self.options = options
        self.reader = reader
        self.columns = columns(options.format, options.chosen_parts)
        self._helpful = helpful
        self._dropped = Dropped()
        self._tokenizer = Tokenizer(options.tokenizer) if options.tokenizer else None
        self._tokens = self._longest = self._longest_dropped = 0
        self._drawn_tokens = self._offered = self._cut_read = self._cut_off = self._number = 0
        self._kinds: dict[str, Counter[str]] = {"train": Counter(), "validation": Counter()}
        self._mixer: Mixer | None = None

    def run(self, stack: ExitStack, train: DataFile, held: DataFile | None) -> None:
        """Write all rows."""
        seen = stack.enter_context(DuplicateFilter(self.options.near_duplicates))
        if self.options.mix is None:
            for piece in self._kept(seen):
                self._write(piece, train, held)
            return
        self._mixer = stack.enter_context(Mixer(self.options.mix, self.options.seed, train.path.parent))
        for piece in self._kept(seen):
            self._mixer.offer(piece)
        for piece in self._mixer.drawn():
            self._write(piece, train, held)
        self._dropped.add("not drawn for the mix", sum(self._mixer.seen.values()) - self._number)

    def summary(self, out: Path, train: DataFile, held: DataFile | None) -> Summary:
        """What came of it.

        Raises:
            ExportError: there are no rows, or none to train on.
        """
        scenes: Counter[str] = Counter()
        for source in self.reader.sources:
            scenes.update(source.scenes)
        dropped = {reason: count for reason, count in sorted(self._dropped.counts.items()) if count}
        if not self._number:
            raise ExportError(why_nothing(scenes, dropped, self.options))
        if not train.rows:
            raise ExportError(
                f"All {self._number} rows have questions that --validation {self.options.validation} keeps apart, "
                "so that none are left to train on. Give a smaller share, or more questions."
            )
        files = []
        for file, split in ((train, "train"), (held, "validation")):
            if file is not None:
                done = file.finish()
                if done.rows:
                    files.append(File(**done._asdict(), split=split, kinds=dict(sorted(self._kinds[split].items()))))
        tokenizer = self._tokenizer
        return Summary(
            rows=self._number,
            out=str(out),
            format=self.options.format,
            files=files,
            kinds=dict(sorted((self._kinds["train"] + self._kinds["validation"]).items())),
            dropped=dropped,
            scenes=dict(sorted(scenes.items())),
            sources=self.reader.sources,
            lengths=Lengths(
                tokenizer=tokenizer.model,
                tokens=self._tokens,
                longest=self._longest,
                longest_dropped=self._longest_dropped,
            )
            if tokenizer
            else None,
            mix=self._mixer.seen if self._mixer else None,
            offered=self._offered,
            cut_read=self._cut_read,
            cut_off=self._cut_off,
            warnings=self._warnings(held),
        )

    def _kept(self, seen: DuplicateFilter) -> Iterator[Piece]:
        """The pieces that nothing speaks against."""
        for batch in self._batches():
            self._offered += len(batch)
            self._cut_read += sum(piece.cut_off for piece in batch)
            whole = [piece for piece in batch if self.options.cut_off or not piece.cut_off]
            if len(whole) < len(batch):
                self._dropped.add(CUT_OFF, len(batch) - len(whole))
            texts = [] if self.options.keep_duplicates else [_texts(piece) for piece in whole]
            was_there = seen.duplicates(texts) or [False] * len(whole)
            for piece, duplicate in zip(whole, was_there, strict=True):
                reason = "duplicate" if duplicate else self._objection(piece, seen)
                if reason is None:
                    yield piece
                else:
                    self._dropped.add(reason)

    def _batches(self) -> Iterator[list[Piece]]:
        """All pieces, those of a scene together."""
        if self._helpful is not None:
            for piece in helpful_pieces(self._helpful):
                yield [piece]
        options = self.options
        parts, pairs = options.chosen_parts, options.format is ExportFormat.preference
        for run, scene in self.reader.scenes():
            if scene["status"] == "blocked" and not options.takes_blocked:
                self._dropped.add("scene that was blocked")
                continue
            yield list(pieces(scene, parts, self._dropped, by_call=options.by_call, pairs=pairs, run=run))

    def _objection(self, piece: Piece, seen: DuplicateFilter) -> str | None:
        options = self.options
        if piece.kind in _QUESTION_AND_ANSWER and not options.keep_duplicates:
            asked, said = (message["content"] for message in piece.messages[:2])
            if seen.is_near_duplicate(asked, said):
                return "near duplicate"
        if self._tokenizer is not None:
            length = self._tokenizer.length(piece)
            if options.max_length is not None and length > options.max_length:
                if options.too_long is TooLong.error:
                    raise ExportError(
                        f"A row of scene {piece.trace_id or piece.run} ({piece.kind}) has {length} tokens; "
                        f"--max-length allows {options.max_length}. Allow more, or drop such rows: --too-long drop."
                    )
                self._longest_dropped = max(self._longest_dropped, length)
                return "too long"
            if options.mix is None:
                self._count_tokens(length)
        return None

    def _write(self, piece: Piece, train: DataFile, held: DataFile | None) -> None:
        apart = held is not None and is_validation(piece.question, self.options.validation)
        dialogue = "system" in self.columns
        row = shaped(piece, self.options.format, dialogue=dialogue, number=self._number)
        (held if apart and held is not None else train).write(row)
        self._number += 1
        self._kinds["validation" if apart else "train"][piece.kind] += 1
        self._cut_off += piece.cut_off
        if self._mixer is not None and self._tokenizer is not None:
            self._count_tokens(self._tokenizer.length(piece))

    def _count_tokens(self, length: int) -> None:
        self._tokens += length
        self._longest = max(self._longest, length)

    def _warnings(self, held: DataFile | None) -> list[str]:
        warnings = []
        if self._mixer is not None:
            for share, wanted in (self.options.mix or {}).items():
                there = self._mixer.seen[share]
                if there < wanted:
                    warnings.append(f"The mix wants {wanted} rows of {share}; only {there} are there.")
        if self._cut_read > MOST_CUT * self._offered:
            left = "" if self.options.cut_off else ", and is left out"
            warnings.append(
                f"{self._cut_read:,} of {self._offered:,} rows ({self._cut_read / self._offered:.1%}) teach what was "
                f"cut off at a token limit{left}; play scenes with longer answers (max_answer_tokens)."
            )
        if held is not None and not held.rows:
            warnings.append(f"No question fell to validation; {held.path.name} is not written. Give a larger share.")
        return warnings


def _texts(piece: Piece) -> tuple[str, ...]:
    """All by which a piece is known."""
    return (piece.kind, *[message["content"] for message in piece.messages], piece.rejected)


def _parts(scene: bool) -> Parts:
    return expanded(frozenset({Include.answers, Include.scene} if scene else {Include.answers}))
