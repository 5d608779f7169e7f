"""One rank of a data-parallel group: RANK SIZE FOLDER, where it leaves its results. Run on the host NPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch_npu  # noqa: F401
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.npu.parallel import Result, adapted, batch_of, plain, train, weights

RANK, SIZE, FOLDER = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])


def replicated(model: nn.Module) -> Result:
    wrapped = DistributedDataParallel(model)
    return train(wrapped, batch_of(RANK, SIZE), lambda: weights(model), whole)


def sharded(model: nn.Module, **options: Any) -> Result:
    """Every decoder layer by itself, the rest together."""
    for layer in model.model.layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)
    return train(model, batch_of(RANK, SIZE), lambda: weights(model), whole)


def whole(loss: Tensor) -> Tensor:
    """The mean of all ranks' losses."""
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total / SIZE


def main() -> None:
    torch.npu.set_device(RANK)
    dist.init_process_group("hccl", init_method=f"file://{FOLDER}/meet", rank=RANK, world_size=SIZE)
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    results = {
        "ddp": replicated(plain().npu()),
        "ddp with an adapter": replicated(adapted().npu()),
        "fsdp2": sharded(plain().npu()),
        "fsdp2 in bfloat16": sharded(plain().npu(), mp_policy=half),
    }
    torch.save(results, FOLDER / f"{RANK}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
