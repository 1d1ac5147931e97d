"""vLLM's CPU operations for adapters, as they came and as the plugin leaves them: no server, only numbers."""

import logging
from collections.abc import Iterator

import pytest
import torch
from vllm.lora.ops import torch_ops
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

from matrix_graph.models.serving.vllm_plugin import OPERATIONS, keep_base_apart, takes_base_for_adapter

BASE = -1


@pytest.fixture(autouse=True)
def as_they_came() -> Iterator[None]:
    """Other tests get vLLM's own operations back."""
    places = [(module, name) for module in (lora_ops, torch_ops, punica_cpu) for name in OPERATIONS]
    kept = [(module, name, getattr(module, name)) for module, name in places]
    yield
    for module, name, operation in kept:
        setattr(module, name, operation)


def shrunk(indices: list[int]) -> torch.Tensor:
    """Through vLLM's operation for prompts: a token each of inputs 1, 2, 3... and two adapters, times 10 and 100."""
    count = len(indices)
    inputs = torch.arange(1.0, count + 1).reshape(count, 1)
    weights = torch.tensor([10.0, 100.0]).reshape(2, 1, 1, 1)
    output = torch.full((count, 1), 7.0)
    of, lengths = torch.tensor(indices), torch.ones(count, dtype=torch.long)
    starts = torch.arange(count)
    punica_cpu.sgmv_shrink(inputs, weights, output, starts, lengths, of, count, 1, count, 1.0)
    return output.flatten()


def test_base_tokens_get_nothing_and_others_what_they_got() -> None:
    assert shrunk([0, 1, 0]).tolist() == [10.0, 200.0, 30.0]
    keep_base_apart()
    assert shrunk([0, 1, 0]).tolist() == [10.0, 200.0, 30.0]
    assert shrunk([0, BASE, 1, BASE]).tolist() == [10.0, 0.0, 300.0, 0.0]
    assert shrunk([BASE, BASE]).tolist() == [0.0, 0.0]


def test_what_is_added_to_base_tokens_is_nothing() -> None:
    keep_base_apart()
    weights, indices = torch.tensor([5.0]).reshape(1, 1, 1, 1), torch.tensor([BASE, 0])
    whole, part = torch.full((2, 1), 3.0), torch.full((2, 2), 3.0)
    punica_cpu.bgmv_expand(torch.ones(2, 1), weights, whole, indices, True)
    punica_cpu.bgmv_expand_slice(torch.ones(2, 1), weights, part, indices, 1, 1, add_inputs=True)
    assert whole.tolist() == [[3.0], [8.0]]
    assert part.tolist() == [[3.0, 3.0], [3.0, 8.0]]


def test_every_name_is_mended_once_however_often_it_is_loaded() -> None:
    for _ in range(2):
        keep_base_apart()
    for module in (lora_ops, torch_ops, punica_cpu):
        for name in OPERATIONS:
            operation = getattr(module, name)
            assert not takes_base_for_adapter(operation), (module.__name__, name)
            assert not hasattr(getattr(operation, "__wrapped__", operation), "__wrapped__")


def test_another_vllm_is_left_alone_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(lora_ops, "bgmv_shrink")
    with caplog.at_level(logging.WARNING):
        keep_base_apart()
    assert "could not see whether this vLLM keeps adapters out" in caplog.text
