"""Sums, means, norms, orders, softmax: operators that look along a dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operator import aclnn


def _dims(dims: list[int] | None) -> tuple[int, ...] | None:
    return tuple(dims) if dims else None


@aclnn("Mean", "T self, IA dim, b keepDim, i32 dtype, T! out")
def mean(x: Tensor, dim: list[int], keep: bool, dtype: int, out: Tensor) -> None:
    out.copy_(x.mean(_dims(dim), keepdim=keep, dtype=out.dtype))


@aclnn("ReduceSum", "T self, IA dims, b keepDims, i32 dtype, T! out")
def reduce_sum(x: Tensor, dims: list[int], keep: bool, dtype: int, out: Tensor) -> None:
    out.copy_(x.sum(_dims(dims), keepdim=keep, dtype=out.dtype).view_as(out))


@aclnn("ReduceNansum", "T self, IA dims, b keepDims, i32 dtype, T! out")
def reduce_nansum(x: Tensor, dims: list[int], keep: bool, dtype: int, out: Tensor) -> None:
    out.copy_(x.nansum(_dims(dims), keepdim=keep).view_as(out))


@aclnn("Bincount", "T self, T weights, i64 minlength, T! out")
def bincount(x: Tensor, weights: Tensor | None, minlength: int, out: Tensor) -> None:
    out.copy_(torch.bincount(x, weights, minlength=minlength))


@aclnn("All", "T self, IA dim, b keepdim, T! out")
def all_(x: Tensor, dim: list[int], keep: bool, out: Tensor) -> None:
    truth = x.bool()
    for d in sorted((d % x.dim() for d in dim), reverse=True) if x.dim() else ():
        truth = truth.all(d, keepdim=keep)
    out.copy_(truth.view_as(out))


@aclnn("Any", "T self, IA dim, b keepdim, T! out")
def any_(x: Tensor, dim: list[int], keep: bool, out: Tensor) -> None:
    truth = x.bool()
    for d in sorted((d % x.dim() for d in dim), reverse=True) if x.dim() else ():
        truth = truth.any(d, keepdim=keep)
    out.copy_(truth.view_as(out))


@aclnn("LinalgVectorNorm", "T self, S ord, IA dims, b keepDims, i32 dtype, T! out")
def vector_norm(x: Tensor, order: float, dims: list[int], keep: bool, dtype: int, out: Tensor) -> None:
    out.copy_(torch.linalg.vector_norm(x, order, _dims(dims), keep, dtype=out.dtype).view_as(out))


@aclnn("Norm", "T self, S pScalar, IA dim, b keepdim, T! out")
def norm(x: Tensor, order: float, dims: list[int], keep: bool, out: Tensor) -> None:
    out.copy_(torch.linalg.vector_norm(x, order, _dims(dims), keep).view_as(out))


aclnn("Max", "T self, T! out")(lambda x, out: out.copy_(x.max()))
aclnn("Min", "T self, T! out")(lambda x, out: out.copy_(x.min()))
aclnn("ArgMax", "T self, i64 dim, b keepdim, T! out")(lambda x, dim, keep, out: out.copy_(x.argmax(dim, keepdim=keep)))
aclnn("Cumsum", "T self, i64 dim, i32 dtype, T! out")(lambda x, dim, dtype, out: out.copy_(x.cumsum(dim)))
aclnn("Softmax", "T self, i64 dim, T! out")(lambda x, dim, out: out.copy_(x.softmax(dim)))
aclnn("LogSoftmax", "T self, i64 dim, T! out")(lambda x, dim, out: out.copy_(x.log_softmax(dim)))
aclnn("SoftmaxBackward", "T gradOutput, T output, i64 dim, T! gradInput")(
    lambda grad, y, dim, out: out.copy_(y * (grad - (grad * y).sum(dim, keepdim=True)))
)
aclnn("LogSoftmaxBackward", "T gradOutput, T output, i64 dim, T! out")(
    lambda grad, y, dim, out: out.copy_(grad - y.exp() * grad.sum(dim, keepdim=True))
)


@aclnn("MaxDim", "T self, i64 dim, b keepdim, T! out, T! indices")
def max_dim(x: Tensor, dim: int, keep: bool, out: Tensor, indices: Tensor) -> None:
    values, places = x.max(dim, keepdim=keep)
    out.copy_(values)
    indices.copy_(places)


@aclnn("Kthvalue", "T self, i64 k, i64 dim, b keepdim, T! valuesOut, T! indicesOut")
def kth_value(x: Tensor, k: int, dim: int, keep: bool, out: Tensor, indices: Tensor) -> None:
    values, places = x.kthvalue(k, dim, keepdim=keep)
    out.copy_(values)
    indices.copy_(places)


aclnn("Cumprod", "T self, S dim, i32 dtype, T! out")(lambda x, dim, dtype, out: out.copy_(x.cumprod(int(dim))))
aclnn("Median", "T self, T! out")(lambda x, out: out.copy_(x.median()))


@aclnn("Cummax", "T self, i64 dim, T! valuesOut, T! indicesOut")
def cummax(x: Tensor, dim: int, out: Tensor, indices: Tensor) -> None:
    values, places = x.cummax(dim)
    out.copy_(values)
    indices.copy_(places)


@aclnn("Topk", "T self, i64 k, i64 dim, b largest, b sorted, T! valuesOut, T! indicesOut")
def topk(x: Tensor, k: int, dim: int, largest: bool, ordered: bool, out: Tensor, indices: Tensor) -> None:
    values, places = x.topk(k, dim, largest, ordered)
    out.copy_(values)
    indices.copy_(places)


@aclnn("TopkV2", "T self, i64 k, i64 dim, b largest, b sorted, i64 sortPolicy, T! valuesOut, T! indicesOut")
def topk_v2(
    x: Tensor, k: int, dim: int, largest: bool, ordered: bool, policy: int, out: Tensor, indices: Tensor
) -> None:
    topk(x, k, dim, largest, ordered, out, indices)


@aclnn("MinDim", "T self, i64 dim, b keepdim, T! out, T! indices")
def min_dim(x: Tensor, dim: int, keep: bool, out: Tensor, indices: Tensor) -> None:
    values, places = x.min(dim, keepdim=keep)
    out.copy_(values)
    indices.copy_(places)


@aclnn("LogSumExp", "T self, IA dim, b keepDim, T! out")
def log_sum_exp(x: Tensor, dim: list[int], keep: bool, out: Tensor) -> None:
    out.copy_(x.logsumexp(_dims(dim) or tuple(range(x.dim())), keep))


@aclnn("VarCorrection", "T self, IA dim, i64 correction, b keepdim, T! out")
def variance(x: Tensor, dim: list[int], correction: int, keep: bool, out: Tensor) -> None:
    out.copy_(torch.var(x, _dims(dim), correction=correction, keepdim=keep).view_as(out))


@aclnn("Std", "T self, IA dim, i64 correction, b keepdim, T! out")
def deviation(x: Tensor, dim: list[int], correction: int, keep: bool, out: Tensor) -> None:
    out.copy_(torch.std(x, _dims(dim), correction=correction, keepdim=keep).view_as(out))


aclnn("Amax", "T self, IA dim, b keepDim, T! out")(lambda x, dim, keep, out: out.copy_(x.amax(_dims(dim) or (), keep)))
aclnn("Amin", "T self, IA dim, b keepDim, T! out")(lambda x, dim, keep, out: out.copy_(x.amin(_dims(dim) or (), keep)))
aclnn("ArgMin", "T self, i64 dim, b keepdim, T! out")(lambda x, dim, keep, out: out.copy_(x.argmin(dim, keepdim=keep)))
aclnn("Prod", "T self, i32 dtype, T! out")(lambda x, dtype, out: out.copy_(x.prod()))
aclnn("ProdDim", "T self, i64 dim, b keepDim, i32 dtype, T! out")(
    lambda x, dim, keep, dtype, out: out.copy_(x.prod(dim, keep))
)
aclnn("Equal", "T self, T other, T! out")(lambda x, y, out: out.fill_(torch.equal(x, y)))


@aclnn("Sort", "T self, b stable, i64 dim, b descending, T! valuesOut, T! indicesOut")
def sort(x: Tensor, stable: bool, dim: int, descending: bool, out: Tensor, indices: Tensor) -> None:
    values, places = x.sort(stable=stable, dim=dim, descending=descending)
    out.copy_(values)
    indices.copy_(places)
