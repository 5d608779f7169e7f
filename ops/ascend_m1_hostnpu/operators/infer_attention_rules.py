"""What the documentation and the host code of aclnnFusedInferAttentionScore forbid.

Two kernels answer on A2 and A3. The first takes TND with few conditions and head sizes up to 256 (IsUsingFAI in the
host code); everything else goes to the second, whose TND takes head sizes 64, 128 and 192 only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..operator import need
from ..products import product
from .attention import TRIANGLE

if TYPE_CHECKING:
    from .infer_attention import Call

_FOLDER = "ops-transformer attention/fused_infer_attention_score"
DOCS = f"{_FOLDER}/docs"
HOST = f"{_FOLDER}/op_host/fused_infer_attention_score_tiling.cpp"
DENSE_LAYOUTS = ("BSH", "BSND", "BNSD")
_PRODUCTS = {"V3": ("910B", "A3"), "V4": ("910B", "A3"), "V5": ("950",)}
_MASK_TYPES = (torch.bool, torch.int8, torch.uint8)


def check(version: str, call: Call) -> None:
    """Raise RuleError for a call that the operator does not take."""
    page = f"{DOCS}/aclnnFusedInferAttentionScore{version}.md"
    names = " and ".join(_PRODUCTS[version])
    need(product() in _PRODUCTS[version], "product", f"exists on {names} only, this is {product()}", page)
    check_common(call, page)
    if call.packed and call.query.numel() and version != "V5":
        _check_kernels(call, page)
    if call.lse_flag:
        shape = (*call.query.shape[:2], 1) if call.packed else (call.batch, call.heads, call.query_length, 1)
        need(
            call.lse.shape == shape and call.lse.dtype == torch.float32, "softmaxLse", f"is float32 {list(shape)}", page
        )


def check_common(call: Call, page: str) -> None:
    """What all of the attention operators for inference want."""
    layouts = (*DENSE_LAYOUTS, "TND")
    known = call.layout in layouts and (
        call.out_layout == call.layout or (call.layout, call.out_layout) == ("BNSD", "BSND")
    )
    if not known:
        raise NotImplementedError(f"inputLayout: the stand-in knows {', '.join(layouts)} and BNSD_BSND")
    _check_tensors(call, page)
    if call.query.numel() == 0:
        return
    if call.packed:
        _check_lengths(call, page)
    if call.block_table is not None:
        _check_pages(call, page)
    if call.packed:
        _check_packed(call, page)
    else:
        _check_dense(call, page)
    _check_mask(call, page)


def _check_tensors(call: Call, page: str) -> None:
    query = call.query
    dims = 3 if call.layout in ("BSH", "TND") else 4
    need(query.dim() == dims, "query", f"has {dims} dimensions in {call.layout}, got {list(query.shape)}", page)
    need(query.dtype in (torch.float16, torch.bfloat16), "query", f"is float16 or bfloat16, got {query.dtype}", page)
    same = query.dtype == call.key.dtype == call.value.dtype
    need(same, "key", "key and value have the query's dtype (int8 caches have no stand-in)", page)
    need(call.key.shape == call.value.shape, "value", f"has the key's shape {list(call.key.shape)}", page)
    for name, tensor in (("query", query), ("key", call.key), ("value", call.value)):
        need(tensor.is_contiguous(), name, "must be contiguous", page)
    need(call.heads > 0 and call.heads % call.kv_heads == 0, "numHeads", "is a multiple of numKeyValueHeads", page)
    need(
        call.heads // call.kv_heads <= 64,
        "numHeads",
        f"at most 64 heads share a key head, got {call.heads}/{call.kv_heads}",
        page,
    )
    need(call.heads <= 256, "numHeads", f"is at most 256, got {call.heads}", page)
    axis = {"TND": 1, "BSND": 2, "BNSD": 1}.get(call.layout)
    held = axis is None or query.shape[axis] == call.heads
    need(held, "numHeads", f"equals the query's N axis, got {call.heads} for {list(query.shape)}", page)
    need(call.sparse in (0, 1, 2, 3, 4), "sparseMode", f"is 0 to 4, got {call.sparse}", page)
    need(call.inner_precise in (0, 1, 2, 3), "innerPrecise", f"is 0 to 3, got {call.inner_precise}", page)
    if call.block_table is None:
        need(call.key.dim() == dims, "key", f"has the query's {dims} dimensions without paging", page)
        kv_axis = call.key.shape[axis] if axis is not None else call.key.shape[2] // call.head_dim
        need(
            kv_axis == call.kv_heads,
            "numKeyValueHeads",
            f"equals the key's N axis, got {call.kv_heads} for {list(call.key.shape)}",
            page,
        )


def _check_pages(call: Call, page: str) -> None:
    table, cache = call.block_table, call.key
    assert table is not None
    need(table.dtype == torch.int32, "blockTable", f"is int32, got {table.dtype}", page)
    need(table.dim() == 2, "blockTable", f"has two dimensions, got {list(table.shape)}", page)
    flat = cache.dim() == 3
    need(flat or cache.dim() == 4, "key", f"a cache has three or four dimensions, got {list(cache.shape)}", page)
    need(
        flat or call.layout in ("BNSD", "TND"),
        "key",
        f"{call.layout} takes the cache [blocks, block_size, KV * D] only",
        page,
    )
    width = call.kv_heads * call.head_dim
    expected = (
        [cache.shape[0], call.block_size, width]
        if flat
        else [cache.shape[0], call.kv_heads, call.block_size, call.head_dim]
    )
    need(list(cache.shape) == expected, "blockSize", f"the cache is {expected} for it, got {list(cache.shape)}", page)
    need(
        call.block_size > 0 and call.block_size % 16 == 0,
        "blockSize",
        f"is a multiple of 16, got {call.block_size}",
        page,
    )
    need(call.block_size <= 512, "blockSize", f"is at most 512, got {call.block_size}", page)
    need(not flat or width <= 65535, "key", f"KV * D is at most 65535 in a three-dimensional cache, got {width}", page)
    need(bool(call.kv_lengths), "actualSeqLengthsKv", "is required with paging", page)
    longest = max((len(keys) for keys in call.spans_of_keys()), default=0)
    need(
        table.shape[0] == call.batch,
        "blockTable",
        f"has a row for each of {call.batch} sequences, got {table.shape[0]}",
        page,
    )
    enough = table.shape[1] * call.block_size >= longest
    need(enough, "blockTable", f"{table.shape[1]} blocks of {call.block_size} are too few for {longest} keys", page)


def _check_lengths(call: Call, page: str) -> None:
    for name, lengths in (("actualSeqLengths", call.q_lengths), ("actualSeqLengthsKv", call.kv_lengths)):
        need(bool(lengths), name, "is required in TND", page)
        need(len(lengths or ()) <= 4096, name, "has at most 4096 entries", page)
        need(min(lengths or (0,)) >= 0, name, "has no negative entry", page)
    q_lengths, kv_lengths = call.q_lengths or [], call.kv_lengths or []
    rule = f"has {len(q_lengths)} entries as actualSeqLengths, got {len(kv_lengths)}"
    need(len(q_lengths) == len(kv_lengths), "actualSeqLengthsKv", rule, page)
    need(q_lengths == sorted(q_lengths), "actualSeqLengths", f"is cumulative in TND, got {q_lengths[:8]}", page)


def _check_packed(call: Call, page: str) -> None:
    q_lengths, kv_lengths = call.q_lengths or [], call.kv_lengths or []
    tokens = call.query.shape[0]
    need(
        q_lengths[-1] == tokens,
        "actualSeqLengths",
        f"ends with the {tokens} tokens of query, got {q_lengths[-1]}",
        HOST,
    )
    need(tokens <= 1048576, "query", f"has at most 1048576 tokens in TND, got {tokens}", page)
    if call.block_table is None:
        need(kv_lengths == sorted(kv_lengths), "actualSeqLengthsKv", "is cumulative in TND without paging", page)
        count = call.key.shape[0]
        need(
            kv_lengths[-1] == count,
            "actualSeqLengthsKv",
            f"ends with the {count} tokens of key, got {kv_lengths[-1]}",
            HOST,
        )


def _check_kernels(call: Call, page: str) -> None:
    if not uses_first_kernel(call):
        _check_second_kernel(call, page)
    elif call.sparse == 4:
        need(-call.after <= call.before, "nextTokens", "the band of preTokens and nextTokens is empty", HOST)


def uses_first_kernel(call: Call) -> bool:
    """IsUsingFAI: whether the kernel for TND with head sizes up to 256 answers."""
    grouped = call.heads != call.kv_heads
    plain = (
        call.query.dtype == torch.float16 and call.inner_precise == 1 and call.mask is None and call.block_table is None
    )
    heads = call.inner_precise == 0 if grouped else plain
    cache = call.block_table is None or call.key.dim() == 3
    return heads and cache and call.sparse in (0, 3, 4) and call.head_dim <= 256


def _check_second_kernel(call: Call, page: str) -> None:
    dim = call.head_dim
    why = "unless heads are grouped, innerPrecise is 0 and the cache is [blocks, block_size, KV * D]"
    need(dim in (64, 128, 192), "query", f"TND takes head size 64, 128 or 192, got {dim}, {why}", page)
    modes = (0, 3) if call.heads != call.kv_heads else (0, 3, 4)
    need(call.sparse in modes, "sparseMode", f"is one of {modes} in TND, got {call.sparse}, {why}", page)


def _check_dense(call: Call, page: str) -> None:
    dim, rows = call.head_dim, call.query_length
    need(call.batch <= 65536, "query", f"the batch is at most 65536, got {call.batch}", page)
    need(dim <= 512, "query", f"the head size is at most 512, got {dim}", page)
    need(rows == 1 or dim % 16 == 0, "query", f"the head size is a multiple of 16 when S > 1, got {dim}", page)
    wide = rows > 1 and call.block_table is not None and dim not in (64, 128)
    need(
        not wide or call.block_size % 128 == 0, "blockSize", f"is a multiple of 128 for S > 1 and head size {dim}", page
    )
    longest = 262144 if rows == 1 else 20971520
    need(
        max((len(keys) for keys in call.spans_of_keys()), default=0) <= longest,
        "key",
        f"has at most {longest} keys when S is {rows}",
        page,
    )
    room = None if call.block_table is not None else call.key.shape[2 if call.layout == "BNSD" else 1]
    for name, lengths, limit in (
        ("actualSeqLengths", call.q_lengths, rows),
        ("actualSeqLengthsKv", call.kv_lengths, room),
    ):
        if not lengths:
            continue
        need(len(lengths) == 1 or len(lengths) >= call.batch, name, f"has 1 or at least {call.batch} entries", page)
        need(min(lengths) >= 0, name, "has no negative entry", page)
        need(limit is None or max(lengths) <= limit, name, f"is at most the S axis, {limit}, got {max(lengths)}", page)


def _check_mask(call: Call, page: str) -> None:
    mask = call.mask
    if mask is None:
        need(call.sparse == 0, "attenMask", f"is required with sparseMode {call.sparse}", page)
        return
    shape = list(mask.shape)
    need(mask.dtype in _MASK_TYPES, "attenMask", f"is bool, int8 or uint8, got {mask.dtype}", page)
    if call.sparse in (2, 3, 4):
        fits = 2 <= len(shape) <= 4 and shape[-2:] == [TRIANGLE, TRIANGLE] and mask.numel() == TRIANGLE**2
        need(fits, "attenMask", f"is [2048, 2048], [1, 2048, 2048] or [1, 1, 2048, 2048], got {shape}", page)
        return
    need(not call.packed, "attenMask", "TND takes a mask with sparseMode 3 or 4 only", HOST)
    keys = max((len(keys) for keys in call.spans_of_keys()), default=0)
    if call.block_table is not None:
        keys = call.block_table.shape[1] * call.block_size
    need(shape[-1] >= keys, "attenMask", f"its last dimension covers {keys} keys, got {shape}", page)
    if call.query_length == 1:
        fits = shape[0] in (1, call.batch) and mask.numel() == shape[0] * shape[-1]
        need(fits, "attenMask", f"is [B, keys], [B, 1, keys] or [B, 1, 1, keys] when S is 1, got {shape}", page)
    else:
        fits = shape[-2] >= call.query_length and (len(shape) == 2 or shape[0] in (1, call.batch))
        need(
            fits and (len(shape) < 4 or shape[1] == 1),
            "attenMask",
            f"is [S, keys], [B or 1, S, keys] or [B or 1, 1, S, keys], got {shape}",
            page,
        )
