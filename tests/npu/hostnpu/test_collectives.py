"""Several host NPUs as one group, on torch_npu's own hccl backend: equal to the plain computation on one."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ascend_m1_hostnpu.abi import RUNTIME, said
from ascend_m1_hostnpu.collectives import reduced

ROOT = Path(__file__).parents[3]
SIZE = 2


def run_group(scenario: str, folder: Path, **variables: str) -> list[dict[str, Any]]:
    """The results of each rank."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "ops"), **variables}
    runner = [sys.executable, "-m", "ascend_m1_hostnpu", "--devices", str(SIZE)]
    worker = [*runner, str(Path(__file__).with_name("group_worker.py")), scenario]
    ranks = [
        subprocess.Popen(
            [*worker, str(rank), str(SIZE), str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(SIZE)
    ]
    try:
        errors = [rank.communicate(timeout=100)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()  # one that failed leaves the other waiting
    for rank, error in zip(ranks, errors, strict=True):
        assert rank.returncode == 0, error[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_group("all", tmp_path_factory.mktemp("group"))


def numbers(rank: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return ((torch.arange(count) * 7 + rank * 3) % 5 + 1).to(dtype)


REDUCE = {
    "SUM": torch.add,
    "PRODUCT": torch.mul,
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "AVG": lambda a, b: (a + b) / SIZE,
}


def test_a_reduction_equals_the_plain_one_in_every_dtype(results: list[dict[str, Any]]) -> None:
    for rank in range(SIZE):
        assert len(results[rank]["reductions"]) == 22
        for case, value in results[rank]["reductions"].items():
            operation, dtype = case.split()
            inputs = [numbers(r, 5, getattr(torch, dtype.removeprefix("torch."))) for r in range(SIZE)]
            torch.testing.assert_close(value, functools.reduce(REDUCE[operation], inputs), rtol=0, atol=0, msg=case)


def test_data_arrives_where_it_belongs(results: list[dict[str, Any]]) -> None:
    one, two = numbers(0, 3), numbers(1, 3)
    wide = [numbers(rank, 6) for rank in range(SIZE)]
    square = [numbers(rank, 4).view(SIZE, 2) for rank in range(SIZE)]
    for rank, result in enumerate(results):
        expected = {
            "broadcast": two,
            "all_gather": torch.cat([one, two]),
            "all_gather_in_place": torch.cat([one, two]),
            "all_gather_uneven": torch.cat([numbers(0, 1), numbers(1, 2)]),
            "reduce_scatter": (wide[0] + wide[1])[3 * rank : 3 * rank + 3],
            "reduce": one + two if rank == 1 else one,
            "scatter": [one, two][rank],
            "all_to_all": torch.cat([square[0][rank], square[1][rank]]),
            "all_to_all_uneven": numbers(0, 1) if rank == 0 else torch.cat([one[1:], numbers(1, 1)]),
            "send": one,
            "batch": [two, one][rank],
            "empty": torch.empty(0),
        }
        assert result["movements"].keys() == expected.keys()
        for name, value in result["movements"].items():
            assert torch.equal(value, expected[name]), f"rank {rank}: {name} gave {value}, not {expected[name]}"


def test_subgroups_reduce_among_themselves(results: list[dict[str, Any]]) -> None:
    both = numbers(0, 4) + numbers(1, 4)
    for rank, result in enumerate(results):
        groups = result["groups"]
        assert torch.equal(groups["0 [1]"], numbers(rank, 4))
        assert torch.equal(groups["1 [0, 1]"], both)
        assert torch.equal(groups["2 [0, 1]"], both), "made after an equal group was destroyed"
        assert groups["objects"] == [{"rank": 0}, {"rank": 1}]
    assert results[0]["groups"]["name"] == results[1]["groups"]["name"] != ""


def test_a_collective_is_logged_captured_and_replayed(results: list[dict[str, Any]]) -> None:
    for result in results:
        order = result["order"]
        assert order["eager"] == [("HcclAllReduce", 24, 24)]
        assert [name for name, _ in order["replay"]] == ["aclnnMuls", "HcclAllReduce", "aclnnAdds"]
        assert all(captured for _, captured in order["replay"])
        assert torch.equal(order["out"], torch.full((6,), 2 * 1.0 + 2 * 2.0 + 1))  # both ranks' new inputs


def one_process() -> Any:
    """The worker's model and data, imported without its command line."""
    source = Path(__file__).with_name("group_worker.py").read_text()
    start, end = source.index("def small_model"), source.index("def data_parallel")
    scope: dict[str, Any] = {"torch": torch, "Tensor": Tensor, "SIZE": SIZE}
    exec(source[start:end], scope)
    return scope


def test_data_parallel_gradients_are_the_whole_batchs(results: list[dict[str, Any]]) -> None:
    scope = one_process()
    model = scope["small_model"]()
    model(scope["batch"]()).square().mean().backward()
    for result in results:
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(result["data_parallel"][name], parameter.grad, rtol=1e-5, atol=1e-6)


def test_fully_sharded_training_equals_one_process(results: list[dict[str, Any]]) -> None:
    scope = one_process()
    model = scope["small_model"]()
    scope["train"](model, scope["batch"]())
    for result in results:
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(result["fully_sharded"][name], parameter.detach(), rtol=1e-5, atol=1e-5)


def test_the_c_functions_that_torch_npu_leaves_out(results: list[dict[str, Any]]) -> None:
    one, two = numbers(0, 4), numbers(1, 4)
    first, second = (result["c_interface"] for result in results)
    assert first["sub"] == second["sub"]
    assert first["sub"].startswith("hostnpu_")
    assert first["outside"] is second["outside"] is None
    assert torch.equal(first["matrix"], torch.cat([one[:1], two[:2]]))
    assert torch.equal(second["matrix"], torch.cat([one[1:4], two[2:3]]))
    assert torch.equal(first["items"], two)
    assert torch.equal(second["items"], one)
    for result in (first, second):
        assert result["refused"][0] != 0
        assert "torch.float64 cannot be reduced with sum on 910B" in result["refused"][1]
        assert result["missing"][0] != 0
        assert result["missing"][1].startswith("HcclCommInitAll: the host NPU has no stand-in")
        assert result["destroyed"][0] != 0
        assert "no communicator, or one that was destroyed" in result["destroyed"][1]


def test_a_peer_that_does_not_come_is_reported(tmp_path: Path) -> None:
    error = run_group("late", tmp_path, HCCL_EXEC_TIMEOUT="1")[0]["late"]["error"]
    assert "HcclAllReduce: rank 0 of 2 waited for a peer that failed or did not come within 1 s" in error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_halves_are_rounded_once(dtype: torch.dtype) -> None:
    """Each small part alone would be rounded away; together they are more than half a step."""
    step = torch.finfo(dtype).eps
    parts = [torch.tensor([value], dtype=dtype) for value in (1.0, 0.375 * step, 0.375 * step)]
    assert reduced(parts, op=0).item() == 1 + step
    assert (parts[0] + parts[1] + parts[2]).item() == 1


@pytest.fixture
def alone() -> Iterator[ctypes.c_void_p]:
    """A group of one, made by HCCL's C functions."""
    root, comm = ctypes.create_string_buffer(4108), ctypes.c_void_p()
    assert RUNTIME.handle.HcclGetRootInfo(root) == 0
    assert RUNTIME.handle.HcclCommInitRootInfo(1, root, 0, ctypes.byref(comm)) == 0
    yield comm
    assert RUNTIME.handle.HcclCommDestroy(comm) == 0


DTYPES = {"int8": 0, "int16": 1, "int32": 2, "float16": 3, "float32": 4, "int64": 5, "float64": 10, "bfloat16": 11}


@pytest.mark.parametrize(
    ("product", "dtype", "operation", "allowed"),
    [
        ("910B", "int16", 0, True),
        ("910B", "int16", 1, False),
        ("910B", "bfloat16", 2, True),
        ("A3", "bfloat16", 1, False),
        ("A3", "float64", 0, False),
        ("310P", "int16", 2, False),
        ("310P", "int64", 0, False),
        ("310P", "bfloat16", 0, False),
        ("950", "float64", 1, True),
        ("950", "bfloat16", 1, True),
    ],
)
def test_each_product_reduces_what_is_documented(
    alone: ctypes.c_void_p, monkeypatch: pytest.MonkeyPatch, product: str, dtype: str, operation: int, allowed: bool
) -> None:
    monkeypatch.setenv("HOSTNPU_PRODUCT", product)
    x = torch.ones(4, dtype=getattr(torch, dtype))
    out = torch.zeros_like(x)
    pointers = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(out.data_ptr())
    code = RUNTIME.handle.HcclAllReduce(*pointers, ctypes.c_uint64(4), DTYPES[dtype], operation, alone, None)
    assert (code == 0, torch.equal(x, out)) == (allowed, allowed)
    assert allowed or f"on {product} (HCCL API" in said()


def test_a_group_that_does_not_come_together_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "1")
    root, comm = ctypes.create_string_buffer(4108), ctypes.c_void_p()
    assert RUNTIME.handle.HcclGetRootInfo(root) == 0
    assert RUNTIME.handle.HcclCommInitRootInfo(2, root, 0, ctypes.byref(comm)) != 0
    assert "rank 0: not all 2 ranks of the group came within 1 s (HCCL_CONNECT_TIMEOUT)" in said()
