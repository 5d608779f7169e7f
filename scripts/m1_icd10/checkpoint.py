"""The configuration of m1-icd10 and the writing of its weights, in the published format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ascend_m1 import BaichuanM1Config

from .tokenizer import VOCAB_SIZE

# The published proportions at a small size: hybrid layers, two head geometries, a window that prompts do exceed.
CONFIG: dict[str, Any] = {
    "architectures": ["BaichuanM1ForCausalLM"],
    "model_type": "baichuan_m1",
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_swa_attention_heads": 4,
    "num_swa_key_value_heads": 2,
    "sliding_window": 32,
    "sliding_window_layers": [1, 3],
    "conv_window": 2,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-06,
    "vocab_size": VOCAB_SIZE,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "use_cache": True,
    "initializer_range": 0.02,
    "dtype": "bfloat16",
}
GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "do_sample": False, "max_new_tokens": 128}


def make_config() -> BaichuanM1Config:
    """The configuration as an object, in float32 for training."""
    config: BaichuanM1Config = BaichuanM1Config.from_dict({**CONFIG, "dtype": "float32"})
    return config


def save_model(weights: Mapping[str, Tensor], directory: Path) -> None:
    """Write model.safetensors in bfloat16, config.json and generation_config.json."""
    tensors = {name: value.detach().to(torch.bfloat16).contiguous() for name, value in weights.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", CONFIG), ("generation_config.json", GENERATION)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
