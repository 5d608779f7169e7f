"""Reading from tables and writing into them in place."""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import operator


@operator("Gather")
def gather(
    x: Tensor,
    indices: Tensor,
    validate_indices: bool = True,
    batch_dims: int = 0,
    is_preprocessed: bool = False,
    negative_index_support: bool = False,
) -> Tensor:
    """x[indices] on the first axis."""
    return gather_v2(x, indices, torch.tensor(0), batch_dims, is_preprocessed, negative_index_support)


@operator("GatherV2")
def gather_v2(
    x: Tensor,
    indices: Tensor,
    axis: Tensor,
    batch_dims: int = 0,
    is_preprocessed: bool = False,
    negative_index_support: bool = False,
) -> Tensor:
    """Rows of x along one axis, in the shape of indices."""
    if batch_dims:
        raise NotImplementedError(f"batch_dims {batch_dims} is not answered")
    dim = int(axis) % x.dim()
    low = -x.shape[dim] if negative_index_support else 0
    if indices.numel() and (int(indices.min()) < low or int(indices.max()) >= x.shape[dim]):
        raise IndexError(f"indices {int(indices.min())}..{int(indices.max())} outside axis {dim} of {x.shape[dim]}")
    rows = x.index_select(dim, indices.flatten().long() % max(x.shape[dim], 1))
    return rows.view(*x.shape[:dim], *indices.shape, *x.shape[dim + 1 :])


@operator("GatherElements")
def gather_elements(x: Tensor, index: Tensor, dim: int = 0) -> Tensor:
    """torch.gather."""
    return x.gather(dim, index.long())


@operator("IndexByTensor", lists=("indices",))
def index_by_tensor(x: Tensor, indices: list[Tensor], indices_mask: list[int]) -> Tensor:
    """x[..., index, ...]: a mask of 1 marks the axes that have an index tensor."""
    tensors = iter(indices)
    return x[tuple(next(tensors).long() if masked else slice(None) for masked in indices_mask)]


@operator("Assign", writes=("ref",))
def assign(ref: Tensor, value: Tensor, validate_shape: bool = True, use_locking: bool = False) -> Tensor:
    """ref = value, in ref's memory."""
    if ref.shape != value.shape:
        raise ValueError(f"value {tuple(value.shape)} into ref {tuple(ref.shape)}")
    return ref.copy_(value)


@operator("ScatterNdUpdate", writes=("var",))
def scatter_nd_update(var: Tensor, indices: Tensor, updates: Tensor, use_locking: bool = False) -> Tensor:
    """var[indices[..., :]] = updates, in var's memory; indices in range, one writer for each row."""
    depth = indices.shape[-1]
    places = indices.reshape(-1, depth).long()
    sizes = torch.tensor(var.shape[:depth])
    if ((places < 0) | (places >= sizes)).any():
        raise IndexError(f"indices leave the table {tuple(var.shape[:depth])}")
    if len(places) != len(places.unique(dim=0)):
        raise ValueError("two updates have one place, whose winner is undefined")
    var[tuple(places.t())] = updates.reshape(-1, *var.shape[depth:])
    return var


@operator("ScatterPaKvCache", writes=("key_cache", "value_cache"))
def scatter_pa_kv_cache(
    key: Tensor,
    key_cache: Tensor,
    slot_mapping: Tensor,
    value: Tensor,
    value_cache: Tensor,
    cache_mode: str = "Norm",
    scatter_mode: str = "None",
    strides: list[int] | None = None,
    offsets: list[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows of key and value into the paged caches, in their memory.

    key, value [T, KV, D]; caches [blocks, block_size, KV, D]; slot_mapping int32 or int64 [T], in
    [0, blocks · block_size), no slot twice (documentation of npu_scatter_pa_kv_cache, mode "Norm").
    """
    if cache_mode != "Norm" or scatter_mode != "None" or strides not in (None, [1, 1]) or offsets not in (None, [0, 0]):
        raise NotImplementedError(f"cache_mode {cache_mode}, scatter_mode {scatter_mode}; only Norm/None is answered")
    blocks, block_size = key_cache.shape[:2]
    slots = slot_mapping.long()
    if slot_mapping.dtype not in (torch.int32, torch.int64) or slots.shape != key.shape[:1]:
        raise ValueError(f"slot_mapping {slot_mapping.dtype} {tuple(slots.shape)} for {key.shape[0]} tokens")
    if slots.numel() and (int(slots.min()) < 0 or int(slots.max()) >= blocks * block_size):
        raise IndexError(f"slot {int(slots.min())}..{int(slots.max())} outside {blocks} blocks of {block_size}")
    if len(slots.unique()) != len(slots):
        raise ValueError("a slot is written twice in one call")
    for rows, cache in ((key, key_cache), (value, value_cache)):
        if rows.dtype != cache.dtype or rows.shape[1:] != cache.shape[2:] or not cache.is_contiguous():
            raise ValueError(f"rows {rows.dtype} {tuple(rows.shape)} for cache {cache.dtype} {tuple(cache.shape)}")
        cache.view(blocks * block_size, *cache.shape[2:])[slots] = rows
    return key_cache, value_cache
