"""Is the measured model right? The layers written down once more, from the operators' references alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_m1 import BaichuanM1Config, M1Cache
from ascend_m1.configuration_baichuan_m1 import LayerSpec
from ascend_m1.modeling_baichuan_m1 import BaichuanM1Model
from ascend_m1_ops import Positions, attention_reference, rms_norm_reference, short_conv_reference

# Relative error of the hidden states. Two layers of bfloat16 roundings (8 bits each) in another order reach about 1 %;
# (small heads: 2 %); a wrong tap, mask or rotation is off by 15 % and more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
_TOKENS = 24


class CheckError(RuntimeError):
    """The model disagrees with its reference: its speed means nothing."""


@torch.no_grad()
def check_model(model: BaichuanM1Model) -> float:
    """Prefill, a chunk and single steps through the cache, against the reference on the whole sequence.

    Returns:
        The relative error.

    Raises:
        CheckError: it is above the dtype's tolerance.
    """
    ids = torch.randint(model.config.vocab_size, (2, _TOKENS), generator=torch.Generator().manual_seed(0))
    cache = M1Cache(model.config)
    pieces = [model(ids[:, a:b], past_key_values=cache).last_hidden_state for a, b in _cuts()]
    got, want = torch.cat(pieces, dim=1).float(), _reference(model, ids).float()
    error = float((got - want).norm() / want.norm())
    dtype = next(model.parameters()).dtype
    if not error < TOLERANCE[dtype]:
        raise CheckError(
            f"relative error {error:.1e} against the reference in {dtype}, at most {TOLERANCE[dtype]:.0e} allowed: "
            "nothing is measured; run the tests"
        )
    return error


def small_model(dtype: torch.dtype) -> BaichuanM1Model:
    """Same proportions, a window shorter than the sequence of the check."""
    config = BaichuanM1Config(
        vocab_size=97,
        hidden_size=320,
        intermediate_size=512,
        num_hidden_layers=4,
        num_swa_attention_heads=20,
        num_attention_heads=10,
        num_swa_key_value_heads=4,
        sliding_window=7,
        initializer_range=0.1,
    )
    model: BaichuanM1Model = BaichuanM1Model._from_config(config, dtype=dtype).eval()
    return model


def _cuts() -> list[tuple[int, int]]:
    return [(0, 13), (13, 18), *((i, i + 1) for i in range(18, _TOKENS))]


def _reference(model: BaichuanM1Model, ids: Tensor) -> Tensor:
    config: BaichuanM1Config = model.config
    x = model.embed_tokens.weight[ids]
    for layer, spec in zip(model.layers, config.layer_specs, strict=True):
        weights: dict[str, Tensor] = dict(layer.named_parameters())
        normed = rms_norm_reference(x, weights["input_layernorm.weight"], config.rms_norm_eps)
        x = x + _attention(normed, weights, spec, config.rope_theta)
        normed = rms_norm_reference(x, weights["post_attention_layernorm.weight"], config.rms_norm_eps)
        gate, up = normed @ weights["mlp.gate_proj.weight"].T, normed @ weights["mlp.up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ weights["mlp.down_proj.weight"].T
    return rms_norm_reference(x, model.norm.weight, config.rms_norm_eps)


def _attention(x: Tensor, weights: dict[str, Tensor], spec: LayerSpec, theta: float) -> Tensor:
    batch, tokens, _ = x.shape
    packed = x @ weights["self_attn.W_pack.weight"].T
    q = packed[..., : spec.q_size].unflatten(-1, (spec.heads, spec.head_dim))
    kv = packed[..., spec.q_size :].reshape(batch * tokens, 2, spec.kv_heads, spec.head_dim)
    taps = torch.stack([weights["self_attn.conv_k"].view(-1, 2), weights["self_attn.conv_v"].view(-1, 2)])
    borders = torch.arange(batch + 1) * tokens
    kv = short_conv_reference(kv, taps, kv.new_zeros(batch, *kv.shape[1:]), borders)[0]
    k, v = kv.view(batch, tokens, 2, spec.kv_heads, spec.head_dim).unbind(2)
    out = attention_reference(
        _rotate(q, theta), _rotate(k, theta), v, Positions.aligned(tokens, tokens, "cpu"), window=spec.window
    )
    return out.flatten(2) @ weights["self_attn.o_proj.weight"].T


def _rotate(x: Tensor, theta: float) -> Tensor:
    """RoPE as a multiplication of complex numbers."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(x.shape[1], dtype=torch.float64).unsqueeze(1) * frequencies
    turned = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.polar(
        torch.ones_like(angles), angles
    ).unsqueeze(1)
    return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)
