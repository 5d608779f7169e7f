"""Element-wise arithmetic, comparisons and functions; also the in-place and scalar forms of each."""

from __future__ import annotations

import operator as op
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..abi import OPAPI
from ..operator import aclnn

_F = torch.nn.functional

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Mul": op.mul,
    "Div": op.truediv,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
    "LeTensor": op.le,
    "LtTensor": op.lt,
    "GeTensor": op.ge,
    "GtTensor": op.gt,
    "EqTensor": op.eq,
    "NeTensor": op.ne,
    "BitwiseAndTensor": op.and_,
    "BitwiseOrTensor": op.or_,
    "BitwiseXorTensor": op.xor,
    "LeftShift": op.lshift,
    "RightShift": op.rshift,
    "PowTensorTensor": op.pow,
    "FloorDivide": torch.floor_divide,
    "RemainderTensorTensor": torch.remainder,
    "FmodTensor": torch.fmod,
    "LogicalAnd": torch.logical_and,
    "LogicalOr": torch.logical_or,
    "LogicalXor": torch.logical_xor,
    "ClampMinTensor": torch.clamp_min,
    "ClampMaxTensor": torch.clamp_max,
    "Atan2": torch.atan2,
    "SigmoidBackward": lambda grad, y: grad * y * (1 - y),
    "TanhBackward": lambda grad, y: grad * (1 - y * y),
    "GeluBackward": lambda grad, x: torch.ops.aten.gelu_backward(grad, x, approximate="tanh"),
    "SiluBackward": lambda grad, x: grad * x.sigmoid() * (1 + x * (1 - x.sigmoid())),
}
WITH_SCALAR: dict[str, Callable[[Any, Any], Any]] = {
    "Muls": op.mul,
    "Divs": op.truediv,
    "LeScalar": op.le,
    "LtScalar": op.lt,
    "GeScalar": op.ge,
    "GtScalar": op.gt,
    "EqScalar": op.eq,
    "NeScalar": op.ne,
    "PowTensorScalar": op.pow,
    "FloorDivides": torch.floor_divide,
    "RemainderTensorScalar": torch.remainder,
    "BitwiseAndScalar": op.and_,
    "FmodScalar": torch.fmod,
    "BitwiseOrScalar": op.or_,
    "BitwiseXorScalar": op.xor,
    "LeftShifts": op.lshift,
    "ClampMin": torch.clamp_min,
    "ClampMax": torch.clamp_max,
}
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Cos": torch.cos,
    "Sin": torch.sin,
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Rsqrt": torch.rsqrt,
    "Reciprocal": torch.reciprocal,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Silu": _F.silu,
    "IsFinite": torch.isfinite,
    "BitwiseNot": torch.bitwise_not,
    "LogicalNot": torch.logical_not,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Sign": torch.sign,
    "Trunc": torch.trunc,
    "Frac": torch.frac,
    "Round": torch.round,
    "Exp2": torch.exp2,
    "Expm1": torch.expm1,
    "Log2": torch.log2,
    "Log10": torch.log10,
    "Log1p": torch.log1p,
    "Tan": torch.tan,
    "Atan": torch.atan,
    "Erf": torch.erf,
    "Erfinv": torch.erfinv,
    "Relu": torch.relu,
    "Gelu": lambda x: _F.gelu(x, approximate="tanh"),  # the page gives this formula
    "IsPosInf": torch.isposinf,
    "IsNegInf": torch.isneginf,
}
# Which of them CANN has in place differs from wheel to wheel; its symbols say.


def _define() -> None:
    tables: tuple[tuple[Any, str], ...] = ((BINARY, ", T other"), (WITH_SCALAR, ", S other"), (UNARY, ""))
    for table, rest in tables:
        for name, function in table.items():
            aclnn(name, f"T self{rest}, T! out")(lambda *given, f=function: given[-1].copy_(f(*given[:-1])))
            if OPAPI.has(f"aclnnInplace{name}"):
                aclnn(f"Inplace{name}", f"T! selfRef{rest}")(lambda a, *b, f=function: a.copy_(f(a, *b)))
    for name, sign in (("Add", 1), ("Sub", -1)):
        for kind, suffix in (("T", ""), ("S", "s")):
            signature = f"T self, {kind} other, S alpha, T! out"
            aclnn(f"{name}{suffix}", signature)(lambda a, b, alpha, out, s=sign: out.copy_(a + s * (b * alpha)))
            signature = f"T! selfRef, {kind} other, S alpha"
            aclnn(f"Inplace{name}{suffix}", signature)(lambda a, b, alpha, s=sign: a.copy_(a + s * (b * alpha)))


_define()
aclnn("Rsub", "T self, T other, S alpha, T! out")(lambda a, b, alpha, out: out.copy_(b - a * alpha))
aclnn("Rsubs", "T self, S other, S alpha, T! out")(lambda a, b, alpha, out: out.copy_(b - a * alpha))
aclnn("PowScalarTensor", "S self, T exponent, T! out")(lambda a, b, out: out.copy_(torch.pow(a, b)))
_ROUNDING = {0: None, 1: "trunc", 2: "floor"}  # op-plugin DivKernelNpuOpApi.cpp
for _name, _kind in (("DivMod", "T"), ("DivMods", "S")):
    aclnn(_name, f"T self, {_kind} other, i32 mode, T! out")(
        lambda a, b, mode, out: out.copy_(torch.div(a, b, rounding_mode=_ROUNDING[mode]))
    )
    aclnn(f"Inplace{_name}", f"T! selfRef, {_kind} other, i32 mode")(
        lambda a, b, mode: a.div_(b, rounding_mode=_ROUNDING[mode])
    )
aclnn("Clamp", "T self, S min, S max, T! out")(lambda a, low, high, out: out.copy_(a.clamp(low, high)))
aclnn("ClampTensor", "T self, T min, T max, T! out")(lambda a, low, high, out: out.copy_(a.clamp(low, high)))
aclnn("Lerp", "T self, T end, T weight, T! out")(lambda a, end, w, out: out.copy_(torch.lerp(a, end, w)))
aclnn("NanToNum", "T self, f32 nan, f32 posinf, f32 neginf, T! out")(
    lambda a, nan, high, low, out: out.copy_(a.nan_to_num(nan, high, low))
)
aclnn("IsClose", "T self, T other, f64 rtol, f64 atol, b equalNan, T! out")(
    lambda a, b, rtol, atol, nan, out: out.copy_(torch.isclose(a, b, rtol, atol, nan))
)
aclnn("Softplus", "T self, S beta, S threshold, T! out")(
    lambda a, beta, threshold, out: out.copy_(_F.softplus(a, beta, threshold))
)
aclnn("SoftplusBackward", "T gradOutput, T self, S beta, S threshold, T! out")(
    lambda grad, a, beta, threshold, out: out.copy_(torch.ops.aten.softplus_backward(grad, a, beta, threshold))
)
aclnn("GeluV2", "T x, i64 approximate, T! y")(
    lambda a, approximate, out: out.copy_(_F.gelu(a, approximate="tanh" if approximate else "none"))
)
aclnn("GeluBackwardV2", "T gradOutput, T self, s approximate, T! gradInput")(
    lambda grad, a, approximate, out: out.copy_(torch.ops.aten.gelu_backward(grad, a, approximate=approximate))
)
aclnn("ThresholdBackward", "T gradOutput, T self, S threshold, T! out")(
    lambda grad, a, threshold, out: out.copy_(grad * (a > threshold))
)
aclnn("SWhere", "T condition, T self, T other, T! out")(lambda c, a, b, out: out.copy_(torch.where(c, a, b)))
aclnn("Cast", "T self, i32 dtype, T! out")(lambda a, dtype, out: out.copy_(a))
aclnn("InplaceCopy", "T! selfRef, T src")(lambda out, a: out.copy_(a))
aclnn("InplaceLerps", "T! selfRef, T end, S weight")(lambda a, end, weight: a.lerp_(end, weight))
aclnn("Lerps", "T self, T end, S weight, T! out")(lambda a, end, w, out: out.copy_(torch.lerp(a, end, w)))
aclnn("Addcmul", "T self, T tensor1, T tensor2, S value, T! out")(
    lambda a, x, y, value, out: out.copy_(torch.addcmul(a, x, y, value=value))
)
aclnn("InplaceAddcmul", "T! selfRef, T tensor1, T tensor2, S value")(
    lambda a, x, y, value: a.addcmul_(x, y, value=value)
)
aclnn("Addcdiv", "T self, T tensor1, T tensor2, S value, T! out")(
    lambda a, x, y, value, out: out.copy_(torch.addcdiv(a, x, y, value=value))
)
aclnn("InplaceAddcdiv", "T! selfRef, T tensor1, T tensor2, S value")(
    lambda a, x, y, value: a.addcdiv_(x, y, value=value)
)
