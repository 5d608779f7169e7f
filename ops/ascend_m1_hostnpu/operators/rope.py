"""Rotary position embedding: y = x * cos + rotate(x) * sin, in float32, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operator import aclnn, need
from ..products import product

_FOLDER = "ops-transformer posembedding"
_ROTARY = f"{_FOLDER}/rotary_position_embedding/docs/aclnnRotaryPositionEmbedding.md"
_GRAD = f"{_FOLDER}/rotary_position_embedding_grad/docs/aclnnRotaryPositionEmbeddingGrad.md"
_APPLY = f"{_FOLDER}/apply_rotary_pos_emb/docs/aclnnApplyRotaryPosEmbV2.md"
_TYPES = (torch.float16, torch.bfloat16, torch.float32)


def _rotated(x: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    wide = x.float()
    return wide * cos.float() + _rotated(wide, interleaved) * sin.float()


def _check(x: Tensor, cos: Tensor, sin: Tensor, mode: int, page: str, tables_wanted: bool) -> None:
    where, dim = product(), x.shape[-1]
    modes = {"310P": (0,), "950": (0, 1, 2, 3)}.get(where, (0, 1))
    need(mode in modes, "mode", f"is one of {modes} on {where}, got {mode}", page)
    if mode > 1:
        raise NotImplementedError(f"mode: the stand-in knows half (0) and interleave (1), got {mode}")
    types = tuple(t for t in _TYPES if where != "310P" or t != torch.bfloat16)
    need(x.dtype in types, "x", f"its dtype {x.dtype} is not supported on {where}", page)
    need(x.dtype == cos.dtype == sin.dtype, "cos", "x, cos and sin have one dtype", page)
    need(
        x.dim() in (3, 4) and cos.dim() == x.dim(),
        "x",
        f"x, cos and sin have 3 or 4 dimensions, got {list(x.shape)}",
        page,
    )
    need(cos.shape == sin.shape, "sin", f"has the shape of cos, got {list(sin.shape)}", page)
    need(cos.shape[-1] == dim, "cos", f"has the head size of x, {dim}, got {cos.shape[-1]}", page)
    if where == "310P":
        need(
            dim <= 128 and dim % 32 == 0,
            "x",
            f"the head size is at most 128 and a multiple of 32 on 310P, got {dim}",
            page,
        )
    elif where == "950":
        need(dim <= 1024 and dim % 2 == 0, "x", f"the head size is even and at most 1024, got {dim}", page)
        return
    else:
        need(dim < 896 and dim % 2 == 0, "x", f"the head size is even and below 896, got {dim}", page)
    if x.numel():
        fits = _fits_packed(x, cos, mode) if x.dim() == 3 else _fits_dense(x, cos, mode, tables_wanted)
        need(fits, "cos", f"no layout of x {list(x.shape)} takes {list(cos.shape)}", page)


def _fits_packed(x: Tensor, cos: Tensor, mode: int) -> bool:
    """TND takes tables [T, 1, D], half also [T, N, D]."""
    tokens, heads, dim = x.shape
    whole = mode == 0 and cos.shape == x.shape
    return (whole or list(cos.shape) == [tokens, 1, dim]) and (mode == 0 or heads < 1000)


def _fits_dense(x: Tensor, cos: Tensor, mode: int, tables_wanted: bool) -> bool:
    """Whether BNSD, BSND or SBND allows the tables; nobody says which of them x is."""
    for layout in ("bnsd", "bsnd", "sbnd"):
        size = dict(zip(layout, x.shape, strict=True))
        batch, rows, heads = size["b"], size["s"], size["n"]
        shapes = [
            [size[a] if a in kept else 1 for a in layout] for kept in (("sd", "bsd", "bnsd") if mode == 0 else ("sd",))
        ]
        if list(cos.shape) not in shapes:
            continue
        within = batch < 1000 and heads < 1000 if mode == 0 else batch * heads < 1000
        aligned = size["d"] // 2 % (32 // x.dtype.itemsize) == 0
        long_enough = layout != "bnsd" or mode != 0 or not aligned or batch * heads <= rows * 8
        if within and (long_enough or tables_wanted) and (not tables_wanted or batch * heads <= 1024):
            return True
    return False


def _rules(x: Tensor, cos: Tensor, sin: Tensor, mode: int, *rest: object) -> None:
    _check(x, cos, sin, mode, _ROTARY, tables_wanted=False)


@aclnn("RotaryPositionEmbeddingV2", "T x, T cos, T sin, i64 mode, T rotate, T! out", rules=_rules)
def rotary_v2(x: Tensor, cos: Tensor, sin: Tensor, mode: int, rotate: Tensor | None, out: Tensor) -> None:
    out.copy_(_rotate(x, cos, sin, mode == 1))


@aclnn("RotaryPositionEmbedding", "T x, T cos, T sin, i64 mode, T! out", rules=_rules)
def rotary(x: Tensor, cos: Tensor, sin: Tensor, mode: int, out: Tensor) -> None:
    out.copy_(_rotate(x, cos, sin, mode == 1))


def _grad_rules(dy: Tensor, cos: Tensor, sin: Tensor, x: Tensor | None, mode: int, *rest: object) -> None:
    need(product() != "310P", "product", "exists on 910B, A3 and 950 only, this is 310P", _GRAD)
    need(x is None or x.shape == dy.shape, "x", f"has the shape of dy, {list(dy.shape)}", _GRAD)
    _check(dy, cos, sin, mode, _GRAD, tables_wanted=x is not None)


@aclnn("RotaryPositionEmbeddingGrad", "T dy, T cos, T sin, T x, i64 mode, T! dx, T! dcos, T! dsin", rules=_grad_rules)
def rotary_grad(
    dy: Tensor, cos: Tensor, sin: Tensor, x: Tensor | None, mode: int, dx: Tensor, dcos: Tensor, dsin: Tensor
) -> None:
    """Without x the derivatives by the tables are not computed and their memory stays as it was."""
    turned = dy.float() * sin.float()
    dx.copy_(dy.float() * cos.float() - _rotated(turned, mode == 1))
    if x is not None:
        dcos.copy_((dy.float() * x.float()).sum_to_size(cos.shape))
        dsin.copy_((dy.float() * _rotated(x.float(), mode == 1)).sum_to_size(sin.shape))


def _apply_rules(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: int, mode: str | None) -> None:
    where, dim = product(), query.shape[-1]
    tensors = (query, key, cos, sin)
    need(len({t.dtype for t in tensors}) == 1, "cos", "query, key, cos and sin have one dtype", _APPLY)
    types = tuple(t for t in _TYPES if where != "310P" or t != torch.bfloat16)
    need(query.dtype in types, "query", f"its dtype {query.dtype} is not supported on {where}", _APPLY)
    need(all(t.numel() for t in tensors), "query", "no tensor is empty", _APPLY)
    need(all(t.shape[-1] == dim for t in tensors), "cos", f"all head sizes are the query's, {dim}", _APPLY)
    if where == "950":
        need(dim <= 1024 and dim % 2 == 0, "query", f"the head size is even and at most 1024, got {dim}", _APPLY)
        need(1 <= layout <= 4, "layout", f"is 1 to 4, got {layout}", _APPLY)
    else:
        need(dim in (64, 128), "query", f"the head size is 64 or 128, got {dim}", _APPLY)
        need(layout in (1, 4), "layout", f"is BSND (1) or TND (4), got {layout}", _APPLY)
        need(mode == "half", "rotaryMode", f"is half, got {mode}", _APPLY)
    if mode not in ("half", "interleave"):
        raise NotImplementedError(f"rotaryMode: the stand-in knows half and interleave, got {mode}")
    dims = 3 if layout == 4 else 4
    need(query.dim() == dims and key.dim() == dims, "query", f"query and key have {dims} dimensions", _APPLY)
    if layout in (1, 4):
        shape = [*query.shape[:-2], 1, dim]
        need(
            list(cos.shape) == shape and cos.shape == sin.shape,
            "cos",
            f"cos and sin are {shape}, got {list(cos.shape)}",
            _APPLY,
        )


@aclnn("ApplyRotaryPosEmbV2", "T! query, T! key, T cos, T sin, i64 layout, s rotaryMode", rules=_apply_rules)
def apply_rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: int, mode: str) -> None:
    for tensor in (query, key):
        tensor.copy_(_rotate(tensor, cos, sin, mode == "interleave"))
