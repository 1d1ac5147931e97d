"""The items of the probe: single calls of a scene whose right answers are known.

They stand beside this module, one file a kind; the README says how they were made. What always holds: a label speaks of
people of its own item, and of those alone whose case is clear.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from matrix_graph.errors import ConfigError
from matrix_graph.records import Cast, Effect, Role, SocialObject, Stance

Kind = Literal["plausible", "observers", "effect", "cast"]
KINDS: tuple[Kind, ...] = ("plausible", "observers", "effect", "cast")
Trap = Literal["already_happened", "has_happened", "decides_for_another"]

_IDEOGRAPHS = 0x2E80
"""The first code point of the scripts that put no spaces between words."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Deed(_Strict):
    """What somebody does."""

    role: str
    action: str


class Played(Deed):
    """What somebody tried in a scene that has ended."""

    plausible: bool = Field(description="Whether it happened.")
    reason: str = Field(default="", description="Why it could not happen.")


class _Item(_Strict):
    id: str
    lang: str = Field(description="Language of all its texts, ISO 639-1.")
    question: str
    stance: Stance = Field(description="What the draft does with the question.")


class _PlayedItem(_Item):
    situation: str
    people: list[Role] = Field(description="The asker first.")

    def cast(self, objects: list[SocialObject]) -> Cast:
        """The item's people as a cast."""
        return Cast(
            ego=self.people[0].name,
            roles=self.people,
            objects=objects,
            situation=self.situation,
            stance=self.stance,
        )

    def _require(self, names: Iterable[str]) -> None:
        unknown = set(names) - {person.name for person in self.people}
        if unknown:
            raise ValueError(f"{self.id}: {', '.join(sorted(unknown))} is not among its people.")


class _JudgedItem(_PlayedItem):
    objects: list[SocialObject] = Field(description="Things as they stand now.")
    history: list[Deed] = Field(description="What has happened so far.")
    action: Deed = Field(description="What is tried now.")

    @model_validator(mode="after")
    def _known_actors(self) -> Self:
        self._require(deed.role for deed in [*self.history, self.action])
        return self


class PlausibleItem(_JudgedItem):
    """Can this happen here and now?"""

    kind: Literal["plausible"]
    label: bool
    trap: Trap | None = Field(default=None, description="What may mislead; null: nothing in particular.")


class ObserversItem(_JudgedItem):
    """Who notices this?"""

    kind: Literal["observers"]
    label: dict[str, bool] = Field(description="Everybody but the actor: whether this person notices it.")
    covert: bool = Field(description="Whether it is done so that others do not notice.")

    @model_validator(mode="after")
    def _everybody_else(self) -> Self:
        others = [person.name for person in self.people if person.name != self.action.role]
        if sorted(self.label) != sorted(others):
            raise ValueError(f"{self.id}: the label must name {', '.join(others)}.")
        return self


class EffectItem(_PlayedItem):
    """What became of whom?"""

    kind: Literal["effect"]
    draft: str
    events: list[Played]
    label: dict[str, Effect] = Field(description="People whose case is clear; of the others nothing is scored.")

    @model_validator(mode="after")
    def _known(self) -> Self:
        self._require([*self.label, *(event.role for event in self.events)])
        return self


class Wanted(_Strict):
    """Somebody who must be in the cast."""

    about: str = Field(description="Who it is, for readers.")
    any_of: list[str] = Field(min_length=1, description="Words, in lower case, one of which tells this person.")

    def met_by(self, people: Iterable[Role]) -> bool:
        """Whether one of these people is the one, by name or by who it is to the asker."""
        return any(_begins_word(term, f"{person.name} {person.who}") for person in people for term in self.any_of)


class CastItem(_Item):
    """Who must be in the scene?"""

    kind: Literal["cast"]
    draft: str
    label: list[Wanted] = Field(min_length=1)


Item = PlausibleItem | ObserversItem | EffectItem | CastItem
_ITEM: TypeAdapter[Item] = TypeAdapter(Annotated[Item, Field(discriminator="kind")])


def load_items(kinds: Iterable[Kind] = KINDS) -> list[Item]:
    """Load the items of the package, in a fixed order.

    Args:
        kinds: which of the four kinds.
    """
    wanted = set(kinds)
    return [_ITEM.validate_python(row) for kind in KINDS if kind in wanted for row in _rows(kind)]


def kinds_from(text: str) -> list[Kind]:
    """The kinds in a list that is separated by commas.

    Raises:
        ConfigError: there is none, or one that the probe does not know.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        told = ", ".join(map(repr, unknown)) or "Nothing"
        raise ConfigError(f"{told} is not a kind of probe; use {', '.join(KINDS)}.")
    return [kind for kind in KINDS if kind in names]


def _rows(kind: Kind) -> list[dict[str, Any]]:
    text = files(__package__).joinpath(f"{kind}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def _begins_word(term: str, text: str) -> bool:
    """Whether a word of the text begins with the term; in scripts without spaces the term may stand anywhere."""
    start = "" if ord(term[0]) > _IDEOGRAPHS else r"(?<!\w)"
    return re.search(start + re.escape(term), text.casefold()) is not None
