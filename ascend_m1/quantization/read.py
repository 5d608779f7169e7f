"""A quantised checkpoint as a model that generates, or as parts of the paged one; the full weights are never held."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ascend_m1_ops.products import choice
from ascend_m1_ops.products.npu import product
from ascend_m1_ops.quant_linear import Prepared, prepare, quant_linear

from ..checkpoint_files import stored_shapes
from ..configuration_baichuan_m1 import BaichuanM1Config, LayerSpec
from ..device import is_npu
from ..errors import CheckpointError, DeviceError
from ..modeling_baichuan_m1 import BaichuanM1ForCausalLM
from ..parts import LayerParts, ModelParts
from .packing import PACKED, SCALE, read_description, unpack
from .scheme import is_target


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
    """Tensors by name, each read when it is asked for.

    Raises:
        ConfigError: they are quantised in another way.
        DeviceError: the device has no product of such weights with activations of the dtype.
    """

    def __init__(self, folder: Path, config: BaichuanM1Config, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self.scheme = read_description(config.quantization_config)
        _refuse_dtype(device, dtype)
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


def _refuse_dtype(device: torch.device, dtype: torch.dtype) -> None:
    if not is_npu(device):
        return
    known = choice("quant_linear", product()).dtypes
    if dtype not in known:
        names = [str(dtype).removeprefix("torch.") for dtype in (dtype, *known)]
        raise DeviceError(
            f"dtype {names[0]}: quantised weights take {' or '.join(names[1:])} on {product()}: give --dtype {names[1]}"
        )


def quantised_model(
    folder: Path, config: BaichuanM1Config, device: torch.device, dtype: torch.dtype
) -> BaichuanM1ForCausalLM:
    """A model in evaluation, quantised projections in the place of linear layers. Raises as ``quantised_parts``."""
    files = _Folder(folder, config, device, dtype)
    with torch.device("meta"):
        model: BaichuanM1ForCausalLM = BaichuanM1ForCausalLM(config).eval()
    plain = {}
    for name, weight in model.state_dict().items():
        if is_target(name):
            outputs, inputs = weight.shape
            model.set_submodule(name.removesuffix(".weight"), files.matrix(inputs, (name, outputs)))
        else:
            plain[name] = files.plain(name, *weight.shape)
    model.load_state_dict(plain, strict=False, assign=True)
    return model


def quantised_parts(folder: Path, config: BaichuanM1Config, device: torch.device, dtype: torch.dtype) -> ModelParts:
    """Everything of a quantised checkpoint's folder.

    Raises:
        ConfigError: it is quantised in another way.
        CheckpointError: a tensor is missing or does not fit.
        DeviceError: the device has no product for the dtype.
    """
    files = _Folder(folder, config, device, dtype)
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
