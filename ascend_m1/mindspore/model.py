"""The model as two cells that share their weights: ``Prefill`` for a chunk of a prompt, ``Decode`` for a token."""

from __future__ import annotations

from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, float32, mint, nn, ops
from mindspore.mint.nn.functional import linear

from ..configuration_baichuan_m1 import BaichuanM1Config
from .layers import Layer, Places, RMSNorm, frozen
from .runner import Graphs, chunk_lengths
from .state import state_shapes
from .weights import Weights

_PER_LAYER = 4  # tensors of state: k, v, raw k, raw v


class Core(nn.Cell):
    """Embedding, layers, norm and head, for sequences of up to ``capacity`` tokens.

    Args:
        dtype: MindSpore's, of weights, activations and state.
        fused: Ascend's own operators, see ``layers``.
    """

    def __init__(
        self, config: BaichuanM1Config, weights: Weights, capacity: int, dtype: Any = float32, fused: bool = False
    ) -> None:
        super().__init__()
        self.config, self.capacity, self.dtype, self.fused = config, capacity, dtype, fused
        self.vocab, self.depth = config.vocab_size, config.num_hidden_layers
        self.embedding = frozen(weights.read("model.embed_tokens.weight"), "embed_tokens", dtype)
        kinds = list(dict.fromkeys(config.layer_specs))
        self.kind_of = tuple(kinds.index(spec) for spec in config.layer_specs)
        self.kinds = len(kinds)
        self.places = nn.CellList([Places(spec, capacity, config.rope_theta) for spec in kinds])
        self.layers = nn.CellList([Layer(weights, i, config, dtype, fused) for i in range(self.depth)])
        self.norm = RMSNorm(weights, "model.norm", config.rms_norm_eps, dtype, fused)
        head = weights.read("lm_head.weight")
        self.head = frozen(head, "lm_head", dtype)
        # NormHead: rows count by direction alone. Scaling the products keeps the rows exact in 16 bits.
        self.scale = frozen(1 / np.maximum(np.linalg.norm(head, axis=1), 1e-12), "lm_head.scale", float32)

    def embed(self, ids: Tensor) -> Tensor:
        """[B, S] -> [B, S, hidden]; an id equal to vocab_size counts as 0, as in the published model."""
        return ops.gather(self.embedding, mint.where(ids == self.vocab, 0, ids), 0)

    def chunk(self, ids: Tensor, start: Tensor, n: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Hidden states [1, S, hidden] before the last norm, and the new state."""
        x = self.embed(ids)
        out: tuple[Tensor, ...] = ()
        places: tuple[tuple[Tensor, ...], ...] = ()
        for kind in range(self.kinds):
            places = (*places, self.places[kind].chunk(start, n, ids.shape[1]))
        for i in range(self.depth):
            made = self.layers[i].chunk(x, state[_PER_LAYER * i : _PER_LAYER * (i + 1)], places[self.kind_of[i]])
            x, out = made[0], (*out, *made[1:])
        return (x, *out)

    def decode(self, ids: Tensor, pos: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Hidden states [B, 1, hidden] before the last norm, and the new state."""
        x = self.embed(ids)
        out: tuple[Tensor, ...] = ()
        places: tuple[tuple[Tensor, ...], ...] = ()
        for kind in range(self.kinds):
            places = (*places, self.places[kind].decode(pos))
        for i in range(self.depth):
            made = self.layers[i].decode(x, state[_PER_LAYER * i : _PER_LAYER * (i + 1)], places[self.kind_of[i]])
            x, out = made[0], (*out, *made[1:])
        return (x, *out)

    def logits(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocab], float32."""
        return linear(self.norm(x), self.head).astype(float32) * self.scale


class Prefill(nn.Cell):
    """The next tokens of one sequence -> logits of the last of them, and the new state."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self.core = core

    def construct(self, ids: Tensor, start: Tensor, n: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """ids [1, S] int32, padded on the right; start [1] int32, the first one's position; n [1] int32, how many
        are real -> logits [1, vocab], and the state after them."""
        out = self.core.chunk(ids, start, n, state)
        last = ops.gather(out[0], n - 1, 1)
        return (self.core.logits(last).reshape(1, -1), *out[1:])


class Decode(nn.Cell):
    """A token of each of B sequences -> logits of the next, and the new state."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self.core = core

    def construct(self, ids: Tensor, pos: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """ids [B, 1] int32, pos [B] int32, their positions, below the capacity -> logits [B, vocab], and the state."""
        out = self.core.decode(ids, pos, state)
        return (self.core.logits(out[0]).reshape(ids.shape[0], -1), *out[1:])


def compiled(cell: nn.Cell) -> Any:
    """The cell as one static graph. Level O0: each operator a kernel; O1 would fuse some by itself, experimentally."""
    return mindspore.jit(cell, fullgraph=True, jit_level="O0")


def graphs(core: Core, dtype: str) -> Graphs:
    """Both cells compiled, each when it first meets a shape."""
    return Graphs(
        compiled(Prefill(core)),
        compiled(Decode(core)),
        chunk_lengths(core.capacity),
        core.capacity,
        state_shapes(core.config, core.capacity),
        dtype,
    )
