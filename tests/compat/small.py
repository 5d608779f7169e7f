"""Small random models, in float64 so that equal means equal and a wrong key or mask shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM

WINDOW = 6
VOCAB = 61


def config(**changes: Any) -> BaichuanM1Config:
    fields: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "num_swa_attention_heads": 6,
        "num_swa_key_value_heads": 2,
        "sliding_window": WINDOW,
        "max_position_embeddings": 128,
        "rope_theta": 10000.0,
        "initializer_range": 0.3,  # attention far from uniform
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return BaichuanM1Config(**{**fields, **changes})


def model(seed: int = 0, **changes: Any) -> BaichuanM1ForCausalLM:
    torch.manual_seed(seed)
    made: BaichuanM1ForCausalLM = BaichuanM1ForCausalLM(config(**changes)).double().eval()
    return made


def ids(*lengths: int) -> list[Tensor]:
    """Random prompts [1, length] without special tokens."""
    return [torch.randint(3, VOCAB, (1, length)) for length in lengths]


def left_padded(prompts: list[Tensor]) -> dict[str, Tensor]:
    """One batch with its attention mask."""
    width = max(prompt.shape[1] for prompt in prompts)
    batch, mask = torch.zeros(2, len(prompts), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        batch[row, width - prompt.shape[1] :] = prompt
        mask[row, width - prompt.shape[1] :] = 1
    return {"input_ids": batch, "attention_mask": mask}
