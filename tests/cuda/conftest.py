"""Everything here needs an NVIDIA GPU; elsewhere it is skipped, with that reason."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/cuda" in item.path.as_posix():
            item.add_marker(pytest.mark.cuda)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="hardware: needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def _products_in_float32() -> None:
    """Not in TF32, whose ten bits of fraction would hide what is looked for."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
