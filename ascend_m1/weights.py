"""A look at a checkpoint before anything is allocated: every tensor there, of the right shape, readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .checkpoint_files import check_tensors, read_json, require_tensor, stored_shapes
from .configuration_baichuan_m1 import BaichuanM1Config
from .errors import ConfigError

_UNQUANTISED = (".conv_k", ".conv_v", "norm.weight")


def check_checkpoint(path: Any, model_class: type, kwargs: dict[str, Any]) -> None:
    """Compare the headers of a local directory's safetensors shards with what the config asks for.

    A name that is not a local directory is left to transformers.

    Raises:
        ConfigError: config.json cannot be used.
        CheckpointError: a shard is missing or corrupt, a tensor is missing, unknown or has another shape.
    """
    folder = Path(str(path))
    if not folder.is_dir():
        return
    folder = folder / (kwargs.get("subfolder") or "")
    config = kwargs.get("config")
    if not isinstance(config, BaichuanM1Config):
        config = BaichuanM1Config.from_dict(read_json(folder / "config.json"))
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            "quantization_config: a quantised checkpoint is for `ascend-m1` generate, chat and serve, or for vLLM: "
            "give the original one here"
        )
    prefix = getattr(model_class, "base_model_prefix", "")
    # A checkpoint of the base model has no prefix, one with a head has; either loads into either class.
    check_tensors(folder, expected_shapes(config, model_class), config, f"{prefix}.")


def check_unquantised(folder: Path, model_class: type, config: BaichuanM1Config) -> None:
    """As ``check_checkpoint``, of a quantised directory's norms and filters, which no method quantises."""
    shapes = stored_shapes(folder, dtypes=None)
    for name, shape in expected_shapes(config, model_class).items():
        if name.endswith(_UNQUANTISED):
            require_tensor(folder, name, shape, shapes.get(name))


def expected_shapes(config: BaichuanM1Config, model_class: Any) -> dict[str, tuple[int, ...]]:
    """Of every tensor that the model has."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in model_class(config).state_dict().items()}
