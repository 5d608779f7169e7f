"""A checkpoint's weights, checked before they are read, on their device."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from ..adapters import merge_adapter, read_adapter
from ..device import choose_dtype
from ..errors import InputError
from ..modeling_baichuan_m1 import BaichuanM1ForCausalLM
from ..parts import ModelParts
from ..quantization.read import quantised_model, quantised_parts
from ..sampling import honoured
from .checkpoint import Checkpoint, is_quantised
from .options import note


def load_model(
    checkpoint: Checkpoint, device: torch.device, dtype_name: str, adapter: Path | None = None
) -> BaichuanM1ForCausalLM:
    """The model on its device, with the adapter in its weights; tells of a dtype that is not the checkpoint's own."""
    path, config = checkpoint.path, checkpoint.config
    adapted = None if adapter is None else read_adapter(adapter, config)
    dtype = _dtype(checkpoint, device, dtype_name)
    if is_quantised(checkpoint):
        if adapted is not None:
            raise InputError(
                f"--adapter on {path}, which is quantised: give the plain checkpoint as --model, or serve it"
            )
        model = quantised_model(path, config, device, dtype)
        if (path / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    else:
        loaded = BaichuanM1ForCausalLM.from_pretrained(path, config=config, dtype=dtype, local_files_only=True)
        if adapted is not None:
            merge_adapter(loaded, adapted)
        model = loaded.to(device).eval()
    model.generation_config = honoured(model.generation_config)
    return model


def load_quantised(checkpoint: Checkpoint, device: torch.device, dtype_name: str) -> ModelParts:
    """A quantised checkpoint's parts on their device, activations in the dtype; tells of one that is not its own."""
    return quantised_parts(checkpoint.path, checkpoint.config, device, _dtype(checkpoint, device, dtype_name))


def _dtype(checkpoint: Checkpoint, device: torch.device, name: str) -> torch.dtype:
    stored = checkpoint.config.dtype
    dtype, reason = choose_dtype(name, device, stored if isinstance(stored, torch.dtype) else torch.float32)
    if reason is not None:
        note(reason)
    return dtype
