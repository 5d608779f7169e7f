"""The machine a benchmark ran on, and what it can do at best: read memory, multiply matrices."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import transformers
from torch import Tensor

_TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile", "asimd", "sve", "bf16")
_SQUARE = 4096


def describe_machine() -> dict[str, str]:
    """Processor, memory, load and versions, for people."""
    info = _proc_fields(Path("/proc/cpuinfo"))
    flags = set((info.get("flags") or info.get("Features") or "").split())
    model = info.get("model name") or platform.processor() or platform.machine()
    memory = _proc_fields(Path("/proc/meminfo")).get("MemTotal", "0 kB").split()[0]
    return {
        "processor": f"{model}, {os.cpu_count()} cores; threads used: {torch.get_num_threads()}",
        "instructions": " ".join(flag for flag in _TELLING_FLAGS if flag in flags) or "unknown",
        "memory": f"{int(memory) / 2**20:.1f} GiB",
        "load": " ".join(f"{value:.1f}" for value in os.getloadavg()) + " (1, 5, 15 minutes, before the run)",
        "versions": (
            f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
        ),
    }


def read_probe(tensors: Iterable[Tensor]) -> tuple[Callable[[], object], int]:
    """A call that reads every matrix of ``tensors`` once, in products with a vector, and how many bytes these are."""
    matrices = [tensor.detach() for tensor in tensors if tensor.dim() == 2]
    vectors = {width: torch.ones(width, dtype=matrices[0].dtype) for width in {m.shape[1] for m in matrices}}
    return lambda: [torch.mv(m, vectors[m.shape[1]]) for m in matrices], sum(m.nbytes for m in matrices)


def matmul_probe(dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """A large square product, weight transposed as in a linear layer, and its floating-point operations."""
    x, weight = (torch.randn(_SQUARE, _SQUARE).to(dtype) for _ in range(2))
    return lambda: torch.nn.functional.linear(x, weight), 2 * _SQUARE**3


def _proc_fields(path: Path) -> dict[str, str]:
    """The first value of each ``name : value`` line; empty where the system has no such file."""
    fields: dict[str, str] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            name, colon, value = line.partition(":")
            if colon:
                fields.setdefault(name.strip(), value.strip())
    return fields
