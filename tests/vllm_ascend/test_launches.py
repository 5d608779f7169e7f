"""What a decode step launches, with the fused operator and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..vllm.published import published_job
from .engine import answer, ascend_job, ask

FUSED = "triton:conv_rope_cache_kernel"


@pytest.mark.parametrize(("composed", "expected"), [("", 104), ("1", 170)])
def test_four_published_layers(composed: str, expected: int, tmp_path: Path) -> None:
    job = published_job(tmp_path, gpu_memory_utilization=0.3)
    job.environment.update(COUNT="1", COMPOSED=composed)
    counts = answer(job, tmp_path)
    kernels = {name: count for name, count in counts.items() if name not in {"memcpy", "memset"}}
    print(kernels)
    assert kernels.get(FUSED, 0) == (0 if composed else 4)
    assert sum(kernels.values()) == expected


def test_without_the_fused_operator(tmp_path: Path) -> None:
    job = ascend_job("page-ratio", ("together", "one by one"), enable_prefix_caching=True)
    job.environment["COMPOSED"] = "1"
    ask(job, "page-ratio", tmp_path)
