"""A weight matrix of the paged inference model, as something to call: others with the same call may take its place."""

from __future__ import annotations

from torch import Tensor, nn


class Projection(nn.Module):
    """``x`` [T, in] times a weight [out, in], transposed; the weight, a parameter, is shared."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)
