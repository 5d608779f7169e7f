"""Why x is rotated in float32: the vendor's operator casts its tables to the dtype of x."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from torch import Tensor

from ascend_m1_ops import apply_rope, rope_tables
from ascend_m1_ops.testing import assert_rounded, rounding

THETA = 1000000.0


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [tokens, heads, head_dim] rotated in float64 by the given tables [tokens, head_dim / 2]."""
    first, second = x.double().chunk(2, dim=-1)
    cos, sin = cos.double().unsqueeze(1), sin.double().unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def worst(actual: Tensor, exact: Tensor) -> float:
    """Largest error in roundings of the dtype, each relative to the length of the pair that was rotated."""
    length = torch.hypot(*exact.chunk(2, dim=-1))
    off = (actual.double() - exact).abs() / torch.cat((length, length), dim=-1)
    return off.max().item() / rounding(actual.dtype)


@pytest.mark.parametrize("start", [0, 8000, 32256])
@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_rounds_once_and_tables_in_16_bits_do_not(dtype: torch.dtype, head_dim: int, start: int) -> None:
    positions = torch.arange(start, start + 512)
    cos, sin = rope_tables(positions, head_dim, THETA)
    x = torch.randn(512, 2, head_dim).to(dtype)
    exact = rotated(x, cos, sin)
    there, *tables = (tensor.to("npu") for tensor in (x, cos, sin))
    ours = apply_rope(there, *tables).cpu()
    assert_rounded(ours, exact, 1)
    theirs = torch_npu.npu_rotary_mul(there, *(torch.cat((t, t), -1).unsqueeze(1) for t in tables)).cpu()
    assert theirs.dtype == dtype
    # Seen: 1.0 and 1.5 to 1.6 at most, 0.42 and 0.54 on average.
    assert worst(ours, exact) <= 1.01 < 1.4 < worst(theirs, exact) < 2
