"""What is installed and visible here: package versions, CPU, devices, CANN; and what is missing for which use.

Versions are read from package metadata, so nothing heavy is imported and nothing broken is run; devices are torch's.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = ("ascend-m1", "torch", "transformers", "safetensors", "torch-npu", "mindspore", "vllm", "vllm-ascend")
TOOLKIT_VARIABLES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
HOST_NPU = "ascend_m1_hostnpu"  # loaded: the NPU that torch sees is no device, but a stand-in for CANN
# Where Ascend's installers put things unless told otherwise.
ASCEND_FOLDER = Path("/usr/local/Ascend")
_CPUINFO = Path("/proc/cpuinfo")
_NO_TORCH = "torch not installed: `generate --backend mindspore` and `mindir` do without"
MATRIX_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "amx_fp16",
    "asimd",
    "asimdhp",
    "sve",
    "i8mm",
    "bf16",
)


def describe() -> dict[str, Any]:
    """Everything, as plain values for JSON."""
    problem = npu_problem()  # first: whoever looks for torch_npu on a host NPU loads its stand-ins
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: installed(name) for name in PACKAGES},
        "cpu": cpu(),
        "devices": visible_devices(),
        "ascend": {"toolkit": toolkit(), "driver": driver(), "npu-smi": shutil.which("npu-smi")},
        "torch_problem": torch_problem(),
        "npu_problem": problem,
        "host_npu": HOST_NPU in sys.modules,
        "extras": missing_by_extra(),
    }


def installed(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu() -> dict[str, Any]:
    """Cores that this process may use, memory in bytes, and the flags that matter for matrix products."""
    try:
        cores = len(os.sched_getaffinity(0))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not Linux
        cores, memory = os.cpu_count() or 1, None
    flags = cpu_flags()
    return {
        "cores": cores,
        "memory": memory,
        "flags": [flag for flag in MATRIX_FLAGS if flag in flags],
        "fast_bfloat16": bool(flags & {"amx_bf16", "avx512_bf16", "bf16"}),
    }


def cpu_flags() -> set[str]:
    """What the processor says it can do; empty where the system does not tell."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    matched = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(matched[1].split()) if matched else set()


def torch_problem() -> str | None:
    """What cannot be used without torch; None: it is installed."""
    return _NO_TORCH if find_spec("torch") is None else None


def npu_problem() -> str | None:
    """Why torch can use no NPU and what to do; None: it can."""
    if torch_problem() is not None:
        return torch_problem()
    from . import device

    return device.npu_problem()


def visible_devices() -> list[str]:
    """Names of all devices that torch can use here, the CPU first."""
    if torch_problem() is not None:
        return []
    from . import device

    return device.visible_devices()


def toolkit() -> dict[str, str | None] | None:
    """Folder and version of the CANN toolkit; None: not found."""
    named = [os.environ[name] for name in TOOLKIT_VARIABLES if os.environ.get(name)]
    for folder in [*map(Path, named), ASCEND_FOLDER / "ascend-toolkit" / "latest", ASCEND_FOLDER / "cann"]:
        if folder.is_dir():
            files = [*folder.glob("*/ascend_toolkit_install.info"), folder / "version.cfg", folder / "version.info"]
            found = (file_version(path) for path in files)
            return {"path": str(folder), "version": next((text for text in found if text), None)}
    return None


def driver() -> str | None:
    """Version of the Ascend driver; None: not found."""
    return file_version(ASCEND_FOLDER / "driver" / "version.info")


def file_version(path: Path) -> str | None:
    """The version in one of Ascend's files: ``version=8.0.0``, ``Version=24.1`` or ``…_running_version=[x:8.0.0]``."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    matched = re.search(r"version\s*=\s*\[?(?:[^\]\s:]*:)?([^\]\s]+)", text, re.IGNORECASE)
    return matched[1] if matched else None


def missing_by_extra() -> dict[str, list[str]]:
    """For each extra of this distribution, which of its packages are not installed."""
    try:
        lines = requires("ascend-m1") or []
    except PackageNotFoundError:
        return {}
    missing: dict[str, list[str]] = {}
    for line in lines:
        matched = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", line)
        name = re.match(r"[A-Za-z0-9._-]+", line)
        if matched and name:
            absent = missing.setdefault(matched[1], [])
            if installed(name[0]) is None:
                absent.append(name[0])
    return missing
