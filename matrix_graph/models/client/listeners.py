"""Which sockets of this machine listen for TCP connections, as the Linux kernel tells in `/proc/net`.

What always holds: nothing is sent to anybody to find out; a system that does not tell gives `None`, not an empty answer
(`supported` tries it out once, with a socket of its own).
"""

import contextlib
import functools
import ipaddress
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENS = b"0A"
_STATE, _INODE = 3, 9
"""Columns of these tables."""
_WORD = 8
"""Hexadecimal digits of one 32-bit word of an address; each is in the machine's own byte order."""


@functools.cache
def supported() -> bool:
    """Whether this system tells who listens."""
    if not all(table.exists() for table in _TABLES[:1]):
        return False
    try:
        with socket.socket() as own:
            own.bind(("127.0.0.1", 0))
            own.listen()
            inode = os.fstat(own.fileno()).st_ino
            return at("127.0.0.1", own.getsockname()[1]) == {inode} and held_by([os.getpid()], {inode}) == {inode}
    except OSError:
        return False


def at(host: str, port: int) -> set[int]:
    """The inodes of the sockets that may accept a connection to an address.

    Args:
        host: an address in numbers.
        port: the TCP port.
    """
    wanted = _plain(ipaddress.ip_address(host.partition("%")[0]))
    return {inode for address, inode in _listening(port) if address.is_unspecified or _plain(address) == wanted}


def held_by(pids: Iterable[int], inodes: set[int]) -> set[int]:
    """Which of these sockets one of these processes holds; a process that cannot be looked into holds none."""
    named = {f"socket:[{inode}]": inode for inode in inodes}
    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if (inode := named.get(str(entry.readlink()))) is not None:
                        found.add(inode)
    return found


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _listening(port: int) -> Iterator[tuple[Address, int]]:
    ending = b":%04X" % port
    for table in _TABLES:
        with contextlib.suppress(OSError), table.open("rb") as lines:
            next(lines, None)  # the heading
            for line in lines:
                # sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...
                fields = line.split(None, 10)
                if len(fields) <= _INODE or fields[_STATE] != _LISTENS:
                    break  # those that listen come first, and there may be thousands of connections
                if fields[1].endswith(ending):
                    yield _address(fields[1][: -len(ending)].decode()), int(fields[_INODE])


def _address(digits: str) -> Address:
    words = [int(digits[start : start + _WORD], 16) for start in range(0, len(digits), _WORD)]
    return ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))


def _plain(address: Address) -> Address:
    """An IPv4 address that is written as one of IPv6, as what it is."""
    return getattr(address, "ipv4_mapped", None) or address
