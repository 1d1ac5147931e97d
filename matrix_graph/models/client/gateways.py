"""What answers at an address without being the model server that was meant: a page to sign in, an unknown certificate.

Why: people are told to start a server that runs, when a gateway stands in front of it. What always holds: markup is
told by its title and never quoted; what is cut to length was cleaned of secrets before.
"""

from __future__ import annotations

import html
import re
import ssl
from urllib.parse import urlsplit

from matrix_graph.models.client.headers import HEADERS_VARIABLE
from matrix_graph.models.client.redact import Redactor

_PAGE = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>(.{1,400}?)</title", re.IGNORECASE | re.DOTALL)
_LONGEST_TITLE, _LONGEST_ADDRESS = 80, 200
_HEAD = 20_000
"""Bytes of a page that are looked at."""
_SIGN_IN = re.compile(r"log-?in|sign-?in|sso\b|saml|oauth|openid|auth|idp\b", re.IGNORECASE)

HEADER_ADVICE = (
    f"Headers that a gateway asks for go into default_headers, `headers` of the config file, or {HEADERS_VARIABLE}."
)
_WEB_PAGE_ADVICE = (
    "A gateway may want you to sign in first, or base_url is not the root of the API, which usually ends in /v1. "
    + HEADER_ADVICE
)


def is_page(body: bytes) -> bool:
    """Whether a body is a web page."""
    return _PAGE.match(body) is not None


def page_title(body: bytes, redact: Redactor) -> str | None:
    """The title of a web page, on one line; None where it has none, or the body is not a page."""
    if not is_page(body):
        return None
    found = _TITLE.search(body[:_HEAD].decode(errors="replace"))
    title = redact(" ".join(html.unescape(found[1]).split()))[:_LONGEST_TITLE] if found else ""
    return "".join(char for char in title if char.isprintable()) or None


def told_page(body: bytes, redact: Redactor) -> str:
    """A web page, as a message tells of it."""
    title = page_title(body, redact)
    return f'a web page ("{title}")' if title else "a web page"


def page_instead(where: str, status: int, body: bytes, redact: Redactor) -> str:
    """The message for a web page where a model server's answer was expected."""
    return f"{where} answered with {told_page(body, redact)} in place of JSON (HTTP {status}). {_WEB_PAGE_ADVICE}"


def redirected(location: str | None, redact: Redactor) -> str:
    """What to do about a redirect.

    Args:
        location: the header of that name; its query, which may hold secrets, is not shown.
        redact: keeps secrets out of the message.
    """
    try:
        address = urlsplit(location or "")
        host, port = address.hostname or "", address.port
    except ValueError:  # it is no address
        location = None
    if not location:
        return "Redirects and the like are not followed; set base_url to the final address."
    shown = f"{address.scheme}://{host}" if address.scheme else ""
    if address.scheme and port:
        shown += f":{port}"
    shown = "".join(char for char in redact(f"{shown}{address.path}")[:_LONGEST_ADDRESS] if char.isprintable())
    if _SIGN_IN.search(f"{host}{address.path}"):
        return f"It sends the request on to {shown}, a page to sign in. Sign in there first. {HEADER_ADVICE}"
    return f"Redirects are not followed; it names {shown}. Set base_url to the final address."


def untrusted(error: BaseException | None) -> str | None:
    """The message for a certificate that is not trusted; None if an error has another cause.

    Args:
        error: of a connection; its reason and causes are looked at.
    """
    for _ in range(5):
        if error is None:
            return None
        # aiohttp's own error is one of these by its class, and holds the one that tells the reason.
        told = getattr(error, "certificate_error", error)
        if isinstance(told, ssl.SSLCertVerificationError):
            why = getattr(told, "verify_message", None) or "it cannot be verified"
            return (
                f"its certificate is not trusted ({why}). The server runs; if its certificate comes from an authority "
                "of your own, set SSL_CERT_FILE to a PEM file with that authority's certificate. If it names another "
                "host, correct the address"
            )
        inner = getattr(error, "reason", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
    return None
