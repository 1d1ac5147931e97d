"""Tokenizers of three families with their chat templates, and a tiny random model, all built here: no download.

The templates are written after those of known models, each with the habits that make masks hard: what is trimmed, what
stands between the turns, what a template refuses.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CORPUS = [
    "How do I calm my neighbour? Ask him kindly, and listen.\n\nThen wait a day.\n",
    "The money stays in the vault. The teller calls the police officer; nobody is hurt.",
    "Grüße, 你好, مرحبا — naïve café 🙂.\n\n\n",
    " assistant user system\n\nmodel answer [INST] [/INST] yes no 1 2 3 4 5 6 7 8 9 0",
] * 4

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def byte_level(template: str | None, marks: list[str], *, bos: str | None, eos: str) -> Any:
    """A tokenizer as GPT-2's, Llama 3's and Qwen's are."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return _finished(core, template, marks, bos=bos, eos=eos)


def sentence_piece(template: str | None, marks: list[str], *, bos: str | None, eos: str) -> Any:
    """A tokenizer as Llama 2's, Mistral's and Gemma's are: spaces are letters, and a text begins with one."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    space = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "isolated"), space])
    core.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()]
    )
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    # The trainer has no other way to put the bytes into the vocabulary, but they are no special tokens.
    state = core.to_str()
    core = Tokenizer.from_str(_without_added(state))
    return _finished(core, template, marks, bos=bos, eos=eos)


def _without_added(state: str) -> str:
    import json

    content = json.loads(state)
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] == "<unk>"]
    return json.dumps(content)


def _finished(core: Tokenizer, template: str | None, marks: list[str], *, bos: str | None, eos: str) -> Any:
    core.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def chatml(template: str | None = CHATML) -> Any:
    return byte_level(template, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], bos=None, eos="<|im_end|>")


def llama3() -> Any:
    marks = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_level(LLAMA3, marks, bos="<|begin_of_text|>", eos="<|eot_id|>")


def mistral() -> Any:
    return sentence_piece(MISTRAL, ["<s>", "</s>"], bos="<s>", eos="</s>")


def gemma() -> Any:
    return sentence_piece(GEMMA, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], bos="<bos>", eos="<eos>")


FAMILIES = {"chatml": chatml, "llama3": llama3, "mistral": mistral, "gemma": gemma}


def tiny_model(folder: Path, tokenizer: Any, *, width: int = 32, layers: int = 2, seed: int = 0) -> Path:
    """A random Llama of a few thousand weights, saved with the tokenizer as a model folder."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
