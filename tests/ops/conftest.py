"""Blocks so small that every shape takes several, and blocks as they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ascend_m1_ops import blocks


@pytest.fixture(scope="module", params=[16, blocks.BLOCK_ELEMENTS], ids="blocks of {}".format)
def block_sizes(request: pytest.FixtureRequest) -> Iterator[None]:
    """For the operators that work in blocks; most take the plain path up to one block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ELEMENTS", request.param)
        yield
