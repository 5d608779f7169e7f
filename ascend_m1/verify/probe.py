"""Runs every case and every graph route on this process's NPU: one process for each product.

    python -c "import ascend_m1_hostnpu; from ascend_m1.verify.probe import main; main()" RESULT.json

Without the first import on a machine with an NPU. Progress goes to stderr, the result to the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ascend_m1_ops.products import TABLE, choice
from ascend_m1_ops.products.npu import product

from .cases import Case, cases, inputs
from .launches import fused

_TIMED = 20  # runs, of which the median counts
_STEPS = {step.name for step in TABLE}


def on_host() -> bool:
    """Whether this process runs on the host NPU."""
    return "ascend_m1_hostnpu" in sys.modules


def main() -> None:
    """Write everything about this process's product to the file named in the arguments, the calls as soon as known."""
    from .decode import routes

    torch.set_num_threads(1)
    path = Path(sys.argv[1])
    result = {"product": product(), "host_npu": on_host(), "device": _name(), "calls": all_calls(), "graphs": {}}
    path.write_text(json.dumps(result), encoding="utf-8")
    path.write_text(json.dumps(result | routes(product(), tell)), encoding="utf-8")


def tell(text: str) -> None:
    """Progress."""
    print(f"ascend-m1: {product()}: {text}", file=sys.stderr, flush=True)


def all_calls() -> list[dict[str, Any]]:
    """Every case in every dtype of its own that the product computes in."""
    found = []
    for case in cases():
        if product() not in case.products:
            continue
        for dtype in case.dtypes:
            if product() == "310P" and dtype == torch.bfloat16:
                continue  # the product has none
            found.append(check(case, dtype))
    tell(f"{len(found)} calls")
    return found


def check(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """One call: accepted, by which launches, how far off, and on an NPU how long it takes."""
    operator = expected_operator(case, dtype)
    result: dict[str, Any] = {
        "step": case.step,
        "form": case.form,
        "dtype": str(dtype).removeprefix("torch."),
        "operator": operator,
    }
    tensors = inputs(case, dtype)
    try:
        with recorded() as names:
            got = [tensor.cpu() for tensor in evaluate(case.call, [x.to("npu") for x in tensors], case.training)]
    except Exception as error:  # whatever op-plugin or a stand-in refuses with: that is the finding
        return result | {"accepted": False, "problem": first_line(error)}
    exact = evaluate(case.definition, [x.double() for x in tensors], case.training)
    tolerance = case.roundings[int(dtype == torch.float32)]
    off = max(roundings(a, b, dtype) for a, b in zip(got, exact, strict=True))
    result |= {"accepted": True, "error": round(off, 3), "tolerance": tolerance, "numerics": off <= tolerance}
    if on_host():
        result |= launched(case, operator, names)
    else:
        there = [x.to("npu") for x in tensors]
        result["microseconds"] = timed(lambda: evaluate(case.call, there, case.training))
    return result


def expected_operator(case: Case, dtype: torch.dtype) -> str:
    """What the table says."""
    if case.step not in _STEPS:
        return case.form.split(",")[0]
    found = choice(case.step, product())
    return found.operator if dtype in found.dtypes else "composition"


def launched(case: Case, operator: str, names: list[str]) -> dict[str, Any]:
    """Whether the log holds what the table's operator launches, and no other fused operator."""
    seen = fused(names)
    allowed = set(case.launches) if operator != "composition" else set()
    as_table = seen <= allowed and bool(seen) == bool(allowed)
    return {"launches": sorted(seen), "as_table": as_table}


def evaluate(function: Callable[..., Any], tensors: list[Tensor], training: bool) -> list[Tensor]:
    """The results; in training, of the inputs' gradients too, for an uneven weighting of the results."""
    if not training:
        with torch.no_grad():
            return list(function(*tensors))
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    results = list(function(*leaves))
    weights = [torch.linspace(-2, 2, y.numel()).cos().view(y.shape).to(y.device, y.dtype) for y in results]
    return [y.detach() for y in results] + list(torch.autograd.grad(results, leaves, weights))


def roundings(got: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
    """The largest error in roundings of the dtype at the size of the largest exact value; infinite for NaN."""
    size = exact.abs().max().clamp_min(1e-30)
    off = float((got.double() - exact).abs().max() / size / (torch.finfo(dtype).eps / 2))
    return off if off == off else float("inf")


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Names of the launches inside the block, once it has ended; none on an NPU."""
    names: list[str] = []
    if not on_host():
        yield names
        return
    import ascend_m1_hostnpu

    with ascend_m1_hostnpu.recording() as log:
        yield names
    names += [launch.name for launch in log.launches]


def timed(call: Callable[[], object]) -> float:
    """Median microseconds between two events around the call: the host's share is in it where the host is slower."""
    npu: Any = torch.get_device_module("npu")
    spans = []
    for _ in range(_TIMED):
        start, end = npu.Event(enable_timing=True), npu.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        npu.synchronize()
        spans.append(start.elapsed_time(end) * 1e3)
    return round(float(median(spans)), 1)


def first_line(error: BaseException) -> str:
    """What an error says, without the trace that torch_npu appends."""
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ours = next((line for line in lines if line.startswith("aclnn") or ": aclnn" in line), None)
    return f"{type(error).__name__}: {ours or (lines[0] if lines else '')}"


def _name() -> str:
    return str(torch.get_device_module("npu").get_device_name())
