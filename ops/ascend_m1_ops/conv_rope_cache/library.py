"""``torch.ops.ascend_m1.conv_rope_cache``: schema, checks, back ends, fake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from . import kernels, npu
from .tokens import TokenTable

_library = torch.library.Library("ascend_m1", "FRAGMENT")
_library.define(
    "conv_rope_cache(Tensor packed, Tensor weight, Tensor cos, Tensor sin, Tensor positions, Tensor slots,"
    " Tensor starts, Tensor cu_seqlens, Tensor state_rows, Tensor continues,"
    " Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!) state) -> Tensor"
)
_PLACES = tuple(field.name for field in fields(TokenTable))


def _need(condition: bool, message: str, *values: object) -> None:
    """Values are put into the message only if it is needed: a decode step checks thirty conditions in each layer."""
    if condition is not True:  # False, or undecided while tracing
        shown = [list(value) if isinstance(value, tuple) else value for value in values]
        torch._check(condition, lambda: "conv_rope_cache: " + message.format(*shown))


def _check(
    packed: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    table: TokenTable,
    k_cache: Tensor,
    v_cache: Tensor,
    state: Tensor,
) -> None:
    _need(k_cache.dim() == 4, "k_cache must be [blocks, block_size, kv_heads, head_dim], not {}", k_cache.shape)
    _, _, kv_heads, head_dim = k_cache.shape
    _need(v_cache.shape == k_cache.shape, "v_cache must be {} like k_cache, not {}", k_cache.shape, v_cache.shape)
    _need(packed.dim() == 2, "packed must be [tokens, (heads + 2 kv_heads) head_dim], not {}", packed.shape)
    tokens, columns = packed.shape
    fits = columns % head_dim == 0 and columns > 2 * kv_heads * head_dim
    _need(fits, "packed must have (heads + {}) · {} columns to fit k_cache, not {}", 2 * kv_heads, head_dim, columns)
    _need(weight.shape == (2, kv_heads, 2), "weight must be [2, {}, 2], not {}", kv_heads, weight.shape)
    want = (2, kv_heads, head_dim)
    _need(state.shape[1:] == want, "state must be [rows, 2, {}, {}], not {}", kv_heads, head_dim, state.shape)
    _check_tables(packed, cos, sin, head_dim)
    for name, tensor in (("weight", weight), ("k_cache", k_cache), ("v_cache", v_cache), ("state", state)):
        _need(tensor.dtype == packed.dtype, "{} must be {} like packed, not {}", name, packed.dtype, tensor.dtype)
    _check_strides(packed, k_cache, v_cache, state)
    sequences = table.continues.shape[0]
    sizes = (tokens, tokens, tokens, sequences + 1, sequences, sequences)
    for name, tensor, size in zip(_PLACES, table.tensors(), sizes, strict=True):
        _need(tensor.dtype == torch.int32, "{} must be int32, not {}", name, tensor.dtype)
        _need(tensor.shape == (size,), "{} must be [{}], not {}", name, size, tensor.shape)


def _check_tables(packed: Tensor, cos: Tensor, sin: Tensor, head_dim: int) -> None:
    for name, table in (("cos", cos), ("sin", sin)):
        fits = table.dim() == 2 and table.shape[1] * 2 == head_dim
        _need(fits, "{} must be [positions, {}], not {}", name, head_dim // 2, table.shape)
    wide = torch.float64 if packed.dtype == torch.float64 else torch.float32
    _need(cos.dtype == sin.dtype == wide, "cos and sin must be {}, not {}, {}", wide, cos.dtype, sin.dtype)
    _need(cos.shape == sin.shape, "cos and sin must be of one length, not {}, {}", cos.shape, sin.shape)


def _check_strides(packed: Tensor, k_cache: Tensor, v_cache: Tensor, state: Tensor) -> None:
    _need(packed.stride(1) == 1, "packed must have contiguous rows: pass packed.contiguous()")
    kv_heads, head_dim = k_cache.shape[2:]
    for name, tensor in (("k_cache", k_cache), ("v_cache", v_cache), ("state", state)):
        dense = tensor.stride()[-2:] == (head_dim, 1)
        _need(dense, "{} must be contiguous in [kv_heads, head_dim], not of strides {}", name, tensor.stride())
    dense = state.stride(1) == kv_heads * head_dim
    _need(dense, "state must have contiguous rows, not strides {}", state.stride())


def composed(*arguments: Any) -> Tensor:
    """Checked, and made of torch calls on any device; arguments as of ``conv_rope_cache``."""
    _check(*arguments)
    return kernels.forward(*arguments)


def _accelerated(*arguments: Any) -> Tensor:
    _check(*arguments)
    return npu.forward_or_composition(*arguments)


def _fake(*arguments: Any) -> Tensor:
    _check(*arguments)
    packed, k_cache = arguments[0], arguments[5]
    kv_heads, head_dim = k_cache.shape[2:]
    result: Tensor = packed.new_empty(packed.shape[0], packed.shape[1] // head_dim - 2 * kv_heads, head_dim)
    return result


def _of_tensors(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """For the registered operator, which knows tensors only: the table's come one by one."""

    def call(*tensors: Tensor) -> Tensor:
        packed, weight, cos, sin, *places, k_cache, v_cache, state = tensors
        return function(packed, weight, cos, sin, TokenTable(*places), k_cache, v_cache, state)

    return call


_library.impl("conv_rope_cache", _of_tensors(composed), "CompositeExplicitAutograd")
for _key in ("PrivateUse1", "CUDA"):  # a device's own key comes before CompositeExplicitAutograd
    _library.impl("conv_rope_cache", _of_tensors(_accelerated), _key)
torch.library.register_fake("ascend_m1::conv_rope_cache", _of_tensors(_fake), lib=_library)
