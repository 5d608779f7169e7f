"""What the lowering suite recorded about our kernels, by step and product."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import ascend_m1_ops

# Our kernels by step of the product table, and the compilers' targets by product.
KERNELS = {
    "short_conv": ("short_conv_kernel", "short_conv_backward_kernel"),
    "conv_rope_cache": ("conv_rope_cache_kernel",),
}
TARGETS = {"A2": "Ascend910B", "A3": "Ascend910_93"}
_PACKAGE = Path(ascend_m1_ops.__file__).parent


@cache
def record() -> dict[str, Any]:
    """The record that the lowering suite wrote; ``stale`` if a kernel has changed since."""
    written: dict[str, Any] = json.loads((_PACKAGE / "lowering.json").read_text(encoding="utf-8"))
    now = {name: hashlib.sha256((_PACKAGE / name).read_bytes()).hexdigest() for name in written["sources"]}
    return written | {"stale": now != written["sources"]}


def lowered(step: str, product: str) -> str:
    """``yes``, ``no`` or ``stale`` for our kernels on the products that the compilers target, else ``-``."""
    if step not in KERNELS or product not in TARGETS:
        return "-"
    written = record()
    if written["stale"]:
        return "stale"
    entries = [entry for entry in written["kernels"] if entry["kernel"] in KERNELS[step]]
    answers = [
        answer["accepted"]
        for entry in entries
        for target, answer in entry["targets"].items()
        if target.startswith(TARGETS[product])
    ]
    return "yes" if answers and all(answers) and all(e["lowered"] and e["executed"] for e in entries) else "no"
