"""The golden checkpoints on the npu device, and how near to them 16 bits must be."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

from ascend_m1 import BaichuanM1ForCausalLM, M1Cache

from ..model.golden import CASES, ROOT, TOLERANCE, load_prompts, max_error

__all__ = [
    "CASES",
    "LOW_PRECISION",
    "TOLERANCE",
    "along_the_golden",
    "assert_as_near",
    "assert_same_choices",
    "exact_logits",
    "load",
    "load_prompts",
    "max_error",
]

LOW_PRECISION = [torch.float16, torch.bfloat16]
# How much farther from float32 the device's logits may be than the CPU's in the same 16-bit dtype: in the mean over all
# of them, and the farthest one. The vendor's fused operators round at other places than the CPU's, not more often. Seen
# in all cases: 0.90 to 1.06, and 0.78 to 1.36. A value's tap off by a tenth in one layer makes 1.4 of the first.
RMS, WORST = 1.2, 1.5


@lru_cache
def load(case: str, dtype: torch.dtype = torch.float32, device: str = "npu") -> BaichuanM1ForCausalLM:
    return BaichuanM1ForCausalLM.from_pretrained(ROOT / case, dtype=dtype).to(device).eval()


def exact_logits(case: str, ids: Tensor) -> Tensor:
    """[tokens, vocab] of a text [tokens] by the golden model in float32 on the CPU (``TOLERANCE`` from float64's)."""
    with torch.inference_mode():
        logits: Tensor = load(case, torch.float32, "cpu")(ids[None]).logits[0]
    return logits


def assert_as_near(device: Iterable[Tensor], cpu: Iterable[Tensor], exact: Iterable[Tensor]) -> None:
    """The device's 16-bit logits are as near to the exact ones as the CPU's, see ``RMS`` and ``WORST``."""
    got, peer, right = (torch.cat([part.flatten() for part in parts]).float().cpu() for parts in (device, cpu, exact))
    rms, worst = (size(got - right) / size(peer - right) for size in (_rms, lambda off: off.abs().max().item()))
    assert rms <= RMS, f"{rms:.2f} times as far from float32 as the CPU"
    assert worst <= WORST, f"the worst logit is {worst:.2f} times as far from float32 as the CPU's"


def assert_same_choices(got: list[int], expected: list[int], exact: Tensor, cpu: Tensor) -> None:
    """Equal tokens; or at the first difference two choices that rounding can exchange.

    Args:
        got: the device's tokens. expected: the CPU's in the same 16-bit dtype.
        exact, cpu: logits [steps, vocab] along ``expected`` in float32 and in that dtype. Each of the two choices may
            be off by ``WORST`` times the CPU's farthest error.
    """
    for step, (a, b) in enumerate(zip(got, expected, strict=True)):
        if a != b:
            gap = (exact[step, b] - exact[step, a]).abs().item()
            allowed = 2 * WORST * (cpu.float() - exact).abs().max().item()
            assert gap <= allowed, f"step {step}: {a} instead of {b}, {gap:.4g} apart, {allowed:.4g} can be rounding"
            return


def _rms(off: Tensor) -> float:
    return off.square().mean().sqrt().item()


def along_the_golden(model: BaichuanM1ForCausalLM, prompts: list[Tensor], continuations: list[Tensor]) -> list[Tensor]:
    """Decoding a left-padded batch step by step, fed with the golden token whatever came out: every step counts.

    Returns:
        For each prompt [tokens] the logits [steps, vocab] of its continuation [steps], on the CPU.
    """
    width, device = max(len(ids) for ids in prompts), model.device
    batch = torch.stack([torch.cat([ids.new_zeros(width - len(ids)), ids]) for ids in prompts]).to(device)
    mask = torch.stack([(torch.arange(width) >= width - len(ids)).long() for ids in prompts]).to(device)
    cache, rows = M1Cache(model.config), []
    for column in (batch, *torch.stack(continuations)[:, :-1, None].to(device).unbind(1)):
        if rows:
            mask = torch.cat([mask, torch.ones_like(column)], dim=1)
        rows.append(model(column, attention_mask=mask, cache=cache).logits[:, -1].float().cpu())
    return list(torch.stack(rows, dim=1))
