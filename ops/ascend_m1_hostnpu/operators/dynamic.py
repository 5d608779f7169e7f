"""Operators whose output's shape depends on the data: op-plugin waits for them and asks the output object its shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import streams
from ..abi import read, set_sizes
from ..operator import aclnn, nbytes, need

_PAGE = "op-plugin op_plugin/ops/opapi: EXEC_NPU_CMD_SYNC"


def _outside_capture(*arguments: object) -> None:
    need(
        not streams.is_capturing(), "out", "the host waits for its shape, which nothing may do during a capture", _PAGE
    )


def _first(x: Tensor, *rest: object) -> tuple[int, int]:
    return nbytes(x), 0


def _write(pointer: int, result: Tensor) -> None:
    """Put a result of any smaller size at the start of an output's memory and tell its shape."""
    out = read(pointer)
    out.view(-1)[: result.numel()] = result.reshape(-1)
    set_sizes(pointer, result.shape)


def _dynamic(name: str, signature: str) -> Any:
    return aclnn(name, signature, rules=_outside_capture, traffic=_first)


@_dynamic("Nonzero", "T self, O out")
def nonzero(x: Tensor, out: int) -> None:
    _write(out, x.nonzero())


@_dynamic("NonzeroV2", "T self, O out")
def nonzero_v2(x: Tensor, out: int) -> None:
    """The places as [dimensions, count]: one row for each dimension."""
    _write(out, x.nonzero().T)


@_dynamic("MaskedSelect", "T self, T mask, O out")
def masked_select(x: Tensor, mask: Tensor, out: int) -> None:
    _write(out, x.masked_select(mask.bool()))


@_dynamic("Unique2", "T self, b sorted, b returnInverse, b returnCounts, O valueOut, T! inverseOut, O countsOut")
def unique(
    x: Tensor, ordered: bool, want_inverse: bool, want_counts: bool, out: int, inverse: Tensor, counts: int
) -> None:
    values, places, numbers = torch.unique(x, ordered, return_inverse=True, return_counts=True)
    _write(out, values)
    if want_inverse:
        inverse.copy_(places.view_as(inverse))
    if want_counts:
        _write(counts, numbers)


@_dynamic(
    "UniqueConsecutive", "T self, b returnInverse, b returnCounts, i64 dim, O valueOut, T! inverseOut, O countsOut"
)
def unique_consecutive(
    x: Tensor, want_inverse: bool, want_counts: bool, dim: int, out: int, inverse: Tensor, counts: int
) -> None:
    whole = 1000  # op-plugin's word for no dimension
    values, places, numbers = torch.unique_consecutive(
        x, return_inverse=True, return_counts=True, dim=None if dim == whole else dim
    )
    _write(out, values)
    if want_inverse:
        inverse.copy_(places.view_as(inverse))
    if want_counts:
        _write(counts, numbers)
