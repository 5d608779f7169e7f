"""Dynamic quantisation to int8, one scale a token, alone and behind a residual and RMSNorm; storage formats."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..abi import INT, OPAPI, PTR, RUNTIME
from ..operator import aclnn, need
from ..products import product
from .norm import normalise

_DYNAMIC = "ops-nn quant/dynamic_quant_v2/docs/aclnnDynamicQuantV2.md"
_NORM = "ops-nn norm/add_rms_norm_dynamic_quant/docs/aclnnAddRmsNormDynamicQuantV2.md"
_INT8 = 127


def _quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 x [..., n] -> rounded values and scale [..., 1] = max(abs(row)) / 127. A row of zeros stays zero."""
    scale = x.abs().amax(-1, keepdim=True) / _INT8
    return (x / scale.where(scale > 0, 1)).round(), scale


def _check_dynamic(x: Tensor, smooth: Tensor | None, groups: Tensor | None, y: Tensor) -> None:
    old = product() == "310P"
    types = (torch.float16,) if old else (torch.float16, torch.bfloat16)
    need(x.dtype in types, "x", f"its dtype {x.dtype} is not supported on {product()}", _DYNAMIC)
    need(x.dim() >= 2, "x", f"has at least two dimensions, got {list(x.shape)}", _DYNAMIC)
    need(
        not old or x.shape[-1] % 32 == 0,
        "x",
        f"its last dimension is a multiple of 32 on 310P, got {x.shape[-1]}",
        _DYNAMIC,
    )
    if y.dtype != torch.int8 or groups is not None:
        raise NotImplementedError("y: the stand-in quantises to int8 only, without groups of experts")
    if smooth is not None:
        need(smooth.dtype == x.dtype, "smoothScales", f"has the dtype of x, {x.dtype}, got {smooth.dtype}", _DYNAMIC)
        fits = list(smooth.shape) == [x.shape[-1]]
        need(fits, "smoothScales", f"is [{x.shape[-1]}], got {list(smooth.shape)}", _DYNAMIC)


def _v1_rules(x: Tensor, smooth: Tensor | None, y: Tensor, scale: Tensor) -> None:
    _check_dynamic(x, smooth, None, y)


@aclnn("DynamicQuant", "T x, T smoothScales, T! y, T! scale", rules=_v1_rules)
def dynamic_quant(x: Tensor, smooth: Tensor | None, y: Tensor, scale: Tensor) -> None:
    dynamic_quant_v2(x, smooth, None, 2, y, scale, None)


def _v2_rules(
    x: Tensor, smooth: Tensor | None, groups: Tensor | None, kind: int, y: Tensor, scale: Tensor, offset: Tensor | None
) -> None:
    _check_dynamic(x, smooth, groups, y)
    need(offset is None or product() != "310P", "offset", "quantisation is symmetric only on 310P", _DYNAMIC)


# op-plugin passes dstType as a 32-bit aclDataType, the page declares 64 bits.
@aclnn("DynamicQuantV2", "T x, T smoothScales, T groupIndex, i32 dstType, T! y, T! scale, T! offset", rules=_v2_rules)
def dynamic_quant_v2(
    x: Tensor, smooth: Tensor | None, groups: None, kind: int, y: Tensor, scale: Tensor, offset: Tensor | None
) -> None:
    ignored = product() == "310P"  # the page: reserved there, takes no part
    wide = x.float() if smooth is None or ignored else x.float() * smooth.float()
    if offset is None:
        values, steps = _quantise(wide)
    else:
        high = wide.amax(-1, keepdim=True)
        steps = (high - wide.amin(-1, keepdim=True)) / 255
        shift = _INT8 - high / steps
        values = (wide / steps + shift).round().clamp(-128, _INT8)
        offset.copy_(shift.view_as(offset))
    y.copy_(values)
    scale.copy_(steps.view_as(scale))


def _norm_rules(
    x1: Tensor, x2: Tensor, gamma: Tensor, smooth1: Tensor | None, smooth2: Tensor | None, beta: Tensor | None,
    epsilon: float, mask: list[bool] | None, y1: Tensor, y2: Tensor, x: Tensor, scale1: Tensor, scale2: Tensor,
) -> None:  # fmt: skip
    need(product() != "310P", "product", "exists on 910B, A3 and 950 only, this is 310P", _NORM)
    need(x1.dtype in (torch.float16, torch.bfloat16), "x1", f"is float16 or bfloat16, got {x1.dtype}", _NORM)
    need(x1.shape == x2.shape and x1.dtype == x2.dtype, "x2", "has x1's dtype and shape", _NORM)
    rows = (("gamma", gamma), ("smoothScale1", smooth1), ("smoothScale2", smooth2), ("beta", beta))
    for name, tensor in rows:
        fits = tensor is None or (tensor.dtype == x1.dtype and list(tensor.shape) == [x1.shape[-1]])
        need(fits, name, f"is {x1.dtype} [{x1.shape[-1]}]", _NORM)
    if mask is None:
        need(smooth1 is not None or smooth2 is None, "smoothScale2", "comes with smoothScale1 only", _NORM)
    else:
        need(len(mask) == 2, "outputMask", f"has two entries, got {len(mask)}", _NORM)
        for name, wanted, smooth in (("smoothScale1", mask[0], smooth1), ("smoothScale2", mask[1], smooth2)):
            need(wanted or smooth is None, name, "is given for an output that the mask leaves out", _NORM)
    if y1.dtype != torch.int8:
        raise NotImplementedError("y1: the stand-in quantises to int8 only")


@aclnn(
    "AddRmsNormDynamicQuantV2",
    "T x1, T x2, T gamma, T smoothScale1, T smoothScale2, T beta, f64 epsilon, BA outputMask, "
    "T! y1, T! y2, T! x, T! scale1, T! scale2",
    rules=_norm_rules,
)
def add_rms_norm_dynamic_quant(
    x1: Tensor, x2: Tensor, gamma: Tensor, smooth1: Tensor | None, smooth2: Tensor | None, beta: Tensor | None,
    epsilon: float, mask: list[bool] | None, y1: Tensor, y2: Tensor, x: Tensor, scale1: Tensor, scale2: Tensor,
) -> None:  # fmt: skip
    """Outputs that nobody asked for stay unwritten."""
    total = x1 + x2
    x.copy_(total)
    normal, _ = normalise(total, gamma, epsilon)
    if beta is not None:
        normal = normal + beta.float()
    wanted = mask or [True, smooth1 is not None and smooth2 is not None]
    outputs = ((wanted[0], smooth1, y1, scale1), (wanted[1], smooth2, y2, scale2))
    for write, smooth, y, scale in outputs:
        if write:
            values, steps = _quantise(normal if smooth is None else normal * smooth.float())
            y.copy_(values)
            scale.copy_(steps.view_as(scale))


aclnn("NpuFormatCast", "T src, T! dst")(lambda source, out: out.copy_(source))


def _format_of_cast(source: int, wanted: int, dtype: int, sizes: int, count: int, actual: int) -> int:
    """The device's layouts are names here: every tensor lies as ND, whatever its format says."""
    ctypes.c_int.from_address(actual).value = wanted
    return int(RUNTIME.handle.aclGetViewShape(PTR(source), PTR(sizes), PTR(count)))


OPAPI.answer("aclnnNpuFormatCastCalculateSizeAndFormat", [PTR, INT, INT, PTR, PTR, PTR], _format_of_cast)
