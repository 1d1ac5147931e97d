"""What came of an export: counts, files and hashes, for people, programs and the dataset card."""

from __future__ import annotations

from pydantic import BaseModel, Field

from matrix_graph.traces.export.reading import Source


class File(BaseModel):
    """A file that was written."""

    name: str
    split: str = Field(description='"train" or "validation".')
    rows: int
    bytes: int
    sha256: str
    kinds: dict[str, int] = Field(description="Rows by kind.")


class Lengths(BaseModel):
    """The rows' lengths, in tokens."""

    tokenizer: str
    tokens: int = Field(description="Of all rows together.")
    longest: int = Field(description="Of the longest row that was kept.")
    longest_dropped: int = Field(description="Of the longest row that was too long; 0 if none was.")


class Summary(BaseModel):
    """All that is told about an export."""

    rows: int = Field(description="In all files together.")
    out: str = Field(description="The file with the rows to train on.")
    format: str
    files: list[File]
    kinds: dict[str, int] = Field(description="Rows by kind.")
    dropped: dict[str, int] = Field(description="What was left out, by reason.")
    scenes: dict[str, int] = Field(description="Scenes that were read, by status.")
    sources: list[Source]
    lengths: Lengths | None = None
    mix: dict[str, int] | None = Field(default=None, description="Rows of each share that were there to draw from.")
    offered: int = Field(default=0, description="Rows before duplicates, lengths and cuts were looked at.")
    cut_read: int = Field(default=0, description="Rows of these that teach what ended at a token limit.")
    cut_off: int = Field(default=0, description="Rows of those that were kept.")
    card: str | None = Field(default=None, description="The dataset card.")
    warnings: list[str] = Field(default=[], description="What is not as asked for.")
