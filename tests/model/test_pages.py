"""Pages of one size for layers of different geometry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ascend_m1 import BaichuanM1Config
from ascend_m1.configuration_baichuan_m1 import LayerSpec
from ascend_m1.errors import ConfigError
from ascend_m1.pages import BLOCK, HeadDims, any_head_dim, page_bytes, page_count, rank_layers
from ascend_m1.plan import make_plan


def narrow(grouped: bool) -> tuple[int, ...]:
    """Like an NPU's, and coarser."""
    return (64, 128, 256, 512) if grouped else (64, 128, 192, 256)


def published_rows(ranks: int) -> list[tuple[int, int, int]]:
    """(row, parts, replicas) of a global and a window layer."""
    layers = rank_layers(BaichuanM1Config().layer_specs, ranks)
    return [(layer.row, layer.parts, layer.replicas) for layer in layers[:2]]


def test_published_geometry_wastes_nothing() -> None:
    assert published_rows(1) == [(512, 1, 1), (512, 2, 1)]
    assert published_rows(2) == [(256, 1, 1), (256, 2, 1)]
    assert published_rows(4) == [(256, 1, 2), (256, 1, 1)]  # both KV heads of global layers stand on two ranks


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 5), st.sampled_from([16, 64, 128, 256])), min_size=1
    ),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([any_head_dim, narrow]),
)
def test_rows_are_equal_and_every_head_has_its_place(
    geometries: list[tuple[int, int, int]], ranks: int, head_dims: HeadDims
) -> None:
    specs = [
        LayerSpec(kind="global", heads=kv * groups, kv_heads=kv, head_dim=dim, window=None)
        for kv, groups, dim in geometries
    ]
    assume(all(spec.heads % ranks == 0 for spec in specs))
    layers = rank_layers(specs, ranks, head_dims)
    assert len({layer.row for layer in layers}) == 1
    for spec, layer in zip(specs, layers, strict=True):
        assert layer.heads * ranks == spec.heads
        assert layer.kv_heads * ranks == spec.kv_heads * layer.replicas
        assert layer.kv_heads % layer.parts == 0
        assert layer.heads % layer.parts == 0
        assert layer.padded_dim >= layer.head_dim == spec.head_dim
        assert layer.padded_dim in (head_dims(layer.heads > layer.kv_heads) or [layer.padded_dim])


@pytest.mark.parametrize("length", [1, 127, 128, 129, 8192, 8193, 8320, 32768])
def test_page_count_counts_the_pages_of_visible_tokens(length: int) -> None:
    layers = rank_layers(BaichuanM1Config().layer_specs, 1)
    expected = 0
    for layer in layers:
        seen = range(length) if layer.window is None else range(max(0, length - layer.window), length)
        expected += layer.parts * len({token // BLOCK for token in seen}) + 1
    assert page_count(layers, length) == expected


def test_plan_holds_the_pages() -> None:
    plan = make_plan(BaichuanM1Config(), 3, 1000, torch.bfloat16)
    layers = rank_layers(BaichuanM1Config().layer_specs, 1)
    assert plan.vllm_page == page_bytes(layers, 2) == 2 * 128 * 512 * 2
    assert plan.vllm_cache == 3 * (20 * 8 + 20 * 2 * 8 + 40) * plan.vllm_page


def test_heads_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(ConfigError, match="tensor parallel size 8"):
        rank_layers(BaichuanM1Config().layer_specs, 8)
