"""The interpreter of CANN graphs against eager torch on the CPU, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_npu
import torchair
from torch import Tensor
from torchair._ge_concrete_graph import ge_apis as ge
from torchair.ge._ge_graph import DataType, GeGraph, default_ge_graph

import ascend_m1_hostnpu  # noqa: F401  before torch_npu
import ascend_m1_hostnpu.graph as engine
from ascend_m1_hostnpu.graph import interpret, ordering, program


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=False)


def same(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    expected = function(*[tensor.clone() for tensor in inputs])
    got = compiled(function)(*[tensor.npu() for tensor in inputs]).cpu()
    assert got.dtype == expected.dtype
    # One matrix product or reduction in float32: the order of a sum is all that may differ.
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "arithmetic": lambda x: (x + 1.5) * 2 - x / 3 + (-x) + x**2,
    "compare": lambda x: torch.where((x > 0) & (x <= 1) | (x == 2), x, torch.zeros_like(x)),
    "trigonometry": lambda x: x.cos() + x.sin(),
    "roots": lambda x: x.abs().sqrt() + x.square().add(1).rsqrt() + x.exp(),
    "activation": lambda x: torch.sigmoid(x) + torch.nn.functional.silu(x),
    "softmax": lambda x: x.softmax(-1),
    "mean": lambda x: x.mean(-1, keepdim=True) + x.sum(0),
    "max": lambda x: x.max(1).values + x.max(),
    "argmax": lambda x: x.argmax(-1),
    "cumsum": lambda x: x.cumsum(1),
    "slice": lambda x: x[1:, ::2],
    "select": lambda x: x[1],
    "cat": lambda x: torch.cat((x, x[:, :1]), 1),
    "stack": lambda x: torch.stack((x, x + 1), 1),
    "split": lambda x: x.split([1, 5], 1)[1],
    "chunk": lambda x: x.chunk(2, -1)[0],
    "transpose": lambda x: x.t() + 1,
    "permute": lambda x: x.view(2, 2, 6).permute(2, 0, 1) * 2,
    "unsqueeze": lambda x: x.unsqueeze(1).squeeze(1) + x.unsqueeze(0).unsqueeze(-1).squeeze(-1)[0],
    "expand": lambda x: x[:, :1].expand(-1, 3) + 1,
    "repeat": lambda x: x.repeat(2, 1),
    "clone": lambda x: x.clone() + 1,
    "linear": lambda x: torch.nn.functional.linear(x, x),
    "bmm": lambda x: torch.bmm(x.view(2, 2, 6), x.view(2, 6, 2)),
    "half": lambda x: x.to(torch.float16).float(),
    "arange": lambda x: x + torch.arange(6, device=x.device),
    "full": lambda x: x + torch.full((6,), 2.0, device=x.device),
    "index": lambda x: x[torch.tensor([2, 0], device=x.device)],
    "gather": lambda x: x.gather(1, (x > 0).long()),
    "clamp": lambda x: x.clamp(min=0).clamp(max=1),
    "extremes": lambda x: torch.maximum(x, x * 2) + torch.minimum(x, x * 2),
    "logic": lambda x: (x != 0) & (x >= -1) & (x < 1) & ~(x.logical_not()) | x.logical_or(x),
    "flatten": lambda x: x.view(2, 2, 6).flatten(1),
    "axpy": lambda x: torch.add(x, x, alpha=0.5),
    "addmm": lambda x: torch.addmm(x[:, :4], x, x.t()),
    "ones": lambda x: torch.ones_like(x) + x,
    "matmul_3d": lambda x: x.view(2, 2, 6) @ x.view(2, 6, 2),
    "embedding": lambda x: torch.nn.functional.embedding(torch.tensor([1, 3, 1], device=x.device), x),
    "index_select": lambda x: x.index_select(1, torch.tensor([5, 0], device=x.device)),
    "floor_divide": lambda x: (x.to(torch.int32) // 2) + (x.to(torch.int32) % 3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_compiled_function_equals_eager(name: str) -> None:
    torch.manual_seed(0)
    same(FUNCTIONS[name], torch.randn(4, 6))


@pytest.mark.parametrize("rows", [1, 3])
def test_an_input_is_changed_in_its_own_memory(rows: int) -> None:
    def accumulate(x: Tensor, total: Tensor) -> Tensor:
        total.add_(x)
        return total * 2

    x, total = torch.arange(6.0).repeat(rows, 1).npu(), torch.ones(rows, 6).npu()
    pointer = total.data_ptr()
    result = compiled(accumulate)(x, total)
    assert total.data_ptr() == pointer
    assert torch.equal(total.cpu(), x.cpu() + 1)
    assert torch.equal(result.cpu(), 2 * total.cpu())


def test_the_vendor_cache_write_copies_no_cache() -> None:
    def write(key: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> Tensor:
        torch_npu.npu_scatter_pa_kv_cache(key, key * 2, k_cache, v_cache, slots, cache_mode="Norm")
        return k_cache[:, 0].sum()

    key = torch.randn(3, 2, 16, dtype=torch.float16)
    caches = [torch.zeros(4, 16, 2, 16, dtype=torch.float16).npu() for _ in range(2)]
    compiled(write)(key.npu(), *caches, torch.tensor([5, 16, 63], dtype=torch.int32).npu())
    for cache, factor in zip(caches, (1, 2), strict=True):
        rows = cache.cpu().view(64, 2, 16)
        assert torch.equal(rows[[5, 16, 63]], key * factor)
        assert rows.count_nonzero() == (key * factor).count_nonzero()
    assert not engine.graphs[-1].types["TensorMove"]
    assert not engine.graphs[-1].types["Identity"]


@pytest.mark.parametrize(("slots", "reason"), [([0, 64], "outside"), ([-1, 2], "outside"), ([3, 3], "twice")])
def test_a_wrong_slot_is_refused(slots: list[int], reason: str) -> None:
    def write(key: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> Tensor:
        torch_npu.npu_scatter_pa_kv_cache(key, key, k_cache, v_cache, slots, cache_mode="Norm")
        return key + 1

    key = torch.randn(2, 2, 16, dtype=torch.float16).npu()
    caches = [torch.zeros(4, 16, 2, 16, dtype=torch.float16).npu() for _ in range(2)]
    with pytest.raises(RuntimeError, match=reason):
        compiled(write)(key, *caches, torch.tensor(slots, dtype=torch.int32).npu())


def graph_of(make: Callable[[], list[object]]) -> GeGraph:
    graph = GeGraph(name="handmade")
    with default_ge_graph(graph):
        ge.NetOutput(make(), dependencies=[])
    return graph


def table_and_rows() -> tuple[object, object, object]:
    table = ge.Data(index=0, dtype=DataType.DT_FLOAT, shape=[4, 8], placement="NPU", node_name="table")
    place = ge.Data(index=1, dtype=DataType.DT_INT32, shape=[2, 1], placement="NPU", node_name="place")
    rows = ge.Data(index=2, dtype=DataType.DT_FLOAT, shape=[2, 8], placement="NPU", node_name="rows")
    return table, place, rows


HANDMADE: dict[str, tuple[Callable[[object], object], Callable[[Tensor], Tensor]]] = {
    "Adds": (lambda x: ge.Adds(x, value=1.5), lambda x: x + 1.5),
    "Div": (lambda x: ge.Div(x, ge.Adds(x, value=9.0)), lambda x: x / (x + 9)),
    "Square": (ge.Square, torch.square),
    "TensorMove": (ge.TensorMove, lambda x: x),
    "BatchMatMulV2": (lambda x: ge.BatchMatMulV2(x, x, None, None, adj_x2=True), lambda x: x @ x.t()),
    "ConcatD": (lambda x: ge.ConcatD([x, x], concat_dim=1, N=2), lambda x: torch.cat((x, x), 1)),
    "FlattenV2": (lambda x: ge.FlattenV2(x, axis=0, end_axis=1), torch.flatten),
    "Gather": (lambda x: ge.Gather(x, ge.Const([2, 0], dtype=DataType.DT_INT32)), lambda x: x[[2, 0]]),
    "Select": (lambda x: ge.Select(ge.Less(x, ge.Neg(x)), x, ge.Neg(x)), lambda x: torch.where(x < -x, x, -x)),
    "Shape": (lambda x: ge.Shape(x, dtype=DataType.DT_INT64), lambda x: torch.tensor(x.shape)),
    "Slice": (lambda x: ge.Slice(x, [1, 2], [2, -1]), lambda x: x[1:3, 2:]),
    "SliceD": (lambda x: ge.SliceD(x, offsets=[0, 3], size=[4, 2]), lambda x: x[:, 3:5]),
    "Split": (lambda x: ge.Split(1, x, num_split=2)[1], lambda x: x.chunk(2, 1)[1]),
    "SplitD": (lambda x: ge.SplitD(x, split_dim=0, num_split=4)[2], lambda x: x[2:3]),
    "SplitVD": (lambda x: ge.SplitVD(x, size_splits=[1, 3], split_dim=0, num_split=2)[1], lambda x: x[1:]),
    "StridedSlice": (lambda x: ge.StridedSlice(x, [0, 1], [4, 5], [2, 2]), lambda x: x[0:4:2, 1:5:2]),
    "TransposeD": (lambda x: ge.TransposeD(x, perm=[1, 0]), torch.t),
}


@pytest.mark.parametrize("name", HANDMADE)
def test_an_operator_equals_its_definition(name: str) -> None:
    make, definition = HANDMADE[name]

    def graph() -> list[object]:
        return [make(ge.Data(index=0, dtype=DataType.DT_FLOAT, shape=[4, 6], placement="NPU", node_name="x"))]

    made = program.build(graph_of(graph))
    assert name in [step.type for step in made.steps]
    x = torch.randn(4, 6)
    torch.testing.assert_close(interpret.run(made, [x])[0], definition(x), rtol=1e-6, atol=1e-6)


def test_assign_writes_into_its_reference() -> None:
    def graph() -> list[object]:
        table, _, rows = table_and_rows()
        return [ge.Assign(ge.Reshape(table, [2, 16]), ge.Reshape(ge.ConcatD([rows, rows], concat_dim=1, N=2), [2, 16]))]

    table, rows = torch.zeros(4, 8), torch.randn(2, 8)
    interpret.run(program.build(graph_of(graph)), [table, torch.zeros(2, 1), rows])
    assert torch.equal(table, rows.repeat_interleave(2, 0))


def test_an_unordered_read_of_written_memory_is_refused() -> None:
    def unordered() -> list[object]:
        table, place, rows = table_and_rows()
        read = ge.Neg(ge.Reshape(table, [8, 4]))
        return [read, ge.ScatterNdUpdate(table, place, rows)]

    with pytest.raises(ValueError, match="nothing orders it"):
        ordering.check(program.build(graph_of(unordered)))


def test_a_control_edge_orders_a_read_before_a_write() -> None:
    def ordered() -> list[object]:
        table, place, rows = table_and_rows()
        read = ge.Neg(table)
        return [read, ge.ScatterNdUpdate(table, place, rows, dependencies=[read])]

    made = program.build(graph_of(ordered))
    ordering.check(made)
    assert [step.type for step in made.steps] == ["Neg", "ScatterNdUpdate"]


def test_an_unknown_operator_is_named() -> None:
    graph = graph_of(lambda: [ge.Neg(table_and_rows()[0])])
    graph.op[-2].type = "Unheard"
    with pytest.raises(NotImplementedError, match="operator type Unheard"):
        program.build(graph)


def test_a_value_that_nothing_makes_is_named() -> None:
    graph = graph_of(lambda: [ge.Neg(table_and_rows()[0])])
    graph.op[-2].input[0] = "nowhere:0"
    with pytest.raises(ValueError, match="nowhere:0"):
        program.build(graph)
