"""What the operators' tests share: tolerances with their reasons, and one loss that weighs every output element."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LOW_PRECISION = (torch.bfloat16, torch.float16)


def rounding(dtype: torch.dtype) -> float:
    """Largest relative error of one rounding to ``dtype``: half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def assert_rounded(actual: Tensor, exact: Tensor, roundings: float) -> None:
    """``actual`` is ``exact`` (float64, of the same rounded inputs) up to so many roundings of its dtype.

    An element may be off by ``roundings`` relative errors of its own size, plus float32's error at the size of the
    largest element (intermediate sums are float32) and the smallest number of the dtype.
    """
    assert actual.shape == exact.shape, f"shape {list(actual.shape)}, expected {list(exact.shape)}"
    assert exact.dtype == torch.float64, f"the reference must be computed in float64, not {exact.dtype}"
    if actual.numel() == 0:
        return
    info = torch.finfo(actual.dtype)
    atol = exact.abs().max().item() * 32 * torch.finfo(torch.float32).eps + info.tiny
    torch.testing.assert_close(actual.double(), exact, rtol=roundings * rounding(actual.dtype), atol=atol)


def gradients(function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a fixed, uneven weighting of all outputs with respect to every input."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    outputs = function(*leaves)
    total = torch.zeros((), dtype=torch.float64)
    for output in outputs if isinstance(outputs, tuple) else (outputs,):
        weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).cos().view(output.shape)
        total = total + (output.double() * weights).sum()
    return list(torch.autograd.grad(total, leaves))


def compiled(function: Callable[..., Tensor | tuple[Tensor, ...]]) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """The function as one graph: any graph break is an error."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")
