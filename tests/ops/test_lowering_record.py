"""``lowering.json`` speaks of the kernels as they are: it was written since they last changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import ascend_m1_ops

PACKAGE = Path(ascend_m1_ops.__file__).parent
RECORD = json.loads((PACKAGE / "lowering.json").read_text(encoding="utf-8"))
SOURCES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("triton.py"))


def test_it_covers_every_kernel_source() -> None:
    assert sorted(RECORD["sources"]) == SOURCES


@pytest.mark.parametrize("source", SOURCES)
def test_sources_are_those_it_was_written_for(source: str) -> None:
    now = hashlib.sha256((PACKAGE / source).read_bytes()).hexdigest()
    remedy = "run the lowering suite and write the record anew: python -m tests.lowering.report"
    assert RECORD["sources"][source] == now, f"{source} has changed: {remedy}"


def test_every_kernel_is_accepted_on_every_product() -> None:
    kernels = RECORD["kernels"]
    assert {entry["dtype"] for entry in kernels} == {"float32", "float16", "bfloat16"}
    assert {entry["geometry"] for entry in kernels} == {"global", "window", "window chunk"}
    for entry in kernels:
        assert entry["lowered"]
        assert entry["executed"]
        for answer in entry["targets"].values():
            assert answer["accepted"]
            assert answer["on_chip_bytes"] <= answer["on_chip_limit"]
