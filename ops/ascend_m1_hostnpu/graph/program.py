"""A GE graph as a list of steps: names resolved, attributes decoded, order fixed."""

from __future__ import annotations

import heapq
import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .dtypes import proto_type
from .registry import OPERATORS, GraphOperator

# GE's protobuf messages are untyped Python classes made at run time.
Message = Any


@dataclass(frozen=True)
class Promise:
    """What tracing promised of a value, as far as TorchAir wrote it down: dtype and number of elements.

    Not its shape: TorchAir notes the shape of the last view on the value, and makes the view where it is read.
    """

    dtype: torch.dtype
    elements: int


@dataclass(frozen=True)
class Step:
    """One operator call. `inputs` maps a parameter to a value's name or names; `after` are control edges."""

    name: str
    type: str
    operator: GraphOperator
    inputs: dict[str, str | list[str]]
    attributes: dict[str, Any]
    outputs: list[str]
    promised: dict[str, Promise]
    after: list[str]

    def sources(self) -> list[str]:
        """Names of all values this step reads."""
        return [name for value in self.inputs.values() for name in ([value] if isinstance(value, str) else value)]


@dataclass
class Program:
    """A graph ready to run: names of its input values by index, constants, steps in order, names of its outputs."""

    inputs: dict[int, str] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def build(graph: Message) -> Program:
    """The program of a GE graph.

    Raises:
        NotImplementedError: for an operator type without an entry in `OPERATORS`.
        ValueError: for a graph with a cycle or an unknown value.
    """
    program = Program()
    steps = []
    for op in graph.op:
        if op.type in ("Data", "RefData"):
            program.inputs[op.attr["index"].i] = f"{op.name}:0"
        elif op.type == "Const":
            program.constants[f"{op.name}:0"] = _constant(op.attr["value"].t)
        elif op.type == "NetOutput":
            program.outputs = [name for name in op.input if name and not name.endswith(":-1")]
        else:
            steps.append(_step(op))
    program.steps = _ordered(steps, {*program.inputs.values(), *program.constants})
    return program


def _constant(tensor: Message) -> Tensor:
    dtype, shape = proto_type(tensor.desc.dtype), list(tensor.desc.shape.dim)
    count = torch.Size(shape).numel()
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(tensor.data), dtype=dtype, count=count).view(shape)


def _step(op: Message) -> Step:
    if op.type not in OPERATORS:
        raise NotImplementedError(
            f"CANN graph: no function for operator type {op.type} (node {op.name}); add one to operators_*.py"
        )
    entry = OPERATORS[op.type]
    inputs: dict[str, str | list[str]] = {name: [] for name in entry.lists}
    connected = [name for name in op.input if not name.endswith(":-1")]
    for source, descriptor in zip(connected, op.input_desc, strict=True):
        parameter = re.sub(r"\d+$", "", descriptor.name)
        if parameter in entry.lists:
            members = inputs[parameter]
            assert isinstance(members, list)
            members.append(source)
        elif source:
            inputs[descriptor.name] = source
    outputs = [f"{op.name}:{index}" for index in range(len(op.output_desc))]
    promised = {name: _promise(desc) for name, desc in zip(outputs, op.output_desc, strict=True)}
    return Step(
        name=op.name,
        type=op.type,
        operator=entry,
        inputs=inputs,
        attributes={name: _attribute(value) for name, value in op.attr.items() if not name.startswith("_")},
        outputs=outputs,
        promised={name: promise for name, promise in promised.items() if promise is not None},
        after=[name.removesuffix(":-1") for name in op.input if name.endswith(":-1")],
    )


def _attribute(value: Message) -> Any:
    kind = value.WhichOneof("value")
    if kind == "s":
        return value.s.decode()
    if kind in ("i", "f", "b", "dt"):
        return getattr(value, kind)
    if kind == "list":
        filled = [getattr(value.list, name) for name in ("i", "f", "b", "s", "dt") if len(getattr(value.list, name))]
        return list(filled[0]) if filled else []
    raise NotImplementedError(f"CANN graph: attribute of kind {kind} is not decoded")


def _promise(descriptor: Message) -> Promise | None:
    """TorchAir writes "Tensor(dtype=torch.float16, shape=torch.Size([2, 32])" on the value that ends an fx node."""
    text = descriptor.attr["_meta"].s.decode() if "_meta" in descriptor.attr else ""
    found = re.fullmatch(r"Tensor\(dtype=torch\.(\w+), shape=torch\.Size\(\[([\d, ]*)\]\)\)?", text)
    if not found:
        return None
    return Promise(getattr(torch, found[1]), math.prod(int(size) for size in found[2].split(",") if size.strip()))


def _ordered(steps: list[Step], known: set[str]) -> list[Step]:
    """The steps in an order that data and control edges allow, as near to the written one as possible."""
    producer = {output: index for index, step in enumerate(steps) for output in step.outputs}
    number = {step.name: index for index, step in enumerate(steps)}
    waits: list[set[int]] = []
    for step in steps:
        unknown = [name for name in step.sources() if name not in producer and name not in known]
        if unknown:
            raise ValueError(f"CANN graph: node {step.name} reads {unknown[0]}, which nothing makes")
        data = {producer[name] for name in step.sources() if name in producer}
        waits.append(data | {number[name] for name in step.after if name in number})
    ready = [index for index, wait in enumerate(waits) if not wait]
    followers: dict[int, list[int]] = {}
    for index, wait in enumerate(waits):
        for before in wait:
            followers.setdefault(before, []).append(index)
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(steps[index])
        for follower in followers.get(index, []):
            waits[follower].discard(index)
            if not waits[follower]:
                heapq.heappush(ready, follower)
    if len(order) != len(steps):
        raise ValueError(f"CANN graph: {len(steps) - len(order)} nodes wait for each other")
    return order
