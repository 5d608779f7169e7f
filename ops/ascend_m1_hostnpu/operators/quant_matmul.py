"""Products with quantised matrices: int8 times int8 (or int4), and int8 or int4 weights under a 16-bit activation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operator import aclnn, need
from ..products import product

_PAGE = "ops-nn matmul/quant_batch_matmul_v4/docs/aclnnQuantMatmulV5.md"
_PAGE_OP = "op-plugin torch_npu-npu_quant_matmul.md"
_PARAM = "ops-nn quant/trans_quant_param_v2/docs/aclnnTransQuantParamV2.md"
_WEIGHT = "ops-nn matmul/weight_quant_batch_matmul_v2/docs/aclnnWeightQuantBatchMatmulV2.md"
_WEIGHT_OP = "op-plugin torch_npu-npu_weight_quant_batchmatmul.md"
_HALF = (torch.float16, torch.bfloat16)
_WIDEST = 65535


def _unpack(packed: Tensor) -> Tensor:
    """int32, each eight int4 of the contiguous axis, lowest bits first -> int8, eight times as long there."""
    if packed.stride(-1) != 1 and packed.stride(-2) == 1:
        return _unpack(packed.transpose(-2, -1)).transpose(-2, -1)
    values = packed.unsqueeze(-1) >> torch.arange(0, 32, 4) & 0xF
    return torch.where(values > 7, values - 16, values).flatten(-2).to(torch.int8)


def _trans_rules(scale: Tensor, offset: Tensor | None, *rest: object) -> None:
    need(scale.dtype == torch.float32, "scale", f"is float32, got {scale.dtype}", _PARAM)
    need(scale.dim() in (1, 2), "scale", f"has one or two dimensions, got {list(scale.shape)}", _PARAM)
    need(offset is None or offset.dtype == torch.float32, "offset", "is float32", _PARAM)


@aclnn("TransQuantParamV3", "T scale, T offset, i64 roundMode, T! out", rules=_trans_rules)
def trans_quant_param_v3(scale: Tensor, offset: Tensor | None, mode: int, out: Tensor) -> None:
    """The high 19 bits of a float32, a flag in bit 46 and nine bits of the offset from bit 37."""
    if mode:
        raise NotImplementedError(f"roundMode: the stand-in cuts off only (0), got {mode}")
    bits = scale.contiguous().view(torch.int32).long() & 0xFFFFE000 | 1 << 46
    if offset is not None:
        bits = bits | (offset.round().clamp(-256, 255).long() & 0x1FF) << 37
    out.copy_(bits.view_as(out))


@aclnn("TransQuantParamV2", "T scale, T offset, T! out", rules=_trans_rules)
def trans_quant_param_v2(scale: Tensor, offset: Tensor | None, out: Tensor) -> None:
    trans_quant_param_v3(scale, offset, 0, out)


def _scale(x2_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 scale and offset of x2Scale, which is a float or what TransQuantParam made of one."""
    if x2_scale.dtype != torch.int64:
        return x2_scale.float(), torch.zeros(())
    bits = (x2_scale & 0xFFFFE000).to(torch.int64)
    scale = torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32).view(torch.float32)
    offset = x2_scale >> 37 & 0x1FF
    return scale, torch.where(offset > 255, offset - 512, offset).float()


def _sizes(x1: Tensor, x2: Tensor, transpose1: bool, transpose2: bool) -> tuple[Tensor, Tensor]:
    x1, x2 = (_unpack(x) if x.dtype == torch.int32 else x for x in (x1, x2))
    return x1.transpose(-2, -1) if transpose1 else x1, x2.transpose(-2, -1) if transpose2 else x2


_SIGNATURE = (
    "T x1, T x2, T x1Scale, T x2Scale, T yScale, T x1Offset, T x2Offset, T yOffset, T bias, "
    "b transposeX1, b transposeX2, i64 groupSize, T! out"
)


def _rules(
    x1: Tensor, x2: Tensor, x1_scale: Tensor | None, x2_scale: Tensor, y_scale: Tensor | None, x1_offset: Tensor | None,
    x2_offset: Tensor | None, y_offset: Tensor | None, bias: Tensor | None, t1: bool, t2: bool, group: int, out: Tensor,
) -> None:  # fmt: skip
    for name, tensor in (("yScale", y_scale), ("x1Offset", x1_offset), ("yOffset", y_offset)):
        absent = tensor is None or tensor.numel() == 0  # op-plugin passes empty tensors
        need(absent, name, "is not supported", _PAGE)
    if group:
        raise NotImplementedError(f"groupSize: the stand-in knows one scale a channel (0), got {group}")
    need(
        x1.dtype == x2.dtype and x1.dtype in (torch.int8, torch.int32),
        "x1",
        f"int8 or int4 pairs, got {x1.dtype}",
        _PAGE,
    )
    for name, tensor in (("x1", x1), ("x2", x2)):
        need(
            tensor.shape[-1] <= _WIDEST, name, f"its last dimension is at most {_WIDEST}, got {tensor.shape[-1]}", _PAGE
        )
    left, right = _sizes(x1, x2, t1, t2)
    rows, columns = left.shape[-2], right.shape[-1]
    need(left.shape[-1] == right.shape[-2], "x2", f"has {left.shape[-1]} rows, got {list(right.shape)}", _PAGE)
    encoded = x2_scale.dtype == torch.int64
    kinds = (torch.int64, torch.float32, torch.bfloat16)
    need(x2_scale.dtype in kinds, "x2Scale", f"is int64, float32 or bfloat16, got {x2_scale.dtype}", _PAGE)
    need(
        list(x2_scale.shape) in ([1], [columns]), "x2Scale", f"is [1] or [{columns}], got {list(x2_scale.shape)}", _PAGE
    )
    if x1_scale is not None:
        need(x1_scale.dtype == torch.float32, "x1Scale", f"is float32, got {x1_scale.dtype}", _PAGE)
        need(list(x1_scale.shape) == [rows], "x1Scale", f"is [{rows}], got {list(x1_scale.shape)}", _PAGE)
    if product() == "310P":
        need(x1_scale is None, "x1Scale", "no scale a token on 310P", _PAGE_OP)
        need(out.dtype in (torch.float16, torch.int8), "out", f"is float16 or int8 on 310P, got {out.dtype}", _PAGE_OP)
    elif x1_scale is None:
        allowed = (torch.float16, torch.int8) if encoded else (torch.bfloat16, torch.int32)
        need(out.dtype in allowed, "out", f"is one of {allowed} with x2Scale {x2_scale.dtype}, got {out.dtype}", _PAGE)
    else:
        pairs = _HALF if x2_scale.dtype == torch.float32 else (torch.bfloat16,)
        need(not encoded and out.dtype in pairs, "out", f"with x1Scale is one of {pairs}, got {out.dtype}", _PAGE)
    if bias is not None:
        need(bias.shape[-1] == columns, "bias", f"has {columns} columns, got {list(bias.shape)}", _PAGE)
        kinds = (torch.int32, torch.float32, out.dtype)
        need(bias.dtype in kinds, "bias", f"is one of {kinds}, got {bias.dtype}", _PAGE)


def quant_matmul(
    x1: Tensor, x2: Tensor, x1_scale: Tensor | None, x2_scale: Tensor, y_scale: None, x1_offset: None,
    x2_offset: Tensor | None, y_offset: None, bias: Tensor | None, t1: bool, t2: bool, group: int, out: Tensor,
) -> None:  # fmt: skip
    """(x1 @ x2 [+ bias int32]) * x2Scale * x1Scale [+ bias] + x2Offset; products are exact."""
    left, right = _sizes(x1, x2, t1, t2)
    total = left.double() @ right.double()  # exact: sums of int8 products stay far below 2 ** 53
    if bias is not None and bias.dtype == torch.int32:
        total = total + bias
    if out.dtype == torch.int32:
        out.copy_(total)
        return
    scale, offset = _scale(x2_scale)
    result = total.float() * scale
    if x1_scale is not None:
        result = result * x1_scale[:, None]
    if bias is not None and bias.dtype != torch.int32:
        result = result + bias.float()
    result = result + (offset if x2_offset is None else x2_offset)
    out.copy_(result.round().clamp(-128, 127) if out.dtype == torch.int8 else result)


for _name in ("QuantMatmulV5", "QuantMatmulWeightNz"):
    aclnn(_name, _SIGNATURE, rules=_rules)(quant_matmul)


def weight_rules(
    x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None, quant_scale: Tensor | None,
    quant_offset: Tensor | None, bias: Tensor | None, group: int, *rest: object,
) -> None:  # fmt: skip
    """Raises RuleError for what the operator's page forbids."""
    if quant_scale is not None or quant_offset is not None:
        raise NotImplementedError("quantScale: the stand-in knows no quantised output")
    old = product() == "310P"
    need(x.dtype in (_HALF[:1] if old else _HALF), "x", f"its dtype {x.dtype} is not supported on {product()}", _WEIGHT)
    kinds = (torch.int8,) if old else (torch.int8, torch.int32)
    need(weight.dtype in kinds, "weight", f"is one of {kinds} on {product()}, got {weight.dtype}", _WEIGHT)
    dense = _unpack(weight) if weight.dtype == torch.int32 else weight
    rows, columns = dense.shape[-2:]
    need(x.shape[-1] == rows, "weight", f"has {x.shape[-1]} rows, got {rows}", _WEIGHT)
    need(max(rows, columns) <= _WIDEST, "weight", f"K and N are at most {_WIDEST}, got {[rows, columns]}", _WEIGHT)
    if group:
        fits = group % 32 == 0 and 32 <= group < rows
        need(
            fits, "antiquantGroupSize", f"is 0, or a multiple of 32 from 32 to K - 1 = {rows - 1}, got {group}", _WEIGHT
        )
        need(not old, "antiquantGroupSize", f"is 0 on 310P, got {group}", _WEIGHT_OP)
    need(scale.dtype == x.dtype, "antiquantScale", f"has the dtype of x, {x.dtype}, got {scale.dtype}", _WEIGHT)
    shapes: tuple[list[int], ...] = ([1], [1, 1], [columns], [1, columns], *(([columns, 1],) if old else ()))
    shapes = ([-(-rows // group), columns],) if group else shapes
    need(list(scale.shape) in shapes, "antiquantScale", f"is one of {shapes}, got {list(scale.shape)}", _WEIGHT)
    if offset is not None:
        same = offset.dtype == x.dtype and offset.shape == scale.shape
        need(same, "antiquantOffset", "has the dtype of x and the shape of antiquantScale", _WEIGHT)
    if bias is not None:
        kind = torch.float32 if x.dtype == torch.bfloat16 else torch.float16
        need(bias.dtype == kind, "bias", f"is {kind} with x {x.dtype}, got {bias.dtype}", _WEIGHT)


def _weight_product(
    x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None, bias: Tensor | None, group: int, out: Tensor
) -> None:
    """x @ ((weight + offset) * scale) + bias; a scale belongs to a column, or to ``group`` rows of a column."""
    dense = (_unpack(weight) if weight.dtype == torch.int32 else weight).float()
    each = [t.float() if t is not None else None for t in (scale, offset)]
    if group:
        each = [t.repeat_interleave(group, 0)[: dense.shape[-2]] if t is not None else None for t in each]
    elif product() == "310P" and scale.dim() == 2:
        each = [t.reshape(-1) if t is not None else None for t in each]
    shifted = dense if each[1] is None else dense + each[1]
    assert each[0] is not None
    result = x.float() @ (shifted * each[0])
    out.copy_(result if bias is None else result + bias.float())


_WEIGHT_INPUTS = "T x, T weight, T antiquantScale, T antiquantOffset, T quantScale, T quantOffset, T bias, "


@aclnn("WeightQuantBatchMatmulV2", _WEIGHT_INPUTS + "i32 antiquantGroupSize, T! y", rules=weight_rules)
def weight_quant_batch_matmul_v2(
    x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None, quant_scale: None, quant_offset: None,
    bias: Tensor | None, group: int, out: Tensor,
) -> None:  # fmt: skip
    _weight_product(x, weight, scale, offset, bias, group, out)


@aclnn(
    "WeightQuantBatchMatmulV3", _WEIGHT_INPUTS + "i32 antiquantGroupSize, i32 innerPrecise, T! y", rules=weight_rules
)
def weight_quant_batch_matmul_v3(
    x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None, quant_scale: None, quant_offset: None,
    bias: Tensor | None, group: int, precision: int, out: Tensor,
) -> None:  # fmt: skip
    _weight_product(x, weight, scale, offset, bias, group, out)
