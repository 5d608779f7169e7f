"""What operators compute, written from their pages: float64, loops, small shapes. Shares no code with the stand-ins."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Sees = Callable[[int, int], bool]  # does query row i see key row j


def everything(i: int, j: int) -> bool:
    return True


def band(queries: int, keys: int, before: int, after: int) -> Sees:
    """sparse_mode 4: the diagonal ends in the lower right corner."""
    return lambda i, j: i + keys - queries - before <= j <= i + keys - queries + after


def causal(queries: int, keys: int) -> Sees:
    """sparse_mode 3: a triangle from the lower right corner."""
    return lambda i, j: j <= i + keys - queries


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float, sees: Sees) -> tuple[Tensor, Tensor]:
    """Softmax(Q K^T scale) V, one row at a time.

    Args:
        query: [queries, heads, dim]; key, value: [keys, kv_heads, dim]; head h uses key head h // (heads / kv_heads).

    Returns:
        out [queries, heads, dim], zeros where nothing is seen; lse [queries, heads], infinite there.
    """
    query, key, value = query.double(), key.double(), value.double()
    share = query.shape[1] // key.shape[1]
    rows, sums = [], []
    for i in range(query.shape[0]):
        seen = [j for j in range(key.shape[0]) if sees(i, j)]
        for h in range(query.shape[1]):
            if not seen:
                rows.append(torch.zeros(value.shape[-1], dtype=torch.float64))
                sums.append(torch.tensor(math.inf, dtype=torch.float64))
                continue
            products = torch.stack([(query[i, h] * key[j, h // share]).sum() * scale for j in seen])
            weights = products.softmax(0)
            rows.append(sum(w * value[j, h // share] for w, j in zip(weights, seen, strict=True)))
            sums.append(products.logsumexp(0))
    heads = query.shape[1]
    if not rows:
        return torch.zeros(0, heads, value.shape[-1]), torch.zeros(0, heads)
    return torch.stack(rows).view(-1, heads, value.shape[-1]), torch.stack(sums).view(-1, heads)


def paged(dense: Tensor, block_table: list[int], block_size: int, cache: Tensor) -> None:
    """Write [tokens, heads, dim] into a cache [blocks, block_size, heads * dim], token by token."""
    for token, row in enumerate(dense):
        cache[block_table[token // block_size], token % block_size] = row.flatten()


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x / Rms(x) * gamma and 1 / Rms(x), Rms(x) = sqrt(mean(x^2) + epsilon) over gamma's dimensions."""
    x = x.double()
    dims = list(range(x.dim() - gamma.dim(), x.dim()))
    rms = torch.sqrt((x * x).mean(dims, keepdim=True) + epsilon)
    return x / rms * gamma.double(), 1 / rms


def rotary(x: Tensor, cos: Tensor, sin: Tensor, mode: str) -> Tensor:
    """half: y1 = x1 cos1 - x2 sin1, y2 = x2 cos2 + x1 sin2 on halves; interleave: the same on neighbours."""
    x, cos, sin = (t.double().expand(x.shape) for t in (x, cos, sin))
    out = torch.empty_like(x)
    dim = x.shape[-1]
    for d in range(dim):
        if mode == "half":
            other, sign = (d + dim // 2, -1) if d < dim // 2 else (d - dim // 2, 1)
        else:
            other, sign = (d + 1, -1) if d % 2 == 0 else (d - 1, 1)
        out[..., d] = x[..., d] * cos[..., d] + sign * x[..., other] * sin[..., d]
    return out


def swiglu(x: Tensor, dim: int) -> Tensor:
    """Swish(A) * B for the halves A, B along dim, Swish(a) = a / (1 + exp(-a))."""
    size = x.shape[dim] // 2
    a, b = x.double().narrow(dim, 0, size), x.double().narrow(dim, size, size)
    return a / (1 + torch.exp(-a)) * b


def adamw(
    theta: Tensor,
    m: Tensor,
    v: Tensor,
    grad: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    decay: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The page's formula: decoupled decay, bias correction with the step's number, counted from 1."""
    theta, m, v, grad = (t.double() for t in (theta, m, v, grad))
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad**2
    corrected, second = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return theta - lr / (second.sqrt() + eps) * corrected - lr * decay * theta, m, v


def nll(log_probabilities: Tensor, targets: Tensor, ignore: int) -> Tensor:
    """-x[n, target] of each row that counts."""
    rows = [-row[t] for row, t in zip(log_probabilities.double(), targets.tolist(), strict=True) if t != ignore]
    return torch.stack(rows) if rows else torch.zeros(0, dtype=torch.float64)


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Row by row: scale = max(abs(row)) / 127, value = round(row / scale)."""
    scales = [max(abs(v) for v in row.tolist()) / 127 for row in x.double().reshape(-1, x.shape[-1])]
    rows = [row / scale for row, scale in zip(x.double().reshape(-1, x.shape[-1]), scales, strict=True)]
    return torch.stack(rows).round().view(x.shape), torch.tensor(scales, dtype=torch.float64).view(x.shape[:-1])


def cut_to_19_bits(scale: float) -> float:
    """What aclnnTransQuantParamV2 leaves of a float32: sign, exponent and the 10 highest bits of the fraction."""
    return float(torch.tensor(scale, dtype=torch.float32).view(torch.int32).bitwise_and(~0x1FFF).view(torch.float32))


def vocabulary_shard(x: Tensor, weight: Tensor, target: Tensor, first: int, last: int) -> dict[str, Tensor]:
    """aclnnFusedLinearOnlineMaxSum, a row at a time; the mask has a bit a row, the first row in the highest bit."""
    rows: dict[str, list[float]] = {"maximum": [], "sum": [], "predicted": [], "target": []}
    outside = []
    for row, t in zip(x.double() @ weight.double().T, target.tolist(), strict=True):
        top = max(row.tolist())
        rows["maximum"].append(top)
        rows["sum"].append(sum(math.exp(v - top) for v in row.tolist()))
        outside.append(not first <= t <= last)
        rows["target"].append(0 if outside[-1] else t - first)
        rows["predicted"].append(0.0 if outside[-1] else float(row[t - first]) - top)
    bits = outside + [True] * (-len(outside) % 8)
    mask = [sum(bit << (7 - i) for i, bit in enumerate(bits[k : k + 8])) for k in range(0, len(bits), 8)]
    return {name: torch.tensor(values) for name, values in rows.items()} | {"mask": torch.tensor(mask)}
