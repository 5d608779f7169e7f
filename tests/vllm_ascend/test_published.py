"""The cache of the published geometry in vllm-ascend."""

from __future__ import annotations

from pathlib import Path

from ..vllm.published import check_pages, published_job
from .engine import answer


def test_the_cache_is_as_large_as_planned(tmp_path: Path) -> None:
    check_pages(answer(published_job(tmp_path, gpu_memory_utilization=0.3), tmp_path), tmp_path)
