"""The Triton kernels, compiled for a GPU, against their definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ascend_m1_ops import TokenTable, conv_rope_cache, conv_rope_cache_reference, short_conv, short_conv_reference
from ascend_m1_ops.launch import why_not_triton
from ascend_m1_ops.testing import LOW_PRECISION, assert_rounded, rounding

from ..ops.conv_rope_cases import Case, assert_same, make, run
from ..ops.test_conv_rope_cache import GEOMETRIES
from ..ops.test_short_conv import make as make_short_conv

DTYPES = [torch.float32, *LOW_PRECISION]
LENGTHS = [[], [1], [1] * 5, [0, 3, 0, 0, 1, 2, 0], [129, 1, 0, 300]]


def on_gpu(case: Case) -> Case:
    """The same, with gaps and strides kept where the operator writes or reads rows."""
    table = TokenTable(**{name: tensor.cuda() for name, tensor in vars(case.table).items()})
    moved = {name: getattr(case, name).cuda() for name in ("packed", "weight", "cos", "sin")}
    caches = {name: getattr(case, name).cuda() for name in ("k_cache", "v_cache", "state")}
    return replace(case, table=table, **moved, **caches).fresh()


def test_kernels_are_compiled() -> None:
    for step in ("short_conv", "conv_rope_cache"):
        assert why_not_triton(step, "cuda") is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_fused(lengths: list[int], geometry: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Two roundings of k, as tests/ops/test_conv_rope_cache.py allows."""
    torch.manual_seed(0)
    case = make(lengths, dtype, geometry, padding=2)
    got, want = run(conv_rope_cache, on_gpu(case)), run(conv_rope_cache_reference, case.to(torch.float64))
    largest = max((x.nan_to_num().abs().max().item() for x in want if x.numel()), default=0)
    float32_error = 8 * torch.finfo(torch.float32).eps
    assert_same([x.double().cpu() for x in got], want, atol=(2 * rounding(dtype) + float32_error) * largest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(2, 3), (2, 256), (8, 128)], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_short_conv(lengths: list[int], heads: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    kv, weight, state, borders = make_short_conv(lengths, dtype, *heads)
    packed = torch.nn.functional.pad(kv.flatten(1), (4, 0)).cuda()  # a slice of a wider row, as in the model
    out, after = short_conv(packed[:, 4:].unflatten(1, kv.shape[1:]), weight.cuda(), state.cuda(), borders.cuda())
    want, want_after = short_conv_reference(kv.double(), weight.double(), state.double(), borders)
    assert_rounded(out.cpu(), want, 2 if dtype == torch.float32 else 1.01)
    assert torch.equal(after.double().cpu(), want_after)


def test_gradients() -> None:
    kv, weight, state, borders = make_short_conv([5, 1, 0, 130], torch.float32, 8, 128)
    found = []
    for device in ("cpu", "cuda"):
        inputs = [x.detach().to(device).requires_grad_() for x in (kv, weight, state)]
        out, after = short_conv(*inputs, borders.to(device))
        ((out * out).sum() + (after * after).sum()).backward()
        found.append([x.grad.cpu() for x in inputs])  # type: ignore[union-attr]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
