"""The compiled products as operators of torch; what they compute is tested with packed_linear and quant_linear."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ascend_m1_ops import dequantised, native, pack, packed_linear, prepare, quant_linear
from ascend_m1_ops.native import bfloat16, int4
from ascend_m1_ops.native.library import FLAGS, _build, fastest, library

HARDWARE = pytest.mark.skipif(not native.available(), reason="hardware: no AVX512-BF16")


def random_int4(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Numbers and scales as the operator takes them."""
    numbers = torch.randint(-8, 8, (outputs, inputs)).to(torch.int8)
    return native.int4_layout(numbers, torch.rand(outputs, inputs // 32).bfloat16())


@HARDWARE
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 64), "must be bfloat16"),
        (torch.zeros(1, 128).bfloat16(), r"x must be \[rows, 64\], not \[1, 128\]"),
        (torch.zeros(64).bfloat16(), r"not \[64\]"),
    ],
)
def test_rows_that_do_not_fit_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.int4_linear(x, *random_int4(32, 64))
    with pytest.raises(ValueError, match=message):
        native.bfloat16_linear(x, native.bfloat16_layout(torch.zeros(32, 64).bfloat16()))


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16 and 8, not 24 and 64"):
        native.bfloat16_layout(torch.zeros(24, 64).bfloat16())


@HARDWARE
@pytest.mark.parametrize("change", [lambda t: t[0], lambda t: t[:, :, :16], lambda t: t[:, :-1]])
def test_layouts_that_do_not_fit_are_refused(change: Callable[[Tensor], Tensor]) -> None:
    """What is read goes by addresses: a shape or a stride that is not what it seems reads what is not there."""
    x, (numbers, scales) = torch.zeros(1, 64).bfloat16(), random_int4(32, 64)
    weight = native.bfloat16_layout(torch.zeros(32, 64).bfloat16())
    for whole, ask in (
        (numbers, lambda part: native.int4_linear(x, part, scales)),
        (weight, lambda part: native.bfloat16_linear(x, part)),
    ):
        for part in (change(whole), change(whole).contiguous()):
            with pytest.raises(ValueError, match=r"must be (as|contiguous|of the|\[rows)"):
                ask(part)


@HARDWARE
@pytest.mark.parametrize(
    ("outputs", "groups", "message"),
    [(16, 2, "of the numbers' outputs"), (32, 3, "in groups of"), (32, 0, "groups"), (32, 4, "not 16")],
)
def test_scales_of_other_weights_are_refused(outputs: int, groups: int, message: str) -> None:
    x, (numbers, scales) = torch.zeros(1, 64).bfloat16(), random_int4(32, 64)
    with pytest.raises(ValueError, match=message):
        native.int4_linear(x, numbers, torch.zeros(outputs // 16, groups, 16).bfloat16())
    strided = scales.mT.contiguous().mT  # of the right shape
    with pytest.raises(ValueError, match="must be contiguous"):
        native.int4_linear(x, numbers, strided)
    strided = numbers.mT.contiguous().mT
    with pytest.raises(ValueError, match="must be contiguous"):
        native.int4_linear(x, strided, scales)
    weight = native.bfloat16_layout(torch.zeros(32, 64).bfloat16())
    with pytest.raises(ValueError, match="must be contiguous"):
        native.bfloat16_linear(x, weight.mT.contiguous().mT)


@HARDWARE
@pytest.mark.parametrize("instructions", ["AVX512", "the fastest"])
@pytest.mark.parametrize(("outputs", "inputs", "group"), [(16, 32, 32), (48, 576, 64), (336, 512, 128), (80, 512, 256)])
def test_products_by_each_instruction_set(
    instructions: str, outputs: int, inputs: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums are float32 in either: what is left is the last rounding, and sums that nearly cancel."""
    if instructions == "AVX512":
        for module in (int4, bfloat16):
            monkeypatch.setattr(module, "fastest", library)
    numbers = torch.randint(-8, 8, (outputs, inputs), dtype=torch.int8)
    scales = torch.rand(outputs, inputs // group).bfloat16()
    quantised, plain = native.int4_layout(numbers, scales), torch.randn(outputs, inputs).bfloat16()
    packed = native.bfloat16_layout(plain)
    for rows in (1, 2, 15, 16, 17, 33, 70, 530):
        x = torch.randn(rows, inputs).bfloat16()
        for got, weight in (
            (native.int4_linear(x, *quantised), dequantised(numbers, scales.double())),
            (native.bfloat16_linear(x, packed), plain.double()),
        ):
            want, size = x.double() @ weight.T, x.double().abs() @ weight.T.abs()
            assert ((got - want).abs() <= want.abs() * 2**-8 + size * inputs * 2**-24).all()


@HARDWARE
def test_nothing_to_compute() -> None:
    empty = native.bfloat16_layout(torch.zeros(0, 32).bfloat16())
    assert native.bfloat16_linear(torch.ones(3, 32).bfloat16(), empty).shape == (3, 0)
    assert native.int4_linear(torch.ones(0, 64).bfloat16(), *random_int4(32, 64)).shape == (0, 32)
    with torch.device("meta"):
        assert native.bfloat16_layout(torch.zeros(16, 32, device="cpu").bfloat16()).device.type == "cpu"


@HARDWARE
def test_under_torch_compile() -> None:
    x, numbers = torch.randn(3, 64).bfloat16(), random_int4(32, 64)
    torch.library.opcheck(torch.ops.ascend_m1.int4_linear.default, (x, *numbers))
    compiled = torch.compile(lambda x: native.int4_linear(x, *numbers), fullgraph=True)
    assert torch.equal(compiled(x), native.int4_linear(x, *numbers))
    weight = native.bfloat16_layout(torch.randn(32, 64).bfloat16())
    torch.library.opcheck(torch.ops.ascend_m1.bfloat16_linear.default, (x, weight))


@HARDWARE
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_any_number_of_blocks(threads: int) -> None:
    """The sums of an output are one thread's, in one order, however many there are."""
    before = torch.get_num_threads()
    x, weight = torch.randn(19, 72).bfloat16(), native.bfloat16_layout(torch.randn(16 * 11, 72).bfloat16())
    want = native.bfloat16_linear(x, weight)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(native.bfloat16_linear(x, weight), want)
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for kept in (native.available, library, fastest):
        kept.cache_clear()
    yield
    for kept in (native.available, library, fastest):
        kept.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_libraries_multiply(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(5, 512).bfloat16()
    numbers, scales = torch.ones(96, 512, dtype=torch.int8), torch.ones(96, 4).bfloat16()
    quantised, packed = prepare(numbers, scales, 4), pack(torch.ones(96, 512).bfloat16())
    assert quantised.numbers.dtype == torch.uint8
    assert packed.is_mkldnn
    for out in (quant_linear(x, quantised), packed_linear(x, packed)):
        torch.testing.assert_close(out, x.sum(1, keepdim=True).expand(5, 96), rtol=0.01, atol=0.1)
    why = "no operators compiled for this processor: CXX="
    said = [record.message for record in caplog.records]
    assert len(said) == native.supported()  # who lacks the instructions has nothing to mend
    for message in said:
        assert message.startswith(why)
        assert message.endswith("no-compiler: there is no such compiler: name another, or unset it")


def test_a_compiler_may_have_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "a compiler.py"
    script.write_text("import sys; sys.exit(' '.join(sys.argv[1:3]))")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", shlex.join([sys.executable, str(script), "-m64"]))
    with pytest.raises(RuntimeError, match=r"a compiler.py' -m64 could not build it: -m64 -O3$"):
        _build(("linear.cpp",), FLAGS)
    monkeypatch.setenv("CXX", "g++ '")
    with pytest.raises(RuntimeError, match=r"^CXX=g\+\+ ': No closing quotation: correct it, or unset it$"):
        _build(("linear.cpp",), FLAGS)
