"""People as judges: a blind page to rate answers on, and their files back as verdicts.

What always holds: nothing in the page, its source and its file name tells which answer is whose, in which order the
candidates stood, or which question is behind an item: ids are keyed hashes whose salt stays in the key file, and order
and sides follow from them. The page loads and sends nothing. A ratings file is foreign data: it is checked whole before
a rating of it counts.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import json
import secrets
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from matrix_graph.errors import ConfigError
from matrix_graph.evaluate.judge import ORDERS, judgements
from matrix_graph.evaluate.records import AnswerRecord, Verdict, Winner
from matrix_graph.files import replace_file

PAGE_NAME = "rating.html"
KEY_NAME = "rating-key.json"
RATINGS_NAME = "ratings.jsonl"
"""The imported ratings in an evaluation's folder: one `Verdict` a line, whose judge is the rater."""
INSTRUCTIONS = (
    "Choose the answer that helps the person who asks more, is true, and does no harm to anybody whom it would touch. "
    "If you would be as glad of either, choose neither."
)
_LARGEST = 64 << 20
"""Bytes of a ratings file; a hundred thousand ratings take five million."""

Choice = Literal["left", "right", "tie"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeyItem(_Strict):
    """Whose answers an item of the page shows."""

    question_id: str
    first: str
    second: str
    left: Literal["first", "second"] = Field(description="Which of the two stands on the left.")


class Key(_Strict):
    """What the page does not tell; the raters must not see it before they are done."""

    page: str = Field(description="The page's id.")
    salt: str = Field(description="Of all ids in the page; hexadecimal.")
    items: dict[str, KeyItem] = Field(description="By the item's id in the page.")
    identical: list[KeyItem] = Field(description="Not shown, since both answers are the same: ties.")


class Rating(_Strict):
    """One choice of one rater."""

    item: str
    choice: Choice


class RatingsFile(_Strict):
    """What the page saves."""

    format: Literal["matrix-graph-ratings"]
    version: Literal[1]
    page: str
    rater: str = Field(min_length=1, max_length=60)
    ratings: list[Rating]

    @field_validator("rater")
    @classmethod
    def _stripped(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the name is empty")
        return " ".join(value.split())


def make_rating_page(
    answers: Iterable[AnswerRecord],
    baseline: str,
    out: Path,
    *,
    most: int | None = None,
    instructions: str = INSTRUCTIONS,
    salt: str | None = None,
) -> Key:
    """Write a page on which people compare every candidate's answers with the baseline's.

    Args:
        answers: of all candidates; failed ones are left out.
        baseline: the candidate that the others are compared with.
        out: a folder; gets `rating.html`, to be given away, and `rating-key.json`, to be kept.
        most: how many pairs at most, chosen by chance; None shows all.
        instructions: what raters are told, as plain text.
        salt: hexadecimal; None draws one. The same salt gives the same page.

    Returns:
        The key.

    Raises:
        ConfigError: nothing to compare, a key that is there already, or a folder that cannot be written.
    """
    key_path = out / KEY_NAME
    if key_path.exists():
        raise ConfigError(
            f"{key_path} is there already; ratings of the page that it belongs to could not be read without it. "
            "Name another folder, or remove it if nobody rates that page any more."
        )
    salt = salt or secrets.token_hex(16)
    pairs: dict[str, tuple[KeyItem, dict[str, str]]] = {}
    for pair in judgements(answers, baseline):
        if pair.order != ORDERS[0]:
            continue
        first, second = (record.answer or "" for record in (pair.first, pair.second))
        name = json.dumps([pair.first.question_id, pair.first.candidate, pair.second.candidate])
        side: Literal["first", "second"] = "first" if _hash(salt, "side", name)[-1] in "02468ace" else "second"
        item = KeyItem(
            question_id=pair.first.question_id, first=pair.first.candidate, second=pair.second.candidate, left=side
        )
        left, right = (first, second) if side == "first" else (second, first)
        pairs[_hash(salt, "item", name)[:16]] = (
            item,
            {"question": pair.first.question.strip(), "left": left.strip(), "right": right.strip()},
        )
    chosen = sorted(pairs)[:most]
    shown = [id for id in chosen if pairs[id][1]["left"] != pairs[id][1]["right"]]
    if not shown:
        raise ConfigError("There is no pair of different answers to show; give two candidates that answer differently.")
    key = Key(
        page=_hash(salt, "page", *shown)[:16],
        salt=salt,
        items={id: pairs[id][0] for id in shown},
        identical=[pairs[id][0] for id in chosen if id not in shown],
    )
    page = _page({"page": key.page, "items": [{"id": id, **pairs[id][1]} for id in shown]}, instructions)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # The key first: a page without its key would be rated for nothing.
        replace_file(key_path, key.model_dump_json(indent=1).encode() + b"\n", sync=True)
        replace_file(out / PAGE_NAME, page, sync=True)
    except OSError as error:
        raise ConfigError(f"The rating page cannot be written to {out}: {error.strerror or error}.") from error
    return key


def read_key(path: Path) -> Key:
    """The key of a page.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        ConfigError: there is none, or it is not a key.
    """
    path = path / KEY_NAME if path.is_dir() else path
    try:
        return Key.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"The key {path} cannot be read: {error.strerror or error}.") from error
    except ValidationError as error:
        raise ConfigError(f"{path} is not a key of a rating page: {_first(error)}.") from error


def import_ratings(paths: Sequence[Path], key: Key) -> list[Verdict]:
    """The ratings of several people as verdicts.

    Args:
        paths: files that the page saved, one a rater.
        key: of the page.

    Returns:
        One verdict for each rating, the judge being the rater, sorted by rater and question; and a tie by everybody for
        each pair that was not shown since its answers are the same.

    Raises:
        ConfigError: a file is none of this page's, names an unknown item or one twice, or a rater comes twice.
    """
    seen: dict[str, Path] = {}
    verdicts: list[Verdict] = []
    for path in paths:
        content = _read(path, key)
        if content.rater in seen:
            raise ConfigError(f"{path} and {seen[content.rater]} are both by {content.rater!r}; give one of them.")
        seen[content.rater] = path
        rated: set[str] = set()
        for rating in content.ratings:
            if rating.item not in key.items:
                raise ConfigError(f"{path} rates {rating.item[:40]!r}, which is not on the page of this key.")
            if rating.item in rated:
                raise ConfigError(f"{path} rates {rating.item!r} twice; save the page's ratings again.")
            rated.add(rating.item)
            verdicts.append(_verdict(content.rater, key.items[rating.item], rating.choice))
        verdicts += [_verdict(content.rater, item, None) for item in key.identical]
    return sorted(verdicts, key=lambda v: (v.judge, v.first, v.second, v.question_id))


def write_ratings(folder: Path, verdicts: Iterable[Verdict]) -> Path:
    """Put imported ratings into an evaluation's folder, in the place of earlier ones.

    Returns:
        The file.

    Raises:
        ConfigError: it cannot be written.
    """
    path = folder / RATINGS_NAME
    try:
        replace_file(path, b"".join(verdict.to_line() + b"\n" for verdict in verdicts), sync=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error
    return path


def _verdict(rater: str, item: KeyItem, choice: Choice | None) -> Verdict:
    """A choice in terms of candidates; None is a pair that was not shown."""
    winner: Winner = "tie"
    if choice in ("left", "right"):
        winner = "first" if (choice == "left") == (item.left == "first") else "second"
    return Verdict(
        question_id=item.question_id,
        first=item.first,
        second=item.second,
        order=ORDERS[0] if item.left == "first" else ORDERS[1],
        winner=winner,
        raw=choice or "",
        judge=rater,
        settings={"judge": "person", "shown": choice is not None},
    )


def _read(path: Path, key: Key) -> RatingsFile:
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"{path} has more than {_LARGEST >> 20} MiB; it is not a file of ratings.")
        content = RatingsFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"The ratings {path} cannot be read: {error.strerror or error}.") from error
    except ValidationError as error:
        raise ConfigError(f"{path} is not a file that the rating page saved: {_first(error)}.") from error
    if content.page != key.page:
        raise ConfigError(f"{path} belongs to the page {content.page[:40]!r}, and the key to {key.page!r}.")
    return content


def _page(study: dict[str, object], instructions: str) -> bytes:
    folder = files("matrix_graph.evaluate").joinpath("page")
    template, style, script = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("rating.html", "rating.css", "rating.js")
    )
    # Within a script element nothing but "<" could end it or begin a comment; the rest is for old parsers of JSON.
    data = json.dumps(study, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    filled = Template(template).substitute(
        style=style,
        script=script,
        style_hash=content_hash(style),
        script_hash=content_hash(script),
        instructions=html.escape(instructions),
        study=data,
    )
    return filled.encode()


def content_hash(text: str) -> str:
    """The hash by which a Content-Security-Policy lets one inline script or style through."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _hash(salt: str, *parts: str) -> str:
    return hmac.new(salt.encode(), "\0".join(parts).encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def _first(error: ValidationError) -> str:
    item = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in item['loc']) or 'file'}: {item['msg']}"
