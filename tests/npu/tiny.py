"""A tiny model of both layer kinds, its batches, and what the NPU's training is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1_ops.testing import rounding

WINDOW, VOCAB, COLUMNS = 6, 61, 20
ENDS = [[7, 16, 20], [2, 3, 18]]  # documents shorter and longer than the window, of one token, and a tail
# How far gradients may be from float64's, relative to their norm, in roundings of the dtype: of each matrix or norm,
# and of the convolution's taps together, whose sums over all tokens nearly cancel. The NPU's operators round at other
# places than the CPU's: over a few dozen in a row, the worst of 28 random cases had 14 and 31 here and 19 and 45 on the
# CPU in float32; in 16 bits, where sums are float32, 6 and 10 here and 5 and 12 on the CPU.
ROUNDINGS = {torch.float32: (32, 96), torch.bfloat16: (16, 32), torch.float16: (16, 32)}


def config(**changes: Any) -> BaichuanM1Config:
    fields: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "num_swa_attention_heads": 6,
        "num_swa_key_value_heads": 2,
        "sliding_window": WINDOW,
        "sliding_window_layers": [1],
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "initializer_range": 0.1,  # attention far from uniform: a wrong key or mask shows
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return BaichuanM1Config(**{**fields, **changes})


def model(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> BaichuanM1ForCausalLM:
    """In training mode, on the CPU; the same weights for the same seed, rounded to ``dtype``."""
    torch.manual_seed(seed)
    made: BaichuanM1ForCausalLM = BaichuanM1ForCausalLM(config(**changes)).to(dtype).train()
    return made


def tokens(rows: int = 2, columns: int = COLUMNS, seed: int = 1) -> Tensor:
    """[rows, columns] of random ids without special ones."""
    return torch.randint(3, VOCAB, (rows, columns), generator=torch.Generator().manual_seed(seed))


def _padded(left: bool) -> dict[str, Tensor]:
    ids, mask = tokens(3), torch.zeros(3, COLUMNS, dtype=torch.int64)
    for row, length in enumerate((COLUMNS, 9, 1)):
        mask[row, COLUMNS - length if left else 0 : COLUMNS if left else length] = 1
    return {"input_ids": ids * mask, "labels": ids.masked_fill(mask == 0, -100), "attention_mask": mask}


def _restarting() -> Tensor:
    rows = []
    for ends in ENDS:
        sizes = torch.tensor([0, *ends, COLUMNS]).diff().tolist()
        rows.append(torch.cat([torch.arange(size) for size in sizes]))
    return torch.stack(rows)


def batches() -> dict[str, dict[str, Tensor]]:
    """Every form in which rows are trained on: input_ids, labels [batch, columns] and what tells them apart."""
    ids = tokens()
    labels = ids.clone()
    labels[:, 4:6] = -100
    rows = {"input_ids": ids, "labels": labels}
    one = {name: tensor[:1] for name, tensor in rows.items()}
    tail = torch.ones(2, COLUMNS, dtype=torch.int64)
    tail[:, 16:] = 0
    return {
        "whole": rows,
        "left-padded": _padded(left=True),
        "right-padded": _padded(left=False),
        "seqlens": {**rows, "seqlens": torch.tensor(ENDS)},
        "cu_seqlens": {**one, "cu_seqlens": torch.tensor([0, *ENDS[0]])},
        "position_ids": {**rows, "position_ids": _restarting()},
        "packed and padded": {**rows, "seqlens": torch.tensor([[7, 16], [2, 16]]), "attention_mask": tail},
    }


def to_npu(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("npu") for name, tensor in batch.items()}


def gradients(lm: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and every parameter's gradient, on the CPU."""
    lm.zero_grad()
    loss = lm(**batch).loss
    loss.backward()
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
    return loss.detach().cpu(), {name: p.grad.cpu().clone() for name, p in lm.named_parameters() if p.grad is not None}


def error(actual: Tensor, exact: Tensor) -> float:
    """Distance relative to the norm of the exact tensor."""
    exact = exact.double()
    return float((actual.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def assert_close_to(exact: dict[str, Tensor], actual: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Gradients by parameter, within ``ROUNDINGS``."""
    assert exact.keys() == actual.keys()
    one, taps = ROUNDINGS[dtype]
    errors = {n: error(actual[n], exact[n]) / rounding(dtype) for n in exact if "conv_" not in n}
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] <= one, f"{worst} is {errors[worst]:.0f} roundings of {dtype} off"
    together = [torch.cat([g[n].flatten() for n in exact if "conv_" in n]) for g in (actual, exact)]
    off = error(*together) / rounding(dtype)
    assert off <= taps, f"the taps are {off:.0f} roundings of {dtype} off"
