"""The golden checkpoints: an independent float64 forward pass' logits and greedy continuations."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ascend_m1 import BaichuanM1ForCausalLM

ROOT = Path(__file__).parent.parent / "golden"
CASES = sorted(path.name for path in ROOT.iterdir() if path.is_dir())
# float32 against float64: the largest error seen is 4e-6; 2e-5 leaves room for other BLAS libraries' summation order.
TOLERANCE = 2e-5


@lru_cache
def load_model(case: str) -> BaichuanM1ForCausalLM:
    return BaichuanM1ForCausalLM.from_pretrained(ROOT / case, dtype=torch.float32)


@lru_cache
def load_prompts(case: str) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """(ids [L], logits [L, vocab], greedy continuation [24]) of each prompt, shortest first."""
    stored = np.load(ROOT / case / "expected.npz")
    lengths = sorted(int(name[4:]) for name in stored.files if name.startswith("ids_"))
    return tuple(
        tuple(torch.from_numpy(stored[f"{kind}_{length}"]) for kind in ("ids", "logits", "greedy"))  # type: ignore[misc]
        for length in lengths
    )


def max_error(actual: Tensor, expected: Tensor) -> float:
    return (actual - expected).abs().max().item()
