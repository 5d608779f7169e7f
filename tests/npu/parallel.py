"""Training steps that a group of processes and a single one share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import ascend_m1_hostnpu as hostnpu

from .tiny import COLUMNS, model, to_npu, tokens

STEPS, ROWS = 2, 4


@dataclass(frozen=True)
class Result:
    """Of a process: after each step the mean loss, and the whole weights by name; the launches of the last step."""

    losses: list[float]
    weights: list[dict[str, Tensor]]
    launches: Counter[str]


def plain() -> nn.Module:
    return model(num_hidden_layers=2)


def adapted() -> nn.Module:
    """With an adapter on both attention projections; its halves are not zero, so that both get gradients."""
    base = model(num_hidden_layers=2)
    options = LoraConfig(r=2, target_modules=["W_pack", "o_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(1)
    return get_peft_model(base, options)


def batch_of(rank: int, size: int) -> dict[str, Tensor]:
    """This rank's packed rows. Their labels are not equally many: the loss is divided by the mean count of a rank."""
    ids = tokens(ROWS)
    labels = ids.clone()
    labels[0, :15] = labels[3, 4:9] = -100
    ends = torch.tensor([[7, 16], [2, 20], [20, 20], [5, 11]])
    last = torch.zeros_like(labels, dtype=torch.bool).scatter_(1, ends.clamp_max(COLUMNS - 1), True)
    last[:, 0] = True
    count = int(((labels != -100) & ~last).sum()) / size
    rows = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    batch = {"input_ids": ids[rows], "labels": labels[rows], "seqlens": ends[rows]}
    return {**to_npu(batch), "num_items_in_batch": torch.tensor(count, device="npu")}


def weights(lm: nn.Module) -> dict[str, Tensor]:
    """Trained parameters, on the CPU, gathered if they are sharded."""
    trained = {name: p.detach() for name, p in lm.named_parameters() if p.requires_grad}
    return {name: (p.full_tensor() if hasattr(p, "full_tensor") else p).cpu().clone() for name, p in trained.items()}


def train(
    lm: nn.Module,
    batch: dict[str, Tensor],
    gather: Callable[[], dict[str, Tensor]],
    mean: Callable[[Tensor], Tensor],
) -> Result:
    """Steps of AdamW with clipped gradients."""
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=1e-2, eps=1e-3, fused=True)
    losses, seen = [], []
    for _ in range(STEPS):
        with hostnpu.recording() as log:
            loss = lm(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(lm.parameters(), 0.5)
            optimizer.step()
        losses.append(mean(loss).item())
        seen.append(gather())
    return Result(losses, seen, log.counts())
