"""Matrix products. ``cubeMathType`` chooses the device's precision of float32 products; here they are always exact.

A weight in FRACTAL_NZ lies as ND here (see quant.py), so that the WeightNz forms differ by name only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operator import aclnn

for _name in ("Matmul", "MatmulWeightNz", "Mm", "BatchMatMul", "BatchMatMulWeightNz"):
    aclnn(_name, "T self, T mat2, T! out, i8 cubeMathType")(lambda a, b, out, cube: out.copy_(a @ b))


@aclnn("AddmmWeightNz", "T self, T mat1, T mat2, S beta, S alpha, T! out, i8 cubeMathType")
@aclnn("Addmm", "T self, T mat1, T mat2, S beta, S alpha, T! out, i8 cubeMathType")
def addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float, out: Tensor, cube: int) -> None:
    out.copy_(torch.addmm(bias, a, b, beta=beta, alpha=alpha))


@aclnn("Baddbmm", "T self, T batch1, T batch2, S beta, S alpha, T! out, i8 cubeMathType")
def baddbmm(bias: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float, out: Tensor, cube: int) -> None:
    out.copy_(torch.baddbmm(bias, a, b, beta=beta, alpha=alpha))
