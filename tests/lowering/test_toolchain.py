"""The suite finds the faults it looks for: single-element stores, accesses out of bounds, tiles too large."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.lowering import bad_kernels
from tests.lowering.host import GuardedMemory, compile_for_host, in_child
from tests.lowering.toolchain import TARGETS, Lowered, accept, lower

WIDTH, BLOCK = 64, 8


def lowered(kernel: Any, **constants: int) -> Lowered:
    kinds = {"tokens": "i32", "slots": "*i32"}
    signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names if name not in constants}
    return lower(kernel, signature, constants)


def test_a_masked_scatter_is_seen_as_single_elements() -> None:
    shapes = lowered(bad_kernels.masked_scatter, width=WIDTH, block=BLOCK).stored_shapes()
    assert any(np.prod(shape, dtype=int) == 1 for shape in shapes), shapes


def test_a_tile_too_large_is_refused() -> None:
    accepted = accept(lowered(bad_kernels.too_large, height=512, width=512), TARGETS[0])
    assert accepted.status != 0
    assert "ub overflow" in accepted.messages


@pytest.mark.parametrize("at_end", [True, False])
def test_a_row_too_few_is_a_touched_guard_page(at_end: bool) -> None:
    """Against the page behind it a shorter tensor is caught; a tensor of the right size passes both ways."""
    program = compile_for_host(lowered(bad_kernels.copy_row, width=WIDTH))
    source, target = GuardedMemory(4 * WIDTH, at_end), GuardedMemory(4 * WIDTH, at_end)
    source.bytes()[:] = np.arange(4 * WIDTH) % 251
    in_child(lambda: program([source.address, target.address], [WIDTH, WIDTH], [], 1))
    assert (source.bytes() == target.bytes()).all()
    short = GuardedMemory(4 * (WIDTH - 1), at_end=True)
    with pytest.raises(MemoryError):
        in_child(lambda: program([short.address, target.address], [WIDTH - 1, WIDTH], [], 1))


def test_a_read_behind_a_mask_is_a_touched_guard_page() -> None:
    program = compile_for_host(lowered(bad_kernels.masked_row_above, width=WIDTH, block=BLOCK))
    source, target = (GuardedMemory(4 * WIDTH * BLOCK, at_end=False) for _ in range(2))
    size = WIDTH * BLOCK
    with pytest.raises(MemoryError):
        in_child(lambda: program([source.address, target.address], [size, size], [BLOCK], 1))
