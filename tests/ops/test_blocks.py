"""When operators work in blocks, and that blocks give the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ascend_m1_ops import blocks

pytestmark = pytest.mark.usefixtures("block_sizes")


def big() -> torch.Tensor:
    return torch.ones(blocks.BLOCK_ELEMENTS + 1)


def test_blocks_pay_for_large_inference_only() -> None:
    assert blocks.blocks_pay(big(), torch.ones(3))
    assert not blocks.blocks_pay(big()[1:])
    assert not blocks.blocks_pay(torch.ones(0))
    assert not blocks.blocks_pay(big().to("meta"))


def test_blocks_never_pay_where_a_gradient_is_wanted() -> None:
    weight = torch.ones(3, requires_grad=True)
    assert not blocks.blocks_pay(big(), weight)
    assert not blocks.blocks_pay(big().requires_grad_(), torch.ones(3))
    with torch.no_grad():
        assert blocks.blocks_pay(big(), weight)


def test_blocks_never_pay_for_a_compiler() -> None:
    torch._dynamo.reset()
    run = torch.compile(lambda x: x + 1 if blocks.blocks_pay(x) else x + 2, fullgraph=True, backend="eager")
    assert run(big())[0].item() == 3


@given(rows=st.integers(0, 40), columns=st.integers(0, 20))
def test_blocks_give_the_whole(rows: int, columns: int) -> None:
    x, y = torch.randn(rows, columns), torch.randn(rows, 1)
    want = (x + y) * 2
    assert torch.equal(blocks.blockwise(lambda x, y: (x + y) * 2, x, y), want)
    into = x.clone()
    assert blocks.blockwise(lambda x, y: (x + y) * 2, into, y, out=into) is into
    assert torch.equal(into, want)


def test_several_blocks_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 8)
    seen = []
    blocks.blockwise(lambda x: seen.append(x.shape[0]) or x, torch.randn(5, 4))
    assert seen == [2, 2, 1]
