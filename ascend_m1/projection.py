"""A weight matrix of the paged inference model, as something to call: others with the same call may take its place."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ascend_m1_ops import pack, packed_linear


class Project(Protocol):
    """From x [T, in] to [T, out]; ``chosen``: [T, columns] marks each token's adapter, see ``adapters.py``."""

    def __call__(self, x: Tensor, chosen: Tensor | None = None) -> Tensor: ...


class Projection(nn.Module):
    """``x`` [T, in] times a weight [out, in], transposed; the weight, a parameter, is shared. It has no adapters."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor, chosen: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x, self.weight)


class PackedProjection(nn.Module):
    """``Projection`` over a packed copy of its weight; for those whose ``packing_pays``."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.packed = pack(weight)

    def forward(self, x: Tensor, chosen: Tensor | None = None) -> Tensor:
        return packed_linear(x, self.packed)


def chosen_columns(adapters: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """Each token's slot [T] and each column's -> [T, columns]: 1 where they are the same, else 0."""
    return (adapters.unsqueeze(1) == columns).to(dtype)
