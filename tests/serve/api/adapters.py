"""A LoRA adapter of the model that ships, made and saved by PEFT."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.cli.options import EMBEDDED


def save(folder: Path, seed: int = 0, strength: float = 4.0, r: int = 4) -> Path:
    """Random, and strong enough to change answers."""
    torch.manual_seed(seed)
    model = BaichuanM1ForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    config = LoraConfig(init_lora_weights=False, r=r, lora_alpha=8, target_modules=["W_pack", "down_proj"])
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.mul_(strength)
    adapted.save_pretrained(folder)
    return folder
