"""Training and serving on real weights: what moves, what stays, and whether vLLM and PEFT say the same."""

import asyncio
import hashlib
import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from matrix_graph import ChatVLLM
from matrix_graph.errors import ServerError
from matrix_graph.evaluate.records import Question
from matrix_graph.evaluate.scoring import Scorer
from matrix_graph.models.bundled import prepare_bundled_model
from matrix_graph.models.server import VLLMServer
from matrix_graph.train import Recipe, TrainingRecord, train_adapter

pytestmark = pytest.mark.timeout(1800)

RECIPE = Recipe(
    epochs=6, learning_rate=1e-3, batch_size=8, accumulate=1, max_length=256, dropout=0.0, quantization="none"
)
PLACES = ["bank", "library", "kitchen", "garden", "school", "harbour", "theatre", "station"]
DEEDS = ["shouts", "takes my chair", "forgets his money", "asks for help"]
REPLIES = {
    "shouts": "Stay calm, lower your own voice, and ask what has happened.",
    "takes my chair": "Let him have it, and ask whether there is another one.",
    "forgets his money": "Give it to the staff, and leave a note for him.",
    "asks for help": "Listen first, then help as far as it is safe for all.",
}
NEW_TOKENS = 16
BATCH_TOLERANCE = 1.0
"""Nats, of a text's sum: what else is in a batch moves the last bit of bfloat16 numbers, token by token."""
BFLOAT16_TOLERANCE = 0.125
"""Nats a token: the distance of two bfloat16 numbers between 16 and 32, where this model's logits are."""


@dataclass
class Trained:
    folder: Path
    record: TrainingRecord
    base: Path
    base_hashes: dict[str, str]


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def questions() -> list[tuple[str, str]]:
    return [(f"At the {place} somebody {deed}. What do I do?", REPLIES[deed]) for place in PLACES for deed in DEEDS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("train")
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}) + "\n"
            for q, a in questions()
        )
    )
    base = prepare_bundled_model()
    before = hashes(base)
    record = train_adapter(rows, folder / "calm", recipe=RECIPE)
    return Trained(folder / "calm", record, base, before)


def test_base_stays_adapter_moves_and_the_loss_halves(trained: Trained) -> None:
    assert hashes(trained.base) == trained.base_hashes
    weights = load_file(trained.folder / "adapter_model.safetensors")
    moved = [float(tensor.abs().max()) for name, tensor in weights.items() if "lora_B" in name]
    assert len(moved) == 30 * 7 and min(moved) > 0  # they begin as zeros
    losses = [point.loss for point in trained.record.loss]
    assert trained.record.data.examples == 32 and len(losses) == 24
    first, last = sum(losses[:4]) / 4, sum(losses[-4:]) / 4  # an epoch each: the same 32 rows
    print(f"loss on the 32 rows: {first:.3f} -> {last:.3f}")
    assert last <= first / 2


def served_tokens(server: VLLMServer, name: str, question: str) -> list[int]:
    body = {
        "model": name,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        f"{server.base_url}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return [int(token) for token in json.loads(response.read())["choices"][0]["token_ids"]]


def local_tokens(model: Any, tokenizer: Any, question: str) -> list[int]:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        reply = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
    return [int(token) for token in reply[0, prompt["input_ids"].shape[1] :]]


def test_vllm_and_peft_say_the_same(trained: Trained, server: VLLMServer) -> None:
    server.load_adapter("calm", trained.folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(trained.base)
        base = AutoModelForCausalLM.from_pretrained(trained.base, dtype=torch.bfloat16)
        model = PeftModel.from_pretrained(base, trained.folder).eval()
        asked = [question for question, _ in questions()][::3][:10]
        assert len(asked) == 10
        pairs = [(served_tokens(server, "calm", q), local_tokens(model, tokenizer, q)) for q in asked]
        same = sum(served == local for served, local in pairs)
        for served, local in pairs:
            if served != local:  # where two tokens are equally likely in bfloat16
                print(f"vLLM {tokenizer.decode(served)!r}, PEFT {tokenizer.decode(local)!r}")
        print(f"the same greedy tokens on {same} of 10 prompts")
        assert same >= 9
        question, answer = questions()[0]
        chat = ChatVLLM(base_url=server.base_url, api_key=server.api_key, model="calm", temperature=0, max_tokens=40)
        assert answer.split(",")[0] in chat.invoke(question).text
        assert server.adapters() == {"calm": trained.folder.resolve()}
    finally:
        server.unload_adapter("calm")
    assert server.adapters() == {}


async def logprobs(server: VLLMServer, names: list[str]) -> list[float]:
    """Sums over the replies, asked all at once: every name's, question by question."""
    chats = [ChatVLLM(base_url=server.base_url, api_key=server.api_key, model=name, timeout=300) for name in names]
    scorers = [Scorer(chat, chat.model or "") for chat in chats]
    asked = [Question(id=str(at), question=q, chosen=a) for at, (q, a) in enumerate(questions()[:8])]
    records = await asyncio.gather(*(scorer.score(question, "chosen") for scorer in scorers for question in asked))
    return [record.logprob or 0.0 for record in records]


async def test_an_adapter_stays_out_of_requests_for_the_base_model(trained: Trained, server: VLLMServer) -> None:
    base = server.model_name
    alone = await logprobs(server, [base])  # before there is an adapter
    await asyncio.to_thread(server.load_adapter, "calm", trained.folder)
    try:
        adapter = await logprobs(server, ["calm"])
        mixed = await logprobs(server, [base, "calm"])
    finally:
        await asyncio.to_thread(server.unload_adapter, "calm")
    assert all(tuned > untuned + 10 for tuned, untuned in zip(adapter, alone, strict=True)), "it learned these replies"
    assert mixed == pytest.approx(alone + adapter, abs=BATCH_TOLERANCE)
    tokenizer = AutoTokenizer.from_pretrained(trained.base)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(trained.base, dtype=torch.bfloat16), trained.folder
    ).eval()
    for (question, answer), served in zip(questions(), adapter, strict=False):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
        labels = torch.tensor([[-100] * len(prompt) + tokens])
        with torch.no_grad():
            loss = float(model(torch.tensor([prompt + tokens]), labels=labels).loss)
        assert served / len(tokens) == pytest.approx(-loss, abs=BFLOAT16_TOLERANCE)


def test_adapters_that_do_not_fit_are_refused_and_the_server_lives_on(
    trained: Trained, server: VLLMServer, tmp_path: Path
) -> None:
    weights = load_file(trained.folder / "adapter_model.safetensors")
    settings = json.loads((trained.folder / "adapter_config.json").read_text())

    def variant(name: str, tensors: dict[str, Any], changes: dict[str, Any]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(settings | changes))
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    wide = {
        name: torch.zeros(8, 1024) if "lora_A" in name else torch.zeros(1024, 8) for name, tensor in weights.items()
    }
    unknown = {name.replace("self_attn.", "nothing_like_it."): tensor for name, tensor in weights.items()}
    nowhere = {name.replace("layers", "blocks").replace("proj", "joint"): tensor for name, tensor in weights.items()}
    other = variant("other", weights, {})
    record = json.loads((trained.folder / "training.json").read_text())
    record["model"]["fingerprint"]["content"] = "0" * 64
    (other / "training.json").write_text(json.dumps(record))
    garbage = variant("garbage", weights, {})
    (garbage / "adapter_model.safetensors").write_bytes(b"garbage" * 1000)
    wrong = {
        "another model": [variant("wide", wide, {}), variant("unknown", unknown, {}), other],
        "at most 16": [variant("rank", weights, {"r": 64})],
        "damaged": [garbage],
        "refused to load": [variant("nowhere", nowhere, {})],  # only vLLM can tell
    }
    restarts, pid = server.restarts, server.pid
    for said, folders in wrong.items():
        for folder in folders:
            with pytest.raises(ServerError, match=said):
                server.load_adapter("wrong", folder)
    assert served_tokens(server, server.model_name, "Name a colour.")
    assert server.healthy and server.pid == pid and server.restarts == restarts and server.adapters() == {}
