"""How results are compared and refusals are asked for in the operators' tests."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

# The arithmetic is float32 and the result is rounded once: half a unit in the last place, doubled for float32's own error.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 1e-5}


def assert_rounded(got: Tensor, want: Tensor, factor: float = 1.0) -> None:
    """``got`` is ``want`` (float64), computed in float32 and rounded to got's dtype; ``factor`` widens the tolerance."""
    tolerance = ROUNDING[got.dtype] * factor
    torch.testing.assert_close(got.cpu().double(), want.double(), rtol=tolerance, atol=max(1e-5, tolerance * 1e-2) * factor)


def assert_refused(operator: str, argument: str, page: str, call: Callable[[], object]) -> None:
    """The call fails and says which operator, which argument and where the rule is written."""
    with pytest.raises(RuntimeError, match=re.escape(f"{operator}: {argument}: ")) as caught:
        call()
    assert page in str(caught.value)
