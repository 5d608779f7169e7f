"""The Triton kernels in Triton's interpreter, on CPU tensors, against the operators' definitions.

The interpreter shows the algorithm, to the bit (the host NPU makes it round to bfloat16 as hardware does). Memory
safety and the compiler's rounding are shown by ``tests/lowering``, which executes what the NPU's compiler lowers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import triton
from torch import Tensor

from ascend_m1_ops import TokenTable, conv_rope_cache, conv_rope_cache_reference, short_conv, short_conv_reference
from ascend_m1_ops import launch as launch_module
from ascend_m1_ops.conv_rope_cache import npu as fused
from ascend_m1_ops.conv_rope_cache.triton import conv_rope_cache_kernel
from ascend_m1_ops.short_conv import npu as conv
from ascend_m1_ops.testing import gradients, rounding
from tests.ops.conv_rope_cases import Case, assert_same, make, run, with_gaps

pytest_plugins = ["ascend_m1_hostnpu.pytest_plugin"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
GEOMETRIES = [(4, 2, 8), (3, 1, 4), (6, 3, 4), (20, 2, 256), (40, 8, 128)]
LENGTHS = [[], [0], [1], [7], [1, 1, 1, 1, 1], [0, 3, 0, 0, 1, 2, 0], [9, 1, 6]]


def test_kernels_are_interpreted() -> None:
    assert not isinstance(conv_rope_cache_kernel, triton.JITFunction), (
        "the host NPU prepares Triton's interpreter before its import"
    )


@pytest.fixture(params=[1, 3, 48], ids="{} programs".format)
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Borders between programs fall into sequences, between them, and after every row."""
    for module in (fused, conv):
        monkeypatch.setattr(module, "programs", lambda device: request.param)
    return int(request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_fused_equals_the_definition(lengths: list[int], dtype: torch.dtype, cores: int) -> None:
    """Strided projection, cache and state; padding, fresh sequences over NaN, rows without state or slot."""
    case = make(lengths, dtype, (4, 2, 8), padding=2)
    assert_same(run(fused.forward, case), run(conv_rope_cache_reference, case))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_fused_geometries(geometry: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = make([3, 0, 1, 2], dtype, geometry)
    assert_same(run(fused.forward, case), run(conv_rope_cache_reference, case))


def test_fused_chunks_equal_the_whole(cores: int) -> None:
    case = make([9], torch.float32, plain=True)
    want = run(fused.forward, case)
    table, chunked = case.table, case.fresh()
    for take in (slice(0, 4), slice(4, 5), slice(5, 9)):
        places = TokenTable.prefill(
            [take.stop - take.start], table.positions[take], table.slots[take], table.state_rows, table.continues
        )
        q = fused.forward(*replace(chunked, packed=case.packed[take], table=places).arguments())
        assert torch.equal(q, want[0][take])
    assert_same((want[0], chunked.k_cache, chunked.v_cache, chunked.state), want)


def test_fused_padding_stores_nothing(cores: int) -> None:
    """Nothing of a padded row is stored, whatever it holds."""
    case = make([1] * 5, plain=True)
    slots, rows = case.table.slots.clone(), case.table.state_rows.clone()
    slots[3:], rows[3:] = -1, -1
    case.packed[3:, -4 * 8 :] = torch.nan
    case = replace(case, table=replace(case.table, slots=slots, state_rows=rows))
    assert_same(run(fused.forward, case), run(conv_rope_cache_reference, case))


def conv_inputs(
    lengths: list[int], dtype: torch.dtype, heads: int = 3, head_dim: int = 4
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """kv (a slice of a wider projection), taps, state, borders."""
    kv = torch.randn(sum(lengths), 4 + 2 * heads * head_dim).to(dtype)[:, 4:].unflatten(1, (2, heads, head_dim))
    state = torch.randn(len(lengths), 2, heads, head_dim).to(dtype)
    return kv, torch.randn(2, heads, 2).to(dtype), state, torch.tensor([0, *accumulate(lengths)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_short_conv_equals_the_definition(
    lengths: list[int], dtype: torch.dtype, index: torch.dtype, cores: int
) -> None:
    kv, weight, state, borders = conv_inputs(lengths, dtype)
    out, after = conv.forward(kv, weight, state, borders.to(index))
    want, want_after = short_conv_reference(kv.float(), weight.float(), state.float(), borders)
    torch.testing.assert_close(out.float(), want, rtol=rounding(dtype), atol=1e-6)
    assert torch.equal(after.float(), want_after)


@pytest.mark.parametrize("heads", [(2, 256), (8, 128), (1, 2)], ids=str)
def test_short_conv_geometries(heads: tuple[int, int]) -> None:
    kv, weight, state, borders = conv_inputs([2, 0, 3], torch.float32, *heads)
    got, want = conv.forward(kv, weight, state, borders), short_conv_reference(kv, weight, state, borders)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_short_conv_gradients_are_those_of_the_definition(lengths: list[int], dtype: torch.dtype, cores: int) -> None:
    """Autograd of the definition in float32 from the same flow; a tap's gradient is a sum over rows, rounded once."""
    kv, weight, state, borders = conv_inputs(lengths, dtype)
    flow = torch.randn(kv.shape).to(dtype), torch.randn(state.shape).to(dtype)
    got = conv.backward(*flow, kv, weight, state, borders)
    leaves = [tensor.detach().float().requires_grad_() for tensor in (kv, weight, state)]
    outputs = short_conv_reference(*leaves, borders)
    want = torch.autograd.grad(outputs, leaves, [g.float() for g in flow], materialize_grads=True)
    for name, grad, exact in zip(("kv", "weight", "state"), got, want, strict=True):
        assert grad.dtype == dtype, name
        atol = 8 * torch.finfo(torch.float32).eps * max(1, len(kv)) if name == "weight" else 1e-6
        torch.testing.assert_close(
            grad.float(), exact, rtol=rounding(dtype), atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def on_npu(case: Case) -> Case:
    """The same on the device, gaps included."""
    moved = {name: with_gaps(getattr(case, name).npu()) for name in ("k_cache", "v_cache", "state")}
    table = TokenTable(*(tensor.npu() for tensor in vars(case.table).values()))
    rest = {name: getattr(case, name).npu() for name in ("packed", "weight", "cos", "sin")}
    return replace(case, table=table, **moved, **rest)


@pytest.mark.usefixtures("host_npu")
def test_fused_on_npu_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """``conv_rope_cache`` finds the kernel by the device of its tensors."""
    started = []
    launch = fused.launch
    monkeypatch.setattr(fused, "launch", lambda *x, **y: (started.append(x[0]), launch(*x, **y)))
    case = make([3, 0, 1], torch.float16, padding=2)
    device = on_npu(case)
    q = conv_rope_cache(*device.arguments())
    got = [x.cpu() for x in (q, device.k_cache, device.v_cache, device.state)]
    assert_same(got, run(conv_rope_cache_reference, case))
    assert started == [conv_rope_cache_kernel]


@pytest.mark.usefixtures("host_npu")
def test_short_conv_on_npu_trains() -> None:
    """Forward and backward through the registered operator, as a LoRA run goes."""
    *inputs, borders = conv_inputs([4, 0, 1, 6], torch.float32)
    want = gradients(lambda *x: short_conv_reference(*x, borders), inputs)
    got = gradients(lambda *x: tuple(y.cpu() for y in short_conv(*x, borders.npu())), [x.npu() for x in inputs])
    for grad, exact in zip(got, want, strict=True):
        assert grad.device.type == "npu"
        torch.testing.assert_close(grad.cpu(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("host_npu")
def test_a_composition_says_why_once(caplog: pytest.LogCaptureFixture) -> None:
    """A head_dim that is no power of two has no kernel; the result is the same."""
    launch_module.log_composition.cache_clear()
    case = make([3, 1], torch.float32, (3, 1, 6), plain=True)
    device = on_npu(case)
    with caplog.at_level("WARNING", logger="ascend_m1_ops.launch"):
        q = conv_rope_cache(*device.arguments())
        conv_rope_cache(*device.arguments())
    assert [record.message for record in caplog.records] == [
        "conv_rope_cache on npu: composed of torch calls: no kernel for a head_dim of 6, only for powers of two"
    ]
    torch.testing.assert_close(q.cpu(), run(conv_rope_cache_reference, case)[0])


@pytest.mark.usefixtures("host_npu")
def test_no_kernel_on_310p(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_module, "product", lambda: "310P")
    assert "310P" in (launch_module.why_not_triton("conv_rope_cache", "npu") or "")
    monkeypatch.setattr(launch_module, "product", lambda: "A2")
    assert launch_module.why_not_triton("conv_rope_cache", "npu") is None


def test_kernels_compile_for_cuda() -> None:
    """One source for both compilers: mainline Triton makes device code of it for an H100, with no GPU to run it."""
    root = Path(__file__).parents[2]
    away = {"TRITON_INTERPRET", "HOSTNPU_POISON"}
    environment = {name: value for name, value in os.environ.items() if name not in away}
    environment |= {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PYTHONPATH": os.pathsep.join([str(root), str(root / "ops")])}
    command = [sys.executable, "-m", "tests.npu.compile_for_cuda"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    kernels = ["conv_rope_cache_kernel", "short_conv_kernel", "short_conv_backward_kernel"]
    assert run.stdout.split() == kernels
