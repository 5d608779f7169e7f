"""Reading and writing by index, joining, repeating, padding, and masks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operator import aclnn, nbytes


def _rows(weight: Tensor, indices: Tensor, out: Tensor) -> tuple[int, int]:
    """An embedding reads the rows asked for, not the table."""
    return nbytes(indices) + nbytes(out), nbytes(out)


aclnn("Embedding", "T weight, T indices, T! out", traffic=_rows)(lambda weight, i, out: out.copy_(weight[i.long()]))


@aclnn("EmbeddingDenseBackward", "T grad, T indices, i64 numWeights, i64 paddingIdx, b scaleGradByFreq, T! out")
def embedding_backward(grad: Tensor, indices: Tensor, n: int, padding: int, by_frequency: bool, out: Tensor) -> None:
    flat = indices.flatten().long()
    rows = grad.reshape(-1, grad.shape[-1]).to(out.dtype)
    out.zero_()
    out.index_add_(0, flat, rows)
    if padding >= 0:
        out[padding] = 0


def _index(indices: list[Tensor | None]) -> list[Tensor | None]:
    """An empty tensor stands for a dimension without index."""
    return [None if i is None or i.numel() == 0 else i if i.dtype == torch.bool else i.long() for i in indices]


@aclnn("Index", "T self, TL indices, T! out", traffic=lambda x, i, out: (nbytes(out), nbytes(out)))
def index(x: Tensor, indices: list[Tensor | None], out: Tensor) -> None:
    if out.numel():  # else an index is really empty
        out.copy_(torch.ops.aten.index(x, _index(indices)))


@aclnn(
    "IndexPutImpl",
    "T! selfRef, TL indices, T values, b accumulate, b unsafe",
    traffic=lambda x, i, values, accumulate, unsafe: (nbytes(values), nbytes(values)),
)
def index_put(x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool, unsafe: bool) -> None:
    known = _index(indices)
    if any(i is not None for i in known):  # else every index is really empty
        torch.ops.aten.index_put_(x, known, values, accumulate)


def _selected(x: Tensor, dim: int, index: Tensor, out: Tensor) -> tuple[int, int]:
    return nbytes(index) + nbytes(out), nbytes(out)


aclnn("IndexSelect", "T self, i64 dim, T index, T! out", traffic=_selected)(
    lambda x, dim, i, out: out.copy_(x.index_select(dim, i.long()))
)
aclnn("Gather", "T self, i64 dim, T index, T! out", traffic=_selected)(
    lambda x, dim, i, out: out.copy_(x.gather(dim, i.long()))
)
aclnn("InplaceIndexCopy", "T! selfRef, i64 dim, T index, T source")(
    lambda x, dim, i, s: x.index_copy_(dim, i.long(), s)
)
aclnn("IndexAdd", "T self, i64 dim, T index, T source, S alpha, T! out")(
    lambda x, dim, i, s, alpha, out: out.copy_(x.index_add(dim, i.long(), s, alpha=alpha))
)
aclnn("IndexFillTensor", "T self, i64 dim, IA index, S value, T! out")(
    lambda x, dim, i, value, out: out.copy_(x.index_fill(dim, torch.tensor(i, dtype=torch.int64), value))
)
aclnn("InplaceIndexFillTensor", "T! selfRef, i64 dim, IA index, S value")(
    lambda x, dim, i, value: x.index_fill_(dim, torch.tensor(i, dtype=torch.int64), value)
)


@aclnn("InplaceScatter", "T! selfRef, i64 dim, T index, T src, i64 reduce")
def scatter(x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: int) -> None:
    if reduce == 0:
        x.scatter_(dim, index.long(), source)
    else:
        x.scatter_(dim, index.long(), source, reduce={1: "add", 2: "multiply"}[reduce])


@aclnn("Scatter", "T self, i64 dim, T index, T src, i64 reduce, T! out")
def scatter_to(x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: int, out: Tensor) -> None:
    out.copy_(x)
    scatter(out, dim, index, source, reduce)


@aclnn("ScatterValue", "T self, i64 dim, T index, S value, i64 reduce, T! out")
def scatter_value_to(x: Tensor, dim: int, index: Tensor, value: float, reduce: int, out: Tensor) -> None:
    out.copy_(x)
    scatter_value(out, dim, index, value, reduce)


@aclnn("ScatterAdd", "T self, i64 dim, T index, T src, T! out")
def scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor, out: Tensor) -> None:
    out.copy_(x.scatter_add(dim, index.long(), source))


aclnn("InplaceMaskedScatter", "T! selfRef, T mask, T source")(lambda x, mask, s: x.masked_scatter_(mask.bool(), s))


@aclnn("RepeatInterleave", "T self, T repeats, i64 outputSize, T! out")
def repeat_interleave(x: Tensor, repeats: Tensor, size: int, out: Tensor) -> None:
    out.copy_(x.flatten().repeat_interleave(repeats))


@aclnn("RepeatInterleaveWithDim", "T self, T repeats, i64 dim, i64 outputSize, T! out")
def repeat_interleave_with_dim(x: Tensor, repeats: Tensor, dim: int, size: int, out: Tensor) -> None:
    out.copy_(x.repeat_interleave(repeats, dim))


@aclnn("OneHot", "T self, i64 depth, T onValue, T offValue, i64 axis, T! out")
def one_hot(x: Tensor, depth: int, on: Tensor, off: Tensor, axis: int, out: Tensor) -> None:
    places = torch.arange(depth) == x.unsqueeze(-1)
    out.copy_(torch.where(places.movedim(-1, axis), on, off))


@aclnn("IndexFill", "T self, i64 dim, T index, S value, T! out")
def index_fill(x: Tensor, dim: int, index: Tensor, value: float, out: Tensor) -> None:
    out.copy_(x.index_fill(dim, index.long(), value))


aclnn("InplaceIndexFill", "T! selfRef, i64 dim, T index, S value")(
    lambda x, dim, index, value: x.index_fill_(dim, index.long(), value)
)
aclnn("Take", "T self, T index, T! out")(lambda x, index, out: out.copy_(x.take(index.long())))


@aclnn("SearchSorted", "T sortedSequence, T self, b outInt32, b right, T sorter, T! out")
def search_sorted(ordered: Tensor, x: Tensor, narrow: bool, right: bool, sorter: Tensor | None, out: Tensor) -> None:
    out.copy_(torch.searchsorted(ordered, x, right=right, sorter=sorter))


@aclnn("InplaceScatterValue", "T! selfRef, i64 dim, T index, S value, i64 reduce")
def scatter_value(x: Tensor, dim: int, index: Tensor, value: float, reduce: int) -> None:
    if reduce:
        raise NotImplementedError(f"reduce={reduce} has no stand-in")
    x.scatter_(dim, index.long(), value)


aclnn("Cat", "TL tensors, i64 dim, T! out")(lambda xs, dim, out: out.copy_(torch.cat(xs, dim)))
aclnn("ChunkCat", "TL tensors, i64 dim, i64 numChunks, T! out")(
    lambda xs, dim, chunks, out: out.copy_(torch._chunk_cat(xs, dim, chunks))
)
aclnn("Stack", "TL tensors, i64 dim, T! out")(lambda xs, dim, out: out.copy_(torch.stack(xs, dim)))
aclnn("Repeat", "T self, IA repeats, T! out")(lambda x, repeats, out: out.copy_(x.repeat(repeats)))
aclnn("RepeatInterleaveIntWithDim", "T self, i64 repeats, i64 dim, i64 outputSize, T! out")(
    lambda x, repeats, dim, size, out: out.copy_(x.repeat_interleave(repeats, dim))
)
aclnn("ConstantPadNd", "T self, IA pad, S value, T! out")(
    lambda x, pad, value, out: out.copy_(torch.nn.functional.pad(x, pad, value=value))
)
aclnn("Triu", "T self, i64 diagonal, T! out")(lambda x, diagonal, out: out.copy_(x.triu(diagonal)))
aclnn("Tril", "T self, i64 diagonal, T! out")(lambda x, diagonal, out: out.copy_(x.tril(diagonal)))
aclnn("InplaceTriu", "T! selfRef, i64 diagonal")(lambda x, diagonal: x.triu_(diagonal))
aclnn("InplaceTril", "T! selfRef, i64 diagonal")(lambda x, diagonal: x.tril_(diagonal))
aclnn("InplaceMaskedFillScalar", "T! selfRef, T mask, S value")(lambda x, mask, value: x.masked_fill_(mask, value))
aclnn("InplaceMaskedFillTensor", "T! selfRef, T mask, T value")(lambda x, mask, value: x.masked_fill_(mask, value))
aclnn("IsInTensorScalar", "T element, S testElement, b assumeUnique, b invert, T! out")(
    lambda x, test, unique, invert, out: out.copy_((x == test) != invert)
)
aclnn("IsInScalarTensor", "S element, T testElements, b assumeUnique, b invert, T! out")(
    lambda x, tests, unique, invert, out: out.copy_((tests == x).any() != invert)
)
aclnn("Flip", "T self, IA dims, T! out")(lambda x, dims, out: out.copy_(x.flip(dims)))
aclnn("Roll", "T x, IA shifts, IA dims, T! out")(lambda x, shifts, dims, out: out.copy_(x.roll(shifts, dims)))
