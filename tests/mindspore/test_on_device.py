"""The golden cases on an Ascend NPU, in 16 bits, and the fused form beside the composed one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mindspore.device_context import ascend

from .golden import CASES

pytestmark = pytest.mark.xdist_group("command")
with_npu = pytest.mark.skipif(not ascend.is_available(), reason="hardware: MindSpore sees no Ascend NPU")
# Relative distances of logits. Composed in float16 on a CPU they are 7e-4 to 1.9e-3 (layers: 2 to 6); bfloat16 rounds
# eight times as much. The rest is for other kernels' orders of summation.
TOLERANCE = {"float32": 2e-6, "float16": 5e-3, "bfloat16": 4e-2}


def compare(device: str, dtype: str, *cases: str) -> list[dict[str, Any]]:
    """A process of its own, for this one has chosen the CPU."""
    command = [sys.executable, "-m", "tests.mindspore.on_device", device, dtype, *cases]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


def test_the_comparison_itself_on_a_cpu() -> None:
    (found,) = compare("cpu", "auto", "global-only")
    assert (found["target"], found["dtype"], found["fused"], found["composed"]) == ("CPU", "float32", False, 0)
    assert 0 < found["golden"] < TOLERANCE["float32"]


@with_npu
@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_golden_cases_on_an_npu(dtype: str) -> None:
    """auto: bfloat16, float16 on products without it. Those have no fused form either, to be compared."""
    found = compare("npu", dtype)
    assert [row["case"] for row in found] == CASES
    for row in found:
        assert row["target"] == "Ascend"
        assert row["golden"] < TOLERANCE[row["dtype"]], row
        assert row["composed"] < TOLERANCE[row["dtype"]], row
        assert (row["composed"] > 0) == row["fused"], row
