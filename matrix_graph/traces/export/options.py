"""What can be asked of an export; recorded in the dataset card as it was asked."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, model_validator

from matrix_graph.errors import ConfigError


class ExportFormat(StrEnum):
    """The shape of a row."""

    messages = "messages"
    prompt_completion = "prompt-completion"
    sharegpt = "sharegpt"
    alpaca = "alpaca"
    preference = "preference"


class Include(StrEnum):
    """A part of the scenes; `scene` is roles and modulator together, `simulation` is all but the answers."""

    answers = "answers"
    roles = "roles"
    modulator = "modulator"
    cast = "cast"
    consequences = "consequences"
    scene = "scene"
    simulation = "simulation"


class TooLong(StrEnum):
    """What to do with a row that has more tokens than allowed."""

    drop = "drop"
    error = "error"


Parts = frozenset[Include]

_SEVERAL = {
    Include.scene: (Include.roles, Include.modulator),
    Include.simulation: (Include.roles, Include.modulator, Include.cast, Include.consequences),
}
SIMULATION: Parts = frozenset(_SEVERAL[Include.simulation])
SHARES = ("helpful", "harmful", "simulation")
"""The shares of the paper's mix: rows of a file of one's own, answers, and what was said in the scenes."""


class ExportOptions(BaseModel):
    """All that decides which rows are written, and how.

    Raises:
        ConfigError: options that exclude each other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: ExportFormat = Field(default=ExportFormat.messages, description="The shape of a row.")
    parts: frozenset[Include] | None = Field(
        default=None, description="What of the scenes; null is the answers, with a mix what its shares need."
    )
    blocked: bool | None = Field(
        default=None,
        description="Whether scenes whose plan could not go on are exported; null: yes, but not as preference pairs.",
    )
    cut_off: bool = Field(
        default=False, description="Whether rows are exported that teach what was cut off at a token limit."
    )
    mix: dict[str, int] | None = Field(
        default=None, description="The most rows of each share: helpful, harmful (the answers), simulation (the rest)."
    )
    seed: int = Field(default=0, description="Of the sampling for the mix.")
    near_duplicates: float = Field(
        default=0.9, gt=0, le=1, description="Answers at least this alike are one; 1: exact duplicates alone."
    )
    keep_duplicates: bool = Field(default=False, description="Whether duplicates are kept, exact ones too.")
    tokenizer: str | None = Field(default=None, description="Model whose chat template and tokens lengths are in.")
    max_length: int | None = Field(default=None, ge=1, description="The longest row in tokens of that tokenizer.")
    too_long: TooLong = Field(default=TooLong.drop, description="What to do with a longer row.")
    validation: float = Field(default=0.0, ge=0, lt=1, description="The share of questions kept apart for validation.")

    @classmethod
    def of(cls, **given: Any) -> ExportOptions:
        """The options from plain values.

        Raises:
            ConfigError: a value out of range, or options that exclude each other.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            from matrix_graph.config import explain

            raise ConfigError(f"Export options that cannot be used:\n{explain(error)}") from error

    @field_serializer("parts")
    def _in_order(self, parts: frozenset[Include] | None) -> list[str] | None:
        # A set has another order in each process; the card must not.
        return None if parts is None else sorted(parts)

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.max_length is not None and self.tokenizer is None:
            raise ConfigError(
                "--max-length counts tokens; name the model whose tokens they are with --tokenizer MODEL."
            )
        if self.format is ExportFormat.preference and self.chosen_parts != {Include.answers}:
            raise ConfigError("Preference pairs are made of answers alone; leave out --include, --only and --mix.")
        unknown = sorted(set(self.mix or ()) - set(SHARES))
        if unknown:
            raise ConfigError(f"The mix has no share {unknown[0]!r}; its shares are {', '.join(SHARES)}.")
        if any(rows < 1 for rows in (self.mix or {}).values()):
            raise ConfigError("A share of the mix has fewer than 1 row; leave it out instead.")
        return self

    @property
    def chosen_parts(self) -> Parts:
        """The parts of the scenes, each named singly."""
        if self.mix is None:
            return expanded(self.parts) if self.parts is not None else frozenset({Include.answers})
        wanted = SIMULATION if self.parts is None or not expanded(self.parts) & SIMULATION else expanded(self.parts)
        answers = {Include.answers} if "harmful" in self.mix else set()
        return frozenset(answers | (wanted & SIMULATION if "simulation" in self.mix else set()))

    @property
    def by_call(self) -> bool:
        """Whether a row is one call of the model, not one dialogue."""
        return self.format in (ExportFormat.prompt_completion, ExportFormat.alpaca)

    @property
    def takes_blocked(self) -> bool:
        """Whether blocked scenes are exported."""
        # A pair says that the scene showed one answer to be better; it did not, of a draft that could not be tried.
        return self.format is not ExportFormat.preference if self.blocked is None else self.blocked


def expanded(parts: frozenset[Include]) -> Parts:
    """The parts, those that stand for several replaced by what they stand for."""
    return frozenset(single for part in parts for single in _SEVERAL.get(part, (part,)))


def parse_mix(text: str) -> dict[str, int]:
    """The shares of a mix, from `helpful=6000,harmful=6000,simulation=6000`.

    Raises:
        ConfigError: it has another form.
    """
    mix: dict[str, int] = {}
    for part in text.split(","):
        name, sign, number = (piece.strip() for piece in part.partition("="))
        if (
            not sign
            or name not in SHARES
            or name in mix
            or not number.isascii()
            or not number.isdigit()
            or int(number) < 1
        ):
            raise ConfigError(
                f"The mix {text!r} cannot be read at {part.strip()!r}. Give each share once, with the most rows it may "
                "have, such as helpful=6000,harmful=6000,simulation=6000; a share that you leave out has none."
            )
        mix[name] = int(number)
    return mix
