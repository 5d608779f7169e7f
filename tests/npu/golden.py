"""The golden checkpoints on the npu device."""

from __future__ import annotations

from functools import lru_cache

import torch

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1_ops.testing import rounding

from ..model.golden import CASES, ROOT, TOLERANCE, load_prompts, max_error

__all__ = ["CASES", "LOW_PRECISION", "TOLERANCE", "allowed", "load", "load_prompts", "max_error", "same_tokens"]

LOW_PRECISION = [torch.float16, torch.bfloat16]


@lru_cache
def load(case: str, dtype: torch.dtype = torch.float32, device: str = "npu") -> BaichuanM1ForCausalLM:
    return BaichuanM1ForCausalLM.from_pretrained(ROOT / case, dtype=dtype).to(device).eval()


def allowed(dtype: torch.dtype, size: float, layers: int) -> float:
    """How far two computations in 16 bits may be apart at a result of this size.

    A layer rounds about ten intermediate results; the vendor's fused operators keep some of them in float32, so the
    roundings are not the same ones. They add up like a random walk: sqrt(10 · layers) of them, at twice their size for
    the residual stream's largest numbers.
    """
    return 2 * (10 * layers) ** 0.5 * rounding(dtype) * size


def same_tokens(got: list[int], expected: list[int], logits: torch.Tensor, tolerance: float) -> None:
    """Equal, or at the first difference both tokens' logits ([steps, vocab], along ``expected``) within rounding."""
    for step, (a, b) in enumerate(zip(got, expected, strict=True)):
        if a != b:
            gap = (logits[step, b] - logits[step, a]).item()
            assert gap <= tolerance, f"step {step}: {a} instead of {b}, {gap} below it"
            return
