"""A quantised checkpoint as parts of the paged inference model; the full weights are never held."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ascend_m1_ops.quant_linear import Prepared, prepare, quant_linear

from ..configuration_baichuan_m1 import BaichuanM1Config, LayerSpec
from ..errors import CheckpointError
from ..parts import LayerParts, ModelParts
from ..weights import stored_shapes
from .packing import PACKED, SCALE, read_description, unpack
from .scheme import Scheme


class QuantProjection(nn.Module):
    """x [T, in] -> [T, out] by a quantised weight; see ``projection.Project``."""

    def __init__(self, weight: Prepared) -> None:
        super().__init__()
        self.bits, self.group, self.outputs = weight.bits, weight.group, weight.outputs
        self.numbers = nn.Parameter(weight.numbers, requires_grad=False)
        self.scales = nn.Parameter(weight.scales, requires_grad=False)

    def forward(self, x: Tensor, chosen: Tensor | None = None) -> Tensor:
        return quant_linear(x, Prepared(self.numbers, self.scales, self.bits, self.group, self.outputs))


class _Folder:
    """Tensors by name, each read when it is asked for."""

    def __init__(self, folder: Path, scheme: Scheme, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.scheme, self.device, self.dtype = folder, scheme, device, dtype
        self.places = stored_shapes(folder, dtypes=None)

    def raw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Raises CheckpointError if it is missing or of another shape."""
        if name not in self.places:
            raise CheckpointError(f"{self.folder}: tensor {name} is missing: copy it again from the source")
        found, shard = self.places[name]
        if found != shape:
            raise CheckpointError(f"{shard}: tensor {name} has shape {list(found)}: expected {list(shape)}")
        with safe_open(shard, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def plain(self, name: str, *shape: int) -> nn.Parameter:
        """Of a weight that is not quantised."""
        return nn.Parameter(self.raw(name, shape).to(self.device, self.dtype), requires_grad=False)

    def matrix(self, inputs: int, *weights: tuple[str, int]) -> QuantProjection:
        """Of quantised weights, (name, outputs) each, whose outputs lie side by side."""
        bits, groups = self.scheme.bits, inputs // (self.scheme.group or inputs)
        numbers = [unpack(self.raw(name + PACKED, (out, inputs * bits // 32)), bits) for name, out in weights]
        scales = [self.raw(name + SCALE, (out, groups)) for name, out in weights]
        whole = torch.cat(numbers).to(self.device), torch.cat(scales).to(self.device, self.dtype)
        try:
            return QuantProjection(prepare(*whole, bits))
        except ValueError as error:
            raise CheckpointError(
                f"{self.folder}: {weights[0][0]}: {error}: quantise the original differently"
            ) from None


def quantised_parts(folder: Path, config: BaichuanM1Config, device: torch.device, dtype: torch.dtype) -> ModelParts:
    """Everything of a quantised checkpoint's folder.

    Raises:
        ConfigError: it is quantised in another way.
        CheckpointError: a tensor is missing or does not fit.
    """
    files = _Folder(folder, read_description(config.quantization_config), device, dtype)
    hidden, vocab = config.hidden_size, config.vocab_size
    layers = [_layer(files, config, spec, f"model.layers.{i}.") for i, spec in enumerate(config.layer_specs)]
    return ModelParts(
        config=config,
        embed=files.plain("model.embed_tokens.weight", vocab, hidden),
        norm=files.plain("model.norm.weight", hidden),
        head=files.plain("lm_head.weight", vocab, hidden),
        layers=layers,
    )


def _layer(files: _Folder, config: BaichuanM1Config, spec: LayerSpec, prefix: str) -> LayerParts:
    hidden, inner, attention, mlp = config.hidden_size, config.intermediate_size, f"{prefix}self_attn.", f"{prefix}mlp."
    taps = [files.raw(f"{attention}{name}", (1, 1, spec.kv_heads, 1, 2)).view(-1, 2) for name in ("conv_k", "conv_v")]
    return LayerParts(
        spec=spec,
        input_norm=files.plain(f"{prefix}input_layernorm.weight", hidden),
        post_norm=files.plain(f"{prefix}post_attention_layernorm.weight", hidden),
        taps=nn.Parameter(torch.stack(taps).to(files.device, files.dtype), requires_grad=False),
        qkv=files.matrix(hidden, (f"{attention}W_pack.weight", spec.q_size + 2 * spec.kv_size)),
        o=files.matrix(spec.q_size, (f"{attention}o_proj.weight", hidden)),
        gate_up=files.matrix(hidden, (f"{mlp}gate_proj.weight", inner), (f"{mlp}up_proj.weight", inner)),
        down=files.matrix(inner, (f"{mlp}down_proj.weight", hidden)),
    )
