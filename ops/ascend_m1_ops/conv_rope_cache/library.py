"""``torch.ops.ascend_m1.conv_rope_cache``: schema, checks, back ends, fake."""

from __future__ import annotations

import torch
from torch import Tensor

from . import kernels, npu

_library = torch.library.Library("ascend_m1", "FRAGMENT")
_library.define(
    "conv_rope_cache(Tensor packed, Tensor weight, Tensor cos, Tensor sin, Tensor positions, Tensor slots,"
    " Tensor starts, Tensor cu_seqlens, Tensor state_rows, Tensor continues,"
    " Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!) state) -> Tensor"
)
_PLACES = ("positions", "slots", "starts", "cu_seqlens", "state_rows", "continues")


def _need(condition: bool, message: str) -> None:
    torch._check(condition, lambda: f"conv_rope_cache: {message}")


def _check(packed: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *rest: Tensor) -> None:
    *places, k_cache, v_cache, state = rest
    _check_floats(packed, weight, cos, sin, k_cache, v_cache, state)
    _check_places(packed.shape[0], places)


def _check_floats(
    packed: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, k_cache: Tensor, v_cache: Tensor, state: Tensor
) -> None:
    _need(k_cache.dim() == 4, f"k_cache must be [blocks, block_size, kv_heads, head_dim], not {list(k_cache.shape)}")
    kv_heads, head_dim = k_cache.shape[2:]
    same = list(v_cache.shape) == list(k_cache.shape)
    _need(same, f"v_cache must be {list(k_cache.shape)} like k_cache, not {list(v_cache.shape)}")
    _need(packed.dim() == 2, f"packed must be [tokens, (heads + 2 kv_heads) head_dim], not {list(packed.shape)}")
    fits = packed.shape[1] % head_dim == 0 and packed.shape[1] > 2 * kv_heads * head_dim
    need = f"(heads + {2 * kv_heads}) · {head_dim}"
    _need(fits, f"packed must have {need} columns for the cache {list(k_cache.shape)}, not {packed.shape[1]}")
    _need(list(weight.shape) == [2, kv_heads, 2], f"weight must be [2, {kv_heads}, 2], not {list(weight.shape)}")
    want = [2, kv_heads, head_dim]
    _need(list(state.shape[1:]) == want, f"state must be [rows, 2, {kv_heads}, {head_dim}], not {list(state.shape)}")
    for name, table in (("cos", cos), ("sin", sin)):
        shape = list(table.shape)
        _need(
            table.dim() == 2 and shape[1] * 2 == head_dim, f"{name} must be [positions, {head_dim // 2}], not {shape}"
        )
    wide = torch.float64 if packed.dtype == torch.float64 else torch.float32
    _need(cos.dtype == sin.dtype == wide, f"cos and sin must be {wide}, not {cos.dtype}, {sin.dtype}")
    _need(cos.shape[0] == sin.shape[0], f"cos and sin must be of one length, not {cos.shape[0]}, {sin.shape[0]}")
    for name, tensor in (("weight", weight), ("k_cache", k_cache), ("v_cache", v_cache), ("state", state)):
        _need(tensor.dtype == packed.dtype, f"{name} must be {packed.dtype} like packed, not {tensor.dtype}")
    _need(packed.stride(1) == 1, "packed must have contiguous rows: pass packed.contiguous()")
    for name, tensor in (("k_cache", k_cache), ("v_cache", v_cache), ("state", state)):
        _need(
            tensor.stride(-1) == 1 and tensor.stride(-2) == head_dim,
            f"{name} must be contiguous in [kv_heads, head_dim], not of strides {list(tensor.stride())}",
        )
    _need(
        state.stride(1) == kv_heads * head_dim, f"state must have contiguous rows, not strides {list(state.stride())}"
    )


def _check_places(tokens: int, places: list[Tensor]) -> None:
    sequences = places[-1].shape[0]
    sizes = (tokens, tokens, tokens, sequences + 1, sequences, sequences)
    for name, tensor, size in zip(_PLACES, places, sizes, strict=True):
        _need(tensor.dtype == torch.int32, f"{name} must be int32, not {tensor.dtype}")
        _need(tensor.dim() == 1 and tensor.shape[0] == size, f"{name} must be [{size}], not {list(tensor.shape)}")


def _composed(packed: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *rest: Tensor) -> Tensor:
    _check(packed, weight, cos, sin, *rest)
    return kernels.forward(packed, weight, cos, sin, *rest)


def _accelerated(packed: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *rest: Tensor) -> Tensor:
    _check(packed, weight, cos, sin, *rest)
    return npu.forward_or_composition(packed, weight, cos, sin, *rest)


def _fake(packed: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *rest: Tensor) -> Tensor:
    _check(packed, weight, cos, sin, *rest)
    kv_heads, head_dim = rest[-3].shape[2:]
    return packed.new_empty(packed.shape[0], packed.shape[1] // head_dim - 2 * kv_heads, head_dim)


_library.impl("conv_rope_cache", _composed, "CompositeExplicitAutograd")
for _key in ("PrivateUse1", "CUDA"):  # a device's own key comes before CompositeExplicitAutograd
    _library.impl("conv_rope_cache", _accelerated, _key)
torch.library.register_fake("ascend_m1::conv_rope_cache", _fake, lib=_library)
