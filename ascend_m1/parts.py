"""What the paged inference model is made of, taken from a ``BaichuanM1ForCausalLM`` without a copy.

All tensors are parameters; matrices are modules called with x [T, in] (``Projection``). A quantised checkpoint gives
the same parts without ever holding the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .configuration_baichuan_m1 import BaichuanM1Config, LayerSpec
from .errors import InputError
from .layers import BaichuanM1Attention, BaichuanM1DecoderLayer, BaichuanM1MLP, BaichuanM1RMSNorm
from .modeling_baichuan_m1 import BaichuanM1ForCausalLM, BaichuanM1Model
from .norm_head import NormHead
from .projection import Projection

# What weights are taken from. Anything else in the model computes something of its own, which would be left out.
_TAKEN = (
    *(BaichuanM1ForCausalLM, BaichuanM1Model, BaichuanM1DecoderLayer, BaichuanM1Attention, BaichuanM1MLP),
    *(BaichuanM1RMSNorm, NormHead, nn.Embedding, nn.Linear, nn.ModuleList),
)


@dataclass(frozen=True)
class LayerParts:
    """One decoder layer.

    Attributes:
        input_norm, post_norm: [hidden].
        taps: [2, kv_heads, 2]: of k and v, of the token before and the token itself.
        qkv, o, gate_up, down: modules; gate_up [T, hidden] -> [T, 2 · intermediate].
    """

    spec: LayerSpec
    input_norm: Tensor
    post_norm: Tensor
    taps: Tensor
    qkv: nn.Module
    o: nn.Module
    gate_up: nn.Module
    down: nn.Module


@dataclass(frozen=True)
class ModelParts:
    """The whole: embedding and head [vocab, hidden], final norm [hidden], layers."""

    config: BaichuanM1Config
    embed: Tensor
    norm: Tensor
    head: Tensor
    layers: list[LayerParts]


def model_parts(model: BaichuanM1ForCausalLM) -> ModelParts:
    """The parts of a model in evaluation: its matrices, embedding and norms are shared, and gate and up become views of
    one matrix. The convolution's taps are copies: later changes of them are not seen.

    Raises:
        InputError: a part of the model is wrapped, as adapters do it.
    """
    _refuse_adapters(model)
    return ModelParts(
        config=model.config,
        embed=model.model.embed_tokens.weight,
        norm=model.model.norm.weight,
        head=model.lm_head.weight,
        layers=[_layer_parts(layer) for layer in model.model.layers if isinstance(layer, BaichuanM1DecoderLayer)],
    )


def _layer_parts(layer: BaichuanM1DecoderLayer) -> LayerParts:
    attention = layer.self_attn
    taps = torch.stack([attention.conv_k.detach().view(-1, 2), attention.conv_v.detach().view(-1, 2)])
    return LayerParts(
        spec=attention.spec,
        input_norm=layer.input_layernorm.weight,
        post_norm=layer.post_attention_layernorm.weight,
        taps=nn.Parameter(taps, requires_grad=False),
        qkv=Projection(attention.W_pack.weight),
        o=Projection(attention.o_proj.weight),
        gate_up=Projection(_pack_gate_up(layer)),
        down=Projection(layer.mlp.down_proj.weight),
    )


def _refuse_adapters(model: nn.Module) -> None:
    for name, part in model.named_modules():
        if not isinstance(part, _TAKEN):
            kind = f"{type(part).__module__}.{type(part).__name__}"
            raise InputError(
                f"{name or 'model'} is a {kind}: only plain weights are taken over: merge adapters into them before "
                "(peft: model = model.merge_and_unload())"
            )


def _pack_gate_up(layer: BaichuanM1DecoderLayer) -> nn.Parameter:
    """Both matrices as one [2 · intermediate, hidden]; the model's own are views of it, so nothing is held twice."""
    gate, up = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
    whole = gate.untyped_storage()
    if whole.nbytes() == gate.nbytes + up.nbytes and whole.data_ptr() == gate.data_ptr() == up.data_ptr() - gate.nbytes:
        packed = gate.detach().as_strided((2 * gate.shape[0], gate.shape[1]), gate.stride())  # packed before
    else:
        packed = torch.cat([gate.detach(), up.detach()])
        gate.data, up.data = packed.chunk(2)
    return nn.Parameter(packed, requires_grad=False)
