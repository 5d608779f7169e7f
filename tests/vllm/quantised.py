"""Checkpoints in the format of compressed-tensors, from the model that ships, the weights that they stand for, and what
it is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

MODEL = Path(__file__).parents[2] / "ascend_m1/checkpoints/m1_icd10"
ANSWERS = {"J45": "Asthma", "E11": "Type 2 diabetes mellitus", "A00": "Cholera"}
GROUP = 32
LINEAR = (".W_pack.weight", ".o_proj.weight", ".gate_proj.weight", ".up_proj.weight", ".down_proj.weight")


def questions() -> list[list[int]]:
    """The prompts, in tokens, that ANSWERS answers."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    chats = [[{"role": "user", "content": f"What does ICD-10-CM code {code} mean?"}] for code in ANSWERS]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]


def rounded(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """weight [out, in] -> whole numbers int8 [out, in], scales [out, in / group]."""
    pieces = weight.float().unflatten(1, (-1, group))
    scales = pieces.abs().amax(-1) / (2 ** (bits - 1) - 1)
    return (pieces / scales[..., None]).round().to(torch.int8).flatten(1), scales


def packed(numbers: Tensor, bits: int) -> Tensor:
    """Signed int8 [out, in] -> int32 [out, in · bits / 32], the first number in the lowest bits, from zero up."""
    pieces = (numbers.long() + 2 ** (bits - 1)).unflatten(1, (-1, 32 // bits))
    return (pieces << torch.arange(0, 32, bits)).sum(-1).to(torch.uint32).view(torch.int32)


def write(source: Path, folder: Path, bits: int, activations: bool) -> dict[str, Tensor]:
    """Write a checkpoint: whole numbers in groups of 32 inputs, or of a whole row if activations are int8, too.

    Returns:
        The float32 weights that it stands for.
    """
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.png", "*.md", "training.json"))
    stored, meant = {}, {}
    for name, weight in load_file(source / "model.safetensors").items():
        stored[name] = meant[name] = weight
        if name.endswith(LINEAR):
            del stored[name]
            group = weight.shape[1] if activations else GROUP
            numbers, scales = rounded(weight, bits, group)
            meant[name] = (numbers.float().unflatten(1, (-1, group)) * scales[..., None]).flatten(1)
            stored[f"{name}_scale"] = scales
            if activations:
                stored[name] = numbers
            else:
                stored[f"{name}_packed"] = packed(numbers, bits)
                stored[f"{name}_shape"] = torch.tensor(weight.shape)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = _description(bits, activations)
    (folder / "config.json").write_text(json.dumps(config))
    return {name: weight.float() for name, weight in meant.items()}


def _description(bits: int, activations: bool) -> dict[str, Any]:
    weights: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": True}
    weights |= {"strategy": "channel"} if activations else {"strategy": "group", "group_size": GROUP}
    scheme: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    if activations:
        scheme["input_activations"] = {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if activations else "pack-quantized",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }
