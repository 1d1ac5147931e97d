"""Exports train unchanged in plain TRL, as somebody who has never heard of this package would write it.

The model is tiny and random, and its tokenizer is built here: what is tested is the data's way into the loss.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from matrix_graph.errors import ConfigError, ExportError
from matrix_graph.traces.export import ExportOptions, Include, Summary, export_runs
from matrix_graph.traces.store import append_trace
from tests.unit.test_export_formats import EVERYTHING, a_scene

for module in ("torch", "trl", "datasets"):
    pytest.importorskip(module, reason="the extra `train` is not installed")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)

PLAIN_TRL = """
import json, sys
from datasets import load_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/tokenizer")

def model():
    size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, **size))

steps = dict(max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True, save_strategy="no", bf16=False,
             logging_steps=1, disable_tqdm=True, gradient_checkpointing=False)
seen = {}

def sft(name, data, **options):
    trainer = SFTTrainer(model(), SFTConfig(f"{folder}/out", max_length=1024, **steps, **options), train_dataset=data,
                         processing_class=tokenizer)
    rows = trainer.train_dataset
    taught = []
    for row in rows:
        labels = row["labels"]
        taught.append(tokenizer.decode([label for label in labels if label != -100]))
    trainer.train()
    seen[name] = {"steps": trainer.state.global_step, "taught": taught}

sft("messages", load_dataset("json", data_files=f"{folder}/messages.jsonl", split="train"), assistant_only_loss=True)
sft("prompt-completion", load_dataset("parquet", data_files=f"{folder}/calls.parquet", split="train"))
folded = load_dataset(f"{folder}/split")
seen["splits"] = {name: len(split) for name, split in folded.items()}
pairs = load_dataset("json", data_files=f"{folder}/pairs.jsonl", split="train")
model().save_pretrained(f"{folder}/model")
trainer = DPOTrainer(f"{folder}/model", args=DPOConfig(f"{folder}/out", **steps), train_dataset=pairs,
                     processing_class=tokenizer)
trainer.train()
seen["preference"] = {"steps": trainer.state.global_step, "rows": len(trainer.train_dataset)}
assert "matrix_graph" not in sys.modules
print(json.dumps(seen))
"""


def build_tokenizer(folder: Path, template: str | None) -> Path:
    """A byte-level tokenizer, so that decoding gives back every character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six scenes, and a tokenizer."""
    made = tmp_path_factory.mktemp("exports")
    for number in range(6):
        calls = [call.model_dump() for call in a_scene().calls]
        for call in calls:
            call["messages"][0]["content"] += f" {number}"
        append_trace(
            made / "run",
            a_scene(id=f"t{number}", question=f"Wie geht das {number}? 好", answer=f"So: {number}é ", calls=calls),
        )
    build_tokenizer(made / "tokenizer", CHATML)
    return made


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_plain_trl_trains_on_every_form(folder: Path) -> None:
    run = [folder / "run"]
    parts = frozenset({Include.answers, Include.modulator, Include.consequences})
    export_runs(run, folder / "messages.jsonl", ExportOptions(parts=parts))
    export_runs(run, folder / "calls.parquet", ExportOptions(parts=EVERYTHING, format="prompt-completion"))
    calls = export_runs(run, folder / "calls.jsonl", ExportOptions(parts=EVERYTHING, format="prompt-completion"))
    split = export_runs(run, folder / "split" / "rows.jsonl", ExportOptions(parts=EVERYTHING, validation=0.4))
    pairs = export_runs(run, folder / "pairs.jsonl", ExportOptions(format="preference"))
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_TRL, str(folder)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["messages"]["steps"] == seen["prompt-completion"]["steps"] == seen["preference"]["steps"] == 2
    # What the loss is on, decoded, is what the model said and the end of its turn: to the letter.
    end = "<|im_end|>"
    rows = rows_of(folder / "messages.jsonl")
    said = ["".join(row["messages"][at]["content"] + end for at in row["taught"]) for row in rows]
    assert seen["messages"]["taught"] == said and any(text.count(end) == 2 for text in said)
    completions = [f"{row['completion'][0]['content']}{end}\n" for row in rows_of(folder / "calls.jsonl")]
    assert seen["prompt-completion"]["taught"] == completions and len(completions) == calls.rows
    assert seen["preference"]["rows"] == pairs.rows == 6
    assert seen["splits"] == {file.split: file.rows for file in split.files} and len(seen["splits"]) == 2


def measured(folder: Path, out: Path, **options: Any) -> Summary:
    return export_runs([folder / "run"], out, ExportOptions.of(**{"tokenizer": str(folder / "tokenizer"), **options}))


def test_rows_too_long_in_the_models_own_tokens(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    out = tmp_path / "rows.jsonl"
    whole = measured(folder, out, parts=EVERYTHING)
    lengths = [len(tokenizer.apply_chat_template(row["messages"], tokenize=True)["input_ids"]) for row in rows_of(out)]
    assert whole.lengths and (whole.lengths.tokens, whole.lengths.longest) == (sum(lengths), max(lengths))
    limit = sorted(lengths)[len(lengths) // 2]
    short = measured(folder, out, parts=EVERYTHING, max_length=limit)
    assert short.rows == sum(length <= limit for length in lengths) and short.lengths
    assert short.dropped == {"too long": len(lengths) - short.rows} and short.lengths.longest_dropped == max(lengths)
    with pytest.raises(ExportError, match=f"--max-length allows {limit}.*--too-long drop"):
        measured(folder, out, parts=EVERYTHING, max_length=limit, too_long="error")
    with pytest.raises(ExportError, match="too long: 6"):
        measured(folder, out, max_length=3)
    # Of a pair, the longer side counts.
    one = measured(folder, out, format="preference").lengths
    assert one and one.longest == max(
        len(tokenizer.apply_chat_template(row["prompt"] + side)["input_ids"])
        for row in rows_of(out)
        for side in (row["chosen"], row["rejected"])
    )


def test_tokenizers_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    build_tokenizer(tmp_path / "bare", None)
    build_tokenizer(tmp_path / "strict", NO_SYSTEM)
    out = tmp_path / "rows.jsonl"
    with pytest.raises(ConfigError, match=r"bare' has no chat template.*instruction-tuned"):
        measured(folder, out, tokenizer=str(tmp_path / "bare"))
    with pytest.raises(ConfigError, match="No tokenizer can be read from"):
        measured(folder, out, tokenizer=str(tmp_path / "nothing"))
    assert not out.exists()
    assert measured(folder, out, tokenizer=str(tmp_path / "strict")).rows == 6
    # A template without a system role counts the rows as they are sent and taught: with the text folded in.
    assert measured(folder, out, tokenizer=str(tmp_path / "strict"), parts=EVERYTHING).rows > 6
