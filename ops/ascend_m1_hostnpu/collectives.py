"""HCCL's C interface: torch_npu's own ``hccl`` backend talks to these functions. Signatures: hccl/hccl.h.

A collective is a task on its stream like any other, recorded in a capture and logged by its name. It runs when all
ranks have come to it; until then the calling process waits, where on a device only the stream would.

Precision: a reduction adds in the order of ranks, so that every rank has the same bits. float16 and bfloat16 are
added in float32 and rounded once; HCCL's own order and rounding are not documented and may differ.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import communicator as peers
from . import streams
from .abi import INT, PTR, SIZE, U32, view
from .communicator import Communicator, find
from .launches import Launch
from .operator import RuleError
from .products import product

_INTERNAL = 4  # HcclResult
# HcclDataType
_DTYPES = {
    0: torch.int8,
    1: torch.int16,
    2: torch.int32,
    3: torch.float16,
    4: torch.float32,
    5: torch.int64,
    6: torch.uint64,
    7: torch.uint8,
    8: torch.uint16,
    9: torch.uint32,
    10: torch.float64,
    11: torch.bfloat16,
}
# HcclReduceOp
_REDUCTIONS: dict[int, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    0: ("sum", torch.add),
    1: ("prod", torch.mul),
    2: ("max", torch.maximum),
    3: ("min", torch.minimum),
}
# Which dtypes a product reduces, and what of them it does not multiply: page HcclAllReduce of the HCCL API (CANN 8.5).
_HALVES = (torch.float16, torch.bfloat16)
_NARROW = {torch.int8, torch.int16, torch.int32, torch.float16, torch.float32}
_ATLAS_A2 = _NARROW | {torch.int64, torch.bfloat16}
_REDUCED = {
    "910B": _ATLAS_A2,
    "A3": _ATLAS_A2,
    "310P": _NARROW,
    "950": _ATLAS_A2 | {torch.uint64, torch.float64},
}
_EXCEPT = {
    "910B": {("prod", torch.int16), ("prod", torch.bfloat16)},
    "A3": {("prod", torch.int16), ("prod", torch.bfloat16)},
    "310P": {("prod", torch.int16), ("max", torch.int16), ("min", torch.int16)},
    "950": set(),
}

_deferred: list[tuple[int | None, Callable[[], None], Launch]] = []  # between GroupStart and GroupEnd
_depth = 0


class _Item(ctypes.Structure):
    """HcclSendRecvItem."""

    _fields_ = [("receives", INT), ("buffer", PTR), ("count", SIZE), ("dtype", INT), ("peer", U32)]


def _tensor(address: int | None, count: int, dtype: int, offset: int = 0) -> Tensor:
    """[count] on the device's memory."""
    if dtype not in _DTYPES:
        raise TypeError(f"HcclDataType {dtype} has no counterpart in the host NPU")
    kind = _DTYPES[dtype]
    return view((address or 0) + offset * kind.itemsize, kind, [count], [1])


def _numbers(address: int, count: int) -> list[int]:
    return list((ctypes.c_uint64 * count).from_address(address))


def _blocks(address: int, counts: Sequence[int], offsets: Sequence[int], dtype: int) -> list[Tensor]:
    return [_tensor(address, count, dtype, offset) for count, offset in zip(counts, offsets, strict=True)]


def _even(address: int | None, count: int, ranks: int, dtype: int) -> list[Tensor]:
    return [_tensor(address, count, dtype, rank * count) for rank in range(ranks)]


def _packed(counts: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(counts)][:-1]


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _check_reduction(dtype: torch.dtype, op: int) -> None:
    name, kind = _REDUCTIONS[op][0], product()
    if dtype not in _REDUCED[kind] or (name, dtype) in _EXCEPT[kind]:
        raise RuleError(f"dataType: {dtype} cannot be reduced with {name} on {kind} (HCCL API, HcclAllReduce)")


def reduced(parts: Sequence[Tensor], op: int) -> Tensor:
    """[n] of each rank -> [n], in the order of ranks."""
    wide = [part.float() if part.dtype in _HALVES else part for part in parts]
    return functools.reduce(_REDUCTIONS[op][1], wide).to(parts[0].dtype)


def _submit(
    name: str, stream: int | None, run: Callable[[], None], read: Sequence[Tensor], written: Sequence[Tensor]
) -> int:
    launch = Launch(name, _size(read), _size(written))
    if _depth:
        _deferred.append((stream, run, launch))
        return 0
    return _INTERNAL if streams.submit(stream, run, launch) else 0


def group_start() -> int:
    """What is called from now on is given to the streams together, at the end of the outermost group."""
    global _depth
    _depth += 1
    return 0


def group_end() -> int:
    """Sends go first, so that two ranks that receive from each other do not wait for each other."""
    global _depth
    _depth -= 1
    if _depth:
        return 0
    calls = sorted(_deferred, key=lambda call: call[2].name != "HcclSend")
    _deferred.clear()
    codes = [streams.submit(*call) for call in calls]
    return _INTERNAL if any(codes) else 0


def _all_reduce(source: int, target: int, count: int, dtype: int, op: int, handle: int, stream: int | None) -> int:
    group, mine, out = find(handle), _tensor(source, count, dtype), _tensor(target, count, dtype)
    _check_reduction(mine.dtype, op)

    def run() -> None:
        out.copy_(reduced(peers.all_gather(group, mine).unbind(), op))

    return _submit("HcclAllReduce", stream, run, [mine], [out])


def _reduce(
    source: int, target: int, count: int, dtype: int, op: int, root: int, handle: int, stream: int | None
) -> int:
    group, mine = find(handle), _tensor(source, count, dtype)
    out = [_tensor(target, count, dtype)] if group.rank == root else []
    _check_reduction(mine.dtype, op)

    def run() -> None:
        everybody = peers.all_gather(group, mine)
        for tensor in out:
            tensor.copy_(reduced(everybody.unbind(), op))

    return _submit("HcclReduce", stream, run, [mine], out)


def _broadcast(buffer: int, count: int, dtype: int, root: int, handle: int, stream: int | None) -> int:
    group, data = find(handle), _tensor(buffer, count, dtype)
    is_root = group.rank == root
    return _submit(
        "HcclBroadcast",
        stream,
        lambda: peers.broadcast(group, data, root),
        [data] if is_root else [],
        [] if is_root else [data],
    )


def _all_gather(source: int, target: int, count: int, dtype: int, handle: int, stream: int | None) -> int:
    group, mine = find(handle), _tensor(source, count, dtype)
    out = _tensor(target, count * group.size, dtype)

    def run() -> None:
        out.copy_(peers.all_gather(group, mine).flatten())

    return _submit("HcclAllGather", stream, run, [mine], [out])


def _all_gather_v(
    source: int, count: int, target: int, counts: int, offsets: int, dtype: int, handle: int, stream: int | None
) -> int:
    group, mine = find(handle), _tensor(source, count, dtype)
    room = _blocks(target, _numbers(counts, group.size), _numbers(offsets, group.size), dtype)
    run = functools.partial(peers.exchange, group, [mine] * group.size, room)
    return _submit("HcclAllGatherV", stream, run, [mine], room)


def _scatter_reduced(
    name: str, blocks: list[Tensor], out: Tensor, op: int, group: Communicator, stream: int | None
) -> int:
    _check_reduction(out.dtype, op)

    def run() -> None:
        parts = [torch.empty_like(out) for _ in blocks]
        peers.exchange(group, blocks, parts)
        out.copy_(reduced(parts, op))

    return _submit(name, stream, run, blocks, [out])


def _reduce_scatter(source: int, target: int, count: int, dtype: int, op: int, handle: int, stream: int | None) -> int:
    group = find(handle)
    blocks, out = _even(source, count, group.size, dtype), _tensor(target, count, dtype)
    return _scatter_reduced("HcclReduceScatter", blocks, out, op, group, stream)


def _reduce_scatter_v(
    source: int,
    counts: int,
    offsets: int,
    target: int,
    count: int,
    dtype: int,
    op: int,
    handle: int,
    stream: int | None,
) -> int:
    group = find(handle)
    blocks = _blocks(source, _numbers(counts, group.size), _numbers(offsets, group.size), dtype)
    return _scatter_reduced("HcclReduceScatterV", blocks, _tensor(target, count, dtype), op, group, stream)


def _scatter(
    source: int | None, target: int, count: int, dtype: int, root: int, handle: int, stream: int | None
) -> int:
    group, out = find(handle), _tensor(target, count, dtype)
    blocks = _even(source, count, group.size, dtype) if group.rank == root else []

    def run() -> None:
        for peer, block in enumerate(blocks):
            if peer == root:
                out.copy_(block)
            else:
                peers.send(group, block, peer)
        if group.rank != root:
            peers.receive_all(group, [(out, root)])

    return _submit("HcclScatter", stream, run, blocks, [out])


def _exchange(name: str, blocks: list[Tensor], room: list[Tensor], group: Communicator, stream: int | None) -> int:
    return _submit(name, stream, functools.partial(peers.exchange, group, blocks, room), blocks, room)


def _all_to_all(
    source: int, count: int, dtype: int, target: int, room: int, room_dtype: int, handle: int, stream: int | None
) -> int:
    group = find(handle)
    blocks = _even(source, count, group.size, dtype)
    return _exchange("HcclAlltoAll", blocks, _even(target, room, group.size, room_dtype), group, stream)


def _all_to_all_v(
    source: int,
    counts: int,
    offsets: int,
    dtype: int,
    target: int,
    room_counts: int,
    room_offsets: int,
    room_dtype: int,
    handle: int,
    stream: int | None,
) -> int:
    group = find(handle)
    blocks = _blocks(source, _numbers(counts, group.size), _numbers(offsets, group.size), dtype)
    room = _blocks(target, _numbers(room_counts, group.size), _numbers(room_offsets, group.size), room_dtype)
    return _exchange("HcclAlltoAllV", blocks, room, group, stream)


def _all_to_all_vc(
    source: int, matrix: int, dtype: int, target: int, room_dtype: int, handle: int, stream: int | None
) -> int:
    """Row i of the matrix [ranks, ranks] says how many elements rank i sends to each."""
    group = find(handle)
    table = _numbers(matrix, group.size * group.size)
    sent, received = table[group.rank * group.size :][: group.size], table[group.rank :: group.size]
    blocks = _blocks(source, sent, _packed(sent), dtype)
    return _exchange("HcclAlltoAllVC", blocks, _blocks(target, received, _packed(received), room_dtype), group, stream)


def _send(buffer: int, count: int, dtype: int, peer: int, handle: int, stream: int | None) -> int:
    group, data = find(handle), _tensor(buffer, count, dtype)
    return _submit("HcclSend", stream, lambda: peers.send(group, data, peer), [data], [])


def _receive(buffer: int, count: int, dtype: int, peer: int, handle: int, stream: int | None) -> int:
    group, data = find(handle), _tensor(buffer, count, dtype)
    return _submit("HcclRecv", stream, lambda: peers.receive_all(group, [(data, peer)]), [], [data])


def _batch(items: int, count: int, handle: int, stream: int | None) -> int:
    group, table = find(handle), (_Item * count).from_address(items)
    pairs = [(item.receives, _tensor(item.buffer, item.count, item.dtype), item.peer) for item in table]
    sent = [(data, peer) for receives, data, peer in pairs if not receives]
    wanted = [(data, peer) for receives, data, peer in pairs if receives]

    def run() -> None:
        for data, peer in sent:
            peers.send(group, data, peer)
        peers.receive_all(group, wanted)

    return _submit("HcclBatchSendRecv", stream, run, [data for data, _ in sent], [data for data, _ in wanted])


def _barrier(handle: int, stream: int | None) -> int:
    return _submit("HcclBarrier", stream, lambda: peers.barrier(find(handle)), [], [])


OPERATIONS: list[tuple[str, list[Any], Callable[..., int]]] = [
    ("HcclAllReduce", [PTR, PTR, SIZE, INT, INT, PTR, PTR], _all_reduce),
    ("HcclReduce", [PTR, PTR, SIZE, INT, INT, U32, PTR, PTR], _reduce),
    ("HcclBroadcast", [PTR, SIZE, INT, U32, PTR, PTR], _broadcast),
    ("HcclAllGather", [PTR, PTR, SIZE, INT, PTR, PTR], _all_gather),
    ("HcclAllGatherV", [PTR, SIZE, PTR, PTR, PTR, INT, PTR, PTR], _all_gather_v),
    ("HcclReduceScatter", [PTR, PTR, SIZE, INT, INT, PTR, PTR], _reduce_scatter),
    ("HcclReduceScatterV", [PTR, PTR, PTR, PTR, SIZE, INT, INT, PTR, PTR], _reduce_scatter_v),
    ("HcclScatter", [PTR, PTR, SIZE, INT, U32, PTR, PTR], _scatter),
    ("HcclAlltoAll", [PTR, SIZE, INT, PTR, SIZE, INT, PTR, PTR], _all_to_all),
    ("HcclAlltoAllV", [PTR, PTR, PTR, INT, PTR, PTR, PTR, INT, PTR, PTR], _all_to_all_v),
    ("HcclAlltoAllVC", [PTR, PTR, INT, PTR, INT, PTR, PTR], _all_to_all_vc),
    ("HcclSend", [PTR, SIZE, INT, U32, PTR, PTR], _send),
    ("HcclRecv", [PTR, SIZE, INT, U32, PTR, PTR], _receive),
    ("HcclBatchSendRecv", [PTR, U32, PTR, PTR], _batch),
    ("HcclBarrier", [PTR, PTR], _barrier),
]
