"""The same element-wise operation on lists of tensors: what fused optimizers and gradient clipping call."""

from __future__ import annotations

import operator as op
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..abi import OPAPI
from ..operator import aclnn

Tensors = list[Tensor]


def _each(results: Any, outs: Tensors) -> None:
    for result, out in zip(results, outs, strict=True):
        out.copy_(result)


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _define(name: str, signature: str, function: Callable[..., None]) -> None:
    """Which forms exist differs between wheels."""
    if OPAPI.has(f"aclnn{name}"):
        aclnn(name, signature)(function)


def _binary() -> None:
    table = {"Add": op.add, "Sub": op.sub, "Mul": op.mul, "Div": op.truediv, "Pow": op.pow}
    for name, f in table.items():
        for suffix, kind in (("Scalar", "T"), ("ScalarV2", "S")):
            _define(
                f"Foreach{name}{suffix}",
                f"TL x, {kind} scalar, TL! out",
                lambda xs, s, outs, f=f: _each([f(x, _scalar(s)) for x in xs], outs),
            )
        for suffix, kind in (("ScalarList", "SL"), ("ScalarListV2", "SL")):
            _define(
                f"Foreach{name}{suffix}",
                f"TL x, {kind} scalars, TL! out",
                lambda xs, ss, outs, f=f: _each([f(x, s) for x, s in zip(xs, ss, strict=True)], outs),
            )
        if name in ("Add", "Sub"):
            for suffix, kind in (("List", "T"), ("ListV2", "S")):
                _define(
                    f"Foreach{name}{suffix}",
                    f"TL x1, TL x2, {kind} alpha, TL! out",
                    lambda xs, ys, a, outs, f=f: _each(
                        [f(x, y * _scalar(a)) for x, y in zip(xs, ys, strict=True)], outs
                    ),
                )
        else:
            _define(
                f"Foreach{name}List",
                "TL x1, TL x2, TL! out",
                lambda xs, ys, outs, f=f: _each([f(x, y) for x, y in zip(xs, ys, strict=True)], outs),
            )


def _ternary() -> None:
    for name, f in {"Addcmul": torch.addcmul, "Addcdiv": torch.addcdiv}.items():
        for suffix, kind in (("Scalar", "T"), ("ScalarV2", "S")):
            _define(
                f"Foreach{name}{suffix}",
                f"TL x1, TL x2, TL x3, {kind} scalar, TL! out",
                lambda xs, a, b, s, outs, f=f: _each(
                    [f(*t, value=_scalar(s)) for t in zip(xs, a, b, strict=True)], outs
                ),
            )
        _define(
            f"Foreach{name}ScalarList",
            "TL x1, TL x2, TL x3, SL scalars, TL! out",
            lambda xs, a, b, ss, outs, f=f: _each(
                [f(x, y, z, value=s) for x, y, z, s in zip(xs, a, b, ss, strict=True)], outs
            ),
        )


_binary()
_ternary()
_define("ForeachCopy", "TL x, TL! out", lambda xs, outs: _each(xs, outs))
_define("ForeachSqrt", "TL x, TL! out", lambda xs, outs: _each([x.sqrt() for x in xs], outs))
_define(
    "ForeachNorm",
    "TL x, S ord, TL! out",
    lambda xs, order, outs: _each([torch.linalg.vector_norm(x, _scalar(order)) for x in xs], outs),
)
_define(
    "ForeachLerpScalar",
    "TL x1, TL x2, T weight, TL! out",
    lambda xs, ys, w, outs: _each([torch.lerp(x, y, _scalar(w)) for x, y in zip(xs, ys, strict=True)], outs),
)
