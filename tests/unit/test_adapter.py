"""Adapters that a server must not get, told from their files alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from matrix_graph.errors import ServerError
from matrix_graph.models.bundled import check_model_folder
from matrix_graph.models.serving.adapter import check_adapter_folder, check_adapter_name
from matrix_graph.models.serving.weights import WeightsError, fingerprint, layer_matrices, read_header

LAYER = "model.layers.{}.self_attn.q_proj"


def save(path: Path, tensors: dict[str, tuple[int, ...]], fill: int = 0) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes([fill]) * end)


def make_model(folder: Path, width: int = 16, layers: int = 2, fill: int = 0) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save(folder / "model.safetensors", {f"{LAYER.format(n)}.weight": (width, width) for n in range(layers)}, fill)
    return folder


def make_adapter(folder: Path, *, width: int = 16, layers: int = 2, rank: int = 8, **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, **config}))
    tensors: dict[str, tuple[int, ...]] = {}
    for n in range(layers):
        tensors[f"base_model.model.{LAYER.format(n)}.lora_A.weight"] = (rank, width)
        tensors[f"base_model.model.{LAYER.format(n)}.lora_B.weight"] = (width, rank)
    save(folder / "adapter_model.safetensors", tensors)
    return folder


def test_one_that_fits(tmp_path: Path) -> None:
    adapter, base = make_adapter(tmp_path / "a"), make_model(tmp_path / "m")
    assert check_adapter_folder(adapter, max_rank=16, base=base) == adapter.resolve()
    assert check_adapter_folder(adapter, max_rank=None) == adapter.resolve()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 32}, r"trained on another model: model\.layers\.0.* has 32 values.*16 in"),
        ({"layers": 3}, r"another model: .* has no layer model\.layers\.2"),
        ({"rank": 64}, "rank 64, the server takes at most 16"),
        ({"rank_pattern": {"q_proj": 32}}, "rank 32, the server takes at most 16"),
        ({"r": 4}, r"damaged: .* has the shape \(8, 16\), and adapter_config\.json says rank 4"),
        ({"r": "8"}, "rank `r` is '8'"),
        ({"peft_type": "IA3"}, "kind 'IA3'"),
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layers": 0}, "holds no LoRA weights"),
    ],
)
def test_those_that_do_not(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    base = make_model(tmp_path / "m")
    with pytest.raises(ServerError, match=said):
        check_adapter_folder(make_adapter(tmp_path / "a", **changes), max_rank=16, base=base)


def test_on_cpu_what_is_outside_of_the_layers_is_refused(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a")
    assert check_adapter_folder(adapter, max_rank=16, layers_only=True)
    head = {"base_model.model.lm_head.lora_A.weight": (8, 16), "base_model.model.lm_head.lora_B.weight": (16, 8)}
    save(adapter / "adapter_model.safetensors", head)
    assert check_adapter_folder(adapter, max_rank=16)
    with pytest.raises(ServerError, match=r"changes lm_head.*'all-linear'"):
        check_adapter_folder(adapter, max_rank=16, layers_only=True)


def test_matrices_of_the_layers(tmp_path: Path) -> None:
    layer = "model.layers.{}.mlp"
    tensors: dict[str, tuple[int, ...]] = {f"{layer.format(n)}.up_proj.weight": (4, 2) for n in range(2)}
    tensors |= {"lm_head.weight": (9, 2), "model.embed_tokens.weight": (9, 2), "model.layers.0.norm.weight": (2,)}
    tensors |= {f"{layer.format(0)}.experts.3.w1.weight": (4, 2), "transformer.h.1.attn.c_attn.weight": (2, 6)}
    save(tmp_path / "model.safetensors", tensors)
    assert layer_matrices(tmp_path) == ["c_attn", "up_proj"]
    assert layer_matrices(tmp_path / "none") == []


def test_quantized_and_turned_weights_have_shapes_of_their_own(tmp_path: Path) -> None:
    base = make_model(tmp_path / "m", width=8)
    adapter = make_adapter(tmp_path / "a")
    with pytest.raises(ServerError, match="another model"):
        check_adapter_folder(adapter, max_rank=16, base=base)
    (base / "config.json").write_text('{"quantization_config": {}}')
    assert check_adapter_folder(adapter, max_rank=16, base=base)
    (base / "config.json").write_text("{}")
    assert check_adapter_folder(make_adapter(tmp_path / "t", fan_in_fan_out=True), max_rank=16, base=base)


def test_another_base_of_the_same_shape(tmp_path: Path) -> None:
    trained_on, other = make_model(tmp_path / "m"), make_model(tmp_path / "other", fill=1)
    adapter = make_adapter(tmp_path / "a")
    print_ = fingerprint(trained_on)
    assert print_ is not None
    (adapter / "training.json").write_text(json.dumps({"model": {"name": "m", "fingerprint": print_.model_dump()}}))
    assert check_adapter_folder(adapter, max_rank=16, base=trained_on)
    with pytest.raises(ServerError, match=r"another model: 'm' of its training\.json has the same shape"):
        check_adapter_folder(adapter, max_rank=16, base=other)
    (adapter / "training.json").write_text('{"model": null}')  # not ours
    assert check_adapter_folder(adapter, max_rank=16, base=other)


def test_fingerprint_is_of_the_weights_and_not_of_the_files(tmp_path: Path) -> None:
    whole, parts = make_model(tmp_path / "whole"), tmp_path / "parts"
    parts.mkdir()
    for n in range(2):
        save(parts / f"model-0000{n + 1}-of-00002.safetensors", {f"{LAYER.format(n)}.weight": (16, 16)})
    assert fingerprint(whole) == fingerprint(parts) is not None
    assert fingerprint(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 7,
        b"x" * 100,
        (1 << 62).to_bytes(8, "little"),
        (4).to_bytes(8, "little") + b"[[[[",
        (2).to_bytes(8, "little") + b"[]",
        (10).to_bytes(8, "little") + b'{"a": 1}  ',
    ],
)
def test_garbage(content: bytes, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a")
    (adapter / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(ServerError, match="damaged"):
        check_adapter_folder(adapter, max_rank=16)


@pytest.mark.parametrize("cut", [1, 100, 1000])
def test_cut_off_weights(cut: int, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a")
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(WeightsError, match="cut off"):
        read_header(file)
    with pytest.raises(ServerError, match="cut off"):
        check_adapter_folder(adapter, max_rank=16)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="does not exist"):
        check_adapter_folder(tmp_path / "none", max_rank=16)
    with pytest.raises(ServerError, match=r"no readable adapter_config\.json"):
        check_adapter_folder(tmp_path, max_rank=16)
    adapter = make_adapter(tmp_path / "a")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ServerError, match="no weights"):
        check_adapter_folder(adapter, max_rank=16)
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(ServerError, match="no JSON object"):
        check_adapter_folder(adapter, max_rank=16)


@pytest.mark.parametrize("ending", ["bin", "pt", "pth"])
def test_pickled_weights_are_refused(ending: str, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a")
    (adapter / f"adapter_model.{ending}").write_bytes(b"cos\nsystem\n")
    (adapter / "training_args.bin").write_bytes(b"")
    assert check_adapter_folder(adapter, max_rank=16) == adapter.resolve()  # vLLM reads the safetensors
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ServerError, match=rf"pickle \(adapter_model\.{ending}\).*save_pretrained"):
        check_adapter_folder(adapter, max_rank=16)
    model = tmp_path / "m"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", f"pytorch_model-00001-of-00002.{ending}"):
        (model / name).write_text("{}")
    (model / "pytorch_model.bin.index.json").write_text('{"weight_map": {"w": "pytorch_model-00001-of-00002.bin"}}')
    with pytest.raises(ServerError, match=r"pickles \(pytorch_model-00001-of-00002.*save_pretrained"):
        check_model_folder(str(model))
    (model / "model.safetensors").write_bytes(b"")
    assert check_model_folder(str(model)) == model


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201])
def test_names(name: str) -> None:
    check_adapter_name("kind", "base")
    with pytest.raises(ServerError, match="no name for an adapter"):
        check_adapter_name(name, "base")
    with pytest.raises(ServerError, match="the base model's"):
        check_adapter_name("base", "base")
