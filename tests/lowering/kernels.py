"""The project's kernels in every form that the 14B launches: what the suite goes through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ascend_m1_ops.conv_rope_cache import npu as fused
from ascend_m1_ops.short_conv import npu as conv
from tests.lowering import definition
from tests.lowering.definition import Array, bits
from tests.lowering.execution import Launch, executed, recorded
from tests.ops.conv_rope_cases import make

FUSED, BACKWARD = "conv_rope_cache_kernel", "short_conv_backward_kernel"
# Query heads, key/value heads, head_dim, and the cache's block_size: 1 where a chunk of a window layer is prefilled.
GEOMETRIES = {"global": (20, 2, 256, 128), "window": (40, 8, 128, 128), "window chunk": (40, 8, 128, 1)}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Decode (one token each), prefill with an empty sequence, one long sequence over several programs.
BATCHES = {"decode": [1, 1, 1, 1, 1], "prefill": [4, 0, 1, 3], "one sequence": [7]}


@dataclass(frozen=True)
class Form:
    """One kernel in one geometry and dtype; batch sizes do not change what is compiled."""

    kernel: str
    geometry: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.kernel} {self.geometry} {self.dtype}"


def forms() -> list[Form]:
    """All that differ in what is compiled: block_size matters to the fused kernel alone."""
    own = {kernel: tuple(GEOMETRIES) if kernel == FUSED else ("global", "window") for kernel in _CHECKS}
    return [Form(kernel, geometry, dtype) for kernel in _CHECKS for geometry in own[kernel] for dtype in DTYPES]


def launch_of(form: Form) -> Launch:
    """What the operator's launcher starts."""
    call, _ = _CHECKS[form.kernel](form, BATCHES["prefill"])
    return recorded(call)


def check_execution(form: Form, batch: str, programs: int, at_end: bool) -> None:
    """The lowered kernel gives the definition's bits and stays inside its tensors.

    With several programs torch adds their shares of a tap's gradient in an order of its own: two spacings are allowed.

    Raises:
        AssertionError: a bit differs.
        MemoryError: it touched memory outside a tensor.
    """
    call, want = _CHECKS[form.kernel](form, BATCHES[batch])
    got = executed(call, programs, at_end)
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        if form.kernel == BACKWARD and index == 1 and programs > 1:
            exact = torch.from_numpy(b.copy()).view(a.dtype)
            torch.testing.assert_close(a, exact, rtol=2 * torch.finfo(a.dtype).eps, atol=1e-4)
        else:
            off = (bits(a) != b).mean() if b.size else 0.0
            assert off == 0, f"{form}, {batch}: {off:.1%} of result {index} differ"


Check = tuple[Callable[[], tuple[Tensor, ...]], tuple[Array, ...]]


def _fused(form: Form, lengths: list[int]) -> Check:
    torch.manual_seed(0)
    *geometry, block_size = GEOMETRIES[form.geometry]
    case = make(lengths, DTYPES[form.dtype], tuple(geometry), padding=2, block_size=block_size)
    want = definition.conv_rope_cache(case)

    def call() -> tuple[Tensor, ...]:
        q = fused.forward(*case.arguments())
        return q, case.k_cache, case.v_cache, case.state

    return call, want


def _conv_inputs(form: Form, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """kv (a slice of a packed projection), taps, state, borders."""
    torch.manual_seed(0)
    dtype, (_, kv_heads, head_dim, _) = DTYPES[form.dtype], GEOMETRIES[form.geometry]
    packed = torch.randn(sum(lengths), 8 + 2 * kv_heads * head_dim).to(dtype)
    state = torch.randn(len(lengths), 2, kv_heads, head_dim).to(dtype)
    borders = torch.tensor([0, *accumulate(lengths)])  # int64, as the model has them
    return packed[:, 8:].unflatten(1, (2, kv_heads, head_dim)), torch.randn(2, kv_heads, 2).to(dtype), state, borders


def _forward(form: Form, lengths: list[int]) -> Check:
    inputs = _conv_inputs(form, lengths)
    return lambda: conv.forward(*inputs), definition.short_conv(*inputs)


def _backward(form: Form, lengths: list[int]) -> Check:
    kv, *rest = _conv_inputs(form, lengths)
    inputs = (torch.randn(kv.shape).to(kv.dtype), torch.randn(rest[1].shape).to(kv.dtype), kv, *rest)
    return lambda: conv.backward(*inputs), definition.short_conv_backward(*inputs)


_CHECKS: dict[str, Callable[[Form, list[int]], Check]] = {
    FUSED: _fused,
    "short_conv_kernel": _forward,
    BACKWARD: _backward,
}
