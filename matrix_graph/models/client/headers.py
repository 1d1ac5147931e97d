"""The key and the headers that go with every request to a model server.

Why in one place: a gateway may ask for headers of its own, which may be secrets like the key, and requests start in
several modules. What always holds: what HTTP cannot carry is refused when it is set; no message here shows a value.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from matrix_graph.errors import ConfigError

HEADERS_VARIABLE = "MATRIX_GRAPH_HEADERS"
"""The environment variable with headers for every request: a JSON object, or lines of the form `Name: value`."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token of RFC 9110, section 5.6.2."""
_LOGIN = re.compile(r"^(\w+://)[^/?#]*@")
_OURS = frozenset({"connection", "content-encoding", "content-length", "content-type", "transfer-encoding"})


def checked_key(key: str, name: str) -> str:
    """The key, if a header can carry it.

    Args:
        key: the bearer token; empty: there is none.
        name: what the message calls it, such as "api_key".

    Raises:
        ConfigError: it holds white space, a line end, or a character that is not ASCII.
    """
    wrong = next((place for place, char in enumerate(key) if not "!" <= char <= "~"), None)
    if wrong is None:
        return key
    char = key[wrong]
    what = (
        "a line end" if char in "\r\n" else "white space" if char.isspace() else "a control character"
        if ord(char) < 128 else "a character that is not ASCII"
    )  # fmt: skip
    raise ConfigError(
        f"{name} holds {what}, as character {wrong + 1} of {len(key)}, which no HTTP header can carry. Set the key "
        "alone, as its issuer wrote it."
    )


def parsed_headers(given: object, name: str = "default_headers") -> dict[str, SecretStr]:
    """Headers from a mapping, a JSON object or lines of the form `Name: value`.

    Args:
        given: values are texts or `SecretStr`; None or an empty text gives none.
        name: what the message calls it.

    Raises:
        ConfigError: it has another form, or HTTP cannot carry a name or a value.
    """
    pairs = _from_text(given, name) if isinstance(given, str) else given
    if pairs is None:
        return {}
    if not isinstance(pairs, Mapping):
        raise ConfigError(f"{name} is a {type(pairs).__name__}; give a mapping of header names to values.")
    headers: dict[str, SecretStr] = {}
    for header, value in pairs.items():
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if not isinstance(header, str) or not _NAME.fullmatch(header):
            raise ConfigError(f"{name} has a name that HTTP does not allow; names are letters, digits and hyphens.")
        if header.casefold() in _OURS:
            raise ConfigError(f"{name} sets {header}, which every request sets itself. Leave it out.")
        if not isinstance(text, str):
            raise ConfigError(f"The header {header} in {name} is a {type(text).__name__}; give a text (with quotes).")
        text = text.strip(" \t")
        if not all(" " <= char <= "~" or char == "\t" for char in text):
            raise ConfigError(
                f"The header {header} in {name} holds a line end or another character that no HTTP header can carry."
            )
        headers[header] = SecretStr(text)
    return headers


def headers_from_environment() -> dict[str, SecretStr]:
    """The headers in MATRIX_GRAPH_HEADERS; none where it is not set.

    Raises:
        ConfigError: as `parsed_headers`.
    """
    return parsed_headers(os.environ.get(HEADERS_VARIABLE), HEADERS_VARIABLE)


def plain_headers(headers: Mapping[str, SecretStr]) -> dict[str, str]:
    """The headers as they are sent."""
    return {name: value.get_secret_value() for name, value in headers.items()}


def request_headers(key: str | None, headers: Mapping[str, str], url: str) -> dict[str, str]:
    """All headers of a request with a JSON body.

    There is one header for who asks: one that is given goes before a login in the address, and that before the key.

    Args:
        key: bearer token; None or empty: there is none.
        headers: that are given.
        url: the server's address, which may hold `user:password@`.

    Raises:
        ConfigError: HTTP cannot carry the key.
    """
    sent = {"Content-Type": "application/json"}
    if not any(name.casefold() == "authorization" for name in headers):
        if (login := basic_login(url)) is not None:
            sent["Authorization"] = login
        elif key:
            sent["Authorization"] = f"Bearer {checked_key(key, 'api_key')}"
    return {**sent, **headers}


def basic_login(url: str) -> str | None:
    """The header's value for the user and password in an address; None: it holds none."""
    address = urlsplit(url)
    if not address.username:
        return None
    pair = f"{unquote(address.username)}:{unquote(address.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def without_login(url: str) -> str:
    """An address without the user and password in it: as it is connected to, and as messages show it."""
    return _LOGIN.sub(r"\1", url)


def _from_text(text: str, name: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            # The error's own text is left out of the chain: it holds the whole document.
            raise ConfigError(f"{name} begins like a JSON object and cannot be read as one (line {error.lineno}, "
                              f"column {error.colno})." if isinstance(error, json.JSONDecodeError) else
                              f"{name} begins like a JSON object and cannot be read as one.") from None  # fmt: skip
    pairs = {}
    for number, line in enumerate(text.splitlines(), 1):
        header, sign, value = line.partition(":")
        if sign:
            pairs[header.strip()] = value
        elif line.strip():
            raise ConfigError(f"Line {number} of {name} is not of the form `Name: value`.")
    return pairs
