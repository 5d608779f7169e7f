"""Products with packed weights against their definition."""

from __future__ import annotations

import pytest
import torch

from ascend_m1_ops import pack, packed_linear, packed_linear_reference, packing_pays
from ascend_m1_ops.testing import rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(1024, 1024), (1030, 1025), (16, 65536), (1040, 1032)])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 16, 17, 65])
def test_equals_the_definition(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    """Sums in float32: 65,536 terms in it, in any order, are off by a few of its roundings."""
    x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    want = packed_linear_reference(x.double(), weight.double())
    out = packed_linear(x, pack(weight))
    roundings = 30 if dtype == torch.float32 else 1.5
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), want, rtol=0, atol=roundings * rounding(dtype) * want.abs().max().item())


def test_strided_activations() -> None:
    weight, wide = torch.randn(1024, 1024), torch.randn(3, 1100)
    want = packed_linear_reference(wide[:, 76:], weight)
    torch.testing.assert_close(packed_linear(wide[:, 76:], pack(weight)), want, rtol=1e-4, atol=1e-3)


def test_when_packing_pays() -> None:
    assert packing_pays(torch.empty(1024, 1024))
    assert not packing_pays(torch.empty(1024, 1023)), "too small to gain"
    assert not packing_pays(torch.empty(1024, 1024, dtype=torch.float64)), "no such product"
    assert not packing_pays(torch.empty(1024, 1024, device="meta")), "not on a CPU"
