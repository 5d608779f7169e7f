"""One rank of a group, run by ``python -m ascend_m1_hostnpu``: SCENARIO RANK SIZE FOLDER (of the results)."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard

import ascend_m1_hostnpu as hostnpu

RANK, SIZE, FOLDER = int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
Results = dict[str, Any]


def numbers(rank: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a rank contributes: small whole numbers, exact in every dtype, products included."""
    return ((torch.arange(count) * 7 + rank * 3) % 5 + 1).to(dtype)


def reductions() -> Results:
    results = {}
    for name in ("SUM", "PRODUCT", "MAX", "MIN", "AVG"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64):
            if (name, dtype) in {("PRODUCT", torch.bfloat16), ("AVG", torch.int32), ("AVG", torch.int64)}:
                continue
            data = numbers(RANK, 5, dtype).npu()
            dist.all_reduce(data, getattr(dist.ReduceOp, name))
            results[f"{name} {dtype}"] = data.cpu()
    return results


def movements() -> Results:
    mine, empty = numbers(RANK, 3).npu(), torch.empty(0).npu()
    results: Results = {}

    def keep(name: str, data: Tensor) -> None:
        results[name] = data.cpu()

    data = mine.clone()
    dist.broadcast(data, 1)
    keep("broadcast", data)
    out = [torch.empty(3).npu() for _ in range(SIZE)]
    dist.all_gather(out, mine)
    keep("all_gather", torch.cat(out))
    together = torch.empty(3 * SIZE).npu()
    together[3 * RANK : 3 * RANK + 3] = mine
    dist.all_gather_into_tensor(together, together[3 * RANK : 3 * RANK + 3])  # in place, as sharding does it
    keep("all_gather_in_place", together)
    out = [torch.empty(rank + 1).npu() for rank in range(SIZE)]
    dist.all_gather(out, numbers(RANK, RANK + 1).npu())
    keep("all_gather_uneven", torch.cat(out))
    part = torch.empty(3).npu()
    dist.reduce_scatter_tensor(part, numbers(RANK, 3 * SIZE).npu())
    keep("reduce_scatter", part)
    data = mine.clone()
    dist.reduce(data, 1)
    keep("reduce", data)
    part = torch.empty(3).npu()
    dist.scatter(part, [numbers(rank, 3).npu() for rank in range(SIZE)] if RANK == 0 else None, 0)
    keep("scatter", part)
    data = torch.empty(2 * SIZE).npu()
    dist.all_to_all_single(data, numbers(RANK, 2 * SIZE).npu())
    keep("all_to_all", data)
    # Rank 0 keeps one element and sends two; rank 1 sends nothing and keeps one.
    sent, received = ([1, 2], [1, 0]) if RANK == 0 else ([0, 1], [2, 1])
    data = torch.empty(sum(received)).npu()
    dist.all_to_all_single(data, numbers(RANK, sum(sent)).npu(), received, sent)
    keep("all_to_all_uneven", data)
    data = mine.clone()
    dist.send(data, 1) if RANK == 0 else dist.recv(data, 0)
    keep("send", data)
    other = torch.empty(3).npu()
    pair = [dist.P2POp(dist.irecv, other, 1 - RANK), dist.P2POp(dist.isend, mine, 1 - RANK)]  # receives come first
    for work in dist.batch_isend_irecv(pair):
        work.wait()
    keep("batch", other)
    dist.all_reduce(empty)
    keep("empty", empty)
    return results


def groups() -> Results:
    results = {}
    for ranks in ([1], [0, 1], [0, 1]):
        group = dist.new_group(ranks)
        data = numbers(RANK, 4).npu()
        if RANK in ranks:
            dist.all_reduce(data, group=group)
        results[f"{len(results)} {ranks}"] = data.cpu()
        if RANK in ranks and len(results) == 2:
            dist.destroy_process_group(group)
    objects: list[Any] = [None] * SIZE
    dist.all_gather_object(objects, {"rank": RANK})
    dist.barrier()
    backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("npu"))
    return {**results, "objects": objects, "name": backend.get_hccl_comm_name(RANK)}


def order() -> Results:
    """A collective is a task like any other: logged with its bytes, recorded in a graph, run at replay."""
    data = numbers(RANK, 6).npu()
    with hostnpu.recording() as eager:
        dist.all_reduce(data)
    graph = torch.npu.NPUGraph()
    static = torch.ones(6).npu()
    with torch.npu.graph(graph):
        out = static * 2
        dist.all_reduce(out)
        out = out + 1
    static.fill_(RANK + 1.0)
    with hostnpu.recording() as replay:
        graph.replay()
    return {
        "eager": [(launch.name, launch.read, launch.written) for launch in eager.launches],
        "replay": [(launch.name, launch.captured) for launch in replay.launches],
        "out": out.cpu(),
    }


def small_model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.SiLU(), torch.nn.Linear(16, 3))


def batch() -> Tensor:
    return torch.randn(2 * SIZE, 8, generator=torch.Generator().manual_seed(1))


def train(model: torch.nn.Module, data: Tensor, steps: int = 2) -> None:
    # A large epsilon: without it AdamW's first steps do not depend on the gradient's scale.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, eps=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()


def data_parallel() -> Results:
    model = torch.nn.parallel.DistributedDataParallel(small_model().npu())
    model(batch()[RANK::SIZE].npu()).square().mean().backward()
    return {name: parameter.grad.cpu() for name, parameter in model.module.named_parameters()}


def fully_sharded() -> Results:
    model = small_model().npu()
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    train(model, batch()[RANK::SIZE].npu())
    return {name: parameter.full_tensor().detach().cpu() for name, parameter in model.named_parameters()}


def c_interface() -> Results:
    """What torch_npu does not call here: HCCL's functions on host memory, as a C program would."""
    from ascend_m1_hostnpu.abi import RUNTIME, said

    hccl, float32, size = RUNTIME.handle, 4, ctypes.c_uint64
    root, path = ctypes.create_string_buffer(4108), FOLDER / "root"
    if RANK == 0:
        assert hccl.HcclGetRootInfo(root) == 0
        path.with_suffix(".new").write_bytes(root.raw)
        path.with_suffix(".new").rename(path)
    dist.barrier()
    root.raw = path.read_bytes()
    comm, sub, name = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.create_string_buffer(128)
    assert hccl.HcclCommInitRootInfo(SIZE, root, RANK, ctypes.byref(comm)) == 0
    ranks = (ctypes.c_uint32 * SIZE)(*range(SIZE))
    arguments = (ctypes.byref(comm), SIZE, ranks, size(77), RANK, None, ctypes.byref(sub))
    assert hccl.HcclCreateSubCommConfig(*arguments) == 0
    outside = ctypes.c_void_p()
    assert hccl.HcclCreateSubCommConfig(ctypes.byref(comm), 1, None, size(78), 0, None, ctypes.byref(outside)) == 0
    assert hccl.HcclGetCommName(sub, name) == 0
    results: Results = {"sub": name.value.decode(), "outside": outside.value}

    mine, out = numbers(RANK, 4), torch.empty(4)
    address, target = ctypes.c_void_p(mine.data_ptr()), ctypes.c_void_p(out.data_ptr())
    matrix = (ctypes.c_uint64 * 4)(1, 3, 2, 1)  # row: sender
    assert hccl.HcclAlltoAllVC(address, matrix, float32, target, float32, sub, None) == 0
    results["matrix"] = out[: 3 if RANK == 0 else 4].clone()
    items = (ctypes.c_uint32 * 16)()  # two HcclSendRecvItem of 32 bytes
    for index, (receives, tensor) in enumerate([(1, out), (0, mine)]):
        item = (ctypes.c_uint64 * 4).from_buffer(items, 32 * index)
        item[0], item[1], item[2] = receives, tensor.data_ptr(), 4
        item[3] = float32 | (1 - RANK) << 32
    assert hccl.HcclBatchSendRecv(items, 2, sub, None) == 0
    results["items"] = out.clone()
    assert hccl.HcclBarrier(comm, None) == 0
    results["refused"] = hccl.HcclAllReduce(address, target, size(4), 10, 0, comm, None), said()
    results["missing"] = hccl.HcclCommInitAll(0, None, None), said()
    assert hccl.HcclCommDestroy(sub) == 0
    assert hccl.HcclCommDestroy(comm) == 0
    results["destroyed"] = hccl.HcclBarrier(comm, None), said()
    return results


def late() -> Results:
    """Rank 1 never comes to the second collective."""
    data = torch.ones(2).npu()
    dist.all_reduce(data)
    if RANK == 0:
        try:
            dist.all_reduce(data)
        except RuntimeError as error:
            return {"error": str(error)}
    return {}


SCENARIOS: dict[str, list[Callable[[], Results]]] = {
    "all": [reductions, movements, groups, order, data_parallel, fully_sharded, c_interface],
    "late": [late],
}


def main() -> None:
    torch.npu.set_device(RANK)
    dist.init_process_group("hccl", init_method=f"file://{FOLDER}/meet", rank=RANK, world_size=SIZE)
    results = {scenario.__name__: scenario() for scenario in SCENARIOS[sys.argv[1]]}
    torch.save(results, FOLDER / f"{RANK}.pt")
    if sys.argv[1] == "all":
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0) if sys.argv[1] == "late" else None  # torch_npu would wait for the rank that does not come


if __name__ == "__main__":
    main()
