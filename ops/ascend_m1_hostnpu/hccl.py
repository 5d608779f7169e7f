"""HCCL's C interface: forming groups, and which function answers which symbol. Signatures: hccl/hccl.h."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from . import communicator as peers
from .abi import PTR, RUNTIME, U32, say
from .collectives import OPERATIONS, group_end, group_start
from .communicator import Communicator, PeerError
from .symbols import HCCL_MISSING

_PARAMETER, _NOT_SUPPORTED, _TIMEOUT = 1, 5, 9  # HcclResult
_ROOT_BYTES, _NAME_BYTES, _NAME_OFFSET = 4108, 128, 32  # HcclRootInfo; HcclCommConfig.hcclCommName
_SETTINGS = 3  # of HcclCommConfigCapability, the first three are understood: buffer size, determinism, name


def _root(info: int) -> int:
    ctypes.memmove(info, peers.open_root().encode().ljust(_ROOT_BYTES, b"\0"), _ROOT_BYTES)
    return 0


def _create(size: int, info: int, rank: int, config: int | None, out: int) -> int:
    root = ctypes.string_at(info, _ROOT_BYTES).split(b"\0")[0].decode()
    return _keep(peers.connect(root, rank, size, _name(config)), out)


def _create_sub(parent: int, size: int, ranks: int | None, key: int, rank: int, config: int | None, out: int) -> int:
    """Called by every rank of the parent; those outside give no ranks and get no communicator."""
    group = peers.find(ctypes.c_void_p.from_address(parent).value)
    return _keep(peers.split(group, key, rank, size, _name(config)), out) if ranks else 0


def _name(config: int | None) -> str:
    return ctypes.string_at(config + _NAME_OFFSET, _NAME_BYTES).split(b"\0")[0].decode() if config else ""


def _keep(communicator: Communicator, out: int) -> int:
    ctypes.c_void_p.from_address(out).value = peers.keep(communicator)
    return 0


def _destroy(handle: int) -> int:
    peers.close(handle)
    return 0


def _get_name(handle: int, out: int) -> int:
    name = peers.find(handle).name.encode()[: _NAME_BYTES - 1]
    ctypes.memmove(out, name.ljust(_NAME_BYTES, b"\0"), _NAME_BYTES)
    return 0


def _answer(symbol: str, arguments: Sequence[Any], function: Callable[..., int]) -> None:
    def call(*values: Any) -> int:
        try:
            return function(*values)
        except Exception as error:  # C cannot pass it on; torch_npu raises it again with this text
            say(f"{symbol}: {error}")
            return _TIMEOUT if isinstance(error, PeerError) else _PARAMETER

    RUNTIME.answer(symbol, arguments, call)


def _missing(symbol: str) -> None:
    def fail() -> int:
        say(f"{symbol}: the host NPU has no stand-in for this function of HCCL (docs/hostnpu.md)")
        return _NOT_SUPPORTED

    RUNTIME.answer(symbol, [], fail)


def install() -> None:
    """Answer HCCL's calls."""
    groups: list[tuple[str, list[Any], Callable[..., int]]] = [
        ("HcclGetRootInfo", [PTR], _root),
        (
            "HcclCommInitRootInfo",
            [U32, PTR, U32, PTR],
            lambda size, info, rank, out: _create(size, info, rank, None, out),
        ),
        ("HcclCommInitRootInfoConfig", [U32, PTR, U32, PTR, PTR], _create),
        ("HcclCreateSubCommConfig", [PTR, U32, PTR, ctypes.c_uint64, U32, PTR, PTR], _create_sub),
        ("HcclCommDestroy", [PTR], _destroy),
        ("HcclGetCommName", [PTR, PTR], _get_name),
        ("HcclGroupStart", [], group_start),
        ("HcclGroupEnd", [], group_end),
    ]
    for symbol, arguments, function in [*OPERATIONS, *groups]:
        _answer(symbol, arguments, function)
    for symbol in HCCL_MISSING:
        _missing(symbol)
    RUNTIME.answer("HcclGetCommConfigCapability", [], lambda: _SETTINGS)
