"""How large the state's tensors are: four a layer, see ``layers``."""

from __future__ import annotations

from ..configuration_baichuan_m1 import BaichuanM1Config, LayerSpec


def slots_of(spec: LayerSpec, capacity: int) -> int:
    """How many tokens a layer remembers."""
    return min(spec.window or capacity, capacity)


def state_shapes(config: BaichuanM1Config, capacity: int) -> list[list[int]]:
    """Of one sequence's tensors, in their order."""
    shapes: list[list[int]] = []
    for spec in config.layer_specs:
        ring, last = ([1, spec.kv_heads, slots, spec.head_dim] for slots in (slots_of(spec, capacity), 1))
        shapes += [ring, ring, last, last]
    return shapes
