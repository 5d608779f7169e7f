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
from ascend_m1_hostnpu.settings import SettingError, check

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


def test_memory_as_large_and_as_dirty_as_wanted() -> None:
    code = (
        "print(int(torch.empty(1000, device='npu').cpu().isnan().all()))\n"
        "x = torch.empty(700 << 20, dtype=torch.uint8, device='npu')\n"
        "try:\n    torch.empty(700 << 20, dtype=torch.uint8, device='npu')\n"
        "except torch.OutOfMemoryError as error:\n    print(str(error).splitlines()[0])\n"
        "del x\ny = torch.empty(700 << 20, dtype=torch.uint8, device='npu')\n"
    )
    result = fresh(code, HOSTNPU_MEMORY_GIB="1", HOSTNPU_POISON="1")
    assert "NPU out of memory. Tried to allocate 702.00 MiB (NPU 0; 1024.00 MiB total capacity" in printed(result)
    assert result.stdout.splitlines()[-2] == "1"  # nobody relies on zeros


def test_several_devices_hold_their_own_tensors() -> None:
    code = (
        "print(int(torch.empty(1000, device='npu').cpu().isnan().all()))\n"
        "a = torch.arange(4.).to('npu:0'); b = a.to('npu:1') + 1\n"
        "print(torch.npu.device_count(), a.device, b.device, b.to('npu:0').cpu().tolist())"
    )
    result = fresh(code, HOSTNPU_DEVICES="2", HOSTNPU_POISON="0", HOSTNPU_MEMORY_GIB="")
    assert printed(result) == "2 npu:0 npu:1 [1.0, 2.0, 3.0, 4.0]"
    assert result.stdout.splitlines()[-2] == "0"  # the variable's 0 is off


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("HOSTNPU_PRODUCT", "910A", "use one of 910B, A3, 310P, 950"),
        ("HOSTNPU_DEVICES", "two", "give a whole number of at least 1"),
        ("HOSTNPU_DEVICES", "0", "give a whole number of at least 1"),
        ("HOSTNPU_DEVICES", "²", "give a whole number of at least 1"),
        ("HOSTNPU_MEMORY_GIB", "0.5", "give a whole number of at least 1"),
        ("HOSTNPU_MEMORY_GIB", "-1", "give a whole number of at least 1"),
        ("HOSTNPU_MEMORY_GIB", "64GiB", "give a whole number of at least 1"),
        ("HOSTNPU_POISON", "yes", "use 1 (on) or 0 (off)"),
        ("HOSTNPU_LAUNCHES", "2", "use 1 (on) or 0 (off)"),
        ("HCCL_EXEC_TIMEOUT", "soon", "give a whole number of at least 1"),
    ],
)
def test_a_setting_without_meaning_is_refused(variable: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingError) as caught:
        check({variable: value})
    assert str(caught.value) == f"{variable}={value}: {allowed}"


def test_settings_that_mean_something_are_taken() -> None:
    check({})
    check({"HOSTNPU_PRODUCT": "310P", "HOSTNPU_DEVICES": "8", "HOSTNPU_MEMORY_GIB": "1", "HOSTNPU_POISON": "0"})
    check(dict.fromkeys(("HOSTNPU_PRODUCT", "HOSTNPU_DEVICES", "HOSTNPU_MEMORY_GIB", "HOSTNPU_POISON"), ""))


def test_they_are_looked_at_before_anything_is_loaded() -> None:
    result = fresh("", HOSTNPU_MEMORY_GIB="much")
    last = result.stderr.splitlines()[-1]
    assert last.endswith("SettingError: HOSTNPU_MEMORY_GIB=much: give a whole number of at least 1")


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
