"""Operators that move, cut and join tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from .dtypes import ge_type
from .registry import operator


def _ints(values: Tensor) -> list[int]:
    return [int(value) for value in values.flatten().tolist()]


@operator("Reshape")
def reshape(x: Tensor, shape: Tensor, axis: int = 0, num_axes: int = -1) -> Tensor:
    """The same elements in another shape; no memory is moved, so writes are seen through it."""
    if (axis, num_axes) != (0, -1):
        raise NotImplementedError(f"axis {axis}, num_axes {num_axes}; only whole shapes are answered")
    return x.view(_ints(shape)) if x.is_contiguous() else x.reshape(_ints(shape))


@operator("Squeeze")
def squeeze(x: Tensor, axis: list[int] | None = None) -> Tensor:
    """Without the named axes of length 1 (all of them if none is named)."""
    return x.squeeze() if not axis else x.squeeze(tuple(axis))


@operator("Unsqueeze")
def unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    """With axes of length 1 inserted, positions counted in the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@operator("FlattenV2")
def flatten(x: Tensor, axis: int = 1, end_axis: int = -1) -> Tensor:
    """Axes axis..end_axis joined."""
    return x.flatten(axis, end_axis)


@operator("Transpose")
def transpose(x: Tensor, perm: Tensor) -> Tensor:
    """Axes in another order, as new memory."""
    return x.permute(_ints(perm)).contiguous()


@operator("TransposeD")
def transpose_d(x: Tensor, perm: list[int]) -> Tensor:
    """Axes in another order, as new memory."""
    return x.permute(perm).contiguous()


@operator("Identity", "TensorMove")
def copy(x: Tensor) -> Tensor:
    """New memory with the same values: the copy that a cache must not have."""
    return x.clone()


@operator("Shape")
def shape_of(x: Tensor, dtype: int = 3) -> Tensor:
    """The shape, as a vector."""
    return torch.tensor(x.shape, dtype=ge_type(dtype))


@operator("Slice")
def slice_by_size(x: Tensor, offsets: Tensor, size: Tensor) -> Tensor:
    """offsets[i] : offsets[i] + size[i] on every axis; size -1 reaches the end."""
    for axis, (start, length) in enumerate(zip(_ints(offsets), _ints(size), strict=True)):
        x = x.narrow(axis, start, x.shape[axis] - start if length == -1 else length)
    return x.contiguous()


@operator("SliceD")
def slice_d(x: Tensor, offsets: list[int], size: list[int]) -> Tensor:
    """Slice with constant arguments."""
    return slice_by_size(x, torch.tensor(offsets), torch.tensor(size))


@operator("StridedSlice", "StridedSliceV2")
def strided_slice(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    strides: Tensor | None = None,
    axes: Tensor | None = None,
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
) -> Tensor:
    """begin : end : stride on the named axes (the first ones if none is named)."""
    if begin_mask or end_mask or ellipsis_mask or new_axis_mask or shrink_axis_mask:
        raise NotImplementedError("masks of StridedSlice are not answered")
    starts, stops = _ints(begin), _ints(end)
    steps = [1] * len(starts) if strides is None else _ints(strides)
    index = [slice(None)] * x.dim()
    for axis, start, stop, step in zip(
        range(len(starts)) if axes is None else _ints(axes), starts, stops, steps, strict=True
    ):
        index[axis] = slice(start, stop, step)
    return x[tuple(index)].contiguous()


@operator("SplitV")
def split(x: Tensor, size_splits: Tensor, split_dim: Tensor, num_split: int) -> tuple[Tensor, ...]:
    """Pieces of the given sizes along one axis; one size may be -1, for the rest."""
    sizes, axis = _ints(size_splits)[:num_split], int(split_dim)
    if -1 in sizes:
        sizes[sizes.index(-1)] = x.shape[axis] - sum(size for size in sizes if size != -1)
    return tuple(part.contiguous() for part in x.split(sizes, axis))


@operator("SplitVD")
def split_vd(x: Tensor, size_splits: list[int], split_dim: int, num_split: int) -> tuple[Tensor, ...]:
    """SplitV with constant arguments."""
    return split(x, torch.tensor(size_splits), torch.tensor(split_dim), num_split)


@operator("Split")
def split_even(split_dim: Tensor, x: Tensor, num_split: int) -> tuple[Tensor, ...]:
    """num_split equal pieces along one axis."""
    return tuple(part.contiguous() for part in x.chunk(num_split, int(split_dim)))


@operator("SplitD")
def split_d(x: Tensor, split_dim: int, num_split: int) -> tuple[Tensor, ...]:
    """Split with constant arguments."""
    return split_even(torch.tensor(split_dim), x, num_split)


@operator("ConcatD", lists=("x",))
def concat_d(x: list[Tensor], concat_dim: int, N: int = 1) -> Tensor:  # noqa: N803  the prototype's name
    """Joined along one axis."""
    return torch.cat(x, concat_dim)


@operator("ConcatV2", lists=("x",))
def concat(x: list[Tensor], concat_dim: Tensor, N: int = 1) -> Tensor:  # noqa: N803
    """Joined along one axis."""
    return torch.cat(x, int(concat_dim))


@operator("Pack", lists=("x",))
def pack(x: list[Tensor], N: int, axis: int = 0) -> Tensor:  # noqa: N803
    """Stacked along a new axis."""
    return torch.stack(x, axis)


@operator("BroadcastTo")
def broadcast_to(x: Tensor, shape: Tensor) -> Tensor:
    """Repeated to a shape; -1 keeps an axis."""
    return x.expand(_ints(shape)).contiguous()


@operator("Tile")
def tile(x: Tensor, multiples: Tensor) -> Tensor:
    """Repeated along every axis."""
    return x.repeat(_ints(multiples))


@operator("Fill")
def fill(dims: Tensor, value: Tensor) -> Tensor:
    """A constant tensor."""
    return torch.full(_ints(dims), value.item(), dtype=value.dtype)


@operator("Range")
def range_of(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """start, start + delta, ... below limit."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)
