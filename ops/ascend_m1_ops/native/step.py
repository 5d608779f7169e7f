"""What lies between the products in a decode step: operators of bfloat16 rows without a gradient.

Their contracts are those of ``rms_norm``, ``swiglu_packed``, ``conv_rope_cache`` and ``paged_attention``, which come
here where ``takes`` says so.
"""

from __future__ import annotations

from ctypes import c_int64

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..blocks import gradient_wanted
from .library import available, library

SIZE = 32  # rows and heads are multiples of it
WIDEST, MOST_GROUP = 256, 16  # head_dim, query heads that share a key head


def takes(*tensors: Tensor) -> bool:
    """Whether these are contiguous bfloat16 on a CPU that has the instructions, and nobody traces or differentiates."""
    if torch.compiler.is_compiling() or not all(_plain(tensor) for tensor in tensors) or _watched():
        return False
    return tensors[0].numel() > 0 and tensors[0].shape[-1] % SIZE == 0 and not gradient_wanted(*tensors) and available()


def takes_cache(heads: int, head_dim: int, k_cache: Tensor, v_cache: Tensor, *tables: Tensor) -> bool:
    """Whether a paged cache, its blocks and slots strided or not, and tables that tell of it are for
    ``conv_rope_cache`` and ``paged_attention``.
    """
    kv_heads = k_cache.shape[2]
    fits = head_dim % SIZE == 0 and head_dim <= WIDEST and heads <= MOST_GROUP * kv_heads
    alike = k_cache.dtype == v_cache.dtype == torch.bfloat16 and k_cache.shape == v_cache.shape
    alike = alike and k_cache.stride() == v_cache.stride() and k_cache.shape[3] == head_dim
    dense = k_cache.stride()[2:] == (head_dim, 1) and all(table.is_contiguous() for table in tables)
    return fits and alike and dense


def _watched() -> bool:
    """Whether somebody follows torch's calls, to trace or transform them: what is computed here nobody would see."""
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def _plain(tensor: Tensor) -> bool:
    kind = tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 and tensor.is_contiguous()
    return kind and type(tensor) in (Tensor, torch.nn.Parameter)


def rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, residual [..., hidden] -> the normalised sum and the sum."""
    y, total = torch.empty_like(x), x if residual is None else torch.empty_like(x)
    rows = x.numel() // x.shape[-1]
    added = None if residual is None else residual.data_ptr()
    pointers = x.data_ptr(), added, *_pointers(weight, total, y)
    library().rms_norm(*pointers, rows, x.shape[-1], eps, torch.get_num_threads())
    return y, total


def swiglu(gate_up: Tensor) -> Tensor:
    """[..., 2 · intermediate] -> [..., intermediate]."""
    inner = gate_up.shape[-1] // 2
    y = gate_up.new_empty(*gate_up.shape[:-1], inner)
    library().swiglu(*_pointers(gate_up, y), y.numel() // inner, inner, torch.get_num_threads())
    return y


def conv_rope_cache(
    packed: Tensor, taps: Tensor, tables: tuple[Tensor, ...], k_cache: Tensor, v_cache: Tensor, state: Tensor
) -> Tensor:
    """One token of each sequence; tables: cos, sin, positions, slots, state_rows, continues.

    Raises:
        IndexError: a position, a slot or a row is out of bounds; nothing was written.
    """
    blocks, block_size, kv_heads, head_dim = k_cache.shape
    tokens, heads = packed.shape[0], packed.shape[1] // head_dim - 2 * kv_heads
    q = packed.new_empty(tokens, heads, head_dim)
    strides = packed.stride(0), state.stride(0), block_size, *k_cache.stride()[:2]
    sizes = (tokens, heads, kv_heads, head_dim, *strides)
    bounds = (c_int64 * 3)(tables[0].shape[0], blocks * block_size, state.shape[0])
    bad = library().conv_rope_cache(*_pointers(packed, taps, *tables, k_cache, v_cache, state, q), bounds, *sizes)
    if bad >= 0:
        raise IndexError(f"conv_rope_cache: token {bad}: its position, slot or state row is out of bounds")
    return q


def paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, lengths: list[int], scale: float
) -> Tensor:
    """One query of each sequence [sequences, heads, head_dim] -> the same."""
    _, block_size, kv_heads, head_dim = k_cache.shape
    y, counts = torch.empty_like(q), (c_int64 * len(lengths))(*lengths)
    sizes = (len(lengths), block_table.stride(0), q.shape[1], kv_heads, head_dim, block_size, *k_cache.stride()[:2])
    before = _pointers(q, k_cache, v_cache, block_table)
    library().paged_attention(*before, counts, *_pointers(y), *sizes, scale, torch.get_num_threads())
    return y


def _pointers(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]
