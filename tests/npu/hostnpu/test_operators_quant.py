"""Quantisation and products of quantised matrices equal their pages' formulas."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch_npu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ascend_m1_hostnpu.operator import RuleError
from ascend_m1_hostnpu.operators.quant_matmul import weight_rules

from . import definitions
from .checks import assert_refused, assert_rounded, half

HALF = st.sampled_from((torch.float16, torch.bfloat16))
V5 = "aclnnQuantMatmulV5"
WEIGHT = "aclnnWeightQuantBatchMatmulV2"


def int8(*shape: int) -> Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def assert_quantised(got: Tensor, want: Tensor) -> None:
    """Float32 may fall on the other side of a half: one step, seldom."""
    difference = (got.cpu().double() - want).abs()
    assert difference.max() <= 1
    assert difference.count_nonzero() <= max(1, got.numel() // 100)


@settings(max_examples=15, deadline=None)
@given(shape=st.sampled_from(((1, 32), (5, 64), (2, 3, 32))), dtype=HALF, smooth=st.booleans())
def test_dynamic_quant(shape: tuple[int, ...], dtype: torch.dtype, smooth: bool) -> None:
    x, factors = torch.randn(shape).to(dtype), torch.rand(shape[-1]).to(dtype) + 0.5
    y, scale = torch_npu.npu_dynamic_quant(x.npu(), smooth_scales=factors.npu() if smooth else None)
    want, steps = definitions.quantised(x.double() * factors.double() if smooth else x)
    assert_quantised(y, want)
    assert_rounded(scale, steps)


def test_a_row_of_zeros_stays_zero() -> None:
    y, scale = torch_npu.npu_dynamic_quant(half(2, 32))
    assert not y.any()
    assert not scale.any()


def test_asymmetric_quant_covers_the_row_s_range() -> None:
    x = torch.randn(4, 32).half()
    y, scale, offset = torch_npu.npu_dynamic_quant_asymmetric(x.npu())
    for row, got, step, shift in zip(x.double(), y.cpu(), scale.cpu(), offset.cpu(), strict=True):
        want_step = (row.max() - row.min()) / 255
        want_shift = 127 - row.max() / want_step
        assert_rounded(step, want_step)
        assert_rounded(shift, want_shift)
        assert_quantised(got, (row / want_step + want_shift).round())


@pytest.mark.parametrize("outputs", [1, 2])
def test_add_rms_norm_dynamic_quant(outputs: int) -> None:
    x1, x2, gamma, beta = (torch.randn(shape).bfloat16() for shape in ((3, 32), (3, 32), (32,), (32,)))
    smooth = [torch.rand(32).bfloat16() + 0.5 for _ in range(outputs)]
    named = {f"smooth_scale{i + 1}": s.npu() for i, s in enumerate(smooth)}
    y1, y2, x, scale1, scale2 = torch_npu.npu_add_rms_norm_dynamic_quant(
        x1.npu(), x2.npu(), gamma.npu(), beta=beta.npu(), epsilon=1e-5, **named
    )
    assert_rounded(x, x1.double() + x2.double())
    normal = definitions.rms_norm(x.cpu(), gamma, 1e-5)[0] + beta.double()
    for y, scale, factors in zip((y1, y2), (scale1, scale2), smooth, strict=False):
        want, steps = definitions.quantised(normal * factors.double())
        assert_quantised(y, want)
        assert_rounded(scale.view(-1), steps)


@pytest.mark.parametrize("with_offset", [False, True])
def test_a_scale_becomes_the_bits_that_its_page_tells(with_offset: bool) -> None:
    scale, offset = torch.tensor([0.1, -3.7, 2.0**-20]), torch.tensor([3.4, -300.0, 254.6])
    got = torch_npu.npu_trans_quant_param(scale.npu(), offset.npu() if with_offset else None)
    for value, shift, bits in zip(scale, (3, -256, 255), got.cpu().tolist(), strict=True):
        want = int(value.view(torch.int32)) & 0xFFFFE000 | 1 << 46
        assert bits == (want | (shift & 0x1FF) << 37 if with_offset else want)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 5),
    kind=st.sampled_from(("bfloat16", "per token bfloat16", "per token float16", "float16", "int32")),
    bias=st.sampled_from((None, torch.int32, torch.float32)),
    transposed=st.booleans(),
)
def test_quant_matmul(rows: int, kind: str, bias: torch.dtype | None, transposed: bool) -> None:
    """Products of integers are exact, then scales, then one rounding; a bias of integers counts before the scales."""
    dtype = getattr(torch, kind.split()[-1])
    if dtype in (torch.int32, torch.float16) and "token" not in kind:
        bias = torch.int32 if bias else None
    a, b = int8(rows, 32), int8(16, 32) if transposed else int8(32, 16)
    scale, token = torch.rand(16) * 0.01, torch.rand(rows)
    added = None if bias is None else torch.randint(-50, 50, (16,)).to(bias)
    got = torch_npu.npu_quant_matmul(
        a.npu(),
        b.npu().t() if transposed else b.npu(),
        scale.npu(),
        pertoken_scale=token.npu() if "token" in kind else None,
        bias=None if added is None else added.npu(),
        output_dtype=dtype,
    )
    matrix = b.t() if transposed else b
    want = torch.tensor(
        [[sum(int(x) * int(y) for x, y in zip(r, c, strict=True)) for c in matrix.t()] for r in a]
    ).double()
    if bias == torch.int32:
        want = want + added
    if dtype != torch.int32:
        if kind == "float16":  # goes through aclnnTransQuantParam
            scale = torch.tensor([definitions.cut_to_19_bits(s) for s in scale.tolist()])
        want = want * scale.double() * (token.double()[:, None] if "token" in kind else 1)
    if bias == torch.float32:
        want = want + added.double()
    if dtype == torch.int32:
        torch.testing.assert_close(got.cpu().double(), want, rtol=0, atol=0)
    else:
        assert_rounded(got, want)


@settings(max_examples=20, deadline=None)
@given(
    group=st.sampled_from((0, 32)),
    packed=st.booleans(),
    transposed=st.booleans(),
    offset=st.booleans(),
    dtype=HALF,
    precise=st.sampled_from((0, 1)),
)
def test_weight_quant_batchmatmul(
    group: int, packed: bool, transposed: bool, offset: bool, dtype: torch.dtype, precise: int
) -> None:
    """x @ ((w + offset) * scale) + bias for int8 and packed int4 weights, a scale a column or a group of rows."""
    rows, columns = 64, 16
    w = torch.randint(-8, 8, (rows, columns))
    x = torch.randn(3, rows).to(dtype)
    shape = (rows // group, columns) if group else (columns,)
    scale, shift = torch.rand(shape).to(dtype), torch.randn(shape).to(dtype)
    bias = torch.randn(columns).to(torch.float32 if dtype == torch.bfloat16 else dtype)
    stored = w.t().contiguous() if transposed else w
    pack = torch_npu.npu_convert_weight_to_int4pack
    stored = pack(stored.int().npu()) if packed else stored.to(torch.int8).npu()
    got = torch_npu.npu_weight_quant_batchmatmul(
        x.npu(),
        stored.t() if transposed else stored,
        scale.npu(),
        shift.npu() if offset else None,
        bias=bias.npu(),
        antiquant_group_size=group,
        inner_precise=precise,
    )
    each = [t.double().repeat_interleave(group, 0) if group else t.double() for t in (scale, shift)]
    weight = (w.double() + (each[1] if offset else 0)) * each[0]
    assert_rounded(got, x.double() @ weight + bias.double(), 4)  # 64 terms of both signs cancel


@pytest.mark.parametrize(("rows", "group"), [(128, 48), (64, 16), (64, 64), (64, 96)])
def test_groups_of_other_sizes(rows: int, group: int) -> None:
    """op-plugin looks at them first; a call of CANN without it meets the stand-in's rule."""
    x, weight = torch.zeros(2, rows).half(), torch.zeros(rows, 16, dtype=torch.int8)
    scale = torch.zeros(-(-rows // group), 16).half()
    with pytest.raises(RuntimeError, match=r"0 or a multiple of 32 within the range 32 to weight_k_dim - 1"):
        torch_npu.npu_weight_quant_batchmatmul(x.npu(), weight.npu(), scale.npu(), antiquant_group_size=group)
    with pytest.raises(RuleError, match=rf"antiquantGroupSize: .* from 32 to K - 1 = {rows - 1}, got {group}"):
        weight_rules(x, weight, scale, None, None, None, None, group)


@pytest.fixture
def internal_formats() -> Iterator[None]:
    torch.npu.config.allow_internal_format = True
    yield
    torch.npu.config.allow_internal_format = False


def test_weights_in_nz_give_the_same_products(internal_formats: None) -> None:
    x, weight, bias = torch.randn(3, 64).half(), torch.randn(64, 32).half(), torch.randn(32).half()
    cast = torch_npu.npu_format_cast(weight.npu(), 29)
    assert torch_npu.get_npu_format(cast) == 29
    assert torch.equal(cast.cpu(), weight)
    assert_rounded(x.npu() @ cast, x.double() @ weight.double(), 4)
    assert_rounded(torch.addmm(bias.npu(), x.npu(), cast), x.double() @ weight.double() + bias.double(), 4)
    a, b = int8(3, 64), int8(64, 32)
    nz = torch_npu.npu_format_cast(b.npu(), 29)
    for stored in (b.npu(), nz):
        got = torch_npu.npu_quant_matmul(a.npu(), stored, torch.ones(32).npu(), output_dtype=torch.int32)
        assert torch.equal(got.cpu(), a.int() @ b.int())


REFUSED = {
    "dynamic_quant: float32": (
        "aclnnDynamicQuantV2",
        "x",
        "aclnnDynamicQuantV2.md",
        lambda: torch_npu.npu_dynamic_quant(half(2, 32).float()),
    ),
    "dynamic_quant: smooth of another dtype": (
        "aclnnDynamicQuantV2",
        "smoothScales",
        "aclnnDynamicQuantV2.md",
        lambda: torch_npu.npu_dynamic_quant(half(2, 32), smooth_scales=half(32).bfloat16()),
    ),
    "quant_matmul: per token to int32": (
        V5,
        "out",
        "aclnnQuantMatmulV5.md",
        lambda: torch_npu.npu_quant_matmul(
            int8(2, 32).npu(),
            int8(32, 16).npu(),
            torch.ones(16).bfloat16().npu(),
            pertoken_scale=torch.ones(2).npu(),
            output_dtype=torch.float16,
        ),
    ),
    "quant_matmul: wider than 65535": (
        V5,
        "x2",
        "aclnnQuantMatmulV5.md",
        lambda: torch_npu.npu_quant_matmul(
            int8(2, 2).npu(), int8(2, 65536).npu(), torch.ones(65536).bfloat16().npu(), output_dtype=torch.bfloat16
        ),
    ),
    "weight_quant: scale of another dtype": (
        WEIGHT,
        "antiquantScale",
        f"{WEIGHT}.md",
        lambda: torch_npu.npu_weight_quant_batchmatmul(half(2, 64), int8(64, 16).npu(), half(16).bfloat16()),
    ),
    "weight_quant: bias of another dtype": (
        WEIGHT,
        "bias",
        f"{WEIGHT}.md",
        lambda: torch_npu.npu_weight_quant_batchmatmul(
            half(2, 64), int8(64, 16).npu(), half(16), bias=half(16).float()
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    assert_refused(*REFUSED[name])
