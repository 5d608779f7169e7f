"""Tensors out of nothing: ranges, constants, random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operator import aclnn

aclnn("Arange", "S start, S end, S step, T! out")(
    lambda start, end, step, out: out.copy_(torch.arange(start, end, step, dtype=out.dtype))
)
aclnn("InplaceFillScalar", "T! selfRef, S value")(lambda out, value: out.fill_(value))
aclnn("InplaceFillTensor", "T! selfRef, T value")(lambda out, value: out.fill_(value.item()))
aclnn("InplaceOne", "T! selfRef")(lambda out: out.fill_(1))
aclnn("InplaceZero", "T! selfRef")(lambda out: out.zero_())
aclnn("Eye", "i64 n, i64 m, T! out")(lambda n, m, out: out.copy_(torch.eye(n, m, dtype=out.dtype)))


def _generator(seed: int, offset: int) -> torch.Generator:
    """The device's generator is counter-based: the same seed and offset give the same numbers, not the device's own."""
    return torch.Generator().manual_seed(hash((seed, offset)) % 2**63)


@aclnn("InplaceNormal", "T! selfRef, f32 mean, f32 std, i64 seed, i64 offset")
def normal(out: Tensor, mean: float, std: float, seed: int, offset: int) -> None:
    out.normal_(mean, std, generator=_generator(seed, offset))


@aclnn("InplaceUniform", "T! selfRef, f64 from, f64 to, i64 seed, i64 offset")
def uniform(out: Tensor, low: float, high: float, seed: int, offset: int) -> None:
    out.uniform_(low, high, generator=_generator(seed, offset))


@aclnn("InplaceRandom", "T! selfRef, i64 from, i64 to, i64 seed, i64 offset")
def random(out: Tensor, low: int, high: int, seed: int, offset: int) -> None:
    out.random_(low, high, generator=_generator(seed, offset))


@aclnn("Multinomial", "T self, i64 numsamples, b replacement, i64 seed, i64 offset, T! out")
def multinomial(x: Tensor, count: int, replacement: bool, seed: int, offset: int, out: Tensor) -> None:
    out.copy_(torch.multinomial(x.float(), count, replacement, generator=_generator(seed, offset)))


@aclnn("Randperm", "i64 n, i64 seed, i64 offset, T! out")
def randperm(n: int, seed: int, offset: int, out: Tensor) -> None:
    out.copy_(torch.randperm(n, generator=_generator(seed, offset)))


@aclnn("Linspace", "S start, S end, i64 steps, T! out")
def linspace(start: float, end: float, steps: int, out: Tensor) -> None:
    out.copy_(torch.linspace(start, end, steps))


@aclnn("InplaceBernoulli", "T! selfRef, S prob, i64 seed, i64 offset")
def bernoulli(out: Tensor, probability: float, seed: int, offset: int) -> None:
    out.bernoulli_(probability, generator=_generator(seed, offset))


@aclnn("DropoutGenMaskV2", "IA shape, f64 prob, i64 seed, i64 offset, i32 dtype, T! out")
def dropout_mask(shape: list[int], probability: float, seed: int, offset: int, dtype: int, out: Tensor) -> None:
    """One bit an element, 1 where it stays; the lowest bit of a byte first."""
    kept = torch.rand(out.numel(), 8, generator=_generator(seed, offset)) >= probability
    out.copy_((kept.int() << torch.arange(8)).sum(1))


@aclnn("DropoutDoMask", "T self, T mask, f64 prob, T! out")
def dropout(x: Tensor, mask: Tensor, probability: float, out: Tensor) -> None:
    kept = (mask.view(-1, 1) >> torch.arange(8) & 1).view(-1)[: x.numel()].view(x.shape)
    out.copy_(x.float() * kept / (1 - probability) if probability < 1 else torch.zeros(x.shape))
