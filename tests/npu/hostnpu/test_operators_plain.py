"""Operators without conditions of their own: torch on the npu device equals torch on the CPU, values and dtypes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_npu  # noqa: F401
from torch import Tensor
from torch.nn import functional as F

Case = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
# a, b: normal [4, 6]; i: integers in [0, 6), [4, 6]; p: positive; m: a > 0.
CASES: dict[str, Case] = {
    "integer division": lambda a, b, i, p, m: i // 2 + torch.div(i, 2, rounding_mode="trunc"),
    "division rounded": lambda a, b, i, p, m: (
        torch.div(a, b, rounding_mode="floor") + torch.div(a, 0.3, rounding_mode="trunc")
    ),
    "remainder": lambda a, b, i, p, m: i % 3 + torch.fmod(a, 2) + torch.remainder(a, p),
    "scalar on the left": lambda a, b, i, p, m: (1 - a) + 2 / p + 2**a,
    "powers": lambda a, b, i, p, m: a**2 + p**b + p.sqrt() + p.rsqrt() + p.reciprocal(),
    "exponentials": lambda a, b, i, p, m: a.exp() + a.expm1() + p.log() + p.log1p() + p.log2(),
    "waves": lambda a, b, i, p, m: a.sin() + a.cos() + a.tanh() + a.sigmoid() + a.erf(),
    "rounding": lambda a, b, i, p, m: a.round() + a.trunc() + a.floor() + a.ceil() + a.sign() + a.abs() + a.frac(),
    "activations": lambda a, b, i, p, m: F.relu(a) + F.silu(a) + F.softplus(a),
    "clamping": lambda a, b, i, p, m: a.clamp(-1, 1) + a.clamp_min(0) + a.clamp_max(0) + a.clamp(min=b),
    "extremes of two": lambda a, b, i, p, m: torch.maximum(a, b) - torch.minimum(a, b),
    "comparisons": lambda a, b, i, p, m: (a < b) ^ (a >= 0) | (i == 2) & (i != 3) | ~m,
    "bits": lambda a, b, i, p, m: (i & 1) | (i ^ 2) | (i << 1),
    "finite or not": lambda a, b, i, p, m: (a / 0).isinf() | (a / 0 * 0).isnan() | a.isfinite(),
    "nan to num": lambda a, b, i, p, m: torch.nan_to_num(a / 0),
    "lerp": lambda a, b, i, p, m: torch.lerp(a, b, 0.3) + torch.lerp(a, b, p),
    "fused updates": lambda a, b, i, p, m: torch.addcmul(a, b, p, value=2) + torch.addcdiv(a, b, p, value=0.5),
    "sums and means": lambda a, b, i, p, m: a.sum(1) + a.mean(-1) + a.sum() + a.mean((0, 1)),
    "variance": lambda a, b, i, p, m: a.var(-1) + a.std(-1, unbiased=False) + a.std(),
    "norms": lambda a, b, i, p, m: a.norm() + torch.linalg.vector_norm(a, dim=-1),
    "log sum exp": lambda a, b, i, p, m: a.logsumexp(-1),
    "extremes": lambda a, b, i, p, m: a.amax(-1) + a.amin(-1) + a.max(-1)[0] + a.min(-1)[0] + a.max() + a.min(),
    "places of extremes": lambda a, b, i, p, m: a.argmax(-1) + a.argmin(-1) + a.argmax(),
    "all and any": lambda a, b, i, p, m: m.all(-1) | m.any(1) | m.all() | m.any(),
    "counting": lambda a, b, i, p, m: torch.count_nonzero(i) + m.sum(),
    "running": lambda a, b, i, p, m: a.cumsum(-1) + a.cumprod(-1) + a.cummax(-1)[0],
    "product": lambda a, b, i, p, m: a.prod(1) + a.prod(),
    "softmax": lambda a, b, i, p, m: a.softmax(-1) + a.log_softmax(0),
    "softmax of bfloat16 in float32": lambda a, b, i, p, m: F.softmax(a.bfloat16(), -1, dtype=torch.float32),
    "sorted": lambda a, b, i, p, m: a.sort(-1, descending=True)[0] + a.argsort(-1),
    "largest": lambda a, b, i, p, m: a.topk(2)[0] + a.topk(2, largest=False)[1],
    "k-th": lambda a, b, i, p, m: a.kthvalue(2, -1)[0] + a.median(),
    "gather": lambda a, b, i, p, m: a.gather(1, i),
    "scatter": lambda a, b, i, p, m: a.scatter(1, i[:, :1], b[:, :1]) + a.scatter(1, i[:, :1], 3.0),
    "scatter add": lambda a, b, i, p, m: torch.zeros_like(a).scatter_add(1, i, b),
    "rows by index": lambda a, b, i, p, m: a[i[:, 0] % 4] + a.index_select(0, i[0, :4] % 4),
    "elements by index": lambda a, b, i, p, m: a[i % 4, i] + a.take(i),
    "columns by index": lambda a, b, i, p, m: a[:, i[0]],
    "elements by mask": lambda a, b, i, p, m: a[m],
    "masked": lambda a, b, i, p, m: a.masked_fill(m, -1e9) + torch.where(m, a, 0.0) + a.masked_scatter(m, b),
    "index add": lambda a, b, i, p, m: a.index_add(0, i[0, :4] % 4, b, alpha=2),
    "index fill": lambda a, b, i, p, m: a.index_fill(1, i[0, :2], 9.0),
    "index put": lambda a, b, i, p, m: a.clone().index_put_((i[:, 0] % 4, i[:, 1]), b[:, 0], accumulate=True),
    "index copy": lambda a, b, i, p, m: a.clone().index_copy_(0, torch.tensor([1, 0], device=a.device), b[:2]),
    "repeats": lambda a, b, i, p, m: a.repeat(2, 3)[:, :6] + a.repeat_interleave(2, 0),
    "repeats by tensor": lambda a, b, i, p, m: a.repeat_interleave(torch.tensor([1, 0, 2, 1], device=a.device), 0),
    "joined": lambda a, b, i, p, m: torch.cat([a, b], 1) + torch.stack([a, b], 1).flatten(1),
    "turned": lambda a, b, i, p, m: a.flip(0) + a.roll(1, 0) + a.T.contiguous().T,
    "triangles": lambda a, b, i, p, m: a.tril() + a.triu(1),
    "padded": lambda a, b, i, p, m: F.pad(a, (1, 2), value=3.0),
    "products": lambda a, b, i, p, m: a @ b.T + torch.addmm(a[:, :4], a, b.T) + torch.bmm(a[None], b.T[None])[0],
    "linear": lambda a, b, i, p, m: F.linear(a, b, b[:, 0]) + torch.einsum("ij,kj->ik", a, b),
    "vectors": lambda a, b, i, p, m: a @ b[0] + a[0] @ b[0],
    "attention": lambda a, b, i, p, m: F.scaled_dot_product_attention(
        a[None, None], b[None, None], b[None, None], is_causal=True
    ),
    "cross entropy": lambda a, b, i, p, m: F.cross_entropy(a, i[:, 0], label_smoothing=0.1) + F.mse_loss(a, b),
    "embedding": lambda a, b, i, p, m: F.embedding(i, torch.cat([a, a])),
    "membership": lambda a, b, i, p, m: torch.isin(i, i[0, :2]) | torch.isin(i, 3),
    "unique": lambda a, b, i, p, m: i.unique() + torch.unique(i, return_counts=True)[1],
    "unique neighbours": lambda a, b, i, p, m: torch.unique_consecutive(i.flatten()),
    "places": lambda a, b, i, p, m: m.nonzero(),
    "no places": lambda a, b, i, p, m: (a > 100).nonzero(),
    "histogram": lambda a, b, i, p, m: torch.bincount(i.flatten(), minlength=6),
    "one hot": lambda a, b, i, p, m: F.one_hot(i, 6),
    "search": lambda a, b, i, p, m: torch.searchsorted(a[0].sort()[0], b[0]) + torch.bucketize(b[1], a[0].sort()[0]),
    "made": lambda a, b, i, p, m: torch.arange(5, device=a.device) + torch.full((5,), 7, device=a.device),
    "made of floats": lambda a, b, i, p, m: torch.linspace(0, 1, 4, device=a.device) + torch.eye(4, device=a.device),
    "converted": lambda a, b, i, p, m: a.to(torch.int8) + i.to(torch.int8),
}
GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda x: x.tanh().sum(),
    "sigmoid": lambda x: x.sigmoid().sum(),
    "silu": lambda x: F.silu(x).sum(),
    "relu": lambda x: F.relu(x).pow(2).sum(),
    "softplus": lambda x: F.softplus(x).sum(),
    "softmax": lambda x: x.softmax(-1)[:, 0].sum(),
    "log softmax": lambda x: x.log_softmax(-1)[:, 0].sum(),
    "norm": lambda x: x.norm(),
    "running sum": lambda x: x.cumsum(-1).pow(2).sum(),
    "columns by index": lambda x: x[:, [0, 0, 1]].pow(2).sum(),
    "rows by index": lambda x: x[[0, 0, 1]].pow(2).sum(),
    "index select": lambda x: x.index_select(1, torch.tensor([1, 1, 2], device=x.device)).pow(2).sum(),
    "embedding": lambda x: F.embedding(torch.tensor([1, 1, 3], device=x.device), x, padding_idx=3).pow(2).sum(),
    "sorted": lambda x: x.sort(-1)[0][:, 0].sum(),
    "largest": lambda x: x.max(-1)[0].sum(),
    "clamped": lambda x: x.clamp(-1, 1).sum(),
    "product": lambda x: (x @ x.T).pow(2).sum(),
    "log sum exp": lambda x: x.logsumexp(-1).sum(),
    "deviation": lambda x: x.std(-1).sum(),
    "joined": lambda x: torch.cat([x, x * 2], 1).pow(2).mean(),
    "masked": lambda x: x.masked_fill(x > 0, 0).pow(2).sum(),
    "cross entropy": lambda x: F.cross_entropy(x, torch.tensor([0, 1, -100, 2], device=x.device)),
}


def inputs() -> tuple[Tensor, ...]:
    a, b = torch.randn(4, 6), torch.randn(4, 6)
    return a, b, torch.randint(0, 6, (4, 6)), a.abs() + 0.1, a > 0


@pytest.mark.parametrize("name", CASES)
def test_npu_equals_cpu(name: str) -> None:
    given = inputs()
    want = CASES[name](*given)
    got = CASES[name](*(t.npu() for t in given))
    assert got.device.type == "npu"
    torch.testing.assert_close(got.cpu(), want, equal_nan=True)


@pytest.mark.parametrize("name", GRADIENTS)
def test_derivative_on_npu_equals_cpu(name: str) -> None:
    x = torch.randn(4, 6)
    on_cpu, on_device = x.clone().requires_grad_(), x.npu().requires_grad_()
    GRADIENTS[name](on_cpu).backward()
    GRADIENTS[name](on_device).backward()
    torch.testing.assert_close(on_device.grad.cpu(), on_cpu.grad)


def test_random_numbers_follow_the_seed_and_the_distribution() -> None:
    def draw() -> list[Tensor]:
        torch.manual_seed(3)
        x = torch.empty(20000, device="npu")
        weights = torch.tensor([[0.2, 0.0, 0.8]]).npu()
        drawn = [torch.randn_like(x), torch.rand_like(x), torch.multinomial(weights, 20000, replacement=True).float()]
        return [*drawn, F.dropout(torch.ones_like(x), 0.25), torch.randint(0, 5, (20000,), device="npu").float()]

    first, second = draw(), draw()
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.cpu(), other.cpu())
    means = [t.mean().item() for t in first]
    assert means == pytest.approx([0, 0.5, 1.6, 1, 2], abs=0.05)
    assert first[0].std().item() == pytest.approx(1, abs=0.05)
    assert first[3].cpu().unique().tolist() == pytest.approx([0, 4 / 3])
