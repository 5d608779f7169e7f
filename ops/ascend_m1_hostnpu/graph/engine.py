"""TorchAir's way into the graph engine, answered here."""

from __future__ import annotations

import atexit
import ctypes
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import (  # noqa: F401  the operator modules fill the registry
    interpret,
    operators_attention,
    operators_linear,
    operators_math,
    operators_memory,
    operators_shape,
    ordering,
)
from .dtypes import ge_type
from .program import Message, Program, build
from .registry import OPERATORS


@dataclass
class CompiledGraph:
    """A graph that was loaded into the engine.

    Attributes:
        name: TorchAir's name of the graph.
        options: the engine options TorchAir passed.
        types: operator type -> how often it occurs, sources and NetOutput left out.
        program: its steps; None until compiled.
        runs: how often it ran.
    """

    name: str
    message: Message
    options: dict[str, str]
    types: Counter[str]
    program: Program | None = None
    runs: int = 0


graphs: list[CompiledGraph] = []


def install() -> None:
    """Replace the graph engine under TorchAir; call it once, after `import torch_npu`."""
    import torchair._ge_concrete_graph.compat_ir as operator_lookup
    import torchair._ge_concrete_graph.fx2ge_converter as converter
    from torchair.core import _backend

    atexit.unregister(_backend.finalize_graph_engine)
    for module in (_backend, converter):
        module.initialize_graph_engine = _initialize
    operator_lookup.is_cann_compat = _is_known
    _backend.TorchNpuGraph.load = _load
    _backend.TorchNpuGraph.compile = _compile
    _backend.TorchNpuGraph.run = _run


def _initialize(options: dict[str, str] | None = None) -> None:
    """The engine needs no start."""


def _is_known(op_type: str, runtime_optional_inputs: Any = (), runtime_optional_attrs: Any = ()) -> str:
    """An empty string if the engine has the operator, else why not: what TorchAir asks of CANN's operator registry."""
    return "" if op_type in OPERATORS else f"host NPU: no function for graph operator {op_type}"


def _load(self: Any, ge_graph: Any, options: dict[str, str] | None = None) -> None:
    types = Counter(op.type for op in ge_graph.op if op.type not in ("Data", "RefData", "Const", "NetOutput"))
    self.host_graph = CompiledGraph(ge_graph.name, ge_graph, dict(options or {}), types)
    graphs.append(self.host_graph)


def _compile(self: Any) -> None:
    self.host_graph.program = build(self.host_graph.message)
    ordering.check(self.host_graph.program)


def _run(
    self: Any, inputs: Sequence[Tensor], assigned_outputs: Sequence[Tensor | None] = (), stream: Any = None
) -> list[Tensor]:
    """Outputs in new device memory, or in the tensor that `assigned_outputs` names at their place."""
    graph: CompiledGraph = self.host_graph
    assert graph.program is not None, "compile() comes before run()"
    graph.runs += 1
    results = interpret.run(graph.program, [host_view(tensor) for tensor in inputs])
    dtypes = [ge_type(code) for code in graph.message.attr["_output_dtypes"].list.i]
    outputs = []
    for index, (result, dtype) in enumerate(zip(results, dtypes, strict=True)):
        if result.dtype != dtype:
            raise ValueError(f"CANN graph {graph.name}: output {index} is {result.dtype}, declared {dtype}")
        assigned = assigned_outputs[index] if index < len(assigned_outputs) else None
        output = torch.empty(result.shape, dtype=dtype, device="npu") if assigned is None else assigned
        view = host_view(output)
        if view.data_ptr() != result.data_ptr():
            view.copy_(result)
        outputs.append(output)
    return outputs


def host_view(tensor: Tensor) -> Tensor:
    """A CPU tensor over the same memory: device memory of the host NPU is host memory."""
    if tensor.device.type == "cpu":
        return tensor
    if tensor.numel() == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    buffer = (ctypes.c_char * ((last + 1) * tensor.element_size())).from_address(tensor.data_ptr())
    return torch.frombuffer(buffer, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride())
