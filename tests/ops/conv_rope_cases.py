"""Inputs for the fused convolution, rotation and cache write: ragged sequences, padding, strides, poisoned rests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ascend_m1_ops import TokenTable, rope_tables

Operator = Callable[..., Tensor]
BLOCK_SIZE = 4


@dataclass(frozen=True)
class Case:
    """Arguments of ``conv_rope_cache``, in its order."""

    packed: Tensor
    weight: Tensor
    cos: Tensor
    sin: Tensor
    table: TokenTable
    k_cache: Tensor
    v_cache: Tensor
    state: Tensor

    def fresh(self) -> Case:
        """The same with tensors of its own where the operator writes, strides kept."""
        copies = {name: with_gaps(getattr(self, name)) for name in ("k_cache", "v_cache", "state")}
        return replace(self, **copies)

    def to(self, dtype: torch.dtype) -> Case:
        """In another dtype, the tables in what it is computed in."""
        names = ("packed", "weight", "k_cache", "v_cache", "state")
        tables = {name: getattr(self, name).to(torch.promote_types(dtype, torch.float32)) for name in ("cos", "sin")}
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names}, **tables).fresh()

    def arguments(self) -> tuple[Tensor | TokenTable, ...]:
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    def tensors(self) -> tuple[Tensor, ...]:
        """Arguments of the registered operator."""
        return tuple(
            tensor
            for value in self.arguments()
            for tensor in (vars(value).values() if isinstance(value, TokenTable) else (value,))
        )


def with_gaps(x: Tensor) -> Tensor:
    """A copy whose first dimension has gaps that hold NaN, as padded pages have."""
    wide = torch.full((x.shape[0], x[:1].numel() + 3), torch.nan, dtype=x.dtype, device=x.device)
    inner = x[:1].contiguous().stride()[1:]
    return wide.as_strided(x.shape, (wide.stride(0), *inner)).copy_(x)


def make(
    lengths: Sequence[int],
    dtype: torch.dtype = torch.float32,
    geometry: tuple[int, int, int] = (6, 2, 8),
    padding: int = 0,
    plain: bool = False,
    block_size: int = BLOCK_SIZE,
) -> Case:
    """Sequences of these lengths and some rows of padding.

    Unless ``plain``, every third sequence begins afresh on a row of NaN, every fourth has no state, and every fifth
    token is not stored. Slots and state rows are in no order.
    """
    heads, kv_heads, head_dim = geometry
    tokens, sequences = sum(lengths) + padding, len(lengths)
    wide = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim + 5).to(dtype)
    blocks = tokens // block_size + 2
    order = torch.randperm(blocks * block_size)[:tokens].int()
    index, sequence = torch.arange(tokens), torch.arange(sequences)
    stored = index < tokens - padding
    continues, rows = torch.ones(sequences).int(), torch.randperm(sequences + 2)[:sequences].int()
    state = torch.randn(sequences + 2, 2, kv_heads, head_dim).to(dtype)
    if not plain:
        stored &= index % 5 != 3
        continues[sequence % 3 == 1] = 0
        state[rows[continues == 0].long()] = torch.nan
        rows[sequence % 4 == 2] = -1
    positions = torch.randint(0, 50, (tokens,)).int()
    slots = torch.where(stored, order, -1).int()
    cache = [torch.full((blocks, block_size, kv_heads, head_dim), torch.nan, dtype=dtype) for _ in range(2)]
    return Case(
        wide[:, 5:],
        torch.randn(2, kv_heads, 2).to(dtype),
        *rope_tables(torch.arange(50), head_dim, 1e4, torch.promote_types(dtype, torch.float32)),
        TokenTable.prefill(lengths, positions, slots, rows, continues),
        *cache,
        state,
    ).fresh()


def run(operator: Operator, case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, and k_cache, v_cache and state after the call; the case stays as it is."""
    case = case.fresh()
    q = operator(*case.arguments())
    return q, case.k_cache, case.v_cache, case.state


def assert_same(got: Sequence[Tensor], want: Sequence[Tensor], atol: float = 0.0) -> None:
    """Equal up to ``atol``, NaN in the same places."""
    for name, a, b in zip(("q", "k_cache", "v_cache", "state"), got, want, strict=True):
        torch.testing.assert_close(
            a,
            b,
            rtol=0,
            atol=atol if name != "state" else 0,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )
