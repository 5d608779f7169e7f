"""The warm-up / stable / decay (WSD) learning-rate schedule as an exact function of the step.

It knows the step count only: no optimiser state, so a resumed run continues on the same curve.
"""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ascend_m1.errors import InputError


def wsd_multiplier(step: int, warmup: int, total: int, decay: int, min_ratio: float = 0.0) -> float:
    """Factor of the peak learning rate at ``step``, counted from 0.

    The three phases cover ``[0, warmup)``, ``[warmup, total - decay)`` and ``[total - decay, total)``. Warm-up
    rises linearly and its first step is already positive (``1 / warmup``), so no step is wasted; the decay is
    linear too and reaches ``min_ratio`` exactly at ``step == total``, after the last update.

    Args:
        step: index of the update, from 0; past ``total`` the factor stays at ``min_ratio``.
        warmup: updates of the warm-up; 0 starts at the peak.
        total: updates of the whole run.
        decay: updates of the decay; 0 keeps the peak until the end.
        min_ratio: factor at the end of the decay, from 0 to 1.

    Raises:
        InputError: a length is negative, the phases do not fit ``total``, or ``min_ratio`` is outside [0, 1].
    """
    _check(step, warmup, total, decay, min_ratio)
    if step >= total:
        return min_ratio if decay else 1.0
    if step < warmup:
        return (step + 1) / warmup
    left = total - step
    if left >= decay:
        return 1.0
    return min_ratio + (1.0 - min_ratio) * left / decay


def wsd_lambda_lr(optimizer: Optimizer, warmup: int, total: int, decay: int, min_ratio: float = 0.0) -> LambdaLR:
    """A torch scheduler that multiplies each group's learning rate by ``wsd_multiplier``; step it once per update.

    Raises:
        InputError: as ``wsd_multiplier``.
    """
    return LambdaLR(optimizer, lambda step: wsd_multiplier(step, warmup, total, decay, min_ratio))


def _check(step: int, warmup: int, total: int, decay: int, min_ratio: float) -> None:
    if min(step, warmup, decay) < 0:
        raise InputError(f"step={step}, warmup={warmup}, decay={decay}: give numbers from 0 upwards")
    if total <= 0 or warmup + decay > total:
        raise InputError(f"warmup={warmup} + decay={decay} do not fit total={total}: shorten them or train longer")
    if not 0.0 <= min_ratio <= 1.0:
        raise InputError(f"min_ratio={min_ratio}: give a number from 0 to 1")
