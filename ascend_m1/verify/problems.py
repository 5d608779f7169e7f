"""What is a problem in what the probes found: refused, wrong, not captured, or more than docs/npu.md promises."""

from __future__ import annotations

from typing import Any

from ..graphs import CAPTURING
from ..prediction import LAUNCHES, OTHER_LAUNCHES
from .lowering import lowered

# Bytes of a captured decode step as a share of its weights and live cache; what passes between the operators is 1 %.
BYTES = 1.05
# How far a captured step's logits may be from the eager ones, relative to the largest: 16 roundings of float16, the
# dtype of the step. Two layers round eight results each, and a graph that sums in another order may round any of them
# the other way.
LOGITS = 16 * 2.0**-11


def problems(product: str, result: dict[str, Any]) -> list[str]:
    """Everything wrong with one product, a line each.

    Args:
        product: that was to be probed.
        result: of its probe.
    """
    found = [*_of_the_probe(result)]
    for call in result["calls"]:
        found += [f"{call['step']} ({call['form']}, {call['dtype']}): {text}" for text in _of_a_call(call)]
    for route, graph in result["graphs"].items():
        found += [f"{route}: {text}" for text in _of_a_graph(graph)]
    if result["product"] in CAPTURING:
        found += _of_the_counts(result)
    for step in sorted({call["step"] for call in result["calls"]}):
        state = lowered(step, result["product"])
        found += [f"{step}: lowering is {state}"] if state in ("no", "stale") else []
    return [f"{product}: {text}" for text in found]


def _of_the_probe(result: dict[str, Any]) -> list[str]:
    if "died" in result:
        return [result["died"]]
    return [] if result["calls"] else ["the probe made no calls"]


def _of_a_call(call: dict[str, Any]) -> list[str]:
    if not call["accepted"]:
        return [f"refused: {call['problem']}"]
    found = []
    if not call["numerics"]:
        found.append(f"off by {call['error']} roundings, {call['tolerance']} allowed")
    if not call.get("as_table", True):
        launches = ", ".join(call["launches"]) or "no fused operator"
        found.append(f"the table says {call['operator']}, launched was {launches}")
    return found


def _of_a_graph(graph: dict[str, Any]) -> list[str]:
    if graph["captured"] is None:  # not documented for the product
        return []
    if not graph["captured"]:
        return [f"not captured: {graph['problem']}"]
    found = [] if graph["equal"] else ["other tokens than eager"]
    if not graph["logits_off"] <= LOGITS:  # NaN, too
        found.append(f"logits are off by {graph['logits_off']} of the largest, {LOGITS:.4f} allowed")
    return found


def _of_the_counts(result: dict[str, Any]) -> list[str]:
    """Launches and bytes of a captured step, which only the host NPU's log shows."""
    found = []
    for kind, count in result.get("launches_per_layer", {}).items():
        if count > LAUNCHES[kind]:
            found.append(f"{count} launches in a {kind} layer, {LAUNCHES[kind]} promised")
    if result.get("other_launches", 0) > OTHER_LAUNCHES:
        found.append(f"{result['other_launches']} launches besides the layers, {OTHER_LAUNCHES} promised")
    if result.get("bytes", {"ratio": 0})["ratio"] > BYTES:
        found.append(f"a step moves {result['bytes']['ratio']} times its weights and live cache, {BYTES} promised")
    return found
