"""Real training of a tiny random model: what moves and what stays, kills and resumption, faults. Seconds on a CPU."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from matrix_graph.errors import ConfigError, PrerequisiteError
from matrix_graph.models.serving.adapter import check_adapter_folder
from matrix_graph.train import Recipe, TrainingError, TrainingRecord, read_record, train_adapter
from matrix_graph.train import base as base_module
from tests.integration.tiny_models import chatml, tiny_model

QUICK = Recipe(
    epochs=4,
    learning_rate=2e-2,
    schedule="constant_with_warmup",
    batch_size=4,
    accumulate=1,
    dropout=0.1,
    quantization="none",
    checkpoint_every=2,
)
ANSWERS = ["Ask him kindly.", "Wait a day.", "Call the police officer.", "no", "yes", "Listen.\n\nThen wait.", "1 2 3"]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def as_the_card_says(adapter: Path, base: str) -> Any:
    """The model and its adapter, loaded by the code in the adapter's card."""
    code = (adapter / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("BASE", base).replace("FOLDER", str(adapter)), names)
    return names["model"]


def naming(folder: Path, *private: str) -> list[str]:
    """The files below a folder that hold one of these texts."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if any(text.encode() in path.read_bytes() for text in private)]


def write_rows(path: Path, count: int = 14) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"How do I calm my neighbour? {n}"},
                {"role": "assistant", "content": ANSWERS[n % len(ANSWERS)]},
            ]
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("models") / "tiny", chatml()))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")


def test_the_adapter_moves_and_the_base_stays(model: str, rows: Path, tmp_path: Path) -> None:
    before = bytes_of(Path(model))
    out = tmp_path / "adapters" / "kind"
    record = train_adapter(rows, out, model=model, recipe=QUICK, validation=rows)
    assert bytes_of(Path(model)) == before
    weights = load_file(out / "adapter_model.safetensors")
    lora_b = [tensor for name, tensor in weights.items() if "lora_B" in name]
    assert len(lora_b) == 14 and all(bool(tensor.abs().max() > 0) for tensor in lora_b)  # they begin as zeros
    assert not any("lm_head" in name or "embed" in name for name in weights)
    assert record.steps == 16 and [point.step for point in record.loss] == list(range(1, 17))
    assert record.last_loss < record.first_loss
    assert [point.step for point in record.validation_loss] == [4, 8, 12, 16]
    assert record.data.sha256 == record.validation.sha256 if record.validation else False
    assert record.model.name == "tiny" and record.model.fingerprint is not None
    assert set(record.model.files) == {"model.safetensors"}
    assert read_record(out) == record
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "loss.svg",
        "training.json",
    ]
    card = (out / "README.md").read_text()
    assert record.data.sha256 in card and 'base_model: "tiny"' in card and "library_name: peft" in card
    assert (out / "loss.svg").read_text().count("<polyline") == 2

    tuned = as_the_card_says(out, model)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        with_adapter = tuned(ids).logits
        with tuned.disable_adapter():
            without = tuned(ids).logits
    assert float((with_adapter - without).abs().max()) > 1e-3

    # The same again does nothing; something else is refused; --no-resume replaces it.
    stamp = (out / "adapter_model.safetensors").stat().st_mtime_ns
    assert train_adapter(rows, out, model=model, recipe=QUICK, validation=rows) == record
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    other = QUICK.model_copy(update={"seed": 1, "max_steps": 1})
    with pytest.raises(TrainingError, match=r"trained otherwise.*--no-resume"):
        train_adapter(rows, out, model=model, recipe=other)
    assert train_adapter(rows, out, model=model, recipe=other, resume=False).steps == 1


def test_an_adapter_loads_where_neither_it_nor_its_base_lay(rows: Path, tmp_path: Path) -> None:
    home = tmp_path / "home" / "jane.doe"
    base = tiny_model(home / "models" / "tiny", chatml())
    out = home / "adapters" / "kind"
    train_adapter(rows, out, model=str(base), recipe=QUICK.model_copy(update={"max_steps": 2}))
    assert naming(out, "jane.doe", str(tmp_path)) == []
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert read_record(out) is not None and "`tiny`" in (out / "README.md").read_text().split("## Use")[1]
    moved, adapter = base.rename(tmp_path / "elsewhere"), out.rename(tmp_path / "copied")
    tuned = as_the_card_says(adapter, str(moved))
    assert type(tuned).__name__ == "PeftModelForCausalLM"
    # What serves it looks at weights and shapes, not at names.
    assert check_adapter_folder(adapter, max_rank=8, base=moved) == adapter
    assert "--lora-modules NAME=FOLDER" in (adapter / "README.md").read_text()


@pytest.mark.parametrize(
    ("folder", "told", "name", "loads"),
    [
        ("tiny", "someone/Tiny", "someone/Tiny", "BASE"),
        ("my-tuned-tiny", "someone/tiny", "my-tuned-tiny", "BASE"),  # the name of what it was made from
        ("tiny", "/home/jane.doe/tiny", "tiny", "BASE"),
        ("models--someone--tiny/snapshots/c0ffee", None, "someone/tiny", '"someone/tiny"'),
    ],
)
def test_a_model_goes_by_its_own_name(
    rows: Path, tmp_path: Path, folder: str, told: str | None, name: str, loads: str
) -> None:
    base = tiny_model(tmp_path / folder, chatml())
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **({"_name_or_path": told} if told else {})}))
    out = tmp_path / "out"
    record = train_adapter(rows, out, model=str(base), recipe=QUICK.model_copy(update={"max_steps": 1}))
    assert record.model.name == name
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == name
    assert naming(out, "jane.doe", str(tmp_path)) == []
    card = (out / "README.md").read_text()
    assert f"matrix-graph serve --model {loads.strip(chr(34))} " in card
    assert ('base = "someone/tiny"' in card and 'revision="c0ffee"' in card) == (loads != "BASE")


def test_the_same_seed_gives_the_same_adapter(model: str, rows: Path, tmp_path: Path) -> None:
    recipe = QUICK.model_copy(update={"max_steps": 3})
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_adapter(rows, tmp_path / name, model=model, recipe=recipe.model_copy(update={"seed": seed}))
    a, b, c = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_preferences_are_learnt(model: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    pair = {
        "prompt": [{"role": "user", "content": "How?"}],
        "chosen": [{"role": "assistant", "content": "Ask him kindly."}],
        "rejected": [{"role": "assistant", "content": "Call the police officer."}],
    }
    file.write_text((json.dumps(pair) + "\n") * 4)
    recipe = QUICK.model_copy(update={"max_steps": 24, "dropout": 0.0, "beta": 1.0})
    record = train_adapter(file, tmp_path / "out", model=model, method="dpo", recipe=recipe)
    assert record.method == "dpo" and record.steps == 24
    assert record.first_loss == pytest.approx(0.6931, abs=0.01)  # log 2: it begins as the base model
    assert record.last_loss < 0.3
    as_the_card_says(tmp_path / "out", model)


def command(rows: Path, out: Path, model: str, recipe: Path, *more: str) -> list[str]:
    options = ["--out", str(out), "--model", model, "--recipe", str(recipe), *more]
    return [sys.executable, "-m", "matrix_graph.train", str(rows), *options]


def test_killed_at_a_random_step_it_goes_on(model: str, rows: Path, tmp_path: Path) -> None:
    recipe = QUICK.model_copy(update={"epochs": 10})  # 40 steps
    whole = train_adapter(rows, tmp_path / "whole", model=model, recipe=recipe)
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe.model_dump()))
    out = tmp_path / "killed"
    at = random.randint(4, 30)
    process = subprocess.Popen(command(rows, out, model, file), stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 240
        while not any(int(path.name[11:]) >= at for path in out.glob("checkpoints/checkpoint-*")):
            assert process.poll() is None and time.monotonic() < until, process.stderr
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    if process.stderr is not None:
        process.stderr.close()
    assert not (out / "training.json").exists()
    torn = out / "checkpoints" / "checkpoint-39"  # as one that was being written
    torn.mkdir(exist_ok=True)

    record = train_adapter(rows, out, model=model, recipe=recipe)
    assert record.starts == 2 and record.steps == whole.steps == 40
    assert [point.step for point in record.loss] == list(range(1, 41))
    losses = [point.loss for point in record.loss]
    assert losses == pytest.approx([point.loss for point in whole.loss], rel=1e-3)
    assert not (out / "checkpoints").exists()
    resumed, straight = (load_file(path / "adapter_model.safetensors") for path in (out, tmp_path / "whole"))
    assert all(torch.allclose(resumed[name], straight[name], atol=1e-5) for name in straight)


def test_what_was_begun_otherwise_is_not_gone_on_with(
    model: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    out = tmp_path / "out"
    save = Trainer._save_checkpoint

    def full(self: Any, *arguments: Any) -> None:
        if self.state.global_step >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", full)
        with pytest.raises(TrainingError, match=r"disk with .* is full.*same command again"):
            train_adapter(rows, out, model=model, recipe=QUICK)
    assert (out / "checkpoints" / "checkpoint-2" / "whole.json").exists()
    assert naming(out, str(tmp_path), model) == []
    with pytest.raises(TrainingError, match=r"begun with another recipe.*--no-resume"):
        train_adapter(rows, out, model=model, recipe=QUICK.model_copy(update={"seed": 5}))
    with pytest.raises(TrainingError, match="begun with another rows"):
        train_adapter(write_rows(tmp_path / "other.jsonl", 5), out, model=model, recipe=QUICK)
    record = train_adapter(rows, out, model=model, recipe=QUICK)
    assert record.steps == 16 and record.starts == 2


def test_faults_are_told(model: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = shutil.copytree(model, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match="no chat template"):
        train_adapter(rows, out, model=str(bare), recipe=QUICK)
    with pytest.raises(TrainingError, match=r"cannot be trained by this recipe.*nothing_like_it"):
        recipe = QUICK.model_copy(update={"target_modules": ["nothing_like_it"]})
        train_adapter(rows, tmp_path / "out2", model=model, recipe=recipe)
    with pytest.raises(TrainingError, match="not a number any more"):
        train_adapter(rows, tmp_path / "out3", model=model, recipe=QUICK.model_copy(update={"learning_rate": 1e38}))
    if not torch.cuda.is_available():
        with pytest.raises(PrerequisiteError, match="needs an NVIDIA GPU"):
            four = QUICK.model_copy(update={"quantization": "4bit"})
            train_adapter(rows, tmp_path / "out4", model=model, recipe=four)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        train_adapter(rows, tmp_path / "file" / "out", model=model, recipe=QUICK)
    monkeypatch.setattr(base_module, "MODULES", ("torch", "no_such_module"))
    with pytest.raises(PrerequisiteError, match=r'no_such_module.*pip install "matrix-graph\[train\]"'):
        train_adapter(rows, out, model=model, recipe=QUICK)


def test_the_command(model: str, rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("max_steps: 2\nbatch_size: 4\naccumulate: 1\nquantization: none\n")
    done = subprocess.run(
        command(rows, tmp_path / "out", model, file, "--json"), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    record = TrainingRecord.model_validate_json(done.stdout)
    assert record.steps == 2
    assert "14 rows: 14 examples" in done.stderr and "step 2 of 2, loss" in done.stderr and " left" in done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    again = subprocess.run(
        command(rows, tmp_path / "out", model, file, "--no-resume", "--method", "dpo"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1].startswith("Error: ") and "DPO needs prompt, chosen" in again.stderr
