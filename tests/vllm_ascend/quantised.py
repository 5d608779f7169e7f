"""Checkpoints as ModelSlim writes them, from the model that ships, and the weights that they stand for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..vllm.quantised import LINEAR, rounded


def write(source: Path, folder: Path, kind: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Write int8 numbers, and scales of ``dtype``, one for each row, of matrices ``kind`` (W8A8_DYNAMIC or W8A16).

    Returns:
        The float32 weights that it stands for.
    """
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.png", "*.md", "training.json"))
    stored, meant, description = {}, {}, {"model_quant_type": kind}
    for name, weight in load_file(source / "model.safetensors").items():
        stored[name], meant[name], description[name] = weight, weight.float(), "FLOAT"
        if name.endswith(LINEAR):
            numbers, scales = rounded(weight, 8, weight.shape[1])
            scales = scales.to(dtype)
            meant[name] = numbers.float() * scales.float()
            part = name.removesuffix(".weight")
            stored[name] = numbers
            stored[f"{part}.weight_scale"], stored[f"{part}.weight_offset"] = scales, torch.zeros_like(scales)
            description |= dict.fromkeys((name, f"{part}.weight_scale", f"{part}.weight_offset"), kind)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "quant_model_description.json").write_text(json.dumps(description))
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantize": kind.lower()}))
    return meant
