"""bfloat16 rows times bfloat16 weights."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import INPUT_BLOCK, ROW_BLOCK, TILE_INPUTS, fastest, in_large_pages, library

_library = torch.library.Library("ascend_m1", "FRAGMENT")
_library.define("bfloat16_linear(Tensor x, Tensor weight) -> Tensor")


def bfloat16_layout(weight: Tensor) -> Tensor:
    """bfloat16 [out, in], multiples of 16 and 8 -> [out / 16, in / 2, 32]."""
    outputs, inputs = weight.shape
    if outputs % ROW_BLOCK or inputs % INPUT_BLOCK:
        raise ValueError(f"bfloat16_layout: out and in must be multiples of 16 and 8, not {outputs} and {inputs}")
    blocks = weight.view(outputs // ROW_BLOCK, ROW_BLOCK, inputs // 2, 2).transpose(1, 2)
    return in_large_pages(blocks).flatten(2)


def bfloat16_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x bfloat16 [T, in], the weight as ``bfloat16_layout`` makes it -> [T, out]."""
    out: Tensor = torch.ops.ascend_m1.bfloat16_linear(x, weight)
    return out


def _check(x: Tensor, weight: Tensor) -> None:
    """What follows goes by addresses."""
    if weight.dim() != 3 or weight.shape[2] != 2 * ROW_BLOCK or weight.shape[1] * 2 % INPUT_BLOCK:
        raise ValueError(f"bfloat16_linear: weight must be as bfloat16_layout makes it, not {list(weight.shape)}")
    if not weight.is_contiguous():
        raise ValueError("bfloat16_linear: weight must be contiguous, as bfloat16_layout makes it")
    inputs, dtypes = weight.shape[1] * 2, (x.dtype, weight.dtype)
    if x.dim() != 2 or x.shape[1] != inputs:
        raise ValueError(f"bfloat16_linear: x must be [rows, {inputs}], not {list(x.shape)}")
    if dtypes != (torch.bfloat16, torch.bfloat16):
        raise ValueError(f"bfloat16_linear: x and weight must be bfloat16, not {dtypes}")


def _forward(x: Tensor, weight: Tensor) -> Tensor:
    _check(x, weight)
    x = x.contiguous()
    (rows, inputs), outputs = x.shape, weight.shape[0] * ROW_BLOCK
    y = x.new_empty(rows, outputs)
    if not y.numel():
        return y
    pointers = (tensor.data_ptr() for tensor in (x, weight, y))
    chosen = library() if inputs % TILE_INPUTS else fastest()
    chosen.bfloat16_linear(*pointers, rows, inputs, outputs, torch.get_num_threads())
    return y


def _forward_fake(x: Tensor, weight: Tensor) -> Tensor:
    _check(x, weight)
    return x.new_empty(x.shape[0], weight.shape[0] * ROW_BLOCK)


_library.impl("bfloat16_linear", _forward, "CPU")
torch.library.register_fake("ascend_m1::bfloat16_linear", _forward_fake, lib=_library)
