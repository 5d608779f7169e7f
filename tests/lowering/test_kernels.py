"""Every kernel, geometry and dtype: lowered, accepted for every product, executed as lowered, bit for bit."""

from __future__ import annotations

import pytest

from tests.lowering.execution import lowered
from tests.lowering.kernels import BACKWARD, BATCHES, DTYPES, FUSED, GEOMETRIES, Form, check_execution, forms, launch_of
from tests.lowering.toolchain import TARGETS, accept

FORMS = forms()
DMA_BYTES = 32  # what one burst of the copy engine moves


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_stores_are_rows(form: Form) -> None:
    """No store of single elements: whatever is written is at least one burst of the copy engine.

    Except the taps' sums, a few numbers that each program writes once.
    """
    shapes = lowered(launch_of(form)).stored_shapes()
    itemsize = DTYPES[form.dtype].itemsize
    if form.kernel == BACKWARD:
        assert sum(len(shape) == 1 for shape in shapes) == 2
        shapes = [shape for shape in shapes if len(shape) != 1]
    assert shapes
    for shape in shapes:
        assert len(shape) == 2, shapes
        assert shape[-1] * itemsize >= DMA_BYTES, shapes


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_accepted_and_fits_on_chip(form: Form, target: str) -> None:
    accepted = accept(lowered(launch_of(form)), target)
    assert accepted.status == 0, accepted.messages
    assert 0 < accepted.on_chip_bytes() <= accepted.limit("UB_SIZE") // 8


@pytest.mark.parametrize("form", [form for form in FORMS if form.dtype != "float32"], ids=str)
def test_k_is_rounded_between_convolution_and_rotation(form: Form) -> None:
    """The compiler keeps the narrowing and widening in the middle, which it could take for useless."""
    casts = [call for call in accept(lowered(launch_of(form)), TARGETS[0]).calls() if call.startswith("vcast")]
    narrowing = [call for call in casts if "float_to" in call]
    # q: two halves. k: two halves, twice. v: one row.
    expected = {FUSED: 2 + 4 + 1, "short_conv_kernel": 1, BACKWARD: 2}
    assert len(narrowing) == expected[form.kernel], casts


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_state_is_written_after_it_was_read(geometry: str) -> None:
    """The barrier before the state's store stops every pipe of the core (the other one ends the kernel)."""
    accepted = accept(lowered(launch_of(Form(FUSED, geometry, "bfloat16"))), TARGETS[0])
    assert accepted.hivm.count("pipe_barrier[<PIPE_ALL>]") == 2


@pytest.mark.parametrize("at_end", [True, False], ids=["guard behind", "guard before"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_executes_bit_for_bit_inside_its_tensors(form: Form, batch: str, at_end: bool) -> None:
    for programs in (1, 3):
        check_execution(form, batch, programs, at_end)
