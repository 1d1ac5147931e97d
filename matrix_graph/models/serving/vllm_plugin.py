"""A plugin that vLLM loads in each of its processes: on CPU, an adapter stays out of requests for the base model.

Why: vLLM marks a token of the base model with the adapter index -1. Its GPU kernels leave such a token alone; the
PyTorch operations of its CPU build take -1 as "the last adapter" (vLLM pull requests 48421 and 49656). A request for
the base model that shares a batch with one for an adapter is then answered by that adapter, unnoticed, and the prefix
cache keeps what was computed: base model and adapter could not be compared on one server. What always holds: operations
that do right are left as they are, a GPU's among them; loading twice changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

log = logging.getLogger(__name__)

OPERATIONS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
"""Those that multiply by the adapters' matrices; vLLM's other CPU operations for adapters call them."""


def keep_base_apart() -> None:
    """Mend the operations of this process that take a token of the base model for one of an adapter.

    A vLLM that is built otherwise is left as it is, with a warning in its log.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    try:
        _mend()
    except (ImportError, AttributeError, TypeError) as error:
        log.warning(
            "matrix_graph could not see whether this vLLM keeps adapters out of requests for the base model (%s). "
            "Ask base model and adapter one after the other, or use a vLLM that matrix_graph was tested with.",
            error,
        )


def _mend() -> None:
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for name in OPERATIONS:
        operation = getattr(lora_ops, name)
        if takes_base_for_adapter(operation):
            mended = without_base(operation)
            for module in (lora_ops, torch_ops, punica_cpu):  # each has its own name for it
                setattr(module, name, mended)


def takes_base_for_adapter(operation: Callable[..., None]) -> bool:
    """Whether an operation changes the output of a token whose adapter index is -1.

    Args:
        operation: `(inputs, weights, output, indices, ...)`, as vLLM's `bgmv_shrink`.
    """
    import torch

    output = torch.zeros(1, 1)
    place = (0, 1) if "slice_offset" in signature(operation).parameters else ()
    operation(torch.ones(1, 1), torch.ones(1, 1, 1), output, torch.tensor([-1]), *place)
    return bool(output.any())


def without_base(operation: Callable[..., None]) -> Callable[..., None]:
    """The operation, to which tokens of the base model are nothing but zeros, of which it can only make zeros."""

    @wraps(operation)
    def mended(inputs: Any, weights: Any, output: Any, indices: Any, *rest: Any, **named: Any) -> None:
        of_base = (indices < 0).unsqueeze(1)
        operation(inputs.masked_fill(of_base, 0), weights, output, indices, *rest, **named)

    return mended
