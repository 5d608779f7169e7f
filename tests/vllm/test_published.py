"""The cache of the published geometry in vLLM."""

from __future__ import annotations

from pathlib import Path

from .golden import run
from .published import check_pages, published_job


def test_the_cache_is_as_large_as_planned(tmp_path: Path) -> None:
    job = published_job(tmp_path)
    job.environment["VLLM_CPU_KVCACHE_SPACE"] = "1"
    check_pages(run(job, tmp_path), tmp_path)
