"""aclnnFusedInferAttentionScore V3, V4 (A2, A3) and V5 (950): attention over dense or paged keys and values.

Pages: ops-transformer attention/fused_infer_attention_score/docs/aclnnFusedInferAttentionScoreV3.md, V4, V5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..abi import parse
from ..operator import aclnn, nbytes
from . import infer_attention_rules as rules
from .attention import attend, band_columns, check_triangle, outside_band, spans

_TENSORS = (
    "T query, TL key, TL value, T pseShift, T attenMask, IA actualSeqLengths, IA actualSeqLengthsKv, "
    "T deqScale1, T quantScale1, T deqScale2, T quantScale2, T quantOffset2, T antiquantScale, T antiquantOffset, "
    "T blockTable, T queryPaddingSize, T kvPaddingSize, T keyAntiquantScale, T keyAntiquantOffset, "
    "T valueAntiquantScale, T valueAntiquantOffset, T keySharedPrefix, T valueSharedPrefix, IA actualSharedPrefixLen, "
    "T queryRope, T keyRope, T keyRopeAntiquantScale, "
)
_NUMBERS = (
    "i64 numHeads, f64 scaleValue, i64 preTokens, i64 nextTokens, s inputLayout, i64 numKeyValueHeads, i64 sparseMode, "
    "i64 innerPrecise, i64 blockSize, i64 antiquantMode, b softmaxLseFlag, "
    "i64 keyAntiquantMode, i64 valueAntiquantMode, "
)
_V4 = _TENSORS + "T dequantScaleQuery, T learnableSink, "
_OUTPUTS = "T! attentionOut, T! softmaxLse"
SIGNATURES = {
    "V3": _TENSORS + _NUMBERS + _OUTPUTS,
    "V4": _V4 + _NUMBERS + "i64 queryQuantMode, " + _OUTPUTS,
    "V5": _V4 + "IA qStartIdx, IA kvStartIdx, " + _NUMBERS + "i64 queryQuantMode, i64 pseType, " + _OUTPUTS,
}
_USED = {"query", "key", "value", "attenMask", "actualSeqLengths", "actualSeqLengthsKv", "blockTable", "attentionOut"}
MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class Call:
    """The arguments that the stand-in knows, without what the operator ignores.

    Shapes by ``layout``: TND [tokens, heads, dim], BSH [batch, seq, heads * dim], BSND, BNSD; a paged cache is
    [blocks, block_size, kv_heads * dim] or [blocks, kv_heads, block_size, dim].
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    q_lengths: list[int] | None
    kv_lengths: list[int] | None
    block_table: Tensor | None
    heads: int
    kv_heads: int
    scale: float
    before: int
    after: int
    layout: str
    out_layout: str
    sparse: int
    inner_precise: int
    block_size: int
    lse_flag: bool
    out: Tensor
    lse: Tensor

    @property
    def packed(self) -> bool:
        return self.layout == "TND"

    @property
    def batch(self) -> int:
        return len(self.q_lengths or ()) if self.packed else self.query.shape[0]

    @property
    def head_dim(self) -> int:
        return self.query.shape[-1] // (self.heads if self.layout == "BSH" else 1)

    @property
    def query_length(self) -> int:
        """Rows a batch entry has room for; only without TND."""
        return self.query.shape[2 if self.layout == "BNSD" else 1]

    def rows(self) -> list[range]:
        """Each sequence's rows of the query."""
        if self.packed:
            return spans(self.q_lengths or [])
        room = self.query_length
        return [range(n) for n in self._each(self.q_lengths if room > 1 else None, room)]

    def spans_of_keys(self) -> list[range]:
        """Each sequence's keys: positions in the dense tensor, or from 0 in its pages."""
        if self.block_table is not None:
            return [range(n) for n in self._each(self.kv_lengths, 0)]
        if self.packed:
            return spans(self.kv_lengths or [])
        return [range(n) for n in self._each(self.kv_lengths, self.key.shape[2 if self.layout == "BNSD" else 1])]

    def _each(self, lengths: list[int] | None, default: int) -> list[int]:
        if not lengths:
            return [default] * self.batch
        return lengths * self.batch if len(lengths) == 1 else lengths[: self.batch]

    def visible(self, rows: int, count: int) -> range:
        """The keys of a sequence that some row can see by the sparse mode."""
        if self.sparse == 4:
            return band_columns(rows, count, count - rows, self.before, self.after)
        return range(count)


def _call(names: list[str], values: tuple[Any, ...]) -> Call:
    given = dict(zip(names, values, strict=True))
    for name in names:
        if name not in _USED and isinstance(given[name], Tensor) and name != "softmaxLse":
            raise NotImplementedError(
                f"{name}: the stand-in knows no quantisation, position shift, prefix, padding or rope inputs"
            )
    if len(given["key"]) != 1 or len(given["value"]) != 1:
        raise NotImplementedError("key: the stand-in knows one tensor, not a list with one for each sequence")
    layout, _, out_layout = given["inputLayout"].partition("_")
    call = Call(
        query=given["query"],
        key=given["key"][0],
        value=given["value"][0],
        mask=given["attenMask"],
        q_lengths=given["actualSeqLengths"],
        kv_lengths=given["actualSeqLengthsKv"],
        block_table=given["blockTable"],
        heads=given["numHeads"],
        kv_heads=given["numKeyValueHeads"] or given["numHeads"],
        scale=given["scaleValue"],
        before=given["preTokens"],
        after=given["nextTokens"],
        layout=layout,
        out_layout=out_layout or layout,
        sparse=given["sparseMode"],
        inner_precise=given["innerPrecise"],
        block_size=given["blockSize"],
        lse_flag=given["softmaxLseFlag"],
        out=given["attentionOut"],
        lse=given["softmaxLse"],
    )
    if layout in rules.DENSE_LAYOUTS and call.query_length == 1:
        return _single(call)
    return call


def _single(call: Call) -> Call:
    """One query for each sequence outside TND: the operator ignores sparse mode, tokens and query lengths."""
    mask = None if call.sparse in (2, 3, 4) else call.mask
    changed = {"sparse": 0, "before": MAX_TOKENS, "after": MAX_TOKENS, "q_lengths": None, "mask": mask}
    return Call(**{**call.__dict__, **changed})


def compute(call: Call) -> None:
    """Write ``call.out`` and, if asked for, ``call.lse``."""
    if call.query.numel() == 0:
        return
    if call.sparse in (2, 3, 4) and call.mask is not None:
        check_triangle(call.mask, rules.DOCS)
    for index, (rows, keys) in enumerate(zip(call.rows(), call.spans_of_keys(), strict=True)):
        seen = call.visible(len(rows), len(keys))
        part = range(keys.start + seen.start, keys.start + seen.stop)
        key, value = (_take(call, cache, index, part) for cache in (call.key, call.value))
        hidden = _hidden(call, index, len(rows), len(keys), seen)
        out, maximum, total = attend(_rows(call, call.query, call.layout, index, rows), key, value, call.scale, hidden)
        _rows(call, call.out, call.out_layout, index, rows).copy_(out)
        if call.lse_flag:
            lse = torch.where(total > 0, maximum + total.log(), torch.inf)  # the page: inf marks an invalid row
            target = call.lse[rows.start : rows.stop, :, 0].T if call.packed else call.lse[index, :, : len(rows), 0]
            target.copy_(lse)


def _rows(call: Call, tensor: Tensor, layout: str, index: int, rows: range) -> Tensor:
    """A sequence's part of query or output: [rows, heads, dim]."""
    if layout == "TND":
        return tensor[rows.start : rows.stop]
    one = tensor[index]
    if layout == "BNSD":
        return one[:, rows.start : rows.stop].transpose(0, 1)
    return (
        one[rows.start : rows.stop].unflatten(-1, (call.heads, -1)) if layout == "BSH" else one[rows.start : rows.stop]
    )


def _take(call: Call, tensor: Tensor, index: int, keys: range) -> Tensor:
    """Keys or values of a sequence: [keys, kv_heads, dim]."""
    if call.block_table is None:
        if call.packed:
            return tensor[keys.start : keys.stop]
        one = tensor[index]
        if call.layout == "BNSD":
            return one[:, keys.start : keys.stop].transpose(0, 1)
        return one[keys.start : keys.stop].reshape(len(keys), call.kv_heads, call.head_dim)
    first, last = keys.start // call.block_size, -(-keys.stop // call.block_size)
    pages = tensor[call.block_table[index, first:last].long()]
    if tensor.dim() == 4:
        pages = pages.transpose(1, 2)
    skip = keys.start - first * call.block_size
    return pages.reshape((last - first) * call.block_size, call.kv_heads, call.head_dim)[skip : skip + len(keys)]


def _hidden(call: Call, index: int, rows: int, count: int, seen: range) -> Tensor | None:
    """[rows, seen]; None where every row sees every key."""
    if call.sparse in (2, 3, 4):
        shift = 0 if call.sparse == 2 else count - rows
        before, after = (call.before, call.after) if call.sparse == 4 else (MAX_TOKENS, 0)
        alone = rows == 1 and call.sparse != 2  # one row sees all that is left to see
        return None if alone else outside_band(rows, seen, shift, before, after)
    if call.mask is None:
        return None
    mask = call.mask
    if mask.dim() > 2 or (not call.packed and call.query_length == 1):
        mask = mask[index if mask.shape[0] > 1 else 0]
    mask = mask.reshape(-1, mask.shape[-1])[:rows, :count].bool()
    return mask if call.sparse == 1 else mask | outside_band(rows, seen, 0, call.before, call.after)


def traffic(call: Call) -> tuple[int, int]:
    """Live keys and values once, queries, block table, a full mask. The triangle of modes 2 to 4 stays on the chip."""
    size = call.key.dtype.itemsize * call.kv_heads * call.head_dim * 2
    lengths = zip(call.rows(), call.spans_of_keys(), strict=True)
    read = sum(len(call.visible(len(rows), len(keys))) * size for rows, keys in lengths)
    read += nbytes(call.query) + nbytes(call.block_table) + (nbytes(call.mask) if call.sparse in (0, 1) else 0)
    return read, nbytes(call.out) + (nbytes(call.lse) if call.lse_flag else 0)


def _define(version: str, signature: str) -> None:
    names = [argument.name for argument in parse(signature)]
    aclnn(
        f"FusedInferAttentionScore{version}",
        signature,
        rules=lambda *values: rules.check(version, _call(names, values)),
        traffic=lambda *values: traffic(_call(names, values)),
    )(lambda *values: compute(_call(names, values)))


for _version, _signature in SIGNATURES.items():
    _define(_version, _signature)
