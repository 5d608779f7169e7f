"""Products with quantised weights against their definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ascend_m1_ops import dequantised, native, prepare, quant_linear, quant_linear_reference
from ascend_m1_ops.testing import LOW_PRECISION, rounding

DTYPES = [torch.float32, *LOW_PRECISION]


def make(outputs: int, inputs: int, bits: int, group: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    largest = 2 ** (bits - 1)
    numbers = torch.randint(1 - largest if bits == 8 else -largest, largest, (outputs, inputs)).to(torch.int8)
    return numbers, (torch.rand(outputs, inputs // group) * 0.02 + 1e-3).to(dtype)


def assert_near(out: torch.Tensor, x: torch.Tensor, numbers: torch.Tensor, scales: torch.Tensor) -> None:
    """Sums in float32 and one rounding; 1.5: some kernels round the weight, too, which seldom adds up."""
    want = quant_linear_reference(x.double(), numbers, scales.double())
    roundings = 30 if x.dtype == torch.float32 else 1.5
    assert out.dtype == x.dtype
    torch.testing.assert_close(out.double(), want, rtol=0, atol=roundings * rounding(x.dtype) * want.abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (4, 128), (4, 256), (8, 512)])
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 64])
def test_equals_the_definition(rows: int, bits: int, group: int, dtype: torch.dtype) -> None:
    numbers, scales = make(96, 512, bits, group, dtype)
    x = torch.randn(rows, 512).to(dtype)
    assert_near(quant_linear(x, prepare(numbers, scales, bits)), x, numbers, scales)


@given(st.integers(1, 20), st.integers(1, 12), st.integers(1, 6), st.sampled_from([(4, 32), (4, 64), (8, 0)]))
def test_any_shape(rows: int, outputs: int, groups: int, kind: tuple[int, int]) -> None:
    bits, group = kind
    inputs = 64 * groups
    numbers, scales = make(16 * outputs, inputs, bits, group or inputs, torch.float32)
    x = torch.randn(rows + 1, inputs)[:rows]
    assert_near(quant_linear(x, prepare(numbers, scales, bits)), x, numbers, scales)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 15, 16, 17, 33])
@pytest.mark.parametrize(("outputs", "inputs", "group"), [(16, 32, 32), (144, 96, 32), (272, 512, 256)])
def test_our_product_of_four_bits(rows: int, outputs: int, inputs: int, group: int) -> None:
    """Numbers are exact in bfloat16 and scaled after they are summed, so one rounding is all that is lost."""
    if not native.available():
        pytest.skip("hardware: no AVX512-BF16")
    numbers, scales = make(outputs, inputs, 4, group, torch.bfloat16)
    x = torch.randn(rows, inputs).bfloat16()
    prepared = prepare(numbers, scales, 4)
    assert prepared.numbers.dtype == torch.int16
    want = quant_linear_reference(x.double(), numbers, scales.double())
    atol = 1.1 * rounding(torch.bfloat16) * want.abs().max().item()
    torch.testing.assert_close(quant_linear(x, prepared).double(), want, rtol=0, atol=atol)


def test_strided_activations() -> None:
    numbers, scales = make(32, 64, 4, 32, torch.float32)
    wide = torch.randn(3, 100)
    assert_near(quant_linear(wide[:, 36:], prepare(numbers, scales, 4)), wide[:, 36:], numbers, scales)


def test_dequantised() -> None:
    numbers, scales = torch.tensor([[1, -8, 7, 0]]).to(torch.int8), torch.tensor([[0.5, 2.0]])
    assert dequantised(numbers, scales).tolist() == [[0.5, -4.0, 14.0, 0.0]]


@pytest.mark.parametrize(
    ("bits", "outputs", "shape"),
    [(4, 24, (24, 2)), (4, 32, (32, 3)), (8, 32, (32, 2)), (3, 32, (32, 2)), (4, 32, (16, 2)), (4, 32, (32, 16))],
)
def test_what_does_not_fit_is_refused(bits: int, outputs: int, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"they do not fit|give one of"):
        prepare(torch.zeros(outputs, 64, dtype=torch.int8), torch.ones(shape), bits)
