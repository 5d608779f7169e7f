"""The cache's limits, sizes and errors."""

from __future__ import annotations

import pytest
import torch

from ascend_m1 import BaichuanM1Config, M1Cache
from ascend_m1.errors import CacheError

from .golden import load_model


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.inference_mode():
        yield


def filled(tokens: int, **options: int) -> M1Cache:
    model = load_model("hybrid")
    cache = M1Cache(model.config, **options)
    model(torch.randint(0, 199, (2, tokens)), cache=cache)
    return cache


def test_rollback_stops_at_what_is_kept() -> None:
    cache = filled(40, rollback=4)
    cache.crop(-3)
    cache.crop(-1)
    with pytest.raises(CacheError, match="cannot take back 5 tokens: the cache keeps 4"):
        cache.crop(-1)
    assert cache.get_seq_length() == 36


def test_crop_to_a_length_and_to_nothing() -> None:
    cache = filled(40)
    cache.crop(30)  # the older convention: the length to keep
    assert cache.get_seq_length() == 30
    cache.crop(-30)
    assert cache.get_seq_length() == 0
    assert cache.lengths is None


def test_static_cache_is_allocated_once_and_says_when_it_is_full() -> None:
    model = load_model("hybrid")
    cache = M1Cache(model.config, max_length=20)
    model(torch.zeros(1, 3, dtype=torch.int64), cache=cache)
    size = cache.nbytes
    for _ in range(17):
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
    assert cache.nbytes == size
    with pytest.raises(CacheError, match="max_length=20 is full"):
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)


def test_a_refused_call_leaves_the_cache_as_it_was() -> None:
    model = load_model("hybrid")
    ids = torch.randint(0, 199, (1, 20))
    cache = M1Cache(model.config, max_length=20)
    model(ids[:, :15], cache=cache)
    with pytest.raises(CacheError):
        model(torch.zeros(1, 9, dtype=torch.int64), cache=cache)
    torch.testing.assert_close(model(ids[:, 15:], cache=cache).logits, model(ids).logits[:, 15:])


def test_window_layers_hold_the_window_and_the_rollback_only() -> None:
    cache = filled(300, rollback=5)
    window = cache.layers[1]
    assert window.spec.window == 8
    assert window.k.capacity == 13
    assert cache.layers[0].k.capacity == 300


def test_cache_of_another_batch_or_kind() -> None:
    model, cache = load_model("hybrid"), filled(4)
    with pytest.raises(CacheError, match="holds 2 rows, the input has 1"):
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
    with pytest.raises(CacheError, match="list cannot hold"):
        model(torch.zeros(1, 1, dtype=torch.int64), cache=[1])


@pytest.mark.parametrize("options", [{"max_length": 0}, {"rollback": -1}])
def test_bad_options(options: dict[str, int]) -> None:
    with pytest.raises(CacheError):
        M1Cache(load_model("hybrid").config, **options)


def test_published_geometry_of_32768_tokens_takes_half_of_a_full_cache() -> None:
    """Counted on the meta device, which allocates nothing: the same shapes as a real bfloat16 cache."""
    config = BaichuanM1Config()
    cache, tokens = M1Cache(config), config.max_position_embeddings
    full = 0
    for layer in cache.layers:
        spec = layer.spec
        one = torch.empty(1, 1, spec.kv_heads, spec.head_dim, dtype=torch.bfloat16, device="meta")
        layer.raw.reserve(1 + cache.rollback, one.new_empty(1, 1, 2, spec.kv_heads, spec.head_dim))
        for ring in (layer.k, layer.v):
            ring.reserve(tokens, one)
        full += 2 * tokens * one.nbytes
    assert cache.nbytes <= 2.02e9
    assert full == pytest.approx(4.03e9, rel=1e-3)


def test_growth_does_not_overshoot_the_context() -> None:
    model = load_model("hybrid")
    cache = M1Cache(model.config)
    for part in torch.zeros(1, 512, dtype=torch.int64).split(37, dim=1):
        model(part, cache=cache)
    assert cache.layers[0].k.capacity == 512 == model.config.max_position_embeddings
