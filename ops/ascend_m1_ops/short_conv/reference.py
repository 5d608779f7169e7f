"""The short convolution in plain PyTorch: one sequence after the other, any device, any float dtype."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def short_conv_reference(kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """See ``ascend_m1_ops.short_conv``; this is its definition."""
    outputs, states = [kv[:0]], [state[:0]]
    bounds = cu_seqlens.tolist()
    for index, (start, end) in enumerate(pairwise(bounds)):
        history = torch.cat([state[index : index + 1], kv[start:end]])  # u_{-1}, u_0, …
        outputs.append(weight[..., 0, None] * history[:-1] + weight[..., 1, None] * history[1:])
        states.append(history[-1:])
    return torch.cat(outputs), torch.cat(states)
