"""What the Ascend compilers made of every kernel, as data: ``ops/ascend_m1_ops/lowering.json``.

    OMP_NUM_THREADS=1 python -m tests.lowering.report        (PYTHONPATH=ops, environment of requirements/lowering.txt)

writes the record anew; ``test_report.py`` fails when it no longer is what this machine finds. It holds no time and no
path, so the same sources and versions give the same file.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ascend_m1_ops
from tests.lowering.execution import lowered
from tests.lowering.kernels import BATCHES, Form, check_execution, forms, launch_of
from tests.lowering.toolchain import TARGETS, accept

PACKAGE = Path(ascend_m1_ops.__file__).parent
RECORD = PACKAGE / "lowering.json"
SOURCES = ("short_conv/triton.py", "conv_rope_cache/triton.py")
MEANING = (
    "lowered by triton-ascend and AscendNPU-IR to HIVM, executed at linalg level on CPU with guard pages round every "
    "tensor, bit-exact against a definition in numpy; device code generation and NPU execution not verified"
)


def describe(form: Form) -> dict[str, Any]:
    """One kernel in one form: its constants, each target's answer, and that its execution was exact."""
    launch = launch_of(form)
    targets = {}
    for target in TARGETS:
        accepted = accept(lowered(launch), target)
        if accepted.status:
            targets[target] = {"accepted": False, "messages": accepted.messages}
        else:
            limit = accepted.limit("UB_SIZE") // 8
            targets[target] = {"accepted": True, "on_chip_bytes": accepted.on_chip_bytes(), "on_chip_limit": limit}
    for batch in BATCHES:
        for at_end in (True, False):
            check_execution(form, batch, programs=3, at_end=at_end)
    return {
        "kernel": form.kernel,
        "geometry": form.geometry,
        "dtype": form.dtype,
        "constants": dict(launch.constants),
        "lowered": True,
        "targets": targets,
        "executed": sorted(BATCHES),
    }


def build() -> dict[str, Any]:
    """The whole record.

    Raises:
        AssertionError, MemoryError: a kernel's execution is not exact or leaves its tensors: there is no record then.
        subprocess.CalledProcessError: a kernel does not lower.
    """
    return {
        "meaning": MEANING,
        "versions": {name: version(name) for name in ("triton-ascend", "ascendnpu-ir", "llvmlite")},
        "sources": {name: hashlib.sha256((PACKAGE / name).read_bytes()).hexdigest() for name in SOURCES},
        "kernels": [describe(form) for form in forms()],
    }


if __name__ == "__main__":
    RECORD.write_text(json.dumps(build(), indent=1) + "\n", encoding="utf-8")
    print(f"{RECORD}: {len(forms())} kernels")
