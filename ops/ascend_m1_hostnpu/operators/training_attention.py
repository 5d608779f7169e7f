"""aclnnFlashAttentionScore and aclnnFlashAttentionVarLenScore with their derivatives (A2, A3; V4 of the first on 950).

Pages: ops-transformer attention/flash_attention_score/docs and attention/flash_attention_score_grad/docs, one for each
operator; torch_npu-npu_fusion_attention.md of op-plugin for what its length lists may hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..abi import parse
from ..operator import aclnn, nbytes, need
from ..products import product
from .attention import TRIANGLE, attend, band_columns, check_triangle, gradients, outside_band, spans

_NUMBERS = (
    "f64 scaleValue, f64 keepProb, i64 preTokens, i64 nextTokens, i64 headNum, s inputLayout, "
    "i64 innerPrecise, i64 sparseMode"
)
_LENGTHS = "IA prefix, IA actualSeqQLen, IA actualSeqKvLen, "
_MASKS = "T dropMask, T paddingMask, T attenMask, "
_INPUTS = "T query, T key, T value, T realShift, " + _MASKS
_OUTPUTS = "T! softmaxMax, T! softmaxSum, T! softmaxOut, T! attentionOut"
_SAVED = (
    f"T query, T key, T value, T dy, T realShift, {_MASKS}T softmaxMax, T softmaxSum, T softmaxIn, T attentionOut, "
)
_GRADIENTS = "T! dq, T! dk, T! dv, T! dpse"
_STARTS = "IA qStartIdx, IA kvStartIdx, "
_OPTIONAL = ", ".join(f"T optional{i}" for i in range(6)) + ", "  # scales and rope inputs, always null
FORWARD = {
    "FlashAttentionScore": f"{_INPUTS}IA prefix, {_NUMBERS}, {_OUTPUTS}",
    "FlashAttentionVarLenScore": f"{_INPUTS}{_LENGTHS}{_NUMBERS}, {_OUTPUTS}",
    "FlashAttentionVarLenScoreV4": f"{_INPUTS}{_LENGTHS}{_NUMBERS}, s softmaxLayout, {_OUTPUTS}",
    "FlashAttentionScoreV4": f"{_INPUTS}{_OPTIONAL}{_LENGTHS}{_STARTS}{_NUMBERS}, i64 outDtype, i64 pseType, "
    f"s softmaxLayout, i64 seed, i64 offset, {_OUTPUTS}",
}
BACKWARD = {
    "FlashAttentionScoreGrad": f"{_SAVED}IA prefix, {_NUMBERS}, {_GRADIENTS}",
    "FlashAttentionUnpaddingScoreGrad": f"{_SAVED}{_LENGTHS}{_NUMBERS}, {_GRADIENTS}",
    "FlashAttentionUnpaddingScoreGradV4": f"{_SAVED}{_LENGTHS}{_NUMBERS}, {_GRADIENTS}, s softmaxLayout",
    "FlashAttentionScoreGradV4": f"{_SAVED}T sink, {_OPTIONAL}T optional6, {_LENGTHS}{_STARTS}"
    + _NUMBERS.replace("s inputLayout", "s inputLayout, s softmaxLayout")
    + ", i64 pseType, i64 seed, i64 offset, i64 outDtype, "
    "T! dq, T! dk, T! dv, T! dqRope, T! dkRope, T! dpse, T! dsink",
}
_OPD = "op-plugin torch_npu-npu_fusion_attention.md"
_AXES = {"BSND": "bsnd", "BNSD": "bnsd", "BSH": "bsh", "SBH": "sbh"}


@dataclass(frozen=True)
class Sequence:
    """One sequence's place: batch entry (0 in TND), rows of the query and rows of key and value."""

    index: int
    rows: range
    keys: range


def _named(names: list[str], values: tuple[Any, ...]) -> dict[str, Any]:
    given = dict(zip(names, values, strict=True))
    for name in ("realShift", "dropMask", "prefix", "sink"):
        if given.get(name) is not None and len(given[name]):
            raise NotImplementedError(f"{name}: the stand-in knows no position shift, dropout, prefix or sink")
    return given


def _heads_first(given: dict[str, Any], tensor: Tensor, index: int, rows: range) -> Tensor:
    """[rows, heads, dim] of one sequence, a view that can be written."""
    layout: str = given["inputLayout"]
    if layout == "TND":
        return tensor[rows.start : rows.stop]
    if layout == "BNSD":
        return tensor[index].transpose(0, 1)
    one = tensor[:, index] if layout == "SBH" else tensor[index]
    if layout == "BSND":
        return one
    size: int = given["query"].shape[-1] // given["headNum"]
    return one.view(*one.shape[:-1], -1, size)


def _statistics(given: dict[str, Any], tensor: Tensor, index: int, rows: range) -> Tensor:
    """[heads, rows, 8] of softmaxMax or softmaxSum. In TND it lies as [heads, tokens, 8] unless asked otherwise."""
    if given["inputLayout"] != "TND":
        return tensor[index]
    if given.get("softmaxLayout") == "same_as_input":
        return tensor.transpose(0, 1)[:, rows.start : rows.stop]
    return tensor.view(tensor.shape[1], tensor.shape[0], 8)[:, rows.start : rows.stop]


def _ends(given: dict[str, Any], name: str) -> list[int]:
    """Cumulative lengths without the zeros at the end, which stand for sequences that take no part."""
    ends = list(given[name] or [])
    while ends and ends[-1] == 0:
        ends.pop()
    return ends


def _sequences(given: dict[str, Any]) -> list[Sequence]:
    query, key, layout = given["query"], given["key"], given["inputLayout"]
    if layout == "TND":
        both = zip(spans(_ends(given, "actualSeqQLen")), spans(_ends(given, "actualSeqKvLen")), strict=True)
        return [Sequence(0, rows, keys) for rows, keys in both]
    axis = _AXES[layout].index("s")
    return [
        Sequence(i, range(query.shape[axis]), range(key.shape[axis]))
        for i in range(query.shape[_AXES[layout].index("b")])
    ]


def _parts(given: dict[str, Any]) -> Iterator[tuple[Sequence, range, Tensor | None]]:
    """Each sequence with the keys that it can see and the mask on them."""
    mask, mode = given["attenMask"], given["sparseMode"]
    if mask is not None and mode in (2, 3, 4):
        check_triangle(mask, _OPD)
    before, after = given["preTokens"], given["nextTokens"]
    for one in _sequences(given):
        rows, count = len(one.rows), len(one.keys)
        if mask is None:
            yield one, one.keys, None
        elif mode in (0, 1):
            square = mask[one.index if mask.shape[0] > 1 else 0] if mask.dim() == 4 else mask
            hidden = square[..., :rows, :count].bool()
            yield one, one.keys, hidden if mode == 1 else hidden | outside_band(rows, range(count), 0, before, after)
        else:
            shift = 0 if mode == 2 else count - rows
            reach = (before, after) if mode == 4 else (count + rows, 0)
            seen = band_columns(rows, count, shift, *reach)
            keys = range(one.keys.start + seen.start, one.keys.start + seen.stop)
            yield one, keys, outside_band(rows, seen, shift, *reach)


def _keys(given: dict[str, Any], name: str, one: Sequence, keys: range) -> Tensor:
    whole = _heads_first(given, given[name], one.index, one.keys)
    return whole[keys.start - one.keys.start : keys.stop - one.keys.start]


def _forward(names: list[str], *values: Any) -> None:
    given = _named(names, values)
    for one, keys, hidden in _parts(given):
        query = _heads_first(given, given["query"], one.index, one.rows)
        key, value = _keys(given, "key", one, keys), _keys(given, "value", one, keys)
        out, maximum, total = attend(query, key, value, given["scaleValue"], hidden)
        _heads_first(given, given["attentionOut"], one.index, one.rows).copy_(out)
        _statistics(given, given["softmaxMax"], one.index, one.rows).copy_(maximum[..., None])
        _statistics(given, given["softmaxSum"], one.index, one.rows).copy_(total[..., None])


def _backward(names: list[str], *values: Any) -> None:
    given = _named(names, values)
    for name in ("dq", "dk", "dv"):
        given[name].zero_()
    for one, keys, hidden in _parts(given):
        query, out, grad = (_heads_first(given, given[n], one.index, one.rows) for n in ("query", "attentionOut", "dy"))
        key, value = _keys(given, "key", one, keys), _keys(given, "value", one, keys)
        maximum, total = (
            _statistics(given, given[n], one.index, one.rows)[..., 0] for n in ("softmaxMax", "softmaxSum")
        )
        results = gradients(query, key, value, given["scaleValue"], hidden, maximum, total, out, grad)
        _heads_first(given, given["dq"], one.index, one.rows).copy_(results[0])
        _keys(given, "dk", one, keys).copy_(results[1])
        _keys(given, "dv", one, keys).copy_(results[2])


def _traffic(names: list[str], written: tuple[str, ...], *values: Any) -> tuple[int, int]:
    """Every tensor once, but the triangle of sparse modes 2 to 4 stays on the chip."""
    given = dict(zip(names, values, strict=True))
    triangle = given["sparseMode"] in (2, 3, 4)
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    read = sum(nbytes(t) for n, t in tensors.items() if n not in written and not (triangle and n == "attenMask"))
    return read, sum(nbytes(tensors[name]) for name in written if name in tensors)


def _check(page: str, names: list[str], *values: Any) -> None:
    given = _named(names, values)
    query, key, value, layout = given["query"], given["key"], given["value"], given["inputLayout"]
    products = ("950",) if "qStartIdx" in given else ("910B", "A3")
    need(product() in products, "product", f"exists on {' and '.join(products)} only, this is {product()}", page)
    need(given["keepProb"] == 1.0, "keepProb", f"the stand-in knows 1 only, got {given['keepProb']}", page)
    packed = layout == "TND"
    either = ("TND", *_AXES) if "qStartIdx" in given else tuple(_AXES)
    known = ("TND",) if "actualSeqQLen" in given and "qStartIdx" not in given else either
    need(layout in known, "inputLayout", f"is one of {', '.join(known)}, got {layout}", page)
    types = (torch.float16, torch.bfloat16, torch.float32)
    need(query.dtype in types, "query", f"is float16, bfloat16 or float32, got {query.dtype}", page)
    need(query.dtype == key.dtype == value.dtype, "key", "query, key and value have one dtype", page)
    heads = given["headNum"]
    kv_heads, dim, value_dim = _sizes(given)
    need(0 < heads <= 256, "headNum", f"is 1 to 256, got {heads}", page)
    need(
        kv_heads > 0 and heads % kv_heads == 0,
        "headNum",
        f"is a multiple of the key's heads, got {heads} and {kv_heads}",
        page,
    )
    need(1 <= dim <= 768, "query", f"the head size is 1 to 768, got {dim}", page)
    need(value_dim <= dim, "value", f"its head size is at most the query's, got {value_dim} > {dim}", page)
    if packed:
        _check_lengths(given, page)
    _check_mask(given, page)


def _sizes(given: dict[str, Any]) -> tuple[int, int, int]:
    """Heads of the key, head size of query and of value."""
    query, key, value, layout = given["query"], given["key"], given["value"], given["inputLayout"]
    if layout in ("BSH", "SBH"):
        if key.shape != value.shape:
            raise NotImplementedError("value: in BSH and SBH the stand-in knows the key's shape only")
        dim = query.shape[-1] // given["headNum"]
        kv_heads = key.shape[-1] // dim
        return kv_heads, dim, value.shape[-1] // max(kv_heads, 1)
    axis = 1 if layout in ("TND", "BNSD") else 2
    need(query.shape[axis] == given["headNum"], "headNum", f"equals the query's N axis, got {given['headNum']}", _OPD)
    need(query.shape[-1] == key.shape[-1], "key", "has the query's head size", _OPD)
    return key.shape[axis], query.shape[-1], value.shape[-1]


def _check_lengths(given: dict[str, Any], page: str) -> None:
    rows = given["actualSeqQLen"]  # as long as the other list: op-plugin sees to it
    need(1 <= len(rows) <= 2048, "actualSeqQLen", f"has 1 to 2048 entries, got {len(rows)}", page)
    for name, tensor in (("actualSeqQLen", given["query"]), ("actualSeqKvLen", given["key"])):
        ends = _ends(given, name)
        need(ends == sorted(ends) and min(ends, default=0) >= 0, name, f"is cumulative, got {ends[:8]}", page)
        tokens = tensor.shape[0]
        need(tokens <= 1048576, name, f"TND holds at most 1048576 tokens, got {tokens}", page)
        last = ends[-1] if ends else 0
        need(last <= tokens, name, f"ends with at most the {tokens} tokens given, got {last}", _OPD)
    count = len(_ends(given, "actualSeqQLen"))
    need(count == len(_ends(given, "actualSeqKvLen")), "actualSeqKvLen", "zeros at the end stand in both lists", _OPD)


def _check_mask(given: dict[str, Any], page: str) -> None:
    mask, mode = given["attenMask"], given["sparseMode"]
    need(0 <= mode <= 8, "sparseMode", f"is 0 to 8, got {mode}", page)
    if mask is None:
        return
    if mode > 4:
        raise NotImplementedError(f"sparseMode: the stand-in knows 0 to 4, got {mode}")
    need(mask.dtype in (torch.bool, torch.uint8), "attenMask", f"is bool or uint8, got {mask.dtype}", page)
    if mode in (2, 3, 4):
        fits = list(mask.shape[-2:]) == [TRIANGLE, TRIANGLE] and mask.numel() == TRIANGLE**2
        need(fits, "attenMask", f"is [2048, 2048] with sparseMode {mode}, got {list(mask.shape)}", page)
    else:
        need(mask.dim() in (2, 4), "attenMask", f"is [S, S] or has four dimensions, got {list(mask.shape)}", page)
    before, after = given["preTokens"], given["nextTokens"]
    need(mode != 4 or before + after >= 0, "nextTokens", "the band of preTokens and nextTokens is empty", page)
    for one in _sequences(given) if mode in (3, 4) else ():
        shift = len(one.keys) - len(one.rows)
        full = len(one.rows) == 0 or shift + (after if mode == 4 else 0) >= 0
        need(full, "attenMask", f"no row may be hidden whole: {len(one.rows)} queries on {len(one.keys)} keys", page)


def _define() -> None:
    outputs = ("softmaxMax", "softmaxSum", "softmaxOut", "attentionOut")
    for table, folder, compute, written in (
        (FORWARD, "flash_attention_score", _forward, outputs),
        (BACKWARD, "flash_attention_score_grad", _backward, ("dq", "dk", "dv", "dpse")),
    ):
        for name, signature in table.items():
            names = [argument.name for argument in parse(signature)]
            page = f"ops-transformer attention/{folder}/docs/aclnn{name}.md"
            check, traffic = partial(_check, page, names), partial(_traffic, names, written)
            aclnn(name, signature, rules=check, traffic=traffic)(partial(compute, names))


_define()
