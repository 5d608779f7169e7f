"""What a model needs, in numbers: parameters, cache and activations, from its configuration alone.

Parameters are counted on a model without storage (the meta device). A plan for several devices is arithmetic about a
tensor-parallel split, which vLLM runs with the plugin in ``serve/ascend_m1_vllm``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import gcd, prod
from typing import Any

import torch

from .cache import DEFAULT_ROLLBACK
from .configuration_baichuan_m1 import BaichuanM1Config, LayerSpec
from .errors import InputError
from .modeling_baichuan_m1 import BaichuanM1ForCausalLM
from .pages import page_bytes, page_count, rank_layers
from .quantization.scheme import Scheme, is_target

PARTS = {
    "embedding": ("embed_tokens.",),
    "attention": ("self_attn.",),
    "mlp": ("mlp.",),
    "norms": ("norm.", "_layernorm."),
    "head": ("lm_head.",),
}
_SPLIT_BY_INPUTS = (".o_proj.weight", ".down_proj.weight")  # over several devices; other matrices by outputs


@dataclass(frozen=True)
class CacheBytes:
    """The cache of one batch, as ``M1Cache`` allocates it for a known length.

    Attributes:
        global_layers: K and V of every token.
        window_layers: rings of window + rollback slots.
        convolution: raw k and v of the last 1 + rollback tokens, all layers.
    """

    global_layers: int
    window_layers: int
    convolution: int

    @property
    def total(self) -> int:
        return self.global_layers + self.window_layers + self.convolution


@dataclass(frozen=True)
class Plan:
    """Bytes on each device.

    Attributes:
        weights: the device's share, quantised by ``scheme`` if there is one.
        cache: of ``batch`` sequences of ``length`` tokens.
        full_cache: what a cache without windows would take, for comparison.
        vllm_cache, vllm_page: the same sequences in vLLM, see ``pages``; not part of the total.
        activations: see ``activation_bytes``.
    """

    batch: int
    length: int
    dtype: str
    devices: int
    scheme: Scheme | None
    weights: int
    cache: CacheBytes
    full_cache: int
    vllm_cache: int
    vllm_page: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.cache.total + self.activations

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        cache = asdict(self.cache) | {"total": self.cache.total, "full": self.full_cache}
        vllm = {"cache": self.vllm_cache, "page": self.vllm_page}
        return {
            "batch": self.batch,
            "length": self.length,
            "dtype": self.dtype,
            "devices": self.devices,
            "quantization": None if self.scheme is None else asdict(self.scheme),
            "bytes_per_device": {
                "weights": self.weights,
                "cache": cache,
                "vllm": vllm,
                "activations": self.activations,
                "total": self.total,
            },
        }


def parameters(config: BaichuanM1Config, devices: int = 1) -> dict[str, int]:
    """Parameters on each device by part (``PARTS``); with one device, of the model."""
    counts = dict.fromkeys(PARTS, 0)
    for name, shape in _shapes(config).items():
        part = next(part for part, marks in PARTS.items() if any(mark in name for mark in marks))
        counts[part] += _share(config, name, shape, devices)
    return counts


def weight_bytes(config: BaichuanM1Config, itemsize: int, scheme: Scheme | None, devices: int = 1) -> int:
    """Bytes of all weights on each device, as they are stored and as an NPU holds them.

    Of quantised matrices these are numbers of 8 or 4 bits, and scales as wide as the other weights.

    Raises:
        InputError: the groups do not fit a matrix, or a device's share of it.
    """
    total = 0
    for name, shape in _shapes(config).items():
        share = _share(config, name, shape, devices)
        if scheme is None or not is_target(name):
            total += share * itemsize
            continue
        inputs = shape[1] // devices if name.endswith(_SPLIT_BY_INPUTS) else shape[1]
        group = scheme.group or inputs
        if inputs % group:
            raise InputError(f"{name}: {inputs} inputs on a device are no multiple of the group size {group}")
        total += share * scheme.bits // 8 + share // group * itemsize
    return total


def _shapes(config: BaichuanM1Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in BaichuanM1ForCausalLM(config).named_parameters()}


def _share(config: BaichuanM1Config, name: str, shape: tuple[int, ...], devices: int) -> int:
    """Elements of one parameter on each device: norms are repeated, key/value heads where there are too few."""
    if devices == 1 or "norm" in name:
        return prod(shape)
    if "W_pack" in name or ".conv_" in name:
        spec = config.layer_specs[int(name.split(".")[2])]
        kv_heads = _local_kv_heads(spec, devices)
        if ".conv_" in name:
            return prod(shape) // spec.kv_heads * kv_heads
        return (spec.q_size // devices + 2 * kv_heads * spec.head_dim) * shape[1]
    return prod(shape) // devices


def _local_kv_heads(spec: LayerSpec, devices: int) -> int:
    return max(1, spec.kv_heads // devices)


def possible_devices(config: BaichuanM1Config) -> list[int]:
    """Over how many devices the heads, the MLP and the vocabulary can be split."""
    common = gcd(config.intermediate_size, config.vocab_size, *(spec.heads for spec in config.layer_specs))
    return [
        n
        for n in range(1, common + 1)
        if common % n == 0 and all(spec.kv_heads % n == 0 or n % spec.kv_heads == 0 for spec in config.layer_specs)
    ]


def cache_bytes(
    config: BaichuanM1Config,
    batch: int,
    length: int,
    itemsize: int,
    *,
    devices: int = 1,
    rollback: int = DEFAULT_ROLLBACK,
) -> CacheBytes:
    """Bytes of an ``M1Cache`` for ``length`` tokens; one that grows while generating reserves up to a quarter more."""
    totals = {"global": 0, "window": 0}
    convolution = 0
    for spec in config.layer_specs:
        token = 2 * _local_kv_heads(spec, devices) * spec.head_dim * itemsize
        slots = length if spec.window is None else min(length, spec.window + rollback)
        totals[spec.kind] += batch * slots * token
        convolution += batch * (1 + rollback) * token
    return CacheBytes(totals["global"], totals["window"], convolution)


def full_cache_bytes(config: BaichuanM1Config, batch: int, length: int, itemsize: int, devices: int = 1) -> int:
    """Bytes of a cache that keeps K and V of every token in every layer."""
    widths = (2 * _local_kv_heads(spec, devices) * spec.head_dim for spec in config.layer_specs)
    return batch * length * itemsize * sum(widths)


def activation_bytes(config: BaichuanM1Config, batch: int, length: int, itemsize: int, devices: int = 1) -> int:
    """Bytes alive at the widest moment of a forward over whole prompts, which is in the MLP.

    A token then holds 5 hidden-sized values (input embedding, residual before and after attention, attention's output,
    normed) and 3 intermediate-sized ones (gate, up, silu(gate), then their product in its place), plus RoPE's tables.
    Assumes an attention kernel that does not store its scores; ``length`` counts the prompt.
    """
    token = (5 * config.hidden_size + 3 * config.intermediate_size // devices) * itemsize
    tables = sum({spec.head_dim for spec in config.layer_specs}) * torch.float32.itemsize
    return batch * length * (token + tables)


def make_plan(
    config: BaichuanM1Config,
    batch: int,
    length: int,
    dtype: torch.dtype,
    devices: int = 1,
    scheme: Scheme | None = None,
) -> Plan:
    """The memory plan; ``scheme``: of quantised weights.

    Raises:
        InputError: a number is out of range, or the model cannot be split over so many devices.
    """
    for name, value in (("batch", batch), ("length", length), ("devices", devices)):
        if value < 1:
            raise InputError(f"{name}={value}: give 1 or more")
    if length > config.max_position_embeddings:
        raise InputError(
            f"length={length} is beyond the context (max_position_embeddings={config.max_position_embeddings}): "
            "give at most that"
        )
    possible = possible_devices(config)
    if devices not in possible:
        raise InputError(
            f"devices={devices}: heads, intermediate_size and vocab_size do not divide: "
            f"use {', '.join(map(str, possible))}"
        )
    size = dtype.itemsize
    layers = rank_layers(config.layer_specs, devices)
    page = page_bytes(layers, size)
    return Plan(
        batch=batch,
        length=length,
        dtype=str(dtype).removeprefix("torch."),
        devices=devices,
        scheme=scheme,
        weights=weight_bytes(config, size, scheme, devices),
        cache=cache_bytes(config, batch, length, size, devices=devices),
        full_cache=full_cache_bytes(config, batch, length, size, devices),
        vllm_cache=batch * page_count(layers, length) * page,
        vllm_page=page,
        activations=activation_bytes(config, batch, length, size, devices),
    )


def longest(config: BaichuanM1Config, plan: Plan, memory: int) -> int:
    """The most tokens, at most the context, with which the plan fits into ``memory`` bytes; 0: not even one."""
    size = getattr(torch, plan.dtype).itemsize

    def needed(length: int) -> int:
        cache = cache_bytes(config, plan.batch, length, size, devices=plan.devices)
        return plan.weights + cache.total + activation_bytes(config, plan.batch, length, size, plan.devices)

    low, high = 0, config.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= memory else (low, middle - 1)
    return low
