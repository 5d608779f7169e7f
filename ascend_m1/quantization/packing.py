"""compressed-tensors' format "pack-quantized": names, layout, and the description in config.json.

Numbers are counted from zero up and packed into int32, the first in the lowest bits; vLLM reads the same files. Source:
the format's documentation and vLLM's loader.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .scheme import Scheme

PACKED, SCALE, SHAPE = "_packed", "_scale", "_shape"  # after a weight's name


def pack(numbers: Tensor, bits: int) -> Tensor:
    """int8 [out, in] -> int32 [out, in · bits / 32]."""
    pieces = (numbers.long() + 2 ** (bits - 1)).unflatten(1, (-1, 32 // bits))
    whole = (pieces << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).int()


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of ``pack``."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    pieces: Tensor = packed.unsqueeze(-1) >> shifts & (2**bits - 1)
    return (pieces - (1 << bits - 1)).to(torch.int8).flatten(1)


def describe(scheme: Scheme) -> dict[str, Any]:
    """``quantization_config`` of config.json."""
    weights: dict[str, Any] = {"num_bits": scheme.bits, "type": "int", "symmetric": True, "dynamic": False}
    weights |= {"strategy": "channel"} if scheme.group is None else {"strategy": "group", "group_size": scheme.group}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


def read_description(config: Any) -> Scheme:
    """The scheme of a ``quantization_config``. Raises ConfigError for one that is not of this kind."""
    try:
        (group,) = config["config_groups"].values()
        weights = group["weights"]
        plain = (config["quant_method"], config["format"]) == ("compressed-tensors", "pack-quantized")
        known = plain and weights["type"] == "int" and weights["symmetric"] and not group.get("input_activations")
        known = known and not weights.get("actorder") and not config.get("transform_config")
        if not known:
            raise KeyError("config_groups")
        return Scheme(weights["num_bits"], weights["group_size"] if weights["strategy"] == "group" else None)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(
            "quantization_config: only compressed-tensors' pack-quantized whole numbers of 4 or 8 bits are read here: "
            "make them with `ascend-m1 quantize`, or use vLLM"
        ) from None
