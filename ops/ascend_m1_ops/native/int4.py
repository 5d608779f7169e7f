"""bfloat16 rows times int4 weights. Torch's own packed product multiplies in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import ROW_BLOCK, fastest, in_large_pages

GROUPS = (32, 64, 128, 256)  # inputs that share a scale
_library = torch.library.Library("ascend_m1", "FRAGMENT")
_library.define("int4_linear(Tensor x, Tensor numbers, Tensor scales) -> Tensor")


def int4_layout(numbers: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [out, in] and bfloat16 [out, groups] -> int16 [out / 16, in / 8, 32] and [out / 16, groups, 16]."""
    outputs, inputs = numbers.shape
    nibbles = (numbers + 8).view(outputs // ROW_BLOCK, ROW_BLOCK, inputs // 8, 4, 2).to(torch.int16)
    words = nibbles[..., 0, :].clone()
    for place in (1, 2, 3):
        words |= nibbles[..., place, :] << (4 * place)
    return in_large_pages(words.transpose(1, 2)).flatten(2), scales.unflatten(0, (-1, ROW_BLOCK)).mT.contiguous()


def int4_linear(x: Tensor, numbers: Tensor, scales: Tensor) -> Tensor:
    """x bfloat16 [T, in], the others as ``int4_layout`` makes them -> [T, out]."""
    out: Tensor = torch.ops.ascend_m1.int4_linear(x, numbers, scales)
    return out


def _check(x: Tensor, numbers: Tensor, scales: Tensor) -> None:
    """What follows goes by addresses."""
    shapes = f"{list(numbers.shape)} and {list(scales.shape)}"
    if numbers.dim() != 3 or numbers.shape[2] != 2 * ROW_BLOCK or scales.dim() != 3:
        raise ValueError(f"int4_linear: numbers and scales must be as int4_layout makes them, not {shapes}")
    blocks, words, _ = numbers.shape  # a word is eight inputs, of which a group has a multiple
    groups = scales.shape[1]
    if scales.shape != (blocks, groups, ROW_BLOCK) or groups < 1 or words % groups:
        raise ValueError(f"int4_linear: the scales must be of the numbers' outputs, in groups of words, not {shapes}")
    if words * 8 // groups not in GROUPS:
        raise ValueError(f"int4_linear: a group has one of {GROUPS} inputs, not {words * 8 // groups}")
    if not (numbers.is_contiguous() and scales.is_contiguous()):
        raise ValueError("int4_linear: numbers and scales must be contiguous, as int4_layout makes them")
    inputs, dtypes = words * 8, (x.dtype, numbers.dtype, scales.dtype)
    if x.dim() != 2 or x.shape[1] != inputs:
        raise ValueError(f"int4_linear: x must be [rows, {inputs}], not {list(x.shape)}")
    if dtypes != (torch.bfloat16, torch.int16, torch.bfloat16):
        raise ValueError(f"int4_linear: x, numbers and scales must be bfloat16, int16 and bfloat16, not {dtypes}")


def _forward(x: Tensor, numbers: Tensor, scales: Tensor) -> Tensor:
    _check(x, numbers, scales)
    x = x.contiguous()
    (rows, inputs), outputs = x.shape, numbers.shape[0] * ROW_BLOCK
    y = x.new_empty(rows, outputs)
    if not y.numel():
        return y
    pointers = (tensor.data_ptr() for tensor in (x, numbers, scales, y))
    fastest().int4_linear(*pointers, rows, inputs, outputs, inputs // scales.shape[1], torch.get_num_threads())
    return y


def _forward_fake(x: Tensor, numbers: Tensor, scales: Tensor) -> Tensor:
    _check(x, numbers, scales)
    return x.new_empty(x.shape[0], numbers.shape[0] * ROW_BLOCK)


_library.impl("int4_linear", _forward, "CPU")
torch.library.register_fake("ascend_m1::int4_linear", _forward_fake, lib=_library)
