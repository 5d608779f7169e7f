"""``verify-npu`` covers every operator that the NPU path calls, and finds what is wrong with one."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_npu
from torch import Tensor

import ascend_m1_hostnpu as host
import ascend_m1_ops
from ascend_m1.prediction import LAUNCHES, OTHER_LAUNCHES, decode_bytes
from ascend_m1.verify import decode, probe
from ascend_m1.verify.cases import Case, cases
from ascend_m1.verify.launches import uncovered, unverified_steps, verified_operators
from ascend_m1.verify.report import summary, table
from ascend_m1.verify.run import HOST_NAMES, verify

from . import tiny

BACK_ENDS = sorted(Path(ascend_m1_ops.__file__).parent.rglob("npu.py"))
NAMESPACES = ("torch_npu", "torch.ops.npu", "torch.ops.air", "torch.ops.ascend_m1")


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute, or nothing."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def called(source: str) -> set[str]:
    """Operators of torch_npu and of ours that a source names."""
    names = {dotted(node).removesuffix(".default") for node in ast.walk(ast.parse(source))}
    split = [name.rpartition(".") for name in names]
    return {operator for namespace, _, operator in split if namespace in NAMESPACES} - {"npu"}


@pytest.mark.parametrize("path", BACK_ENDS, ids=lambda path: path.parent.name)
def test_every_operator_in_a_back_end_is_verified(path: Path) -> None:
    missing = called(path.read_text(encoding="utf-8")) - verified_operators()
    assert not missing, f"{path}: add a case to ascend_m1/verify/cases.py for {', '.join(sorted(missing))}"


def test_an_operator_without_a_case_is_found() -> None:
    source = "import torch_npu\ny = torch_npu.npu_gelu(x)\nz = torch.ops.npu.npu_quant_matmul.default(x)\n"
    assert called(source) - verified_operators() == {"npu_gelu", "npu_quant_matmul"}
    assert set().union(*(called(path.read_text(encoding="utf-8")) for path in BACK_ENDS)) >= {"npu_swiglu"}


def test_every_step_of_the_table_has_a_case() -> None:
    assert not unverified_steps()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_launches_of_training_are_verified(dtype: torch.dtype) -> None:
    model = tiny.model(dtype).to("npu")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with host.recording() as log:
        for batch in tiny.batches().values():
            model(**tiny.to_npu(batch)).loss.backward()
            optimizer.step()
    assert not uncovered(log.counts())
    assert {"aclnnRmsNormGrad", "aclnnApplyAdamWV2", "triton:short_conv_backward_kernel"} <= log.counts().keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_launches_of_inference_are_verified(dtype: torch.dtype) -> None:
    model = tiny.model(dtype).to("npu").eval()
    with host.recording() as log, torch.no_grad():
        model.generate(tiny.tokens().npu(), max_new_tokens=3, do_sample=False)
        decode.run(decode.build("gw", dtype), "npugraph")
    assert not uncovered(log.counts())
    assert "triton:conv_rope_cache_kernel" in log.counts()


def test_a_launch_without_a_case_is_found() -> None:
    x = torch.randn(2, 3, 4, 64, dtype=torch.float16).npu()
    with host.recording() as log:
        torch_npu.npu_apply_rotary_pos_emb(x, x.clone(), *[torch.ones(2, 3, 1, 64).half().npu()] * 2)
    assert uncovered(log.counts()) == {"aclnnApplyRotaryPosEmbV2"}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [pytest.param(case, dtype, id=f"{case.step}, {case.form}, {dtype}") for case in cases() for dtype in case.dtypes],
)
def test_case_is_accepted_and_right(case: Case, dtype: torch.dtype) -> None:
    found = probe.check(case, dtype)
    assert found["accepted"], found["problem"]
    assert found["numerics"], f"{found['error']} roundings, {found['tolerance']} allowed"
    assert found["as_table"], f"{found['operator']}: {found['launches']}"


def swiglu() -> Case:
    return next(case for case in cases() if case.step == "swiglu")


def test_a_wrong_result_is_found() -> None:
    def wrong(x: Tensor) -> tuple[Tensor, ...]:
        return (swiglu().definition(x)[0] * 1.01,)

    assert not probe.check(replace(swiglu(), definition=wrong), torch.float32)["numerics"]


def test_nan_is_wrong() -> None:
    def nan(x: Tensor) -> tuple[Tensor, ...]:
        return (swiglu().call(x)[0] * torch.nan,)

    assert not probe.check(replace(swiglu(), call=nan), torch.float32)["numerics"]


def test_another_operator_than_the_tables_is_found() -> None:
    def composed(x: Tensor) -> tuple[Tensor, ...]:
        gate, up = x.chunk(2, -1)
        return (torch.nn.functional.silu(gate) * up,)

    found = probe.check(replace(swiglu(), call=composed), torch.float32)
    assert found["numerics"]
    assert not found["as_table"]


def test_a_refused_call_is_found_with_its_rule() -> None:
    def refused(x: Tensor) -> tuple[Tensor, ...]:
        return (torch_npu.npu_swiglu(x[:, :-1], dim=-1),)

    found = probe.check(replace(swiglu(), call=refused), torch.float32)
    assert not found["accepted"]
    assert "SwiGlu" in found["problem"] or "even" in found["problem"]


def test_on_an_npu_a_call_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "on_host", lambda: False)
    found = probe.check(swiglu(), torch.float16)
    assert found["numerics"]
    assert found["microseconds"] >= 0.0
    assert "launches" not in found


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """Every product, each in a process of its own."""
    return summary(verify([], print))


@pytest.mark.slow
def test_every_product_passes(report: dict[str, Any]) -> None:
    assert list(report["products"]) == list(HOST_NAMES)
    assert report["problems"] == []
    assert report["footnote"].endswith("on a host stand-in for CANN, not on an NPU")
    assert all(len(steps) >= 9 for steps in report["steps"].values())


@pytest.mark.slow
@pytest.mark.parametrize("product", decode.CAPTURING)
def test_captured_decode_step(report: dict[str, Any], product: str) -> None:
    found = report["products"][product]
    assert set(found["graphs"]) == {"npugraph", "npugraph_ex", "cann"}
    for route, graph in found["graphs"].items():
        assert graph["captured"], route
        assert graph["equal"], route
    assert found["launches_per_layer"] == LAUNCHES
    assert found["other_launches"] == OTHER_LAUNCHES
    assert max(found["launches_per_layer"].values()) <= 9
    assert found["other_launches"] <= 6
    assert found["bytes"]["ratio"] <= 1.05


@pytest.mark.slow
def test_no_graph_where_none_is_documented(report: dict[str, Any]) -> None:
    graphs = report["products"]["310P"]["graphs"]
    assert set(graphs) == {"npugraph", "npugraph_ex", "cann"}
    for graph in graphs.values():
        assert graph["captured"] is None
        assert graph["reason"]


@pytest.mark.slow
def test_table_has_every_step_and_product(report: dict[str, Any]) -> None:
    lines = table(report).splitlines()
    assert lines[0].split() == ["step", *HOST_NAMES]
    assert {case.step for case in cases()} <= {line.split()[0] for line in lines if line}


def test_predicted_bytes_are_those_of_the_log() -> None:
    model = decode.build("gwg")
    assert decode_bytes(model.config, 1, 202, 2) == decode.least_bytes(model, 202)
    moved = decode.moved(model)
    assert moved["least"] <= moved["moved"] <= 1.05 * moved["least"]


def test_more_keys_and_more_weights_move_more() -> None:
    short, long = (decode.logged(decode.build("gw"), "eager", held).bytes for held in (20, 220))
    assert long - short == 200 * 2 * 256 * 2  # one global layer with one key/value head; the window is full
