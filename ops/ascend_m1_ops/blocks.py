"""Row-wise operators on a CPU: blocks of rows, so that temporaries are small.

A float32 temporary of a long prompt is tens of megabytes: the allocator fetches fresh pages from the operating system
for it each time, and every pass goes through memory. Blocks use the same few megabytes, near the cores, over and over.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# 1 MiB in float32: a few such temporaries fit the L2 cache of a core. No smaller, for every operation on every block
# waits for all threads once, which is dear on a busy machine.
BLOCK_ELEMENTS = 1 << 18


def gradient_wanted(*tensors: Tensor) -> bool:
    """Whether autograd records what is done with these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def blocks_pay(*tensors: Tensor) -> bool:
    """True on a CPU where no gradient is wanted and the first tensor is more than one block.

    A compiler fuses the plain composition itself.
    """
    if torch.compiler.is_compiling() or tensors[0].device.type != "cpu" or gradient_wanted(*tensors):
        return False
    return tensors[0].numel() > BLOCK_ELEMENTS


def block_rows(x: Tensor) -> int:
    """Rows of x [rows, ...] in one block."""
    return max(1, BLOCK_ELEMENTS // max(1, x.shape[1:].numel()))


def blockwise(kernel: Callable[..., Tensor], *inputs: Tensor, out: Tensor | None = None) -> Tensor:
    """``kernel(*inputs)`` rounded to the dtype of the first input, in blocks along the first dimension of all inputs.

    Args:
        kernel: maps blocks of the inputs to a block shaped as that of the first.
        inputs: each [rows, ...].
        out: where to put the result (may be the first input); None: a new tensor.
    """
    like = inputs[0]
    step = block_rows(like)
    out = torch.empty(like.shape, dtype=like.dtype, device=like.device) if out is None else out
    for start in range(0, like.shape[0], step):
        rows = slice(start, start + step)
        out[rows] = kernel(*(tensor[rows] for tensor in inputs))
    return out


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What to compute in: float32 for bfloat16 and float16, else the dtype itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def widened(x: Tensor) -> Tensor:
    """x in its ``wide_dtype``."""
    return x.to(wide_dtype(x.dtype))
