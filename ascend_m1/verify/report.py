"""What verify-npu found, as a table for people; the same data goes out as JSON."""

from __future__ import annotations

from typing import Any

from .cases import cases
from .lowering import lowered
from .problems import problems


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """For JSON: the findings, with steps x products put together and everything that went wrong in one list."""
    steps = {name: _steps(result) for name, result in found["products"].items()}
    wrong = [text for name, result in found["products"].items() for text in problems(name, result)]
    return found | {"steps": steps, "problems": wrong, "footnote": footnote(found)}


def _steps(result: dict[str, Any]) -> dict[str, Any]:
    steps: dict[str, Any] = {}
    for call in result["calls"]:
        step = steps.setdefault(call["step"], {"operators": {}, "calls": 0, "accepted": 0, "worst": 0.0, "times": []})
        step["operators"].setdefault(call["operator"], []).append(call["dtype"])
        step["calls"] += 1
        if call["accepted"]:
            step["accepted"] += 1
            step["worst"] = max(step["worst"], call["error"] / call["tolerance"])
            step["times"] += [call["microseconds"]] if "microseconds" in call else []
    for name, step in steps.items():
        step["operators"] = {operator: sorted(set(dtypes)) for operator, dtypes in step["operators"].items()}
        step["lowered"] = lowered(name, result["product"])
        step["worst"] = round(step["worst"], 3)
    return steps


def footnote(found: dict[str, Any]) -> str:
    """Where this ran, in words that claim no more."""
    if found["host_npu"]:
        return f"run through torch-npu {found['torch-npu']} on a host stand-in for CANN, not on an NPU"
    devices = ", ".join(str(result.get("device", "?")) for result in found["products"].values())
    return f"run on {devices} through torch-npu {found['torch-npu']}"


def table(report: dict[str, Any]) -> str:
    """Steps x products, then operators, launches and problems."""
    products = list(report["products"])
    tried = {step for steps in report["steps"].values() for step in steps}
    names = [name for name in dict.fromkeys(case.step for case in cases()) if name in tried]
    timed = not report["host_npu"]
    rows = [["step", *products]]
    rows += [[name, *[_cell(report["steps"][p].get(name), timed) for p in products]] for name in names]
    routes = list(dict.fromkeys(route for p in products for route in report["products"][p]["graphs"]))
    rows += [
        [f"decode, {route}", *[_graph(report["products"][p]["graphs"].get(route)) for p in products]]
        for route in routes
    ]
    for title, key in (("launches a layer", "launches_per_layer"), ("other launches", "other_launches")):
        rows.append([title, *[_count(report["products"][p].get(key)) for p in products]])
    rows.append(["bytes / least", *[_bytes(report["products"][p].get("bytes")) for p in products]])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", *_legend(timed), "", "operators", *_operators(report, names, products)]
    if report["problems"]:
        lines += ["", f"problems: {len(report['problems'])}", *[f"  {text}" for text in report["problems"]]]
    return "\n".join([*lines, "", report["footnote"]]) + "\n"


def _cell(step: dict[str, Any] | None, timed: bool) -> str:
    if step is None:
        return "-"
    parts = [f"{step['accepted']}/{step['calls']}", f"{step['worst']:.2f}"]
    if timed and step["times"]:
        parts.append(f"{max(step['times']):.0f} us")
    return " ".join([*parts, *([f"L:{step['lowered']}"] if step["lowered"] != "-" else [])])


def _graph(graph: dict[str, Any] | None) -> str:
    if graph is None or graph["captured"] is None:
        return "-"
    if not graph["captured"]:
        return "not captured"
    return "equal" if graph["equal"] else "other tokens"


def _count(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{kind} {count}" for kind, count in value.items())
    return "-" if value is None else str(value)


def _bytes(value: dict[str, Any] | None) -> str:
    return "-" if value is None else f"{value['ratio']:.3f}"


def _legend(timed: bool) -> list[str]:
    lines = [
        "cells: calls accepted by op-plugin / tried; the worst error as a share of its tolerance (1.00: just allowed)",
        "L: our kernel lowered by triton-ascend and AscendNPU-IR to HIVM, executed at linalg level on CPU",
        "decode: the step captured by this route gives the eager tokens; -: no graphs documented for the product",
    ]
    return [*lines, "us: the slowest of the step's calls, median of several"] if timed else lines


def _operators(report: dict[str, Any], names: list[str], products: list[str]) -> list[str]:
    """Which operator computes each step on which products; its dtypes unless they are all."""
    lines = []
    for name in names:
        where: dict[str, list[str]] = {}
        for product in products:
            operators = report["steps"][product].get(name, {"operators": {}})["operators"]
            for operator, dtypes in operators.items():
                text = operator if len(operators) == 1 else f"{operator} ({', '.join(dtypes)})"
                where.setdefault(text, []).append(product)
        everywhere = len(where) == 1
        lines.append(
            f"  {name}: " + "; ".join(o if everywhere else f"{o} on {', '.join(on)}" for o, on in where.items())
        )
    return lines
