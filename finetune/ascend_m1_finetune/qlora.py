"""The model over a checkpoint of ``ascend-m1 quantize``, to train adapters on: QLoRA.

The layers' matrices stay whole numbers of 4 or 8 bits. Each product works its weight out anew, forward and backward, so
one matrix in full exists at a time. Source: Dettmers et al., "QLoRA" (2023); the numbers' format is ours, not theirs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1.checkpoint_files import read_json, require_tensor, stored_shapes
from ascend_m1.errors import ConfigError, InputError
from ascend_m1.quantization.packing import PACKED, read_description, unpack
from ascend_m1.quantization.scheme import Scheme, is_target
from ascend_m1_ops import dequantised


class FrozenLinear(nn.Linear):
    """y = x · Wᵀ with W in whole numbers; x has a gradient, W has none.

    Its two tensors are named as the checkpoint names them.
    """

    def __init__(self, in_features: int, out_features: int, scheme: Scheme) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.in_features, self.out_features, self.bits = in_features, out_features, scheme.bits
        groups = in_features // (scheme.group or in_features)
        packed = torch.empty(out_features, in_features * scheme.bits // 32, dtype=torch.int32)
        self.weight_packed = nn.Parameter(packed, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features, groups), requires_grad=False)
        self.register_parameter("bias", None)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """A copy of the weight [out, in] in the scales' dtype."""
        return dequantised(unpack(self.weight_packed, self.bits), self.weight_scale).as_subclass(_Copy)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _Product.apply(x, self.weight_packed, self.weight_scale, self.bits)  # type: ignore[no-untyped-call]
        return product


class _Copy(Tensor):
    """A tensor without ``data``, through which PEFT would merge an adapter into what nobody keeps."""

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        raise InputError("an adapter cannot be merged into quantised weights: use `ascend-m1 export`")


class _Product(torch.autograd.Function):
    """Keeps the packed numbers for the backward pass, and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(packed, scale)
        ctx.bits, ctx.dtype = bits, x.dtype
        return nn.functional.linear(x, dequantised(unpack(packed, bits), scale))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        packed, scale = ctx.saved_tensors
        weight = dequantised(unpack(packed, ctx.bits), scale)
        return (gradient @ weight.to(gradient.dtype)).to(ctx.dtype), None, None, None


def quantised_base(folder: Path, dtype: torch.dtype) -> BaichuanM1ForCausalLM:
    """The model of a quantised checkpoint; everything but its matrices, and what it computes, in ``dtype``.

    Raises:
        ConfigError: config.json cannot be used, or is not of a checkpoint of ``ascend-m1 quantize``.
        CheckpointError: a tensor is missing or does not fit.
    """
    config: BaichuanM1Config = BaichuanM1Config.from_dict(read_json(folder / "config.json"))
    description = getattr(config, "quantization_config", None)
    if description is None:
        raise ConfigError(f"{folder / 'config.json'}: not quantised: make such a checkpoint with `ascend-m1 quantize`")
    scheme = read_description(description)
    with torch.device("meta"):
        model = BaichuanM1ForCausalLM(config)
        for parent, name, linear in _matrices(model, nn.Linear):
            setattr(parent, name, FrozenLinear(linear.in_features, linear.out_features, scheme))
    found, state = stored_shapes(folder, dtypes=None), {}
    for name, tensor in model.state_dict().items():
        require_tensor(folder, name, tuple(tensor.shape), found.get(name))
    for shard in sorted({shard for _, shard in found.values()}):
        with safe_open(shard, framework="pt") as file:
            for name in model.state_dict().keys() & file.keys():
                stored: Tensor = file.get_tensor(name)
                state[name] = stored if name.endswith(PACKED) else stored.to(dtype)
    model.load_state_dict(state, assign=True)
    model.config.dtype, model.name_or_path = dtype, str(folder)
    model.eval()
    return model


def restore(model: BaichuanM1ForCausalLM) -> None:
    """Put linear layers in place of the frozen ones, with the weights that the numbers stand for."""
    for parent, name, frozen in _matrices(model, FrozenLinear):
        with torch.device("meta"):
            linear = nn.Linear(frozen.in_features, frozen.out_features, bias=False)
        linear.weight = nn.Parameter(frozen.weight.as_subclass(Tensor), requires_grad=False)
        setattr(parent, name, linear)
    del model.config.quantization_config


def _matrices(model: BaichuanM1ForCausalLM, kind: type[nn.Linear]) -> list[tuple[nn.Module, str, nn.Linear]]:
    """The layers' linear layers of a kind, with the modules that hold them and their names there."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, kind) and is_target(f"{name}.weight"):
            parent, _, own = name.rpartition(".")
            found.append((model.get_submodule(parent), own, module))
    return found
