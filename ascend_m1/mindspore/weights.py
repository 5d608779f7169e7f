"""A checkpoint's tensors as NumPy arrays, one at a time, after a look at the headers of its shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore  # noqa: F401  (makes NumPy know bfloat16, which safetensors asks it for)
import numpy as np
from safetensors import safe_open

from ..checkpoint_files import require_tensor, stored_shapes
from ..configuration_baichuan_m1 import BaichuanM1Config


def checkpoint_shapes(config: BaichuanM1Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the published format."""
    hidden, wide = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config.vocab_size, hidden),
    }
    for index, spec in enumerate(config.layer_specs):
        name = f"model.layers.{index}"
        shapes |= {
            f"{name}.input_layernorm.weight": (hidden,),
            f"{name}.post_attention_layernorm.weight": (hidden,),
            f"{name}.self_attn.W_pack.weight": (spec.q_size + 2 * spec.kv_size, hidden),
            f"{name}.self_attn.o_proj.weight": (hidden, spec.q_size),
            f"{name}.self_attn.conv_k": (1, 1, spec.kv_heads, 1, config.conv_window),
            f"{name}.self_attn.conv_v": (1, 1, spec.kv_heads, 1, config.conv_window),
            f"{name}.mlp.gate_proj.weight": (wide, hidden),
            f"{name}.mlp.up_proj.weight": (wide, hidden),
            f"{name}.mlp.down_proj.weight": (hidden, wide),
        }
    return shapes


class Weights:
    """The tensors of a directory in the published format.

    Raises:
        CheckpointError: a shard is missing or corrupt, a tensor is missing or has another shape.
    """

    def __init__(self, folder: Path, config: BaichuanM1Config) -> None:
        stored = stored_shapes(folder)
        for name, shape in checkpoint_shapes(config).items():
            require_tensor(folder, name, shape, stored.get(name))
        self._shard_of = {name: shard for name, (_, shard) in stored.items()}
        self._open: dict[Path, Any] = {}

    def read(self, name: str) -> Any:
        """The tensor in float32."""
        shard = self._shard_of[name]
        if shard not in self._open:
            self._open[shard] = safe_open(shard, framework="np")
        return self._open[shard].get_tensor(name).astype(np.float32)
