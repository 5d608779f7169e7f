"""Walk a program: call each step's function on the values before it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .program import Program, Step


def run(program: Program, inputs: list[Tensor]) -> list[Tensor]:
    """The outputs of a program.

    Args:
        program: from `program.build`.
        inputs: CPU tensors in the order of the graph's Data nodes; in-place operators write into them.

    Raises:
        RuntimeError: from a step that failed, with the node's name and type and the reason.
        ValueError: if a step's result has not the dtype and size that tracing promised.
    """
    values = dict(program.constants)
    for index, name in program.inputs.items():
        values[name] = inputs[index]
    for step in program.steps:
        for name, result in zip(step.outputs, _call(step, values), strict=True):
            promised = step.promised.get(name)
            if promised and (result.dtype, result.numel()) != (promised.dtype, promised.elements):
                raise ValueError(
                    f"CANN graph: {step.type} (node {step.name}) made {result.dtype} {tuple(result.shape)}, "
                    f"tracing promised {promised.elements} elements of {promised.dtype}"
                )
            values[name] = result
    return [values[name] for name in program.outputs]


def _call(step: Step, values: dict[str, Tensor]) -> tuple[Tensor, ...]:
    arguments: dict[str, Any] = dict(step.attributes)
    for parameter, source in step.inputs.items():
        arguments[parameter] = values[source] if isinstance(source, str) else [values[name] for name in source]
    try:
        results = step.operator.compute(**arguments)
    except Exception as error:
        raise RuntimeError(f"CANN graph: {step.type} (node {step.name}) failed: {error}") from error
    return results if isinstance(results, tuple) else (results,)
