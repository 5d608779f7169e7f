"""The machine a benchmark runs on, in words; needs none of the libraries that are measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile", "asimd", "sve", "bf16")


def describe_hardware(threads: int, versions: str) -> dict[str, str]:
    """Processor, memory, load and versions, for people."""
    info = _proc_fields(Path("/proc/cpuinfo"))
    flags = set((info.get("flags") or info.get("Features") or "").split())
    model = info.get("model name") or platform.processor() or platform.machine()
    memory = _proc_fields(Path("/proc/meminfo")).get("MemTotal", "0 kB").split()[0]
    return {
        "processor": f"{model}, {os.cpu_count()} cores; threads used: {threads}",
        "instructions": " ".join(flag for flag in _TELLING_FLAGS if flag in flags) or "unknown",
        "memory": f"{int(memory) / 2**20:.1f} GiB",
        "load": " ".join(f"{value:.1f}" for value in os.getloadavg()) + " (1, 5, 15 minutes, before the run)",
        "versions": f"Python {platform.python_version()}, {versions}",
    }


def _proc_fields(path: Path) -> dict[str, str]:
    """The first value of each ``name : value`` line; empty where the system has no such file."""
    fields: dict[str, str] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            name, colon, value = line.partition(":")
            if colon:
                fields.setdefault(name.strip(), value.strip())
    return fields
