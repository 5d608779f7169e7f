"""The model over a paged cache, for serving: the same weights, ragged batches, nine launches a layer on an NPU.

Made of a ``BaichuanM1ForCausalLM``'s parts, or of a quantised checkpoint's (``parts.py``). Norm and residual are one
operator, the convolution, RoPE and the cache write another. What a batch looks like is ``steps.py``'s business, where
keys and values lie ``paged.py``'s.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ascend_m1_ops import (
    add_rms_norm,
    conv_rope_cache,
    inverse_row_norm,
    packing_pays,
    paged_attention,
    ragged_attention,
    rms_norm,
    rope_tables,
    scaled_logits,
    swiglu_packed,
)

from .errors import InputError
from .modeling_baichuan_m1 import BaichuanM1ForCausalLM
from .paged import PagedCache, PagedLayer
from .parts import LayerParts, ModelParts, model_parts
from .projection import PackedProjection, Projection, chosen_columns
from .steps import Step, Window

Table = tuple[Tensor, Tensor]  # cos and sin, float32 [positions, head_dim / 2]


class InferenceLayer(nn.Module):
    """One decoder layer. ``forward`` takes the last layer's output and the residual apart, to add them in its norm."""

    def __init__(self, parts: LayerParts, eps: float) -> None:
        super().__init__()
        self.spec, self.eps = parts.spec, eps
        self.input_norm, self.post_norm, self.taps = parts.input_norm, parts.post_norm, parts.taps
        self.qkv, self.o, self.gate_up, self.down = parts.qkv, parts.o, parts.gate_up, parts.down

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        step: Step,
        rope: Table,
        cache: PagedLayer,
        chosen: Tensor | None,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x, residual [T, hidden], adapters chosen -> the MLP's output and the residual to add to it.

        ``wanted``: the rows whose output is asked for; None: all.
        """
        if residual is None:
            normed, residual = rms_norm(x, self.input_norm, self.eps), x
        else:
            normed, residual = add_rms_norm(x, residual, self.input_norm, self.eps)
        attended = self.attend(self.qkv(normed, chosen), step, rope, cache).flatten(1)
        if wanted is not None:
            attended, residual = attended.index_select(0, wanted), residual.index_select(0, wanted)
            chosen = None if chosen is None else chosen.index_select(0, wanted)
        x = self.o(attended, chosen)
        normed, residual = add_rms_norm(x, residual, self.post_norm, self.eps)
        return self.down(swiglu_packed(self.gate_up(normed, chosen)), chosen), residual

    def attend(self, packed: Tensor, step: Step, rope: Table, cache: PagedLayer) -> Tensor:
        """Packed projection [T, ...] -> [T, heads, head_dim]."""
        scale = self.spec.head_dim**-0.5
        if self.spec.window is None:
            q = conv_rope_cache(packed, self.taps, *rope, step.global_table, cache.k, cache.v, cache.state)
            return paged_attention(q, cache.k, cache.v, step.global_keys, query_ends=step.query_ends, scale=scale)
        if step.window is None:
            q = conv_rope_cache(packed, self.taps, *rope, step.window_table, cache.k, cache.v, cache.state)
            return paged_attention(q, cache.k, cache.v, step.window_keys, scale=scale)
        k, v = (_old_keys(ring, step.window) for ring in (cache.k, cache.v))
        q = conv_rope_cache(packed, self.taps, *rope, step.window_table, k.unsqueeze(1), v.unsqueeze(1), cache.state)
        for ring, new in ((cache.k, k), (cache.v, v)):
            ring.flatten(0, 1).index_copy_(0, step.window.write_to, new.index_select(0, step.window.write_from))
        ends = step.query_ends or []
        return ragged_attention(q, k, v, ends, step.window.ends, window=self.spec.window, scale=scale)


class InferenceModel(nn.Module):
    """Embedding, layers and head over a ``PagedCache``.

    Args:
        source: the model, see ``model_parts``, or parts. The norms of the head's rows are computed here: later changes
            of them are not seen.
        max_length: tokens of the longest sequence, for the RoPE tables.

    Raises:
        InputError: a part of the model is wrapped, as adapters do it, or ``max_length`` is not positive.
    """

    def __init__(self, source: BaichuanM1ForCausalLM | ModelParts, max_length: int) -> None:
        super().__init__()
        parts = source if isinstance(source, ModelParts) else model_parts(source)
        if max_length < 1:
            raise InputError(f"max_length={max_length}: give the tokens of the longest sequence")
        self.config, self.max_length = parts.config, max_length
        self.embed, self.norm, self.head = parts.embed, parts.norm, Projection(parts.head)
        self.layers = nn.ModuleList(InferenceLayer(layer, self.config.rms_norm_eps) for layer in parts.layers)
        self.head_scale = nn.Parameter(inverse_row_norm(parts.head.detach()), requires_grad=False)
        self.adapter_columns: nn.Parameter | None = None  # ``AdapterSlots`` sets it
        positions = torch.arange(max_length, device=self.embed.device)
        wide = torch.float64 if self.embed.dtype == torch.float64 else torch.float32
        self.rope = nn.ParameterDict()  # parameters, not buffers: a captured graph then uses them where they lie
        for dim in {spec.head_dim for spec in self.config.layer_specs}:
            tables = rope_tables(positions, dim, self.config.rope_theta, wide)
            for name, table in zip(("cos", "sin"), tables, strict=True):
                self.rope[f"{name}_{dim}"] = nn.Parameter(table, requires_grad=False)

    def forward(self, step: Step, cache: PagedCache) -> Tensor:
        """Logits [sequences, vocab] of each sequence's last token.

        Raises:
            InputError: a prompt is longer than ``max_length``.
        """
        if step.longest > self.max_length:
            raise InputError(
                f"a sequence of {step.longest} tokens: the model was made for max_length={self.max_length}: raise it"
            )
        x = nn.functional.embedding(step.tokens, self.embed)
        chosen = None if self.adapter_columns is None else chosen_columns(step.adapters, self.adapter_columns, x.dtype)
        residual: Tensor | None = None
        for spec, layer, layer_cache in zip(self.config.layer_specs, self.layers, cache.layers, strict=True):
            rope = (self.rope[f"cos_{spec.head_dim}"], self.rope[f"sin_{spec.head_dim}"])
            wanted = step.last if layer is self.layers[-1] else None  # of the others the next layer's keys are made
            x, residual = layer(x, residual, step, rope, layer_cache, chosen, wanted)
        assert residual is not None
        x, _ = add_rms_norm(x, residual, self.norm, self.config.rms_norm_eps)
        return scaled_logits(self.head(x), self.head_scale)

    def pack_weights(self) -> None:
        """Bring large matrices into the processor's own layout, each in the place of the plain one.

        They are no longer shared, so their memory is free again when the model they came from is gone. Without effect
        where packing does not pay, as on an NPU. Not for graphs that are compiled: the layout is opaque.
        """
        for name in [name for name, part in self.named_modules() if isinstance(part, Projection)]:
            plain = cast(Projection, self.get_submodule(name))
            if packing_pays(plain.weight):
                self.set_submodule(name, PackedProjection(plain.weight))


def _old_keys(ring: Tensor, window: Window) -> Tensor:
    """A buffer [size, kv_heads, head_dim] with the ring's keys in order, room for the new ones between."""
    slots = ring.flatten(0, 1)
    buffer = slots.new_empty(window.size, *slots.shape[1:])
    return buffer.index_copy_(0, window.read_to, slots.index_select(0, window.read_from))
