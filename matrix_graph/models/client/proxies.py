"""Which proxy leads to a server, by the environment: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.

Why not aiohttp's `trust_env`: it reads `.netrc` too, whose password would go out beside the key, and sends requests to
this machine through the proxy. What always holds: nothing for this machine itself goes through a proxy.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from matrix_graph.errors import ConfigError


def proxy_for(url: str) -> str | None:
    """The proxy for a URL; None: connect directly.

    Args:
        url: http or https. Names in lower case count before those in upper case, as with curl. NO_PROXY lists hosts,
            domains, addresses or networks such as `10.0.0.0/8`, separated by commas; `*` means all.

    Raises:
        ConfigError: the environment names a proxy that is not http or https.
    """
    address = urlsplit(url)
    host = (address.hostname or "").rstrip(".")
    if is_loopback(host):
        return None
    proxies = getproxies_environment()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if not proxy or _bypassed(host, address.port, proxies.get("no", "")) or _is_of_this_machine(host):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if urlsplit(proxy).scheme not in ("http", "https"):
        raise ConfigError(
            f"The environment names a {urlsplit(proxy).scheme} proxy for {host}; http and https are known here. "
            f"Name one with {address.scheme.upper()}_PROXY, or put {host} into NO_PROXY."
        )
    return proxy


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine: localhost, 127.0.0.0/8, ::1, and 0.0.0.0 and :: likewise."""
    name = host.strip("[]").rstrip(".").casefold()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address is not None and (address.is_loopback or address.is_unspecified)


def _is_of_this_machine(host: str) -> bool:
    """Whether an address in numbers is one of this machine's own: only there can a socket be bound to it."""
    address = _address(host)
    if address is None:
        return False
    with suppress(OSError), socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6) as own:
        own.bind((str(address), 0))
        return True
    return False


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        return ipaddress.ip_address(name.partition("%")[0])
    if name[:1].isdigit():
        with suppress(OSError):  # as the system reads addresses: 127.1, 0x7f000001
            return ipaddress.IPv4Address(socket.inet_aton(name))
    return None


def _bypassed(host: str, port: int | None, listed: str) -> bool:
    """Whether NO_PROXY names a host."""
    host, address = host.casefold(), _address(host)
    for name in listed.casefold().replace(",", " ").split():
        if name == "*":
            return True
        place, colon, number = name.rpartition(":")
        if colon and number.isdigit() and (":" not in place or place.startswith("[")):
            if port is not None and int(number) != port:
                continue
            name = place
        name = name.strip("[]").removeprefix("*").removeprefix(".")
        if name and (host == name or host.endswith(f".{name}")):
            return True
        with suppress(ValueError):
            if address is not None and address in ipaddress.ip_network(name, strict=False):
                return True
    return False
