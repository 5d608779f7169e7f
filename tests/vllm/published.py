"""Four layers of the published geometry, with random weights, whose cache is followed while a sequence is decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ascend_m1 import BaichuanM1Config
from ascend_m1.plan import make_plan

from .engine import Job


def published_job(folder: Path, **engine: Any) -> Job:
    """A prompt longer than the window, which is shorter than the published one."""
    config = BaichuanM1Config(
        num_hidden_layers=4,
        sliding_window_layers=[1, 3],
        sliding_window=256,
        vocab_size=1024,
        intermediate_size=1024,
        architectures=["BaichuanM1ForCausalLM"],
    )
    config.save_pretrained(folder)
    engine = {"dtype": "bfloat16", "load_format": "dummy", **engine}
    prompt = [token % 1024 for token in range(0, 7 * 390, 7)]
    return Job(str(folder), [prompt], engine=engine, sampling={"max_tokens": 8}, follow_pages=True)


def check_pages(answer: dict[str, Any], folder: Path) -> None:
    """The pages in use at the end are those that the plan names, within 5 %."""
    assert len(answer["tokens"]) == 8
    length, pages = answer["pages"][-1]
    plan = make_plan(BaichuanM1Config.from_pretrained(folder), 1, length, torch.bfloat16)
    used = pages * answer["page_bytes"]
    print(f"{length} tokens: {used:,} bytes in {pages} pages, planned {plan.vllm_cache:,}")
    assert abs(used / plan.vllm_cache - 1) < 0.05
