"""The table of operators per product is complete, and docs/npu.md says what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ascend_m1_ops.products import PRODUCTS, TABLE, Step, choice

DOCS = (Path(__file__).parents[2] / "docs" / "npu.md").read_text(encoding="utf-8")
ROWS = {
    row[0]: row[1:] for row in (re.split(r"\s*\|\s*", line.strip("| ")) for line in DOCS.splitlines() if "|" in line)
}


@pytest.mark.parametrize("step", TABLE, ids=lambda step: step.name)
def test_docs_and_table_agree(step: Step) -> None:
    named = {name: step.choices[name].operator for name in PRODUCTS}
    assert named["A2"] == named["A3"] == named["950"], "the page has one column for the three"
    first, second, dtypes = ROWS[step.name]
    assert (first.strip("`"), second.strip("`")) == (named["A2"], named["310P"])
    known = step.choices["A2"].dtypes
    if dtypes != "all":
        assert dtypes.split(", ") == [str(dtype).removeprefix("torch.") for dtype in known]
    else:
        assert {torch.float16, torch.bfloat16, torch.float32} <= set(known)


@pytest.mark.parametrize("step", TABLE, ids=lambda step: step.name)
def test_every_choice_has_its_reason(step: Step) -> None:
    assert set(step.choices) == set(PRODUCTS)
    assert all(found.why for found in step.choices.values())
    assert torch.bfloat16 not in step.choices["310P"].dtypes or step.choices["310P"].operator == "composition"


def test_an_unknown_step_is_an_error() -> None:
    with pytest.raises(KeyError):
        choice("softmax", "A2")
