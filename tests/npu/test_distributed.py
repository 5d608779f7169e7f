"""Two processes on torch_npu's hccl backend train as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from .parallel import Result, adapted, batch_of, plain, train, weights

ROOT, SIZE = Path(__file__).parents[2], 2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Result]]:
    """The results of each rank of a group that has run every scenario."""
    folder = tmp_path_factory.mktemp("group")
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "ops", "finetune"))
    runner = [sys.executable, "-m", "ascend_m1_hostnpu", "--devices", str(SIZE)]
    worker = [*runner, str(Path(__file__).with_name("distributed_worker.py"))]
    started = [
        subprocess.Popen(
            [*worker, str(rank), str(SIZE), str(folder)],
            env={**os.environ, "PYTHONPATH": paths},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(SIZE)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()  # one that failed leaves the other waiting
    for process, error in zip(started, errors, strict=True):
        assert process.returncode == 0, error[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]


def alone(lm: nn.Module) -> Result:
    return train(lm, batch_of(0, 1), lambda: weights(lm), lambda loss: loss.detach())


def assert_equal(one: Result, ranks: list[dict[str, Result]], name: str, rtol: float, atol: float) -> None:
    """Losses, and weights after every step, which have moved."""
    for rank in ranks:
        torch.testing.assert_close(rank[name].losses, one.losses, rtol=rtol, atol=0.0)
        for before, after in zip(rank[name].weights, one.weights, strict=True):
            assert before.keys() == after.keys()
            for key in after:
                torch.testing.assert_close(before[key], after[key], rtol=rtol, atol=atol, msg=key)
    assert not any(torch.equal(one.weights[0][key], one.weights[1][key]) for key in one.weights[0])


@pytest.mark.parametrize(("name", "make"), [("ddp", plain), ("ddp with an adapter", adapted), ("fsdp2", plain)])
def test_two_processes_equal_one(name: str, make: Callable[[], nn.Module], ranks: list[dict[str, Result]]) -> None:
    """float32: the sums over rows are split in two, and the halves added."""
    assert_equal(alone(make().npu()), ranks, name, rtol=1e-5, atol=1e-5)


def test_sharded_training_in_bfloat16_stays_near_float32(
    ranks: list[dict[str, Result]],
) -> None:
    """Layers compute in bfloat16 on float32 weights; two steps move weights by up to 0.019."""
    one = alone(plain().npu())
    assert_equal(one, ranks, "fsdp2 in bfloat16", rtol=2.0**-8, atol=4e-3)


def test_collectives_are_hccl_s(ranks: list[dict[str, Result]]) -> None:
    """DDP reduces buckets; FSDP2 gathers the weights, a layer's once more for its backward, and scatters sums."""
    for rank in ranks:
        assert rank["ddp"].launches["HcclAllReduce"] >= 1
        sharded = rank["fsdp2"].launches
        assert sharded["HcclReduceScatter"] == 3, sharded
        assert sharded["HcclAllGather"] == 3 + 2, sharded
        for result in rank.values():
            assert result.launches["triton:short_conv_backward_kernel"] == 2
