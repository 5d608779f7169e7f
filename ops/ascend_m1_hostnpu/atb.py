"""Operators of the ATB library (``torch.ops.atb``, called by vllm-ascend): the schema and the names are torch_npu's.

Those below compute what *ascendtb* documents (Ascend Transformer Boost, API reference); all others fail by name.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from . import null, streams
from .abi import said, view
from .launches import Launch
from .operator import RuleError, nbytes, need
from .products import product

MODULE = "torch_npu.op_plugin.atb._atb_ops"
_CACHE = "ascendtb, ReshapeAndCacheOperation"
_ROPE = "ascendtb, RopeOperation"
_TYPES = (torch.float16, torch.bfloat16, torch.int8)
_library: torch.library.Library | None = None  # what it registers ends with it


def install(module: ModuleType) -> None:
    """Put Python behind the operators that the module has just loaded from libop_plugin_atb.so."""
    global _library
    _library = torch.library.Library("atb", "IMPL")
    stand_ins = {
        "_npu_reshape_and_cache": reshape_and_cache,
        "_npu_rotary_embedding": rotary_embedding,
        "_npu_matmul_add_fp32": matmul_add_fp32,
    }
    for name in [*module.API_LIST, *module.ATB_API_LIST]:
        for overload in getattr(torch.ops.atb, name).overloads():
            key = name if overload == "default" else f"{name}.{overload}"
            _library.impl(key, stand_ins.get(name) or _missing(name), "PrivateUse1", allow_override=True)


def _missing(name: str) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"atb.{name}: the host NPU has no stand-in for this operator of ATB")

    return fail


def _launch(name: str, run: Callable[[], object], read: int, written: int) -> None:
    if null.is_active():
        return
    stream = torch.npu.current_stream().npu_stream  # type: ignore[attr-defined]
    if streams.submit(stream, run, Launch(name, read, written)):
        raise RuntimeError(said())


def _on_host(tensor: Tensor) -> Tensor:
    return view(tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def reshape_and_cache(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_indices: Tensor) -> None:
    """k and v [tokens, heads, dim] into the slots (block · block_size + offset) of their caches; below 0: nowhere.

    Caches [blocks, block_size, heads, dim]. On 310P the caches are in the format NZ, which has no stand-in.
    """
    if product() == "310P":
        raise NotImplementedError("atb._npu_reshape_and_cache: the host NPU knows no NZ caches, which 310P needs")
    need(slot_indices.dtype == torch.int32, "slotMapping", f"is int32, got {slot_indices.dtype}", _CACHE)
    need(slot_indices.shape == key.shape[:1], "slotMapping", f"is [{len(key)}], got {list(slot_indices.shape)}", _CACHE)
    for name, new, cache in (("key", key, key_cache), ("value", value, value_cache)):
        need(new.dtype in _TYPES, name, f"is float16, bfloat16 or int8, got {new.dtype}", _CACHE)
        need(new.dtype == key.dtype == cache.dtype, name, "and its cache have one dtype", _CACHE)
        fits = cache.dim() == 4 and new.shape == (len(key), *cache.shape[2:])
        need(fits, name, f"is [tokens, heads, dim] of {list(cache.shape)}, got {list(new.shape)}", _CACHE)
        need(cache.is_contiguous(), f"{name}Cache", "must be contiguous", _CACHE)
    slots, room = _on_host(slot_indices), key_cache.shape[0] * key_cache.shape[1]
    pairs = [(_on_host(new), _on_host(cache).flatten(0, 1)) for new, cache in ((key, key_cache), (value, value_cache))]

    def run() -> None:
        used = (slots >= 0).nonzero().flatten()
        where = slots[used].long()
        if where.numel() and int(where.max()) >= room:
            raise RuleError(f"slotMapping: lies below {room}, got {int(where.max())} ({_CACHE})")
        for new, cache in pairs:
            cache[where] = new[used]

    moved = nbytes(key) + nbytes(value)
    _launch("AtbReshapeAndCache", run, moved + nbytes(slot_indices), moved)


def rotary_embedding(
    positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor, is_neox_style: bool
) -> None:
    """Rotates q and k [tokens, heads · head_size] in place by the table [positions, cos | sin], each head_size / 2."""
    table, where = _on_host(cos_sin_cache), _on_host(positions)
    need(table.shape[-1] == head_size, "cos_sin_cache", f"has {head_size} columns, got {table.shape[-1]}", _ROPE)
    targets = [_on_host(query), _on_host(key)]

    def run() -> None:
        cos, sin = (part[:, None].float() for part in table[where.flatten().long()].chunk(2, -1))
        for target in targets:
            heads = target.reshape(len(cos), -1, head_size).float()
            a, b = heads.chunk(2, -1) if is_neox_style else (heads[..., ::2], heads[..., 1::2])
            parts = (a * cos - b * sin, b * cos + a * sin)
            turned = torch.cat(parts, -1) if is_neox_style else torch.stack(parts, -1).flatten(-2)
            target.copy_(turned.reshape(target.shape))

    moved = nbytes(query) + nbytes(key)
    _launch("AtbRope", run, moved + nbytes(positions) + len(where.flatten()) * nbytes(cos_sin_cache[0]), moved)


def matmul_add_fp32(x: Tensor, weight: Tensor, c: Tensor) -> None:
    """c += xᵀ · weight, c in float32: x [rows, m], weight [rows, n], c [m, n]."""
    need(c.dtype == torch.float32, "C", f"is float32, got {c.dtype}", "ascendtb, LinearOperation")
    left, right, total = _on_host(x), _on_host(weight), _on_host(c)
    read = nbytes(x) + nbytes(weight) + nbytes(c)
    _launch("AtbLinear", lambda: total.add_(left.float().T @ right.float()), read, nbytes(c))
