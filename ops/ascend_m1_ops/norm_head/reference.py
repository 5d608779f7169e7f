"""NormHead in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def norm_head_reference(x: Tensor, weight: Tensor) -> Tensor:
    """The definition: x [..., hidden], weight [vocab, hidden] -> logits [..., vocab]."""
    return torch.nn.functional.linear(x, torch.nn.functional.normalize(weight, dim=-1))
