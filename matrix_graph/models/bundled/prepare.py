"""A bundled model as a Hugging Face folder, made once.

Why: vLLM and PEFT want such a folder, the weights come as a GGUF file, and preparing them takes a minute and gigabytes.
What always holds: a folder that is returned is whole (it is made beside its place and then renamed), and two processes
that want it at once make it once.
"""

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from matrix_graph.errors import PrerequisiteError, ServerError
from matrix_graph.models.bundled.catalog import PREFIX, SMALL, BundledModel, bundled_model
from matrix_graph.models.bundled.fetch import gguf_file
from matrix_graph.models.bundled.folders import check_model_folder, is_whole, missing_parts, told_if_not_writable
from matrix_graph.models.bundled.room import disk_message, require_disk, require_memory_to_convert
from matrix_graph.models.bundled.sampling import lacks_sampling, write_sampling

ONE_MATRIX = "--one-matrix"
CONVERTER_MODULES = ("torch", "transformers", "gguf", "accelerate")
_ROOT = Path(__file__).resolve().parents[3]
_FULL = (errno.ENOSPC, errno.EDQUOT)


def _say_nothing(line: str) -> None:
    """Drops a progress line: who wants them passes an `echo` of their own."""


def resolve_model(source: str | Path | None, echo: Callable[[str], None] = _say_nothing) -> str:
    """Returns what a model option means: a folder's absolute path, or a hub id.

    Args:
        source: a folder, a hub id, or `bundled:135m`, `bundled:0.5b` or `bundled:1.5b`; None is `bundled:135m`. A
            bundled model is prepared at the first call.
        echo: gets one short line at a time while there is something to wait for.

    Raises:
        ServerError: an unknown bundled model, or a folder without a whole model.
        PrerequisiteError: as `prepare_bundled_model`.
    """
    model = bundled_model(source)
    if model is not None:
        return str(prepare_bundled_model(model.key, echo=echo).resolve())
    folder = check_model_folder(str(source))
    return str(source) if folder is None else str(folder.resolve())


def prepare_bundled_model(
    name: str = SMALL.key, directory: Path | None = None, echo: Callable[[str], None] = _say_nothing
) -> Path:
    """Returns a bundled model as a Hugging Face folder (bfloat16), which is made at the first call.

        prepare_bundled_model("1.5b", echo=print)

    Args:
        name: "135m" (270 MB, made in 20 s), "0.5b" (1.0 GB, 45 s) or "1.5b" (3.1 GB, 75 s), all on two cores and after
            the download; with `bundled:` before it or without.
        directory: the model's folder itself; None is the model's own in `models` in `cache_directory()`.
        echo: gets one short line at a time while there is something to wait for.

    Raises:
        PrerequisiteError: torch, transformers, gguf or accelerate is missing, the weights cannot be had, the disk or
            the memory is too small for them, or the folder cannot be written.
        ServerError: there is no such bundled model, or `directory` holds something else than a model.
    """
    model = bundled_model(name if name.casefold().startswith(PREFIX) else PREFIX + name)
    assert model is not None  # of a name with the prefix, it is found or refused
    folder = directory if directory is not None else model.folder
    if is_whole(folder) and not lacks_sampling(folder, model):
        return folder
    if is_whole(folder):
        with suppress(OSError), _locked(folder, echo):  # a folder that nobody may write to serves all the same
            if lacks_sampling(folder, model):
                write_sampling(folder, model)
        return folder
    with told_if_not_writable(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with told_if_not_writable(folder.parent), _locked(folder, echo):
        if is_whole(folder):
            return folder
        if folder.exists() and any(folder.iterdir()):
            if directory is not None:
                raise ServerError(
                    f"{folder} is not empty and holds no whole model. Name a folder that is empty or does not exist."
                )
            shutil.rmtree(folder)
        missing = [module for module in CONVERTER_MODULES if importlib.util.find_spec(module) is None]
        if missing:
            raise PrerequisiteError(
                f"The bundled model must be unpacked first, and that needs {', '.join(missing)}: run "
                f"`matrix-graph install-engine`, or `pip install {' '.join(missing)}`."
            )
        _make(model, folder, echo)
    return folder


@contextmanager
def _locked(folder: Path, echo: Callable[[str], None]) -> Iterator[None]:
    import fcntl  # here, because Windows has none and must still import this module

    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            echo("Another process is preparing the bundled model; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(model: BundledModel, folder: Path, echo: Callable[[str], None]) -> None:
    for stale in folder.parent.glob(f".{folder.name}.partial-*"):  # the lock is ours, so nobody works on these
        shutil.rmtree(stale, ignore_errors=True)
    require_disk(model, folder.parent)
    require_memory_to_convert(model)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    target = partial / folder.name
    try:
        target.mkdir()
        source = gguf_file(model, partial, echo)
        echo(
            f"Unpacking {model.name} once (about {model.seconds} s on two cores, up to "
            f"{model.convert_bytes / 1e9:.1f} GB of memory)."
        )
        _convert_apart(model, source, target)
        write_sampling(target, model)
        for path in (target, *target.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        if missing := missing_parts(target):
            raise PrerequisiteError(
                f"Unpacking {model.name} gave a folder without {', '.join(missing)}. Check that the versions of "
                "transformers and gguf are those that matrix-graph asks for (`pip install -U matrix-graph`)."
            )
        if folder.exists():
            folder.rmdir()
        target.rename(folder)
    except OSError as error:
        if error.errno in _FULL:
            raise PrerequisiteError(disk_message(model, folder.parent)) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    echo(f"The bundled model is ready in {folder}.")


def _convert_apart(model: BundledModel, source: Path, target: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    options = [ONE_MATRIX] if model.one_matrix else []
    done = subprocess.run(
        [sys.executable, "-m", "matrix_graph.models.bundled.convert", str(source), str(target), *options],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = "\n".join(f"    {line}" for line in (done.stdout + done.stderr).splitlines()[-15:])
        raise PrerequisiteError(
            f"Unpacking {model.name} failed with exit code {done.returncode} (-9: too little memory, it needs "
            f"{model.convert_bytes / 1e9:.1f} GB). Mend what it says below, mostly by "
            f"`pip install -U {' '.join(CONVERTER_MODULES)}`:\n{lines}"
        )
