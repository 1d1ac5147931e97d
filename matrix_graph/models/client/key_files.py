"""The files in which `matrix-graph serve` keeps its key for this user's other programs.

What always holds: only this user can read them, they are replaced as a whole, and they are gone while the server is.
"""

from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from matrix_graph.errors import PrerequisiteError
from matrix_graph.files import private_folder, replace_private_file
from matrix_graph.models.bundled.folders import cache_directory

_LONGEST = 4096
_HERE = {"127.0.0.1", "::1", "localhost"}


def key_file(base_url: str) -> Path:
    """The file with the key of the server at a port of this machine."""
    return cache_directory() / "keys" / f"{urlsplit(base_url).port}.key"


def key_for(base_url: str) -> str | None:
    """The key that a server on this machine has now, if `matrix-graph serve` of this user runs it; else None."""
    with suppress(OSError, ValueError, PrerequisiteError):  # the last where this user has no home
        if urlsplit(base_url).hostname in _HERE:
            with key_file(base_url).open(encoding="ascii") as file:
                return file.read(_LONGEST).strip() or None
    return None


def write_key(base_url: str, key: str) -> Path:
    """Keep the key of a server.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written.
        PrerequisiteError: there is no cache folder.
    """
    path = key_file(base_url)
    private_folder(path.parent)
    replace_private_file(path, key.encode("ascii"))
    return path


def remove_key(base_url: str) -> None:
    """Remove the key of a server that is away, if it can be."""
    with suppress(OSError, PrerequisiteError):
        key_file(base_url).unlink(missing_ok=True)
