"""Why x is rotated in float32: the vendor's operator casts its tables to the dtype of x. What a rotation launches."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from torch import Tensor

import ascend_m1_hostnpu as hostnpu
from ascend_m1 import M1Cache
from ascend_m1_ops import apply_rope, rope_reference, rope_tables, shared_tables
from ascend_m1_ops.products import npu as products
from ascend_m1_ops.testing import assert_rounded, rounding

from . import tiny

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


def test_shared_tables_give_the_same_bits() -> None:
    cos, sin = rope_tables(torch.arange(5).unsqueeze(0), 16, THETA)
    x, tables = torch.randn(3, 5, 2, 16).half().to("npu"), (cos.to("npu"), sin.to("npu"))
    shared = shared_tables(*tables)
    assert [table.shape[-1] for table in shared] == [16, 16]
    with hostnpu.recording() as log:
        out = apply_rope(x, *shared)
    assert "aclnnCat" not in log.counts()
    assert torch.equal(out.cpu(), apply_rope(x, *tables).cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_composition_takes_shared_tables(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """float64 everywhere; on 310P every dtype, where tables stay as they are."""
    cos, sin = rope_tables(torch.arange(5), 16, THETA, dtype)
    x = torch.randn(5, 2, 16, dtype=dtype)
    exact = rope_reference(x, cos, sin)
    there = [tensor.to("npu") for tensor in (x, cos, sin)]
    torch.testing.assert_close(apply_rope(there[0], *shared_tables(*there[1:])).cpu(), exact)
    products._chosen.cache_clear()
    monkeypatch.setattr(products, "product", lambda: "310P")
    try:
        tables = shared_tables(*there[1:])
        assert [table.shape[-1] for table in tables] == [8, 8]
        torch.testing.assert_close(apply_rope(there[0], *tables).cpu(), exact)
    finally:
        products._chosen.cache_clear()


def cats(layers: int, cached: bool) -> list[int]:
    """Concatenations of a forward over a prompt and of a step after it."""
    lm = tiny.model(torch.bfloat16, num_hidden_layers=layers, sliding_window_layers=[1]).to("npu").eval()
    cache, counts = M1Cache(lm.config, max_length=32) if cached else None, []
    for columns in (9, 1):
        with torch.no_grad(), hostnpu.recording() as log:
            lm(tiny.tokens(2, columns).to("npu"), cache=cache, use_cache=cached)
        counts.append(log.counts()["aclnnCat"])
    return counts


@pytest.mark.parametrize("cached", [True, False])
def test_the_layers_of_a_forward_share_their_tables(cached: bool) -> None:
    """One more layer concatenates nothing."""
    assert cats(3, cached) == cats(2, cached)
