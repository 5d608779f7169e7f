"""The arithmetic that all attention operators share: one sequence at a time, float32, no rounding in between."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operator import need

TRIANGLE = 2048  # side of the one mask that sparse modes 2, 3 and 4 take


def scores(query: Tensor, key: Tensor, scale: float, hidden: Tensor | None) -> Tensor:
    """Scaled products, hidden ones at minus infinity.

    Args:
        query: [queries, heads, head_dim].
        key: [keys, kv_heads, head_dim]; heads is a multiple of kv_heads.
        hidden: [queries, keys] or [heads, queries, keys], True where a query does not see a key; None for nowhere.

    Returns:
        [heads, queries, keys] in float32.
    """
    rows, heads, width = query.shape
    groups = key.shape[1]
    wide = query.float().permute(1, 0, 2).reshape(groups, heads // groups * rows, width)
    result = torch.bmm(wide, key.float().permute(1, 2, 0)).mul_(scale).view(heads, rows, key.shape[0])
    return result if hidden is None else result.masked_fill_(hidden, -torch.inf)


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, hidden: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax attention. A query that sees no key gets zeros, a maximum of minus infinity and a sum of 0.

    Args:
        query, key, scale, hidden: as in ``scores``.
        value: [keys, kv_heads, value_dim].

    Returns:
        Float32: out [queries, heads, value_dim]; the scores' maximum and the exponentials' sum, each [heads, queries].
    """
    rows, heads, _ = query.shape
    count, groups, width = value.shape
    if count == 0 or rows == 0:
        empty = query.new_zeros(heads, rows, dtype=torch.float32)
        return query.new_zeros(rows, heads, width, dtype=torch.float32), empty - torch.inf, empty
    products = scores(query, key, scale, hidden)
    maximum = products.amax(-1)
    powers = products.sub_(maximum.nan_to_num(neginf=0.0)[..., None]).exp_()
    total = powers.sum(-1)
    out = torch.bmm(powers.view(groups, heads // groups * rows, count), value.float().permute(1, 0, 2))
    out = out.view(heads, rows, width) / total.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
    return out.permute(1, 0, 2), maximum, total


def outside_band(rows: int, columns: range, shift: int, before: int, after: int) -> Tensor:
    """[rows, columns]: True where column j is not in [i + shift - before, i + shift + after]."""
    distance = torch.arange(columns.start, columns.stop)[None] - torch.arange(rows)[:, None] - shift
    return (distance < -before) | (distance > after)


def band_columns(rows: int, count: int, shift: int, before: int, after: int) -> range:
    """The columns that at least one row's band reaches; contiguous, possibly empty."""
    first = max(0, shift - before)
    return range(min(first, count), max(min(first, count), min(count, rows + shift + after)))


def check_triangle(mask: Tensor, page: str) -> None:
    """Raise RuleError unless the compressed mask's diagonals and edges hide what lies above the diagonal."""
    square = mask.reshape(TRIANGLE, TRIANGLE)
    shown = square.diagonal().any() or square[:, 0].any()
    hidden = square.diagonal(1).all() and square[0, 1:].all()
    rule = "sparse modes 2, 3 and 4 take triu(ones(2048, 2048), 1), 1 where hidden"
    need(bool(hidden and not shown), "attenMask", rule, page)


def spans(ends: list[int]) -> list[range]:
    """Cumulative lengths -> the rows of each sequence."""
    return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    hidden: Tensor | None,
    maximum: Tensor,
    total: Tensor,
    out: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of ``attend`` from what it saved.

    Args:
        query, key, value, scale, hidden: as in ``attend``.
        maximum, total: [heads, queries] of the forward pass.
        out, grad: [queries, heads, value_dim], the result and the derivative by it.

    Returns:
        Derivatives by query, key and value, float32, each in the shape of its tensor.
    """
    rows, heads, width = query.shape
    count, groups, value_width = value.shape
    if rows == 0 or count == 0:
        return torch.zeros(query.shape), torch.zeros(key.shape), torch.zeros(value.shape)
    inner = heads // groups * rows
    products = scores(query, key, scale, hidden)
    weights = products.sub_(maximum.nan_to_num(neginf=0.0)[..., None]).exp_().div_(total.clamp_min(1e-37)[..., None])
    weights = weights.view(groups, inner, count)
    by_out = grad.float().permute(1, 0, 2).reshape(groups, inner, value_width)
    by_value = weights.transpose(1, 2) @ by_out
    by_weights = by_out @ value.float().permute(1, 2, 0)
    balance = (grad.float() * out.float()).sum(-1).T.reshape(groups, inner, 1)
    by_scores = weights * (by_weights - balance) * scale
    by_query = by_scores @ key.float().permute(1, 0, 2)
    by_key = by_scores.transpose(1, 2) @ query.float().permute(1, 0, 2).reshape(groups, inner, width)
    by_query = by_query.view(heads, rows, width).permute(1, 0, 2)
    return by_query, by_key.permute(1, 0, 2), by_value.permute(1, 0, 2)
