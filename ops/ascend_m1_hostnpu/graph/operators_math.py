"""Elementwise operators, reductions and choices."""

from __future__ import annotations

import operator as python
from collections.abc import Callable

import torch
from torch import Tensor

from .dtypes import ge_type
from .registry import operator

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": python.add,
    "Sub": python.sub,
    "Mul": python.mul,
    "Div": python.truediv,
    "RealDiv": python.truediv,
    "Pow": torch.pow,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
    "FloorDiv": torch.floor_divide,
    "FloorMod": torch.remainder,
    "Less": python.lt,
    "LessEqual": python.le,
    "Greater": python.gt,
    "GreaterEqual": python.ge,
    "Equal": python.eq,
    "NotEqual": python.ne,
    "LogicalAnd": torch.logical_and,
    "LogicalOr": torch.logical_or,
}

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Neg": torch.neg,
    "Cos": torch.cos,
    "Sin": torch.sin,
    "Sqrt": torch.sqrt,
    "Rsqrt": torch.rsqrt,
    "Square": torch.square,
    "Abs": torch.abs,
    "Sigmoid": torch.sigmoid,
    "LogicalNot": torch.logical_not,
    "ZerosLike": torch.zeros_like,
    "OnesLike": torch.ones_like,
}

# Integer promotion is TorchAir's business (it inserts Cast), so a mixture means a wrong graph.
MIXED = {"Mul", "Pow"}


def _register_tables() -> None:
    for name, function in BINARY.items():

        def binary(x1: Tensor, x2: Tensor, name: str = name, function: Callable[..., Tensor] = function) -> Tensor:
            if name not in MIXED and x1.dtype != x2.dtype:
                raise TypeError(f"x1 is {x1.dtype}, x2 is {x2.dtype}; the operator wants one dtype, insert a Cast")
            return function(x1, x2)

        operator(name)(binary)
    for name, of_one in UNARY.items():

        def unary(x: Tensor, of_one: Callable[[Tensor], Tensor] = of_one) -> Tensor:
            return of_one(x)

        operator(name)(unary)


_register_tables()


@operator("Muls")
def muls(x: Tensor, value: float) -> Tensor:
    """x · value, in x's dtype."""
    return (x * value).to(x.dtype)


@operator("Adds")
def adds(x: Tensor, value: float) -> Tensor:
    """x + value, in x's dtype."""
    return (x + value).to(x.dtype)


@operator("AxpyV2")
def axpy(x1: Tensor, x2: Tensor, alpha: Tensor) -> Tensor:
    """x1 + alpha · x2."""
    return x1 + x2 * alpha


@operator("Exp")
def exp(x: Tensor, base: float = -1.0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """e^x; other bases are not used here."""
    if (base, scale, shift) != (-1.0, 1.0, 0.0):
        raise NotImplementedError(f"base {base}, scale {scale}, shift {shift}; only e^x is answered")
    return x.exp()


@operator("Swish")
def swish(x: Tensor, scale: float = 1.0) -> Tensor:
    """x · sigmoid(scale · x)."""
    return x * torch.sigmoid(scale * x)


@operator("Cast")
def cast(x: Tensor, dst_type: int) -> Tensor:
    """x in another dtype."""
    return x.to(ge_type(dst_type))


@operator("ClipByValueV2")
def clip(x: Tensor, clip_value_min: Tensor, clip_value_max: Tensor) -> Tensor:
    """x held between two values."""
    return x.clamp(clip_value_min, clip_value_max)


@operator("Select", "SelectV2")
def select(condition: Tensor, **branches: Tensor) -> Tensor:
    """condition ? then : else; Select calls the branches x1 and x2."""
    first, second = branches.values()
    return torch.where(condition, first, second)


@operator("MaskedFill")
def masked_fill(x: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    """Source: ops-math math/masked_fill; ``value`` is one element."""
    return x.masked_fill(mask.bool(), value.reshape(()))


@operator("SoftmaxV2")
def softmax(x: Tensor, axes: list[int] | None = None, half_to_float: bool = False) -> Tensor:
    """Softmax over one axis."""
    (axis,) = axes or [-1]
    return x.softmax(axis, dtype=torch.float32 if half_to_float else None)


@operator("ReduceSum")
def reduce_sum(x: Tensor, axes: Tensor, keep_dims: bool = False) -> Tensor:
    """Sum over axes, in x's dtype."""
    return x.sum(axes.flatten().tolist(), keepdim=keep_dims, dtype=x.dtype)


@operator("ReduceMean")
def reduce_mean(x: Tensor, axes: Tensor, keep_dims: bool = False, noop_with_empty_axes: bool = True) -> Tensor:
    """Mean over axes."""
    if axes.numel() == 0 and noop_with_empty_axes:
        return x.clone()
    return x.mean(axes.flatten().tolist(), keepdim=keep_dims)


@operator("ReduceMax")
def reduce_max(x: Tensor, axes: Tensor, keep_dims: bool = False) -> Tensor:
    """Maximum over axes."""
    return x.amax(axes.flatten().tolist(), keepdim=keep_dims)


@operator("ArgMaxV2")
def argmax(x: Tensor, dimension: Tensor, dtype: int = 9) -> Tensor:
    """Index of the largest value along one axis."""
    return x.argmax(int(dimension)).to(ge_type(dtype))


@operator("ArgMaxWithValue")
def argmax_with_value(x: Tensor, dimension: int, keep_dims: bool = False) -> tuple[Tensor, Tensor]:
    """(index as int32, value) of the largest along one axis."""
    values, indices = x.max(dimension, keepdim=keep_dims)
    return indices.to(torch.int32), values


@operator("Cumsum")
def cumsum(x: Tensor, axis: Tensor, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sum along one axis."""
    if exclusive or reverse:
        raise NotImplementedError("exclusive or reverse sums are not answered")
    return x.cumsum(int(axis), dtype=x.dtype)
