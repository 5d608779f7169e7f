"""npu_fusion_attention and its derivative equal the page's formula and its derivative by autograd in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch_npu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from . import definitions
from .checks import ROUNDING, assert_rounded

TRIANGLE = torch.triu(torch.ones(2048, 2048, dtype=torch.bool), 1)


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for shape in shapes]


def check_packed(
    lengths: list[int], heads: int, kv_heads: int, mode: int, before: int, dtype: torch.dtype, layout: str
) -> None:
    tokens, dim = sum(lengths), 16
    inputs = leaves((tokens, heads, dim), (tokens, kv_heads, dim), (tokens, kv_heads, dim), dtype=dtype)
    grad = torch.randn(tokens, heads, dim).to(dtype)
    ends = list(itertools.accumulate(lengths))
    mask = {} if mode == 0 else {"atten_mask": TRIANGLE.npu(), "pre_tockens": before, "next_tockens": 0}
    on_device = [t.npu().requires_grad_() for t in inputs]
    out, maximum, total, *_ = torch_npu.npu_fusion_attention(
        *on_device,
        heads,
        "TND",
        scale=0.25,
        sparse_mode=mode,
        actual_seq_qlen=ends,
        actual_seq_kvlen=ends,
        softmax_layout=layout,
        **mask,
    )
    out.backward(grad.npu())

    exact = [t.double().requires_grad_() for t in inputs]
    parts, sums = [], []
    for query, key, value in zip(*(t.split(lengths) for t in exact), strict=True):
        n = len(query)
        sees = {0: definitions.everything, 3: definitions.causal(n, n), 4: definitions.band(n, n, before, 0)}[mode]
        one, lse = definitions.attention(query, key, value, 0.25, sees)
        parts.append(one)
        sums.append(lse)
    want = torch.cat(parts)
    want.backward(grad.double())
    assert_rounded(out, want.detach())
    assert maximum.shape == total.shape == (tokens, heads, 8)
    lse = (maximum + total.log()).cpu()
    if layout == "":  # [tokens, heads, 8] in name only: the data lie as [heads, tokens, 8]
        lse = lse.view(heads, tokens, 8).transpose(0, 1)
    assert_rounded(lse, torch.cat(sums).detach()[..., None].expand(-1, -1, 8))
    for got, right in zip(on_device, exact, strict=True):
        assert got.grad is not None
        unit = ROUNDING[dtype]  # the rounded output enters the derivative, summed over the head size
        torch.testing.assert_close(got.grad.cpu().double(), right.grad, rtol=8 * unit, atol=8 * unit)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(sum),
    heads=st.sampled_from(((4, 2), (5, 1), (2, 2))),
    mode=st.sampled_from((0, 3, 4)),
    before=st.integers(0, 5),
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
    layout=st.sampled_from(("", "TND")),
)
def test_packed_equals_definition(
    lengths: list[int], heads: tuple[int, int], mode: int, before: int, dtype: torch.dtype, layout: str
) -> None:
    check_packed(lengths, *heads, mode, before, dtype, layout)


@pytest.mark.parametrize("dim", [128, 256])
def test_zeros_at_the_end_of_the_lengths_take_no_part(dim: int) -> None:
    query, key, value = (t.npu() for t in leaves((5, 2, dim), (5, 1, dim), (5, 1, dim), dtype=torch.bfloat16))
    common: dict[str, Any] = {"scale": dim**-0.5, "sparse_mode": 3, "atten_mask": TRIANGLE.npu()}
    short = torch_npu.npu_fusion_attention(
        query, key, value, 2, "TND", actual_seq_qlen=[2, 5], actual_seq_kvlen=[2, 5], **common
    )[0]
    padded = torch_npu.npu_fusion_attention(
        query, key, value, 2, "TND", actual_seq_qlen=[2, 5, 0, 0], actual_seq_kvlen=[2, 5, 0, 0], **common
    )[0]
    torch.testing.assert_close(padded, short, rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["BSH", "SBH", "BSND", "BNSD"])
@pytest.mark.parametrize("mode", [0, 1, 2, 3, 4])
def test_dense_equals_definition(layout: str, mode: int) -> None:
    batch, rows, count, heads, kv_heads, dim = 2, 3, 5, 4, 2, 8
    inputs = leaves(
        (batch, rows, heads, dim), (batch, count, kv_heads, dim), (batch, count, kv_heads, dim), dtype=torch.float32
    )
    full = torch.rand(batch, 1, rows, count) < 0.4
    full[..., 0] = False

    def place(x: Tensor) -> Tensor:
        if layout == "BNSD":
            return x.transpose(1, 2)
        flat = x.flatten(2) if "H" in layout else x
        return flat.transpose(0, 1) if layout == "SBH" else flat

    on_device = [t.npu().requires_grad_() for t in inputs]
    mask = full if mode in (0, 1) else TRIANGLE
    window = {"pre_tockens": 2, "next_tockens": 0} if mode == 4 else {}
    out = torch_npu.npu_fusion_attention(
        *(place(t).contiguous() for t in on_device),
        heads,
        layout,
        scale=0.3,
        sparse_mode=mode,
        atten_mask=mask.npu(),
        **window,
    )[0]
    grad = torch.randn(batch, rows, heads, dim)
    out.backward(place(grad).contiguous().npu())

    exact = [t.double().requires_grad_() for t in inputs]
    want = []
    for b in range(batch):
        sees = {
            2: lambda i, j: j <= i,
            3: definitions.causal(rows, count),
            4: definitions.band(rows, count, 2, 0),
        }.get(mode, lambda i, j, b=b: not full[b, 0, i, j])
        want.append(definitions.attention(*(t[b] for t in exact), 0.3, sees)[0])
    torch.stack(want).backward(grad.double())
    assert_rounded(out, place(torch.stack(want)).detach())
    for got, right in zip(on_device, exact, strict=True):
        assert got.grad is not None
        assert_rounded(got.grad, right.grad)
