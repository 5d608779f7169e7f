"""Triton kernels on npu tensors: interpreted on the device's memory, one task a launch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

pytest_plugins = ["ascend_m1_hostnpu.pytest_plugin"]
BLOCK = 32


@triton.jit
def scale_kernel(x, out, count, factor, BLOCK: tl.constexpr):  # noqa: N803  as Triton's constants are written
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    value = tl.load(x + index, mask=inside).to(tl.float32)  # Triton's interpreter does not multiply in bfloat16
    tl.store(out + index, value * factor, mask=inside)


@triton.jit
def reads_missing_name(x, BLOCK: tl.constexpr):  # noqa: N803
    tl.store(x + tl.arange(0, BLOCK), not_defined)  # noqa: F821


def scale(x: Tensor, factor: float) -> Tensor:
    out = torch.empty_like(x)
    grid = lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)  # noqa: E731
    scale_kernel[grid](x, out, x.numel(), factor, BLOCK=BLOCK, num_warps=4)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
def test_a_kernel_computes_on_device_memory(host_npu: Any, count: int, dtype: torch.dtype) -> None:
    x = torch.arange(count, dtype=dtype)
    device = x.npu()
    assert torch.equal(scale(device, 2.0).cpu(), x * 2)
    assert torch.equal(device.cpu(), x)


def test_bfloat16_is_rounded_to_nearest_even(host_npu: Any) -> None:
    """Halves both ways, subnormal numbers, what rounds up to infinity, NaN."""
    eighth = 2.0**-8
    edges = [1 + eighth, 1 + 3 * eighth, 1 + 1.01 * eighth, -1 - 0.99 * eighth, 3.4e38, -3.4e38, 1e-40, 0.0, -0.0]
    x = torch.cat([torch.tensor([*edges, torch.inf, -torch.inf, torch.nan]), torch.randn(500) * 1e3])
    out = torch.empty(len(x), dtype=torch.bfloat16).npu()
    scale_kernel[(triton.cdiv(len(x), BLOCK),)](x.npu(), out, len(x), 1.0, BLOCK=BLOCK)
    torch.testing.assert_close(out.cpu(), x.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_a_view_reads_and_writes_its_own_part(host_npu: Any) -> None:
    whole = torch.zeros(20).npu()
    source = torch.arange(10.0).npu()
    scale_kernel[(1,)](source[3:7], whole[5:9], 4, 10.0, BLOCK=BLOCK)
    expected = torch.zeros(20)
    expected[5:9] = torch.arange(3.0, 7.0) * 10
    assert torch.equal(whole.cpu(), expected)


def test_a_launch_is_one_task_with_its_bytes(host_npu: Any) -> None:
    x = torch.ones(100).npu()
    with host_npu.recording() as log:
        scale(x, 2.0)
    assert [(launch.name, launch.read + launch.written) for launch in log.launches] == [("triton:scale_kernel", 800)]


@pytest.fixture
def _traffic() -> Iterator[None]:
    scale_kernel.traffic = lambda a: (a["x"].nbytes, a["out"].nbytes // a["BLOCK"])
    yield
    del scale_kernel.traffic


@pytest.mark.usefixtures("_traffic")
def test_a_kernel_can_say_what_it_moves(host_npu: Any) -> None:
    x = torch.ones(64).npu()
    with host_npu.recording() as log:
        scale(x, 2.0)
    assert [(launch.read, launch.written) for launch in log.launches] == [(256, 8)]


def test_a_captured_launch_runs_at_replay_with_new_inputs(host_npu: Any) -> None:
    x = torch.ones(40).npu()
    graph = torch.npu.NPUGraph()
    with host_npu.recording() as capture, torch.npu.graph(graph):
        out = scale(x + 1, 3.0)
    assert capture.launches == []
    x.copy_(torch.arange(40.0))
    with host_npu.recording() as log:
        graph.replay()
    assert [(launch.name, launch.captured) for launch in log.launches] == [
        ("aclnnAdds", True),
        ("triton:scale_kernel", True),
    ]
    assert torch.equal(out.cpu(), (torch.arange(40.0) + 1) * 3)


def test_it_runs_on_the_current_stream(host_npu: Any) -> None:
    gate = torch.npu.ExternalEvent()
    side = torch.npu.Stream()
    x = torch.ones(8).npu()
    with torch.npu.stream(side):
        gate.wait(side)
        out = scale(x, 5.0)
    x.fill_(2)  # the default stream does not wait
    gate.record(torch.npu.current_stream())
    assert torch.equal(out.cpu(), torch.full((8,), 10.0))


def test_as_an_operator_with_an_implementation_for_the_device(host_npu: Any) -> None:
    with torch.library._scoped_library("hostnpu_test", "DEF") as library:
        library.define("scale(Tensor x, float factor) -> Tensor")
        library.impl("scale", scale, "PrivateUse1")
        library.impl("scale", lambda x, factor: x * factor, "CPU")
        x = torch.arange(6.0)
        operator = torch.ops.hostnpu_test.scale
        graph = torch.npu.NPUGraph()
        device = x.npu()
        with torch.npu.graph(graph):
            out = operator(device, 2.0)
        graph.replay()
        assert torch.equal(out.cpu(), operator(x, 2.0))


def test_in_null_mode_nothing_is_computed(host_npu: Any) -> None:
    x, out = torch.ones(8).npu(), torch.zeros(8).npu()
    with host_npu.recording() as log, host_npu.null_mode():
        with host_npu.null_mode():
            pass
        scale_kernel[(1,)](x, out, 8, 2.0, BLOCK=BLOCK)
    assert log.launches == []
    assert torch.equal(out.cpu(), torch.zeros(8))


def test_cpu_tensors_stay_triton_s_business(host_npu: Any) -> None:
    x = torch.arange(5.0)
    with host_npu.recording() as log:
        assert torch.equal(scale(x, 2.0), x * 2)
    assert log.launches == []


def test_an_error_in_a_kernel_names_the_kernel(host_npu: Any) -> None:
    with pytest.raises(RuntimeError, match=r"triton:reads_missing_name: .*not_defined"):
        reads_missing_name[(1,)](torch.ones(4).npu(), BLOCK=4)


def test_triton_is_not_imported_before_it_is_wanted() -> None:
    code = "import sys, ascend_m1_hostnpu, torch; assert 'triton' not in sys.modules; import triton; print('fine')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout == "fine\n", result.stderr
