"""``verify-npu`` as a command: what it prints, its status, and what it says where it cannot run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from ascend_m1.verify import lowering, run

from .conftest import Cli


def call(**changes: Any) -> dict[str, Any]:
    right = {
        "step": "swiglu",
        "form": "3 x 2",
        "dtype": "float16",
        "operator": "npu_swiglu",
        "accepted": True,
        "error": 0.5,
        "tolerance": 2,
        "numerics": True,
        "launches": ["aclnnSwiGlu"],
        "as_table": True,
    }
    return right | changes


def result(product: str, **changes: Any) -> dict[str, Any]:
    graphs = {"npugraph": {"captured": True, "equal": True, "logits_off": 0.0}}
    found = {"product": product, "host_npu": True, "calls": [call()], "graphs": graphs}
    layers = {"launches_per_layer": {"global": 9, "window": 9}, "other_launches": 6}
    return found | layers | {"bytes": {"moved": 101, "least": 100, "ratio": 1.01}} | changes


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What the probes find: by product, to be changed."""
    found = {name: result(name) for name in run.HOST_NAMES}
    monkeypatch.setattr(run, "find_spec", lambda name: name)
    monkeypatch.setattr(run, "version", lambda name: "2.13.0")
    monkeypatch.setattr(run, "host_npu", lambda: True)
    monkeypatch.setattr(run, "probe", lambda product, host: found[product])
    return found


def test_table_of_steps_and_products(cli: Cli, probed: dict[str, dict[str, Any]]) -> None:
    ran = cli("verify-npu")
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert lines[0].split() == ["step", "A2", "A3", "310P", "950"]
    assert lines[1].split() == ["swiglu", *["1/1", "0.25"] * 4]
    assert lines[-1] == "run through torch-npu 2.13.0 on a host stand-in for CANN, not on an NPU"
    assert "problems" not in ran.out
    assert "A2, A3, 310P, 950" in ran.err


def test_json_has_launches_by_kind_of_layer(cli: Cli, probed: dict[str, dict[str, Any]]) -> None:
    found = json.loads(cli("verify-npu", "--json", "--product", "A3", "--product", "A3").out)
    assert list(found["products"]) == ["A3"]
    assert found["products"]["A3"]["launches_per_layer"] == {"global": 9, "window": 9}
    assert found["steps"]["A3"]["swiglu"]["operators"] == {"npu_swiglu": ["float16"]}
    assert found["problems"] == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"calls": [{"step": "swiglu", "form": "3 x 2", "dtype": "float16", "operator": "x", "accepted": False,
                     "problem": "refused by a rule"}]}, "A2: swiglu (3 x 2, float16): refused: refused by a rule"),
        ({"calls": [call(error=2.5, numerics=False)]}, "off by 2.5 roundings, 2 allowed"),
        ({"calls": [call(launches=["aclnnOther"], as_table=False)]}, "says npu_swiglu, launched was aclnnOther"),
        ({"graphs": {"cann": {"captured": False, "problem": "no converter"}}}, "cann: not captured: no converter"),
        ({"graphs": {"cann": {"captured": True, "equal": False, "logits_off": 0.0}}}, "cann: other tokens than eager"),
        ({"graphs": {"cann": {"captured": True, "equal": True, "logits_off": 0.01}}},
         "A2: cann: logits are off by 0.01 of the largest, 0.0078 allowed"),
        ({"graphs": {"cann": {"captured": True, "equal": True, "logits_off": float("nan")}}}, "logits are off by nan"),
        ({"launches_per_layer": {"global": 9, "window": 10}}, "A2: 10 launches in a window layer, 9 promised"),
        ({"other_launches": 7}, "A2: 7 launches besides the layers, 6 promised"),
        ({"bytes": {"moved": 106, "least": 100, "ratio": 1.06}}, "moves 1.06 times its weights and live cache, 1.05"),
        ({"calls": []}, "A2: the probe made no calls"),
        ({"died": "the process ended with signal 11: last words", "calls": [], "graphs": {}}, "signal 11: last words"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_listed(
    cli: Cli, probed: dict[str, dict[str, Any]], change: dict[str, Any], text: str
) -> None:
    probed["A2"] |= change
    ran = cli("verify-npu", "--product", "A2")
    assert ran.status == 1
    assert "problems: 1" in ran.out
    assert text in ran.out


def test_a_graph_that_is_not_documented_is_no_problem(cli: Cli, probed: dict[str, dict[str, Any]]) -> None:
    probed["310P"]["graphs"] = {"cann": {"captured": None, "reason": "not listed"}}
    assert cli("verify-npu", "--product", "310P").status == 0


def test_changed_kernels_make_the_lowering_stale(
    cli: Cli, probed: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    probed["A2"]["calls"] = [call(step="short_conv")]
    assert "L:yes" in cli("verify-npu", "--product", "A2").out
    monkeypatch.setattr(lowering, "record", lambda: {"stale": True})
    ran = cli("verify-npu", "--product", "A2")
    assert ran.status == 1
    assert "short_conv: lowering is stale" in ran.out


def test_without_torch_npu_it_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    ran = cli("verify-npu")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert "install the extra [npu]" in ran.err


@pytest.mark.parametrize("name", ["910A", "910", "A", ""])
def test_an_unknown_product_is_refused(cli: Cli, name: str) -> None:
    ran = cli("verify-npu", "--product", name)
    assert (ran.status, ran.out) == (2, "")
    expected = f"product {name!r} is not known: use A2 (910B), A3 (910_93), 310P, 950"
    assert ran.err == f"ascend-m1: error: {expected}\n"


@pytest.mark.parametrize(
    ("name", "product"),
    [("910B", "A2"), ("a2", "A2"), ("Ascend910B3", "A2"), ("910_93", "A3"), ("Ascend310P3", "310P"), ("950PR", "950")],
)
def test_products_go_by_the_names_of_their_chips(
    cli: Cli, probed: dict[str, dict[str, Any]], name: str, product: str
) -> None:
    found = json.loads(cli("verify-npu", "--json", "--product", name).out)
    assert list(found["products"]) == [product]


@pytest.mark.parametrize("options", [[], ["--product", "A2"]])
def test_a_probe_that_dies_on_an_npu_is_not_taken_for_another_product(
    cli: Cli, probed: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr(run, "host_npu", lambda: False)
    died = {"product": "", "calls": [], "graphs": {}, "died": "the process ended with signal 11: last words"}
    monkeypatch.setattr(run, "probe", lambda product, host: died)
    ran = cli("verify-npu", *options)
    assert ran.status == 1
    assert "this NPU: the process ended with signal 11: last words" in ran.out


def test_launches_of_a_step_that_is_not_captured_are_not_promised(cli: Cli, probed: dict[str, dict[str, Any]]) -> None:
    probed["310P"] |= {"launches_per_layer": {"global": 63, "window": 63}, "bytes": {"ratio": 1.15}}
    assert cli("verify-npu", "--product", "310P").status == 0


def test_an_npu_of_another_product_is_refused(
    cli: Cli, probed: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "host_npu", lambda: False)
    monkeypatch.setattr(run, "probe", lambda product, host: result("A3", host_npu=False, device="Ascend910_9391"))
    assert "this machine's NPU is A3" in cli("verify-npu", "--product", "A2").err
    ran = cli("verify-npu", "--product", "A3")
    assert ran.out.endswith("run on Ascend910_9391 through torch-npu 2.13.0\n")


def test_a_probe_that_dies_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_PROBE", "import os, sys; print('last words', file=sys.stderr); os.abort()")
    found = run.probe("A2", host=False)
    assert found["died"] == "the process ended with signal 6: last words"
    assert found["calls"] == []


def test_what_a_probe_knew_before_it_died_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps({"product": "A2", "calls": [call()], "graphs": {}})
    monkeypatch.setattr(run, "_PROBE", f"import sys; open(sys.argv[1], 'w').write({text!r}); sys.exit(3)")
    found = run.probe("A2", host=False)
    assert found["calls"] == [call()]
    assert found["died"].startswith("the process ended with status 3")


def test_help_says_how_to_start_it_without_an_npu() -> None:
    command = [
        sys.executable,
        "-c",
        "import sys, ascend_m1.cli; sys.exit(ascend_m1.cli.main(['verify-npu', '--help']))",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    if "ascend_m1_hostnpu" in sys.modules:
        command[2] = f"import ascend_m1_hostnpu; {command[2]}"
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "-m ascend_m1_hostnpu -m ascend_m1 verify-npu" in " ".join(ran.stdout.split())
