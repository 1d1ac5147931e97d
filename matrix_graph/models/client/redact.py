"""Keeps secrets out of everything that is quoted from a server: messages, logs, pages, traces.

Why: some servers echo the headers of a request in their answer. What always holds: a text is cleaned before it is cut
to length, so that no half of a secret is left at its end; the usual other spellings of a secret (percent-encoded,
escaped in JSON or HTML, base64 as in `Basic`, hexadecimal) and longer parts of it are blotted out as well.
"""

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

from matrix_graph.models.client.strings import clean_name, cleaned

MARK = "***"
QUOTED = 500
"""How many characters of a server's answer an error message quotes."""

_READ = 64 * 1024
"""How many bytes of an answer are looked at for what is quoted of it."""
_SHORT = 8
"""A secret of fewer characters is blotted out where it stands as a word: in others it may be chance."""
_LONG = 16
_LONGEST_PART = 16
_SCHEMES = re.compile(r"(?:bearer|basic|token|apikey|api-key)\s+(?P<token>\S.*)", re.IGNORECASE | re.DOTALL)


class Redactor:
    """Blots a few secrets out of texts.

    Args:
        secrets: such as an API key and the values of headers (see `secrets_of`); None and blanks are passed over.
        mark: what stands in their place.

    Example:
        >>> redact = Redactor("sk-0123456789")
        >>> redact("Your header was: Bearer sk-0123456789")
        'Your header was: Bearer ***'
        >>> redact.quote(b"Authorization:   Bearer sk-0123456789", most=20)
        'Authorization: Beare [...]'
    """

    def __init__(self, *secrets: str | None, mark: str = MARK) -> None:
        self._mark = mark
        known = {flat for secret in secrets if secret and (flat := _flat(clean_name(secret)))}
        self._words = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)") for word in known if len(word) < _SHORT]
        spelled = [spelling for secret in known if len(secret) >= _SHORT for spelling in _spellings(secret)]
        self._parts = sorted({part.lower() for spelling in spelled for part in _parts(spelling)})
        # A short one that looks like a word may be meant as one where a model says it.
        telling = [secret for secret in known if _is_telling(secret)]
        self._telling = [spelling.encode() for secret in telling for spelling in _spellings(secret)]

    def __call__(self, text: str) -> str:
        """`text` with every secret, and every longer part of one, blotted out."""
        for word in self._words:
            text = word.sub(lambda _: self._mark, text)
        lowered = text.lower()
        if len(lowered) != len(text):  # some letters are longer in lower case
            lowered = text
        spans = sorted(span for part in self._parts for span in _places(lowered, part))
        pieces: list[str] = []
        shown_until = hidden_until = 0
        for start, end in spans:
            if start >= hidden_until:
                pieces += [text[shown_until:start], self._mark]
            hidden_until = shown_until = max(hidden_until, end)
        return "".join([*pieces, text[shown_until:]])

    def quote(self, said: str | bytes | BaseException, most: int = QUOTED) -> str:
        """What a server said, as an error message may quote it: cleaned, on one line, and only then cut.

        Args:
            said: a text, the bytes of a body, or an exception whose message may quote one.
            most: characters at most.
        """
        whole = said if isinstance(said, bytes) else str(said).encode(errors="replace")
        text = whole[:_READ].decode(errors="replace")
        if len(whole) > _READ:
            text = text[: -4 * _LONGEST_PART]  # the beginning of a secret may stand there
        text = self(_flat(clean_name(text)))
        return (text if len(text) <= most else text[:most] + " [...]") or "(nothing)"

    def spoken(self, raw: bytes) -> bool:
        """Whether one of the secrets stands in a body to the letter, but for those that may be words by chance."""
        return any(secret in raw for secret in self._telling)

    def strings(self, value: Any) -> Any:
        """JSON data with the secrets blotted out of its strings."""
        return cleaned(value, self)


def secrets_of(key: str | None, headers: Mapping[str, str] | None = None, url: str = "") -> list[str]:
    """What must not be shown of a connection: key, values of headers, user and password of an address.

    Args:
        key: bearer token.
        headers: that somebody has given; of `Bearer ...` and the like also what follows the scheme.
        url: an address that may hold `user:password@`.
    """
    found = [key or "", *_of_headers((headers or {}).values())]
    try:
        address = urlsplit(url)
        login = [address.password or ""] if address.password else [address.username or ""]
    except ValueError:
        login = []
    return [secret for secret in [*found, *login, *map(unquote, login)] if secret.strip()]


def _of_headers(values: Iterable[str]) -> Iterator[str]:
    for value in values:
        match = _SCHEMES.fullmatch(value.strip())
        if match is None:
            yield value
            continue
        yield match["token"]
        try:
            login = base64.b64decode(match["token"], validate=True).decode()
        except ValueError:
            continue
        if login.isprintable() and ":" in login:
            yield login.partition(":")[2]


def _flat(text: str) -> str:
    return " ".join(text.split())


def _is_telling(secret: str) -> bool:
    return len(secret) >= _LONG or (len(secret) >= _SHORT and secret != secret.lower()) or (
        len(secret) >= _SHORT and any(letter.isdigit() for letter in secret)
    )  # fmt: skip


def _spellings(secret: str) -> set[str]:
    """A secret as it may stand in a text."""
    raw = secret.encode(errors="replace")
    found = {
        secret,
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        json.dumps(secret)[1:-1].replace("/", "\\/"),
        html.escape(secret),
        raw.hex(),
    }
    for before in range(3):  # where in a group of three bytes it begins, as after `user:`
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            whole = encode(b"\0" * before + raw).decode()
            # The first and last characters depend on what stands before and after it.
            end = (before + len(raw)) * 8 // 6
            found.add(whole[-(-before * 8 // 6) : end])
    return {spelling for spelling in found if len(spelling) >= _SHORT}


def _parts(spelling: str) -> Iterator[str]:
    size = min(max(_SHORT, -(-len(spelling) // 3)), _LONGEST_PART)
    for start in range(len(spelling) - size + 1):
        yield spelling[start : start + size]


def _places(text: str, part: str) -> Iterator[tuple[int, int]]:
    start = text.find(part)
    while start >= 0:
        yield start, start + len(part)
        start = text.find(part, start + 1)
