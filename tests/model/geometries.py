"""Random small models for property tests: any layer mix, any grouping, windows from 1 up."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM


@st.composite
def models(draw: st.DrawFn) -> BaichuanM1ForCausalLM:
    """A float64 model: what should be equal is then equal to 1e-12, far from any real difference."""
    kv_heads, group = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 5]))
    window_kv_heads, window_group = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 3]))
    heads, window_heads = kv_heads * group, window_kv_heads * window_group
    layers = draw(st.integers(1, 3))
    config = BaichuanM1Config(
        vocab_size=37,
        hidden_size=heads * window_heads * 4,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_swa_attention_heads=window_heads,
        num_swa_key_value_heads=window_kv_heads,
        sliding_window=draw(st.integers(1, 9)),
        sliding_window_layers=sorted(draw(st.sets(st.integers(0, layers - 1)))),
        rope_theta=draw(st.sampled_from([100.0, 10000.0, 1000000.0])),
        max_position_embeddings=64,
        initializer_range=0.3,  # large weights: attention is far from uniform, so a wrong mask shows
        pad_token_id=0,
    )
    torch.manual_seed(draw(st.integers(0, 2**16)))
    return BaichuanM1ForCausalLM(config).double().eval()


def tokens(draw: st.DrawFn, low: int = 1, high: int = 24) -> torch.Tensor:
    """Random ids [length]."""
    return torch.tensor(draw(st.lists(st.integers(0, 36), min_size=low, max_size=high)))


def cuts(draw: st.DrawFn, length: int) -> list[int]:
    """Sizes of random chunks that add up to ``length``."""
    borders = sorted(draw(st.sets(st.integers(1, length - 1), max_size=4))) if length > 1 else []
    return torch.tensor([0, *borders, length]).diff().tolist()
