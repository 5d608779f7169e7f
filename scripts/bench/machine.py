"""The machine a benchmark ran on, and what it can do at best: read memory, multiply matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import transformers
from torch import Tensor

from .hardware import describe_hardware

_SQUARE = 4096


def describe_machine() -> dict[str, str]:
    """Processor, memory, load and versions, for people."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return describe_hardware(torch.get_num_threads(), versions)


def read_probe(tensors: Iterable[Tensor]) -> tuple[Callable[[], object], int]:
    """A call that reads every matrix of ``tensors`` once, in products with a vector, and how many bytes these are."""
    matrices = [tensor.detach() for tensor in tensors if tensor.dim() == 2]
    vectors = {width: torch.ones(width, dtype=matrices[0].dtype) for width in {m.shape[1] for m in matrices}}
    return lambda: [torch.mv(m, vectors[m.shape[1]]) for m in matrices], sum(m.nbytes for m in matrices)


def matmul_probe(dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """A large square product, weight transposed as in a linear layer, and its floating-point operations."""
    x, weight = (torch.randn(_SQUARE, _SQUARE).to(dtype) for _ in range(2))
    return lambda: torch.nn.functional.linear(x, weight), 2 * _SQUARE**3
