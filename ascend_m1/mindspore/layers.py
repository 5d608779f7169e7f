"""The parts of a decoder layer as MindSpore cells: where tokens stand, norm, MLP, attention, and the layer itself.

Two forms of each: ``chunk`` takes the next tokens of one sequence, padded on the right to a fixed length, ``decode``
one token of each of B sequences. The state is four tensors a layer, given and returned:

    k, v          [B, kv_heads, slots, head_dim]  convolved, k rotated; the token at position p is in slot p % slots
    raw_k, raw_v  [B, kv_heads, 1, head_dim]      of the last token, before the convolution

A global layer has ``capacity`` slots, a window layer min(window, capacity): it never holds more than is visible. Shapes
are fixed and positions are tensors, so that a graph is compiled once. ``fused`` chooses Ascend's own operators, which
have no CPU kernel; what is written out beside them is their reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, float32, int32, mint, nn, ops
from mindspore.mint.nn.functional import linear, relu, silu, softmax

from ..configuration_baichuan_m1 import BaichuanM1Config, LayerSpec
from .state import slots_of
from .weights import Weights

_HIDDEN = -3e38  # the score of what is not visible, in float32


def frozen(array: Any, name: str, dtype: Any) -> Parameter:
    """A weight, not trained."""
    return Parameter(Tensor(array, dtype=dtype), name=name, requires_grad=False)


class Places(nn.Cell):
    """Positions as the layers of one kind need them: RoPE's tables, the mask, what goes into which slot."""

    def __init__(self, spec: LayerSpec, capacity: int, theta: float) -> None:
        super().__init__()
        self.slots, self.last = slots_of(spec, capacity), capacity - 1
        self.slot = Tensor(np.arange(self.slots), dtype=int32)
        angles = np.outer(np.arange(capacity), theta ** (-np.arange(0, spec.head_dim, 2) / spec.head_dim))
        self.cos = frozen(np.cos(angles), f"{spec.kind}.cos", float32)
        self.sin = frozen(np.sin(angles), f"{spec.kind}.sin", float32)

    def chunk(self, start: Tensor, n: Tensor, length: int) -> tuple[Tensor, ...]:
        """Of positions start .. start + length - 1, the first n of them real.

        Args:
            start, n: [1] int32.

        Returns:
            cos, sin [1, 1, length, head_dim / 2]; the mask [1, 1, length, slots + length] over the ring before the
            chunk and the chunk's own keys; which slots are new [1, 1, slots, 1]; the place in the chunk of what goes
            there [slots]; that of the last token [1].
        """
        at = start + ops.arange(length).astype(int32)
        held = start - 1 - mint.remainder(start - 1 - self.slot, self.slots)  # positions in the ring, below 0: none
        old = mint.logical_and(held >= 0, at.reshape(length, 1) - held < self.slots)
        distance = at.reshape(length, 1) - at
        own = mint.logical_and(distance >= 0, distance < self.slots)
        mask = mint.cat((old, own), 1).reshape(1, 1, length, self.slots + length)
        end = start + n - 1
        after = end - mint.remainder(end - self.slot, self.slots)
        fresh = (after >= start).reshape(1, 1, self.slots, 1)
        cos, sin = self.tables(at, (1, 1, length, -1))
        return cos, sin, mask, fresh, relu(after - start), n - 1

    def decode(self, pos: Tensor) -> tuple[Tensor, ...]:
        """Of one token a sequence, at pos [B] int32.

        Returns:
            cos, sin [B, 1, 1, head_dim / 2]; the mask [B, 1, 1, slots] over the ring with the token in it; the slot
            that it goes to [B, 1, slots, 1].
        """
        rows = pos.shape[0]
        at = pos.reshape(rows, 1)
        mask = (at - mint.remainder(at - self.slot, self.slots) >= 0).reshape(rows, 1, 1, self.slots)
        fresh = (self.slot == mint.remainder(at, self.slots)).reshape(rows, 1, self.slots, 1)
        cos, sin = self.tables(pos, (rows, 1, 1, -1))
        return cos, sin, mask, fresh

    def tables(self, at: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions; padding beyond the context gets the last one's."""
        at = mint.clamp(at, 0, self.last)
        return ops.gather(self.cos, at, 0).reshape(shape), ops.gather(self.sin, at, 0).reshape(shape)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE, half-split, in float32: x [B, heads, S, head_dim]."""
    first, second = mint.chunk(x.astype(float32), 2, -1)
    return mint.cat((first * cos - second * sin, second * cos + first * sin), -1).astype(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, fused: bool) -> Tensor:
    """Grouped-query attention: q [B, heads, S, D], k and v [B, kv_heads, T, D], mask [B, 1, S, T] true where visible.

    Returns:
        [B, S, heads · D].
    """
    batch, heads, length, dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    if fused:
        out = ops.fused_infer_attention_score(
            q,
            k,
            v,
            atten_mask=mint.logical_not(mask),
            num_heads=heads,
            scale=dim**-0.5,
            input_layout="BNSD",
            num_key_value_heads=kv_heads,
        )[0]
    else:
        group = heads // kv_heads
        scores = ops.BatchMatMul(transpose_b=True)(q.reshape(batch, kv_heads, group * length, dim), k)
        scores = scores.astype(float32).reshape(batch, kv_heads, group, length, keys) * dim**-0.5
        weights = softmax(mint.where(mint.unsqueeze(mask, 1), scores, _HIDDEN), -1).astype(v.dtype)
        out = mint.matmul(weights.reshape(batch, kv_heads, group * length, keys), v)
    return mint.permute(out.reshape(batch, heads, length, dim), (0, 2, 1, 3)).reshape(batch, length, heads * dim)


class RMSNorm(nn.Cell):
    """RMS normalisation, in float32."""

    def __init__(self, weights: Weights, name: str, eps: float, dtype: Any, fused: bool) -> None:
        super().__init__()
        self.weight = frozen(weights.read(f"{name}.weight"), f"{name}.weight", dtype)
        self.eps, self.fused = eps, fused

    def construct(self, x: Tensor) -> Tensor:
        """[..., hidden] -> the same."""
        if self.fused:
            return ops.rms_norm(x, self.weight, self.eps)[0]
        wide = x.astype(float32)
        wide = wide * mint.rsqrt(mint.mean(wide * wide, -1, True) + self.eps)
        return (wide * self.weight.astype(float32)).astype(x.dtype)


class MLP(nn.Cell):
    """down(silu(gate(x)) · up(x)); gate and up are one product."""

    def __init__(self, weights: Weights, name: str, dtype: Any, fused: bool) -> None:
        super().__init__()
        both = np.concatenate([weights.read(f"{name}.{part}_proj.weight") for part in ("gate", "up")])
        self.gate_up = frozen(both, f"{name}.gate_up", dtype)
        self.down = frozen(weights.read(f"{name}.down_proj.weight"), f"{name}.down", dtype)
        self.fused = fused

    def construct(self, x: Tensor) -> Tensor:
        """[..., hidden] -> the same."""
        both = linear(x, self.gate_up)
        if self.fused:
            return linear(ops.swiglu(both, -1), self.down)
        gate, up = mint.chunk(both, 2, -1)
        return linear(silu(gate) * up, self.down)


class Attention(nn.Cell):
    """Packed projection, short convolution of k and v, RoPE, attention over the ring."""

    def __init__(self, weights: Weights, name: str, spec: LayerSpec, dtype: Any, fused: bool) -> None:
        super().__init__()
        # The fused attention is for 16 bits and, where several queries meet it, heads of 16, 32, …, 512.
        self.spec, self.fused = spec, fused and dtype != float32 and spec.head_dim in range(16, 513, 16)
        self.pack = frozen(weights.read(f"{name}.W_pack.weight"), f"{name}.W_pack", dtype)
        self.out = frozen(weights.read(f"{name}.o_proj.weight"), f"{name}.o_proj", dtype)
        taps = [weights.read(f"{name}.conv_{x}").reshape(-1, 2).T.reshape(2, 1, -1, 1, 1) for x in "kv"]
        self.taps_k, self.taps_v = (frozen(x, f"{name}.taps_{i}", dtype) for i, x in zip("kv", taps, strict=True))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S, hidden] -> q, raw k, raw v, [B, heads, S, head_dim] each."""
        spec = self.spec
        q, k, v = mint.split(linear(x, self.pack), (spec.q_size, spec.kv_size, spec.kv_size), -1)
        return self.heads(q, spec.heads), self.heads(k, spec.kv_heads), self.heads(v, spec.kv_heads)

    def heads(self, x: Tensor, count: int) -> Tensor:
        """[B, S, count · D] -> [B, count, S, D]."""
        return mint.permute(x.reshape(x.shape[0], x.shape[1], count, self.spec.head_dim), (0, 2, 1, 3))

    def chunk(self, x: Tensor, state: tuple[Tensor, ...], places: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """[1, S, hidden] -> the same, and the new state."""
        ring_k, ring_v, before_k, before_v = state
        cos, sin, mask, fresh, source, last = places
        q, raw_k, raw_v = self.project(x)
        k = rotate(self.convolve(raw_k, before_k, self.taps_k), cos, sin)
        v = self.convolve(raw_v, before_v, self.taps_v)
        out = attend(rotate(q, cos, sin), mint.cat((ring_k, k), 2), mint.cat((ring_v, v), 2), mask, self.fused)
        ring_k = mint.where(fresh, ops.gather(k, source, 2), ring_k)
        ring_v = mint.where(fresh, ops.gather(v, source, 2), ring_v)
        return linear(out, self.out), ring_k, ring_v, ops.gather(raw_k, last, 2), ops.gather(raw_v, last, 2)

    def convolve(self, raw: Tensor, before: Tensor, taps: Tensor) -> Tensor:
        """taps[0] · u[t-1] + taps[1] · u[t] of raw [1, kv_heads, S, D], where ``before`` is u[-1]."""
        length = raw.shape[2]
        return taps[0] * mint.narrow(mint.cat((before, raw), 2), 2, 0, length) + taps[1] * raw

    def decode(self, x: Tensor, state: tuple[Tensor, ...], places: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """[B, 1, hidden] -> the same, and the new state."""
        ring_k, ring_v, before_k, before_v = state
        cos, sin, mask, fresh = places
        q, raw_k, raw_v = self.project(x)
        k = rotate(self.taps_k[0] * before_k + self.taps_k[1] * raw_k, cos, sin)
        v = self.taps_v[0] * before_v + self.taps_v[1] * raw_v
        ring_k, ring_v = mint.where(fresh, k, ring_k), mint.where(fresh, v, ring_v)
        out = attend(rotate(q, cos, sin), ring_k, ring_v, mask, self.fused)
        return linear(out, self.out), ring_k, ring_v, raw_k, raw_v


class Layer(nn.Cell):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, weights: Weights, index: int, config: BaichuanM1Config, dtype: Any, fused: bool) -> None:
        super().__init__()
        name, eps = f"model.layers.{index}", config.rms_norm_eps
        self.before = RMSNorm(weights, f"{name}.input_layernorm", eps, dtype, fused)
        self.attention = Attention(weights, f"{name}.self_attn", config.layer_specs[index], dtype, fused)
        self.between = RMSNorm(weights, f"{name}.post_attention_layernorm", eps, dtype, fused)
        self.mlp = MLP(weights, f"{name}.mlp", dtype, fused)

    def chunk(self, x: Tensor, state: tuple[Tensor, ...], places: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """[1, S, hidden] -> the same, and the new state."""
        out = self.attention.chunk(self.before(x), state, places)
        return (self.add(x, out[0]), *out[1:])

    def decode(self, x: Tensor, state: tuple[Tensor, ...], places: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """[B, 1, hidden] -> the same, and the new state."""
        out = self.attention.decode(self.before(x), state, places)
        return (self.add(x, out[0]), *out[1:])

    def add(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual stream after attention and MLP."""
        x = x + attended
        return x + self.mlp(self.between(x))
