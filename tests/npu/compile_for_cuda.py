"""Compile every kernel with mainline Triton for an NVIDIA GPU, without one. Run in a process without the host NPU.

Shows that one source serves both compilers; it runs nothing.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ascend_m1_ops.conv_rope_cache import npu as fused
from ascend_m1_ops.short_conv import npu as conv
from tests.ops.conv_rope_cases import make

TARGET = GPUTarget("cuda", 90, 32)
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}


def compile_only(kernel: Any, grid: int, device: torch.device, *arguments: Tensor | int, **constants: int) -> None:
    """In place of ``launch``."""
    kinds = [f"*{TYPES[x.dtype]}" if isinstance(x, Tensor) else "i32" for x in arguments]
    signature = dict(zip(kernel.arg_names, [*kinds, *["constexpr"] * len(constants)], strict=True))
    compiled = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=constants), target=TARGET)
    assert compiled.asm["cubin"]
    print(kernel.__name__)


def main() -> None:
    case = make([3, 1], torch.bfloat16, (40, 8, 128))
    kv, borders = case.packed[:, -16 * 128 :].unflatten(1, (2, 8, 128)), case.table.cu_seqlens
    state, weight = case.state[:2].contiguous(), case.weight
    with mock.patch.object(fused, "launch", compile_only), mock.patch.object(conv, "launch", compile_only):
        fused.forward(*case.arguments())
        conv.forward(kv, weight, state, borders)
        conv.backward(torch.zeros_like(kv), state, kv, weight, state, borders)


if __name__ == "__main__":
    main()
