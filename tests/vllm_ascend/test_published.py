"""Four layers of the published geometry, with random weights: their cache is as large as the plan says."""

from __future__ import annotations

from pathlib import Path

import torch

from ascend_m1 import BaichuanM1Config
from ascend_m1.plan import make_plan

from ..vllm.engine import Job
from .engine import answer


def test_the_cache_is_as_large_as_planned(tmp_path: Path) -> None:
    config = BaichuanM1Config(
        num_hidden_layers=4,
        sliding_window_layers=[1, 3],
        sliding_window=256,
        vocab_size=1024,
        intermediate_size=1024,
        architectures=["BaichuanM1ForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    engine = {"dtype": "bfloat16", "load_format": "dummy", "max_model_len": 512, "gpu_memory_utilization": 0.3}
    prompt = [token % 1024 for token in range(0, 7 * 390, 7)]
    job = Job(str(tmp_path), [prompt], engine=engine, sampling={"max_tokens": 8}, follow_pages=True)
    answered = answer(job, tmp_path)
    assert len(answered["tokens"]) == 8
    length, pages = answered["pages"][-1]
    plan = make_plan(config, 1, length, torch.bfloat16)
    used = pages * answered["page_bytes"]
    print(f"{length} tokens: {used:,} bytes in {pages} pages, planned {plan.vllm_cache:,}")
    assert abs(used / plan.vllm_cache - 1) < 0.05
