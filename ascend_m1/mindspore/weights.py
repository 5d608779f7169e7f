"""A checkpoint's tensors as NumPy arrays, one at a time, after a look at the headers of its shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore  # noqa: F401  (makes NumPy know bfloat16, which safetensors asks it for)
import numpy as np
from safetensors import safe_open

from ..checkpoint_files import check_tensors, published_shapes
from ..configuration_baichuan_m1 import BaichuanM1Config


class Weights:
    """The tensors of a directory in the published format.

    Raises:
        CheckpointError: a shard is missing or corrupt, a tensor is missing, unknown or has another shape.
    """

    def __init__(self, folder: Path, config: BaichuanM1Config) -> None:
        stored = check_tensors(folder, published_shapes(config), config)
        self._shard_of = {name: shard for name, (_, shard) in stored.items()}
        self._open: dict[Path, Any] = {}

    def read(self, name: str) -> Any:
        """The tensor in float32."""
        shard = self._shard_of[name]
        if shard not in self._open:
            self._open[shard] = safe_open(shard, framework="np")
        return self._open[shard].get_tensor(name).astype(np.float32)
