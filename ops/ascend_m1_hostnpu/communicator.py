"""Host NPUs of several processes as one group: a TCP store to meet at and gloo to carry bytes, on this machine only."""

from __future__ import annotations

import atexit
import itertools
import os
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store, TCPStore, Work

_HOST = "127.0.0.1"
# CANN's own variables, in seconds: how long to wait for the others at the start, and in a collective.
_CONNECT, _EXECUTE = ("HCCL_CONNECT_TIMEOUT", "120"), ("HCCL_EXEC_TIMEOUT", "300")


class PeerError(RuntimeError):
    """The other ranks of a group did not come, or not in time."""


@dataclass
class Communicator:
    """A rank's place in a group."""

    name: str
    rank: int
    size: int
    store: Store
    gloo: Any  # ProcessGroupGloo; its type stub lacks the operations
    sends: list[tuple[Work, Tensor]] = field(default_factory=list)  # under way, with what they send
    children: Counter[int] = field(default_factory=Counter)


_communicators: dict[int, Communicator] = {}  # by the handle that C code holds
_handles = itertools.count(16, 16)
_stores: dict[int, Store] = {}  # port -> the store whose server lives in this process


def _timeout(variable: tuple[str, str]) -> timedelta:
    return timedelta(seconds=int(os.environ.get(variable[0]) or variable[1]))


def open_root() -> str:
    """Rank 0 opens the group's store. Returns what the others need to find it: ``port identity``."""
    store = TCPStore(_HOST, 0, None, True, _timeout(_CONNECT), wait_for_workers=False)
    _stores[store.port] = store
    return f"{store.port} {uuid.uuid4().hex}"


def connect(root: str, rank: int, size: int, name: str) -> Communicator:
    """Join the group that ``root`` names, when all ``size`` ranks have come."""
    port, identity = root.split()
    store = _stores.get(int(port)) or TCPStore(_HOST, int(port), None, False, _timeout(_CONNECT))
    return _meet(PrefixStore(identity, store), rank, size, name or f"hostnpu_{identity}")


def split(parent: Communicator, key: int, rank: int, size: int, name: str) -> Communicator:
    """A group of some of a group's ranks; all of them give the same key."""
    identity = f"{key}.{parent.children[key]}"  # the same ranks may make several groups, one after another
    parent.children[key] += 1
    return _meet(PrefixStore(identity, parent.store), rank, size, name or f"{parent.name}_{identity}")


def _meet(store: Store, rank: int, size: int, name: str) -> Communicator:
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=_HOST, lazy_init=False)]
    options._timeout = _timeout(_CONNECT)
    try:
        gloo = ProcessGroupGloo(store, rank, size, options)
    except RuntimeError as error:
        raise PeerError(
            f"rank {rank}: not all {size} ranks of the group came within {options._timeout.seconds} s"
            f" ({_CONNECT[0]}): {_first_line(error)}"
        ) from error
    return Communicator(name, rank, size, store, gloo)


def keep(communicator: Communicator) -> int:
    """Returns the handle under which ``find`` gives it back."""
    handle = next(_handles)
    _communicators[handle] = communicator
    return handle


def find(handle: int | None) -> Communicator:
    if handle not in _communicators:
        raise ValueError(f"comm: {handle} is no communicator, or one that was destroyed")
    return _communicators[handle]


def close(handle: int) -> None:
    """Leave the group, when what was sent has arrived."""
    communicator = find(handle)
    del _communicators[handle]
    for work, _ in communicator.sends:
        _wait(communicator, work)


@atexit.register
def _deliver() -> None:
    """A process that ends without destroying its groups still delivers what it sent."""
    for handle in list(_communicators):
        close(handle)


def all_gather(communicator: Communicator, mine: Tensor) -> Tensor:
    """[n] of every rank -> [ranks, n]."""
    everybody = torch.empty((communicator.size, *mine.shape), dtype=mine.dtype)
    if mine.numel():
        outputs = [_bytes(row) for row in everybody]
        _wait(communicator, communicator.gloo.allgather([outputs], [_bytes(mine)]))
    return everybody


def broadcast(communicator: Communicator, data: Tensor, root: int) -> None:
    """``data`` [n] of the root goes to everybody, in place."""
    if data.numel():
        _wait(communicator, communicator.gloo.broadcast(_bytes(data), root))


def exchange(communicator: Communicator, blocks: Sequence[Tensor], room: Sequence[Tensor]) -> None:
    """Block i goes to rank i, and what rank i has for this rank goes to room i. Sizes may differ, or be 0."""
    for peer in range(communicator.size):
        if peer == communicator.rank:
            room[peer].copy_(blocks[peer].clone())  # the two may be the same memory
        else:
            send(communicator, blocks[peer], peer)
    receive_all(communicator, [(room[peer], peer) for peer in range(communicator.size) if peer != communicator.rank])


def send(communicator: Communicator, data: Tensor, peer: int) -> None:
    """Does not wait for the receiver, as on the device, where only the stream does."""
    if data.numel() == 0:
        return
    _refuse_self(communicator, peer)
    copy = _bytes(data).clone()
    communicator.sends = [(work, kept) for work, kept in communicator.sends if not work.is_completed()]
    communicator.sends.append((communicator.gloo.send([copy], peer, 0), copy))


def receive_all(communicator: Communicator, wanted: Sequence[tuple[Tensor, int]]) -> None:
    """Fill each tensor from its peer."""
    works = []
    for room, peer in wanted:
        if room.numel():
            _refuse_self(communicator, peer)
            works.append(communicator.gloo.recv([_bytes(room)], peer, 0))
    for work in works:
        _wait(communicator, work)


def barrier(communicator: Communicator) -> None:
    all_gather(communicator, torch.zeros(1, dtype=torch.uint8))


def _refuse_self(communicator: Communicator, peer: int) -> None:
    if peer == communicator.rank:
        raise ValueError(f"rank {peer} sends to itself or receives from itself: copy instead")


def _wait(communicator: Communicator, work: Work) -> None:
    limit = _timeout(_EXECUTE)
    try:
        work.wait(limit)
    except RuntimeError as error:
        raise PeerError(
            f"rank {communicator.rank} of {communicator.size} waited for a peer that failed or did not come within"
            f" {limit.seconds} s (HCCL_EXEC_TIMEOUT): {_first_line(error)}"
        ) from error


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
