"""How one rank lays out attention so that every layer's cache has pages of one size.

vLLM keeps all layers' blocks in one pool, and vllm-ascend gives all layers one block size; both are simple, and without
waste, if a token's K row is equally wide in every layer. A layer with a wider row is split into parts of fewer
key/value heads, each an attention of its own over its own pages; a narrower head is padded with zeros, which changes no
score. Published 14B on one rank: global layers have rows of 2 x 256, window layers 8 x 128, so two parts of 4 x 128.
The convolution's state, the raw k and v of one token, takes a page of its own in every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .configuration_baichuan_m1 import LayerSpec
from .errors import ConfigError

BLOCK = 128  # tokens in a page
# Sizes of a head that attention takes where query heads share key/value heads (True) and where they do not; None: any.
HeadDims = Callable[[bool], Sequence[int] | None]


@dataclass(frozen=True)
class RankLayer:
    """One layer's attention on one rank.

    Attributes:
        heads, kv_heads: on this rank; a key/value head stands on ``replicas`` ranks.
        head_dim: of the model. padded_dim: in the cache.
        parts: attentions that the layer is split into.
        window: visible keys; None: all.
    """

    heads: int
    kv_heads: int
    replicas: int
    head_dim: int
    padded_dim: int
    parts: int
    window: int | None

    @property
    def row(self) -> int:
        """Elements of a token's K in one part's page."""
        return self.kv_heads // self.parts * self.padded_dim


def any_head_dim(grouped: bool) -> None:
    """Of an attention that is not choosy."""


def rank_layers(specs: Sequence[LayerSpec], ranks: int, head_dims: HeadDims = any_head_dim) -> list[RankLayer]:
    """Every layer on one of ``ranks`` tensor-parallel ranks, with equal rows.

    Args:
        specs: the layers.
        ranks: tensor parallel size.
        head_dims: those that attention takes.

    Raises:
        ConfigError: heads cannot be shared out, or no padded head_dim is taken.
    """
    options = {spec: _options(spec, ranks, head_dims) for spec in dict.fromkeys(specs)}
    rows = set.intersection(*({layer.row for layer in layers} for layers in options.values()))
    if not rows:
        raise ConfigError(
            f"head_dim {', '.join(map(str, sorted({spec.head_dim for spec in specs})))}: no padding to sizes that "
            "attention takes here gives all layers pages of one size"
        )
    chosen = {
        row: {spec: next(layer for layer in layers if layer.row == row) for spec, layers in options.items()}
        for row in rows
    }
    best = min(chosen.values(), key=lambda layers: sum(_cost(layers[spec]) for spec in specs))
    return [best[spec] for spec in specs]


def page_bytes(layers: Sequence[RankLayer], itemsize: int) -> int:
    """K and V of ``BLOCK`` tokens in one part of a layer."""
    return 2 * BLOCK * layers[0].row * itemsize


def page_count(layers: Sequence[RankLayer], length: int) -> int:
    """Pages of a sequence of ``length`` tokens that is being decoded; while its prompt is read there are a few more."""
    count = 0
    for layer in layers:
        first = 0 if layer.window is None else max(0, length - layer.window)  # the oldest token that is still seen
        count += layer.parts * ((length - 1) // BLOCK - first // BLOCK + 1) + 1  # and the state's
    return count


def _cost(layer: RankLayer) -> float:
    """Width of all pages; a part more counts as little as can be."""
    return layer.parts * layer.row + layer.parts / 1024


def _options(spec: LayerSpec, ranks: int, head_dims: HeadDims) -> list[RankLayer]:
    """All ways to lay out a layer, the narrowest first."""
    replicas = max(1, ranks // spec.kv_heads)
    if spec.heads % ranks or (spec.kv_heads % ranks and ranks % spec.kv_heads):
        raise ConfigError(
            f"tensor parallel size {ranks}: {spec.heads} query and {spec.kv_heads} key/value heads cannot be shared "
            "out: give a size that divides the first, and divides or is a multiple of the second"
        )
    heads, kv_heads = spec.heads // ranks, max(1, spec.kv_heads // ranks)
    taken = head_dims(heads > kv_heads)
    dims = [spec.head_dim << shift for shift in range(6)] if taken is None else sorted(taken)
    layers = [
        RankLayer(heads, kv_heads, replicas, spec.head_dim, dim, parts, spec.window)
        for parts in range(1, kv_heads + 1)
        if kv_heads % parts == 0
        for dim in dims
        if dim >= spec.head_dim
    ]
    return sorted(layers, key=_cost)
