"""Starts a probe for each product, several at a time, and gathers what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..device import npu_problem
from ..environment import HOST_NPU, cpu, installed
from ..errors import DeviceError, InputError

# Products by the table's names, and the names by which the host NPU knows them.
HOST_NAMES = {"A2": "910B", "A3": "A3", "310P": "310P", "950": "950"}
CHIPS = {"A2": "910B", "A3": "910_93", "310P": "310P", "950": "950"}  # how the device's name begins, after Ascend
_PROBE = "from ascend_m1.verify.probe import main; main()"
_MISSING = (
    "torch-npu is not installed: install the extra [npu]; without an NPU it then runs on a host stand-in for CANN"
)


def verify(products: Sequence[str], tell: Callable[[str], None]) -> dict[str, Any]:
    """Everything: versions, where it ran, and each product's findings.

    Args:
        products: as ``known`` takes them; empty: all on the host NPU, the machine's own on an NPU.
        tell: told what is going on.

    Raises:
        DeviceError: torch-npu is missing.
        InputError: a product is unknown, or not that of this machine's NPU.
    """
    products = list(dict.fromkeys(known(name) for name in products))
    if find_spec("torch_npu") is None:
        raise DeviceError(_MISSING)
    found: dict[str, Any] = {"torch-npu": version("torch-npu"), "triton": installed("triton"), "host_npu": host_npu()}
    if found["host_npu"]:
        names = products or list(HOST_NAMES)
        tell(f"torch-npu {found['torch-npu']} on the host NPU, a process for each of {', '.join(names)}")
        with ThreadPoolExecutor(min(len(names), int(cpu()["cores"]))) as pool:
            results = list(pool.map(partial(probe, host=True), names))
    else:
        results = [probe("", host=False)]
        names = [results[0]["product"] or "this NPU"]  # none: it died before it knew
        if products and results[0]["product"] and products != names:
            raise InputError(f"product {', '.join(products)}: this machine's NPU is {names[0]}: leave --product out")
    return found | {"products": dict(zip(names, results, strict=True))}


def known(name: str) -> str:
    """The table's name of a product that is named by it, by its chip (910B, 910_93), or as torch_npu names the device.

    Raises:
        InputError: it is no product of the table.
    """
    chip = name.upper().removeprefix("ASCEND")
    for product, prefix in CHIPS.items():
        if chip == product or chip.startswith(prefix):
            return product
    both = ", ".join(f"{product} ({chip})" if chip != product else product for product, chip in CHIPS.items())
    raise InputError(f"product {name!r} is not known: use {both}")


def host_npu() -> bool:
    """Whether the host NPU stands in here: it is loaded already, or torch_npu finds no device of its own."""
    return HOST_NPU in sys.modules or npu_problem() is not None


def probe(product: str, host: bool) -> dict[str, Any]:
    """One product in a process of its own; a process that dies is a finding, too."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment.setdefault("OMP_NUM_THREADS", "1")
    program = _PROBE
    if host:
        environment["HOSTNPU_PRODUCT"] = HOST_NAMES[product]
        program = f"import {HOST_NPU}; {_PROBE}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        # Progress passes through, warnings of the libraries do not.
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, str(path)],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        ) as child:  # fmt: skip
            last = follow(child)
        result: dict[str, Any] = {"product": product, "calls": [], "graphs": {}}
        if path.exists():
            result = json.loads(path.read_text(encoding="utf-8"))
    if child.returncode:
        reason = f"signal {-child.returncode}" if child.returncode < 0 else f"status {child.returncode}"
        result["died"] = f"the process ended with {reason}: {last}"
    return result


def follow(child: subprocess.Popen[str]) -> str:
    """Pass on the progress of a probe; returns its last other line."""
    assert child.stderr is not None
    last = ""
    for line in child.stderr:
        if line.startswith("ascend-m1: "):
            print(line, end="", file=sys.stderr, flush=True)
        elif line.strip():
            last = line.strip()
    return last
