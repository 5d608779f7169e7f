"""Memory, devices and errors of the host NPU, seen through torch_npu."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ascend_m1_hostnpu.abi import OPAPI, OPERATOR_SYMBOLS, RUNTIME, said
from ascend_m1_hostnpu.build import PYTHON_RUNTIME

pytest_plugins = ["ascend_m1_hostnpu.pytest_plugin"]
ROOT = Path(__file__).parents[3]
GIB, MIB = 1 << 30, 1 << 20


def fresh(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Code in a Python of its own: these settings are read once."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "ops"), **variables}
    setup = "import ascend_m1_hostnpu, torch, torch_npu\n"
    command = [sys.executable, "-c", setup + code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def printed(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


def test_memory_is_counted_and_given_back(host_npu: Any) -> None:
    torch.npu.synchronize()
    before = torch.npu.memory_allocated()
    torch.npu.reset_peak_memory_stats()
    x = torch.empty(3 * MIB, dtype=torch.uint8, device="npu")
    assert torch.npu.memory_allocated() - before == pytest.approx(3 * MIB, rel=1e-3)  # 32 bytes of padding
    del x
    assert torch.npu.memory_allocated() == before
    assert torch.npu.max_memory_allocated() - before == pytest.approx(3 * MIB, rel=1e-3)


def test_free_memory_falls_and_rises(host_npu: Any) -> None:
    torch.npu.empty_cache()
    free, total = torch.npu.mem_get_info()
    assert total == 64 * GIB
    x = torch.empty(100 * MIB, dtype=torch.uint8, device="npu")
    assert free - torch.npu.mem_get_info()[0] == pytest.approx(100 * MIB, rel=0.05)
    del x
    torch.npu.empty_cache()
    assert torch.npu.mem_get_info()[0] == free


def test_more_than_there_is_fails_as_on_a_device() -> None:
    code = (
        "x = torch.empty(700 << 20, dtype=torch.uint8, device='npu')\n"
        "try:\n    torch.empty(700 << 20, dtype=torch.uint8, device='npu')\n"
        "except torch.OutOfMemoryError as error:\n    print(str(error).splitlines()[0])\n"
        "del x\ny = torch.empty(700 << 20, dtype=torch.uint8, device='npu')\n"
    )
    message = printed(fresh(code, HOSTNPU_MEMORY_GIB="1"))
    assert "NPU out of memory. Tried to allocate 702.00 MiB (NPU 0; 1024.00 MiB total capacity" in message


def test_fresh_memory_holds_no_zeros() -> None:
    code = "print(bool(torch.empty(1000, device='npu').cpu().isnan().all()))"
    assert printed(fresh(code, HOSTNPU_POISON="1")) == "True"


def test_several_devices_hold_their_own_tensors() -> None:
    code = (
        "a = torch.arange(4.).to('npu:0'); b = a.to('npu:1') + 1\n"
        "print(torch.npu.device_count(), a.device, b.device, b.to('npu:0').cpu().tolist())"
    )
    assert printed(fresh(code, HOSTNPU_DEVICES="2")) == "2 npu:0 npu:1 [1.0, 2.0, 3.0, 4.0]"


@pytest.mark.parametrize(
    ("product", "soc"),
    [("910B", "Ascend910B3"), ("A3", "Ascend910_9391"), ("310P", "Ascend310P3"), ("950", "Ascend950PR_9589")],
)
def test_each_product_reports_its_name(product: str, soc: str) -> None:
    code = "print(torch.npu.get_device_name(0), torch_npu.npu.get_soc_version(), ascend_m1_hostnpu.product())"
    name, version, own = printed(fresh(code, HOSTNPU_PRODUCT=product)).split()
    assert (name, own) == (soc, product)
    assert int(version) > 0, "op-plugin knows this product"


def test_an_unknown_product_is_refused() -> None:
    result = fresh("", HOSTNPU_PRODUCT="910A")
    assert result.stderr.splitlines()[-1] == "ValueError: HOSTNPU_PRODUCT=910A: use one of 910B, A3, 310P, 950"


def test_torch_npu_first_is_refused() -> None:
    code = "import sys, types; sys.modules['torch_npu'] = types.ModuleType('torch_npu'); import ascend_m1_hostnpu"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ImportError: import ascend_m1_hostnpu before torch_npu" in result.stderr


@pytest.mark.parametrize(("library", "symbols"), [(RUNTIME, PYTHON_RUNTIME), (OPAPI, OPERATOR_SYMBOLS)])
def test_every_symbol_has_an_answer(library: Any, symbols: list[str]) -> None:
    """A symbol without one would jump to address 0."""
    assert len(symbols) > 50
    assert [symbol for symbol in symbols if not library.slot(symbol).value] == []


def test_an_operator_without_a_stand_in_fails_with_its_name(host_npu: Any) -> None:
    without = [s for s in OPERATOR_SYMBOLS if not s.endswith("WorkspaceSize") and s[5:] not in host_npu.names]
    for symbol in (without[0], f"{without[-1]}GetWorkspaceSize"):
        assert getattr(OPAPI.handle, symbol)() != 0
        assert said().startswith(f"{symbol.removesuffix('GetWorkspaceSize')}: the host NPU has no stand-in")


def test_torch_passes_the_missing_operators_name_on(host_npu: Any) -> None:
    x = torch.ones(4).npu()
    with pytest.raises(RuntimeError, match="aclnnHistc: the host NPU has no stand-in for this operator"):
        torch.histc(x)


def test_an_operator_that_fails_says_why_and_the_next_one_runs(host_npu: Any) -> None:
    table, index = torch.arange(6.0).view(3, 2).npu(), torch.tensor([7]).npu()
    with pytest.raises(RuntimeError, match="aclnnEmbedding: index 7 is out of bounds"):
        torch.nn.functional.embedding(index, table)
    assert torch.equal(torch.nn.functional.embedding(index - 6, table).cpu(), torch.tensor([[2.0, 3.0]]))


def test_a_recording_inside_another_sees_its_own_part(host_npu: Any) -> None:
    x = torch.ones(4).npu()
    x + x
    with host_npu.recording() as outer:
        x + x
        with host_npu.recording() as inner:
            x * x
        with host_npu.recording() as empty:
            pass
        x + 1
    x + x
    assert [launch.name for launch in outer.launches] == ["aclnnAdd", "aclnnMul", "aclnnAdds"]
    assert [launch.name for launch in inner.launches] == ["aclnnMul"]
    assert empty.launches == []
    assert (inner.launches[0].read, inner.launches[0].written, inner.bytes) == (32, 16, 48)
    assert outer.counts() == {"aclnnAdd": 1, "aclnnMul": 1, "aclnnAdds": 1}


def test_copies_are_logged_apart_from_kernels(host_npu: Any) -> None:
    x = torch.ones(4, pin_memory=True)
    with host_npu.recording() as log:
        y = x.to("npu", non_blocking=True) + 1
        y.to("cpu", non_blocking=True)
    assert [(launch.name, launch.read, launch.written) for launch in log.launches] == [
        ("memcpy", 0, 16),
        ("aclnnAdds", 16, 16),
        ("memcpy", 16, 0),
    ]
    assert [launch.name for launch in log.kernels] == ["aclnnAdds"]


@pytest.mark.parametrize("function", ["aclopCompileAndExecute", "aclopCompileAndExecuteV2"])
def test_the_older_operator_interface_is_refused_not_skipped(function: str) -> None:
    """It calls operators by type; a stub that returned success would leave their outputs unwritten."""
    assert getattr(RUNTIME.handle, function)(b"TransData") != 0
    assert said() == "TransData: the host NPU answers aclnn operators only, not aclop"
