"""``torch.ops.ascend_m1.short_conv``: schema, checks, back ends, fake, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import npu
from .kernels import backward, forward

_library = torch.library.Library("ascend_m1", "FRAGMENT")
_library.define("short_conv(Tensor kv, Tensor weight, Tensor state, Tensor cu_seqlens) -> (Tensor, Tensor)")
_library.define(
    "short_conv_backward(Tensor grad, Tensor grad_state, Tensor kv, Tensor weight, Tensor state, Tensor cu_seqlens)"
    " -> (Tensor, Tensor, Tensor)"
)


def _need(condition: bool, message: str, *values: object) -> None:
    """Values are put into the message only if it is needed."""
    if condition is not True:  # False, or undecided while tracing
        shown = [list(value) if isinstance(value, tuple) else value for value in values]
        torch._check(condition, lambda: "short_conv: " + message.format(*shown))


def _check(kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor) -> None:
    _need(kv.dim() == 4 and kv.shape[1] == 2, "kv must be [tokens, 2, kv_heads, head_dim], not {}", kv.shape)
    _need(weight.shape == (2, kv.shape[2], 2), "weight must be [2, {}, 2], not {}", kv.shape[2], weight.shape)
    _need(cu_seqlens.dim() == 1, "cu_seqlens must be [sequences + 1], not {}", cu_seqlens.shape)
    want = (cu_seqlens.shape[0] - 1, *kv.shape[1:])
    _need(state.shape == want, "state must be {}, not {}", want, state.shape)
    index = cu_seqlens.dtype in (torch.int32, torch.int64)
    _need(index, "cu_seqlens must be int32 or int64, not {}", cu_seqlens.dtype)
    dtypes = (kv.dtype, weight.dtype, state.dtype)
    _need(len(set(dtypes)) == 1, "kv, weight and state must share a dtype, not {}", dtypes)


def _checked_forward(kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    _check(kv, weight, state, cu_seqlens)
    return forward(kv, weight, state, cu_seqlens)


def _checked_accelerator(kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    _check(kv, weight, state, cu_seqlens)
    return npu.forward_or_composition(kv, weight, state, cu_seqlens)


def _forward_fake(kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    _check(kv, weight, state, cu_seqlens)
    return kv.new_empty(kv.shape), state.new_empty(state.shape)


def _backward_fake(
    grad: Tensor, grad_state: Tensor, kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return kv.new_empty(kv.shape), weight.new_empty(weight.shape), state.new_empty(state.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.ascend_m1.short_conv_backward(grad, grad_state, *ctx.saved_tensors)
    return (*grads, None)


_library.impl("short_conv", _checked_forward, "CompositeExplicitAutograd")
_library.impl("short_conv_backward", backward, "CompositeExplicitAutograd")
for _key in ("PrivateUse1", "CUDA"):  # a device's own key comes before CompositeExplicitAutograd
    _library.impl("short_conv", _checked_accelerator, _key)
    _library.impl("short_conv_backward", npu.backward_or_composition, _key)
torch.library.register_fake("ascend_m1::short_conv", _forward_fake, lib=_library)
torch.library.register_fake("ascend_m1::short_conv_backward", _backward_fake, lib=_library)
torch.library.register_autograd("ascend_m1::short_conv", _autograd, setup_context=_setup_context, lib=_library)
