"""``python -m tests.mindspore.on_device DEVICE DTYPE [CASE…]``: golden cases in a process that chooses the device.

Prints a line of JSON for each case: relative distances of logits, from a prefill of half of the longest prompt and
steps through the rest. ``golden``: to the golden ones; ``composed``: to those without Ascend's operators.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace

import numpy as np

from ascend_m1.mindspore.device import Device, choose
from ascend_m1.mindspore.model import graphs
from ascend_m1.mindspore.runner import decode, prefill

from .golden import CASES, load_core, load_prompts


def logits_of(case: str, device: Device) -> np.ndarray:
    """[positions, vocab] of the longest prompt, from its middle on."""
    compiled = graphs(load_core(case, dtype=device.mindspore_dtype, fused=device.fused), device.dtype)
    ids = load_prompts(case)[-1].ids
    half = len(ids) // 2
    logits, state = prefill(compiled, ids[:half])
    rows = [logits]
    for position in range(half, len(ids)):
        logits, state = decode(compiled, ids[position], position, state)
        rows.append(logits)
    return np.array(rows, np.float64)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Relative to ``other``."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def main() -> None:
    device = choose(sys.argv[1], sys.argv[2], "bfloat16")
    for case in sys.argv[3:] or CASES:
        found = logits_of(case, device)
        golden = load_prompts(case)[-1].logits[-len(found) :]
        composed = logits_of(case, replace(device, fused=False)) if device.fused else found
        distances = {"golden": distance(found, golden), "composed": distance(found, composed)}
        print(json.dumps({"case": case, **asdict(device), **distances}))


if __name__ == "__main__":
    main()
