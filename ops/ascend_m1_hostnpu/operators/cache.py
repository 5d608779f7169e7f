"""Writing tokens into a paged cache and reading them back; updating a table at indices."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operator import aclnn, nbytes, need
from ..products import product

_SCATTER = "ops-transformer attention/scatter_pa_kv_cache/docs/aclnnScatterPaKvCache.md"
_GATHER = "ops-transformer attention/gather_pa_kv_cache/docs/aclnnGatherPaKvCache.md"
_UPDATE = "ops-nn index/scatter_nd_update/docs/aclnnScatterNdUpdate.md"
_NZ_BYTES = 32  # bytes of the innermost axis of an NZ cache
_TYPES = (torch.float16, torch.bfloat16, torch.int8)
_INTEGERS = (torch.int32, torch.int64)


def _scatter_rules(
    key: Tensor, keys: Tensor, slots: Tensor, value: Tensor, values: Tensor,
    lens: Tensor | None, offsets: Tensor | None, seq: Tensor | None,
    cache_mode: str | None, scatter_mode: str | None, strides: list[int], shifts: list[int],
) -> None:  # fmt: skip
    page = _SCATTER
    need(product() != "310P", "product", "exists on 910B, A3 and 950 only, this is 310P", page)
    if lens is not None or offsets is not None or seq is not None or scatter_mode not in (None, "None"):
        raise NotImplementedError("scatterMode: the stand-in knows no compression")
    need(cache_mode in (None, "Norm", "PA_NZ"), "cacheMode", f"is Norm or PA_NZ, got {cache_mode}", page)
    allowed = product() == "950" or key.dtype in _TYPES
    need(allowed, "key", f"is float16, bfloat16 or int8, got {key.dtype}", page)
    one = key.dtype == keys.dtype == value.dtype == values.dtype
    need(one, "keyCache", "key, value and both caches have one dtype", page)
    need(slots.dtype in _INTEGERS, "slotMapping", f"is int32 or int64, got {slots.dtype}", page)
    need(key.dim() == 3, "key", f"is [tokens, heads, dim], got {list(key.shape)}", page)
    need(key.shape[:2] == value.shape[:2], "value", "has the key's tokens and heads", page)
    need(list(slots.shape) == [key.shape[0]], "slotMapping", f"is [{key.shape[0]}], got {list(slots.shape)}", page)
    for name, new, cache in (("keyCache", key, keys), ("valueCache", value, values)):
        need(cache.dim() == 4, name, f"has four dimensions, got {list(cache.shape)}", page)
        need(cache.is_contiguous(), name, "must be contiguous", page)
        _, heads, dim = new.shape
        if cache_mode == "PA_NZ":
            inner = _NZ_BYTES // new.dtype.itemsize
            expected = [cache.shape[0], heads * dim // inner, cache.shape[2], inner]
        else:
            expected = [cache.shape[0], cache.shape[1], heads, dim]
        need(
            list(cache.shape) == expected,
            name,
            f"is {expected} in cacheMode {cache_mode or 'Norm'}, got {list(cache.shape)}",
            page,
        )
    need(slots.is_contiguous(), "slotMapping", "must be contiguous", page)


@aclnn(
    "ScatterPaKvCache",
    "T key, T! keyCache, T slotMapping, T value, T! valueCache, T compressLens, T compressSeqOffset, T seqLens, "
    "s cacheMode, s scatterMode, IA strides, IA offsets",
    rules=_scatter_rules,
    traffic=lambda key, keys, slots, value, *rest: (
        nbytes(key) + nbytes(value) + nbytes(slots),
        nbytes(key) + nbytes(value),
    ),
)
def scatter_pa_kv_cache(
    key: Tensor, keys: Tensor, slots: Tensor, value: Tensor, values: Tensor, lens: None, offsets: None, seq: None,
    cache_mode: str | None, scatter_mode: str | None, strides: list[int], shifts: list[int],
) -> None:  # fmt: skip
    size = keys.shape[2 if cache_mode == "PA_NZ" else 1]
    where = slots.long()
    room = keys.shape[0] * size
    inside = not where.numel() or (int(where.min()) >= 0 and int(where.max()) < room)
    need(inside, "slotMapping", f"lies in [0, {room})", _SCATTER)
    need(where.unique().numel() == where.numel(), "slotMapping", "names each slot once", _SCATTER)
    for new, cache in ((key, keys), (value, values)):
        if cache_mode == "PA_NZ":
            cache[where // size, :, where % size] = new.reshape(new.shape[0], -1, cache.shape[-1])
        else:
            cache.view(-1, *cache.shape[2:])[where] = new


def _gather_rules(
    keys: Tensor, values: Tensor, tables: Tensor, lens: Tensor, key: Tensor, value: Tensor, offset: Tensor | None,
    cache_mode: str | None, cumulative: bool,
) -> None:  # fmt: skip
    page = _GATHER
    need(product() != "310P", "product", "exists on 910B, A3 and 950 only, this is 310P", page)
    need(cache_mode in ("Norm", "PA_NZ"), "cacheMode", f"is Norm or PA_NZ, got {cache_mode}", page)
    if cache_mode == "PA_NZ":
        raise NotImplementedError("cacheMode: the stand-in knows Norm only")
    need(
        product() == "950" or keys.dtype in _TYPES, "keyCache", f"is int8, float16 or bfloat16, got {keys.dtype}", page
    )
    need(keys.dtype == key.dtype and values.dtype == value.dtype, "key", "has its cache's dtype", page)
    for name, tensor in (("blockTables", tables), ("seqLens", lens), ("seqOffset", offset)):
        need(tensor is None or tensor.dtype == torch.int32, name, "is int32", page)
    need(tables.dim() == 2, "blockTables", f"is [batch, blocks], got {list(tables.shape)}", page)
    expected = [tables.shape[0] + int(cumulative)]
    need(list(lens.shape) == expected, "seqLens", f"is {expected}, got {list(lens.shape)}", page)
    for name, cache, out in (("key", keys, key), ("value", values, value)):
        need(cache.dim() == 4, f"{name}Cache", f"is [blocks, block_size, heads, dim], got {list(cache.shape)}", page)
        need(
            out.dim() == 3 and out.shape[1:] == cache.shape[2:],
            name,
            f"is [tokens, heads, dim], got {list(out.shape)}",
            page,
        )
        need(out.numel() > 0, name, "is not empty", page)
        need(cache.is_contiguous() and out.is_contiguous(), name, "and its cache must be contiguous", page)
        size = out[0].numel() * out.dtype.itemsize
        need(size <= 148 * 1024, name, f"a token has at most 148 KiB, got {size} bytes", page)


@aclnn(
    "GatherPaKvCache",
    "T keyCache, T valueCache, T blockTables, T seqLens, T! key, T! value, T seqOffset, s cacheMode, b isSeqLensCumsum",
    rules=_gather_rules,
    traffic=lambda keys, values, tables, lens, key, value, *rest: (
        nbytes(key) + nbytes(value) + nbytes(tables) + nbytes(lens),
        nbytes(key) + nbytes(value),
    ),
)
def gather_pa_kv_cache(
    keys: Tensor, values: Tensor, tables: Tensor, lens: Tensor, key: Tensor, value: Tensor, offset: Tensor | None,
    cache_mode: str, cumulative: bool,
) -> None:  # fmt: skip
    lengths = (lens.diff() if cumulative else lens).tolist()
    need(
        sum(lengths) == key.shape[0], "key", f"has a row for each of {sum(lengths)} tokens, got {key.shape[0]}", _GATHER
    )
    size, start = keys.shape[1], 0
    for index, length in enumerate(lengths):
        first = int(offset[index]) // size if offset is not None else 0
        blocks = tables[index, first : first + -(-length // size)].long()
        for cache, out in ((keys, key), (values, value)):
            out[start : start + length] = cache[blocks].flatten(0, 1)[:length]
        start += length


def _update_rules(var: Tensor, indices: Tensor, updates: Tensor) -> None:
    page = _UPDATE
    types = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool)
    need(product() != "310P", "product", "exists on 910B, A3 and 950 only, this is 310P", page)
    need(var.dtype in types, "var", f"is float32, float16, bfloat16, int8, int64 or bool, got {var.dtype}", page)
    need(var.dtype == updates.dtype, "updates", f"has var's dtype {var.dtype}, got {updates.dtype}", page)
    need(indices.dtype in _INTEGERS, "indices", f"is int32 or int64, got {indices.dtype}", page)
    need(indices.dim() >= 2, "indices", f"has at least two dimensions, got {list(indices.shape)}", page)
    rank = indices.shape[-1]
    need(1 <= rank <= min(7, var.dim()), "indices", f"its last dimension is 1 to var's rank, got {rank}", page)
    expected = [*indices.shape[:-1], *var.shape[rank:]]
    need(list(updates.shape) == expected, "updates", f"is {expected}, got {list(updates.shape)}", page)
    need(var.numel() == 0 or var[0].is_contiguous(), "var", "is contiguous but for axis 0", page)


@aclnn(
    "ScatterNdUpdate",
    "T! var, T indices, T updates",
    rules=_update_rules,
    traffic=lambda var, indices, updates: (nbytes(indices) + nbytes(updates), nbytes(updates)),
)
def scatter_nd_update(var: Tensor, indices: Tensor, updates: Tensor) -> None:
    rank = indices.shape[-1]
    where = indices.long().reshape(-1, rank)
    limits = torch.tensor(var.shape[:rank])
    need(bool(((where >= 0) & (where < limits)).all()), "indices", f"lie within {limits.tolist()}", _UPDATE)
    var[tuple(where.T)] = updates.reshape(len(where), *var.shape[rank:])
