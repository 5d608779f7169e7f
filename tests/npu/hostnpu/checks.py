"""How results are compared and refusals are asked for in the operators' tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

# The arithmetic is float32 and the result is rounded once: half a unit in the last place, doubled for its own error.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 1e-5}


def assert_rounded(got: Tensor, want: Tensor, factor: float = 1.0) -> None:
    """``got`` is the float64 ``want``, computed in float32 and rounded once; ``factor`` widens the tolerance."""
    tolerance = ROUNDING[got.dtype] * factor
    torch.testing.assert_close(
        got.cpu().double(), want.double(), rtol=tolerance, atol=max(1e-5, tolerance * 1e-2) * factor
    )


def assert_refused(operator: str, argument: str, page: str, call: Callable[[], object]) -> None:
    """The call fails and says which operator, which argument and where the rule is written."""
    with pytest.raises(RuntimeError, match=re.escape(f"{operator}: {argument}: ")) as caught:
        call()
    assert page in str(caught.value)


def half(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """Zeros on the device."""
    return torch.zeros(shape, dtype=dtype, device="npu")


def ints(*values: Any, dtype: torch.dtype = torch.int32) -> Tensor:
    """Indices, lengths or block tables on the device."""
    return torch.tensor(values, dtype=dtype).npu()
