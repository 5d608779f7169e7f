"""The contenders: a pair of Baichuan-M1 layers and a pair of plain decoder layers of the same size.

The plain decoder is transformers' Llama, twice, on the memory of our weights:

- ``plain``: as transformers ships it;
- ``tuned``: with rows flattened before each linear layer and a cache that is written in place. On some
  processors PyTorch's product of a [1, 1, hidden] bfloat16 tensor is many times slower than that of a [1, hidden] one,
  and transformers' DynamicCache copies the whole cache at every step; neither says anything about the architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaModel
from transformers.cache_utils import Cache, DynamicLayer

from ascend_m1 import BaichuanM1Config, M1Cache
from ascend_m1.layout import make_layout
from ascend_m1.modeling_baichuan_m1 import BaichuanM1Model

VOCABULARY = 1024  # the embedding is not measured
Step = Callable[[], None]


class FlatLinear(nn.Linear):
    """A linear layer on rows: [..., in] as one matrix."""

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = super().forward(x.flatten(0, -2))
        return rows.view(*x.shape[:-1], -1)


class InPlaceLayer(DynamicLayer):
    """A dynamic cache layer [batch, kv_heads, capacity, head_dim] with room to grow, so that a step copies nothing."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length = 0
        self.room: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        batch, heads, new, head_dim = key_states.shape
        end = self.length + new
        if self.room is None or self.room.shape[3] < end:
            room = key_states.new_empty(2, batch, heads, end + end // 4 if self.length else end, head_dim)
            if self.room is not None:
                room[:, :, :, : self.length] = self.room[:, :, :, : self.length]
            self.room, self.is_initialized = room, True
        self.room[0, :, :, self.length : end] = key_states
        self.room[1, :, :, self.length : end] = value_states
        self.length = end
        return self.room[0, :, :, :end], self.room[1, :, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        self.length -= abs(tokens_to_remove)


def m1_pair(dtype: torch.dtype, **changes: Any) -> BaichuanM1Model:
    """A global and a window layer in the 14B geometry, random weights."""
    config = BaichuanM1Config(vocab_size=VOCABULARY, num_hidden_layers=2, **changes)
    model: BaichuanM1Model = BaichuanM1Model._from_config(config, dtype=dtype).eval()
    return model


def plain_pair(ours: BaichuanM1Model) -> LlamaModel:
    """Two Llama layers with the attention geometry of the window layer, without window and convolution.

    They use our weights in place: the speed of one and the same product differs by up to 20 % with the physical pages
    that a process was given, which would tell about the allocation rather than the model.
    """
    like, dtype = ours.config, ours.dtype
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=2,
        hidden_size=like.hidden_size,
        intermediate_size=like.intermediate_size,
        num_attention_heads=like.num_swa_attention_heads,
        num_key_value_heads=like.num_swa_key_value_heads,
        head_dim=like.hidden_size // (like.num_swa_attention_heads or 1),
        max_position_embeddings=like.max_position_embeddings,
        attn_implementation="sdpa",
    )
    plain: LlamaModel = LlamaModel._from_config(config, dtype=dtype).eval()
    pairs: zip[tuple[Any, Any]] = zip(plain.layers, ours.layers, strict=True)
    for layer, source in pairs:
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(layer.mlp, name).weight = getattr(source.mlp, name).weight
        layer.self_attn.o_proj.weight = source.self_attn.o_proj.weight
        _share_rows(layer.self_attn, source.self_attn.W_pack.weight)
    return plain


def _share_rows(attention: Any, packed: Tensor) -> None:
    """Rows of our packed projection as q, k and v; the global layer's has too few for v, which keeps its own."""
    start = 0
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        rows = packed[start : start + linear.out_features]
        if rows.shape == linear.weight.shape:
            linear.weight = nn.Parameter(rows)
        start += linear.out_features


def layer_parameters(model: nn.Module) -> list[Tensor]:
    """The weights of the two decoder layers."""
    layers = model.layers
    assert isinstance(layers, nn.ModuleList)
    return list(layers.parameters())


def flatten_rows(model: nn.Module, flat: bool) -> None:
    """Let the linear layers of a plain model work on rows, or as PyTorch has them; the weights stay."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = FlatLinear if flat else nn.Linear


class Contender:
    """One model with the cache it is run with."""

    def __init__(self, name: str, model: Any, make_cache: Callable[[], Cache]) -> None:
        self.name, self.model, self.make_cache = name, model, make_cache

    def prefill(self, batch: int, tokens: int) -> Step:
        """A call that runs a whole prompt into a new cache."""
        ids = torch.randint(VOCABULARY, (batch, tokens))
        return lambda: self._forward(ids, self.make_cache())

    def decode(self, batch: int, context: int) -> Step:
        """A call that runs one token a row on ``context`` cached ones, and takes it back afterwards."""
        cache = self.make_cache()
        self._fill(cache, batch, context)
        ids = torch.randint(VOCABULARY, (batch, 1))

        def step() -> None:
            self._forward(ids, cache)
            cache.crop(-1)

        return step

    def _forward(self, ids: Tensor, cache: Cache) -> None:
        if isinstance(self.model, LlamaModel):
            flatten_rows(self.model, self.name == "tuned")
        self.model(input_ids=ids, past_key_values=cache, use_cache=True)

    def _fill(self, cache: Cache, batch: int, context: int) -> None:
        """Random keys and values, without the cost of a prefill."""
        dtype = next(self.model.parameters()).dtype
        if isinstance(cache, M1Cache):
            fill_m1_cache(cache, self.model.config, batch, context, dtype)
            return
        config = self.model.config
        shape = (batch, config.num_key_value_heads, context, config.head_dim)
        for index in range(config.num_hidden_layers):
            cache.update(torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype), index)


def fill_m1_cache(cache: M1Cache, config: BaichuanM1Config, batch: int, tokens: int, dtype: torch.dtype) -> None:
    """Continue the cache by random tokens through the calls that the layers make."""
    layout = make_layout(batch, tokens, torch.device("cpu"), lengths=cache.lengths, past_columns=cache.get_seq_length())
    for index, spec in enumerate(config.layer_specs):
        kv = torch.randn(batch, tokens, 2, spec.kv_heads, spec.head_dim, dtype=dtype)
        cache.layers[index].conv_state(kv, layout)
        cache.extend(index, kv[:, :, 0], kv[:, :, 1], layout)
    cache.advance(layout)


def contenders(ours: BaichuanM1Model, plain: LlamaModel) -> list[Contender]:
    """Ours, the plain decoder as it comes, the plain decoder tuned."""
    return [
        Contender("ours", ours, lambda: M1Cache(ours.config)),
        Contender("plain", plain, lambda: DynamicCache(config=plain.config)),
        Contender("tuned", plain, lambda: Cache(layers=[InPlaceLayer(), InPlaceLayer()])),
    ]
