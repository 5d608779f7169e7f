"""The convolution's filters on ranks that this machine has no processes for."""

from __future__ import annotations

import pytest
import torch

from ascend_m1.configuration_baichuan_m1 import LayerSpec
from ascend_m1.errors import CheckpointError
from ascend_m1.pages import rank_layers
from ascend_m1_vllm.weights import load_taps


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_every_rank_has_the_filters_of_its_heads(kv_heads: int, ranks: int) -> None:
    """Where ranks outnumber heads, a head is on several, those beside each other, as its keys and values are."""
    heads = 16 * kv_heads
    layer = rank_layers([LayerSpec("global", heads, kv_heads, 64, None)], ranks)[0]
    published = torch.randn(1, 1, kv_heads, 1, 2)
    for rank in range(ranks):
        taps = torch.zeros(layer.kv_heads, 2)
        load_taps(taps, published, layer, ranks, rank, "conv_k")
        own = {head * kv_heads // heads for head in range(rank * heads // ranks, (rank + 1) * heads // ranks)}
        assert torch.equal(taps, published.view(-1, 2)[sorted(own)])


def test_a_filter_of_another_shape() -> None:
    layer = rank_layers([LayerSpec("global", 8, 2, 64, None)], 2)[0]
    with pytest.raises(CheckpointError, match=r"^tensor conv_v has shape .*, 3\]: expected \[1, 1, 2, 1, 2\]"):
        load_taps(torch.zeros(1, 2), torch.zeros(1, 1, 2, 1, 3), layer, 2, 0, "conv_v")
