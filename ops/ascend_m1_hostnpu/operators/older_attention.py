"""What aclnnFusedInferAttentionScore came to replace, still the only ones on 310P; and merging partial results.

Pages: ops-transformer attention/{prompt_flash_attention, incre_flash_attention, attention_update}/docs; the conditions
on 310P are those of op-plugin's torch_npu-npu_prompt_flash_attention.md and torch_npu-npu_incre_flash_attention.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..abi import parse
from ..operator import aclnn, need
from ..products import product
from . import infer_attention, infer_attention_rules
from .infer_attention import MAX_TOKENS, Call

_PROMPT = "ops-transformer attention/prompt_flash_attention/docs/aclnnPromptFlashAttentionV3.md"
_INCRE = "ops-transformer attention/incre_flash_attention/docs/aclnnIncreFlashAttentionV4.md"
_PROMPT_OP = "op-plugin torch_npu-npu_prompt_flash_attention.md"
_INCRE_OP = "op-plugin torch_npu-npu_incre_flash_attention.md"
_UPDATE = "ops-transformer attention/attention_update/docs/aclnnAttentionUpdate.md"
_PROMPT_SIGNATURE = (
    "T query, T key, T value, T pseShift, T attenMask, IA actualSeqLengths, IA actualSeqLengthsKv, T deqScale1, "
    "T quantScale1, T deqScale2, T quantScale2, T quantOffset2, i64 numHeads, f64 scaleValue, i64 preTokens, "
    "i64 nextTokens, s inputLayout, i64 numKeyValueHeads, i64 sparseMode, i64 innerPrecise, T! attentionOut"
)
_INCRE_SIGNATURE = (
    "T query, TL key, TL value, T pseShift, T attenMask, IA actualSeqLengths, T dequantScale1, T quantScale1, "
    "T dequantScale2, T quantScale2, T quantOffset2, T antiquantScale, T antiquantOffset, T blockTable, "
    "T kvPaddingSize, i64 numHeads, f64 scaleValue, s inputLayout, i64 numKeyValueHeads, i64 blockSize, "
    "i64 innerPrecise, T! attentionOut"
)
_KNOWN = {"query", "key", "value", "attenMask", "blockTable", "attentionOut"}


def _named(signature: str, values: tuple[Any, ...]) -> dict[str, Any]:
    given = dict(zip((argument.name for argument in parse(signature)), values, strict=True))
    for name, value in given.items():
        if isinstance(value, Tensor) and name not in _KNOWN:
            raise NotImplementedError(f"{name}: the stand-in knows no quantisation, position shift or padding")
    return given


def _call(given: dict[str, Any], **more: Any) -> Call:
    layout, _, out_layout = given["inputLayout"].partition("_")
    common = {
        "query": given["query"],
        "mask": given["attenMask"],
        "heads": given["numHeads"],
        "kv_heads": given["numKeyValueHeads"] or given["numHeads"],
        "scale": given["scaleValue"],
        "layout": layout,
        "out_layout": out_layout or layout,
        "inner_precise": given["innerPrecise"],
        "lse_flag": False,
        "out": given["attentionOut"],
        "lse": given["attentionOut"],
    }
    return Call(**common, **more)


def _prompt(values: tuple[Any, ...]) -> Call:
    given = _named(_PROMPT_SIGNATURE, values)
    return _call(
        given,
        key=given["key"],
        value=given["value"],
        q_lengths=given["actualSeqLengths"],
        kv_lengths=given["actualSeqLengthsKv"],
        block_table=None,
        before=given["preTokens"],
        after=given["nextTokens"],
        sparse=given["sparseMode"],
        block_size=0,
    )


def _incre(values: tuple[Any, ...]) -> Call:
    given = _named(_INCRE_SIGNATURE, values)
    return _call(
        given,
        key=given["key"][0],
        value=given["value"][0],
        q_lengths=None,
        kv_lengths=given["actualSeqLengths"],
        block_table=given["blockTable"],
        before=MAX_TOKENS,
        after=MAX_TOKENS,
        sparse=0,
        block_size=given["blockSize"],
    )


def _check_old(call: Call, given_kv_heads: int, batch: int, longest: int, page: str) -> None:
    """Common conditions on 310P."""
    need(call.query.dtype == torch.float16, "query", f"is float16 on 310P, got {call.query.dtype}", page)
    need(given_kv_heads == 0, "numKeyValueHeads", f"is 0 on 310P: repeat keys and values, got {given_kv_heads}", page)
    need(call.batch <= batch, "query", f"the batch is at most {batch} on 310P, got {call.batch}", page)
    keys = max((len(keys) for keys in call.spans_of_keys()), default=0)
    need(keys <= longest, "key", f"has at most {longest} keys on 310P, got {keys}", page)


def _prompt_rules(*values: Any) -> None:
    call, page = _prompt(values), _PROMPT
    infer_attention_rules.check_common(call, page)
    if product() == "310P":
        kv_heads, sparse = values[17], values[18]
        _check_old(call, kv_heads, 128, 65535, _PROMPT_OP)
        need(sparse == 0, "sparseMode", f"is 0 on 310P, got {sparse}", _PROMPT_OP)
        need(call.before == MAX_TOKENS, "preTokens", f"is {MAX_TOKENS} on 310P, got {call.before}", _PROMPT_OP)
        need(call.after in (0, MAX_TOKENS), "nextTokens", f"is 0 or {MAX_TOKENS} on 310P, got {call.after}", _PROMPT_OP)
    need(not call.packed or call.sparse in (0, 3), "sparseMode", f"is 0 or 3 in TND, got {call.sparse}", page)


def _incre_rules(*values: Any) -> None:
    call, page = _incre(values), _INCRE
    need(not call.packed and call.query_length == 1, "query", "its S axis is 1", page)
    infer_attention_rules.check_common(call, page)
    if product() == "310P":
        _check_old(call, values[18], 256, 65536, _INCRE_OP)


aclnn(
    "PromptFlashAttentionV3",
    _PROMPT_SIGNATURE,
    rules=_prompt_rules,
    traffic=lambda *values: infer_attention.traffic(_prompt(values)),
)(lambda *values: infer_attention.compute(_prompt(values)))
aclnn(
    "IncreFlashAttentionV4",
    _INCRE_SIGNATURE,
    rules=_incre_rules,
    traffic=lambda *values: infer_attention.traffic(_incre(values)),
)(lambda *values: infer_attention.compute(_incre(values)))


def _update_rules(lse: list[Tensor], out: list[Tensor], kind: int, *results: Tensor | None) -> None:
    need(product() != "310P", "product", "exists on 910B, A3 and 950 only, this is 310P", _UPDATE)
    need(kind in (0, 1), "updateType", f"is 0 or 1, got {kind}", _UPDATE)
    need(len(lse) == len(out), "localOut", f"has as many tensors as lse, got {len(out)} for {len(lse)}", _UPDATE)
    for one, part in zip(lse, out, strict=True):
        need(one.dtype == torch.float32 and one.dim() == 1, "lse", f"is float32 [rows], got {list(one.shape)}", _UPDATE)
        need(
            part.dim() == 2 and len(part) == len(one),
            "localOut",
            f"is [{len(one)}, dim], got {list(part.shape)}",
            _UPDATE,
        )
        need(one.is_contiguous() and part.is_contiguous(), "lse", "tensors must be contiguous", _UPDATE)


@aclnn("AttentionUpdate", "TL lse, TL localOut, i64 updateType, T! out, T! lseOut", rules=_update_rules)
def attention_update(lse: list[Tensor], local: list[Tensor], kind: int, out: Tensor, lse_out: Tensor | None) -> None:
    sums = torch.stack(lse)
    merged = sums.logsumexp(0)
    parts = torch.stack(local).float() * (sums - merged).exp()[..., None]
    out.copy_(parts.sum(0))
    if kind == 1 and lse_out is not None:
        lse_out.copy_(merged)
