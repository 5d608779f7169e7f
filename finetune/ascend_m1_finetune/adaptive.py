"""Updates whose gradient is far too large are left out, instead of being clipped.

The published training method calls this dynamic gradient clipping and gives no rule; the rule here is ours:

    skip      if norm > factor · mean
    mean     += (min(norm, factor · mean) - mean) / min(n, memory)        n: norms so far, this one included

A skipped norm counts as ``factor · mean``: one outlier hardly moves the mean, and a gradient that stays large is
accepted after a while. A norm that is not finite is skipped and does not count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ascend_m1.errors import InputError

_NAME = "AdaptiveUpdate"  # under which the Trainer stores the callback's state


@dataclass
class RunningNorm:
    """The rule, and what it remembers of the gradients' norms.

    Attributes:
        factor: times the mean from which on a norm is an outlier.
        memory: norms that the mean looks back on.
        warmup: norms that are accepted at first, whatever they are.
        count, mean: of the norms so far.
    """

    factor: float
    memory: int
    warmup: int
    count: int = 0
    mean: float = 0.0

    def accept(self, norm: float) -> bool:
        """Whether to make the update; remembers the norm."""
        if not math.isfinite(norm):
            return False
        limit = math.inf if self.count < self.warmup or self.mean == 0.0 else self.factor * self.mean
        self.count += 1
        self.mean += (min(norm, limit) - self.mean) / min(self.count, self.memory)
        return norm <= limit


class AdaptiveUpdate(TrainerCallback, ExportableState):
    """The rule in transformers' Trainer: a skipped update changes neither weights nor the optimiser's state.

    The learning rate moves on, for it is a function of the step. What the rule remembers is in every checkpoint's
    trainer_state.json; a resumed run takes it up by itself. Logs get ``skipped_updates``, a count from the start.

    It holds for one device, DDP and FSDP2, where every process has the same norm and so decides alike.

    Args:
        factor, memory, warmup: see ``RunningNorm``.

    Raises:
        InputError: a number is out of range; from ``on_train_begin``: another setting of the Trainer contradicts.
    """

    def __init__(self, factor: float = 4.0, memory: int = 100, warmup: int = 10) -> None:
        if not (1.0 < factor < math.inf and memory >= 1 and warmup >= 1):
            raise InputError(
                f"adaptive update with factor={factor}, memory={memory}, warmup={warmup}: "
                "give a factor above 1, and 1 or more of the others"
            )
        self.norms = RunningNorm(factor, memory, warmup)
        self.skipped = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, in the Trainer's form."""
        rule = self.norms
        made_of = {"factor": rule.factor, "memory": rule.memory, "warmup": rule.warmup}
        return {"args": made_of, "attributes": {"progress": [rule.count, rule.mean, self.skipped]}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what contradicts, and go on where the checkpoint stopped."""
        _check(args, kwargs["model"], kwargs["optimizer"])
        stored = state.stateful_callbacks.setdefault(_NAME, self.state())
        self.norms.count, self.norms.mean, self.skipped = stored["attributes"]["progress"]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An optimiser of torch leaves a parameter without gradient alone, its moments and decay included."""
        parameters = [p for group in kwargs["optimizer"].param_groups for p in group["params"] if p.grad is not None]
        if not self.norms.accept(_norm([p.grad for p in parameters])):
            self.skipped += 1
            for parameter in parameters:
                parameter.grad = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Into this log for the callbacks that follow, and into the history, which the Trainer has written already."""
        if logs is not None and "loss" in logs:
            logs["skipped_updates"] = state.log_history[-1]["skipped_updates"] = self.skipped


def _norm(gradients: list[Tensor]) -> float:
    norm = torch.nn.utils.get_total_norm(gradients)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _check(args: TrainingArguments, model: Any, optimizer: Any) -> None:
    if args.max_grad_norm:
        raise InputError(
            f"max_grad_norm={args.max_grad_norm} with adaptive update: it skips where the other clips: set it to 0"
        )
    if args.fp16:
        raise InputError("fp16 with adaptive update: its scaled gradients have other norms: use bf16")
    if isinstance(optimizer, DeepSpeedOptimizerWrapper):
        raise InputError("adaptive update with DeepSpeed: it makes its updates by itself: use DDP or FSDP2")
    if isinstance(model, FullyShardedDataParallel):
        raise InputError("adaptive update with FSDP1: processes would decide apart: use fsdp_version 2")
