"""The table of graph operators: GE operator type -> a plain function named after its inputs and attributes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Compute = TypeVar("Compute", bound=Callable[..., Any])


@dataclass(frozen=True)
class GraphOperator:
    """How one GE operator type is answered.

    Attributes:
        compute: takes the operator's inputs and attributes by their names in the GE prototype and returns a tensor or
            a tuple of tensors, one for each output.
        lists: names of dynamic inputs ("x" collects x0, x1, ...).
        writes: names of the inputs that the operator changes in place.
    """

    compute: Callable[..., Any]
    lists: tuple[str, ...]
    writes: tuple[str, ...]


OPERATORS: dict[str, GraphOperator] = {}


def operator(*types: str, lists: tuple[str, ...] = (), writes: tuple[str, ...] = ()) -> Callable[[Compute], Compute]:
    """Decorator: let the function answer these GE operator types.

    Parameter names are those of the prototype (`REG_OP` in TorchAir's raw operators), defaults those of its
    attributes. An optional input that is not connected is not passed.
    """

    def register(compute: Compute) -> Compute:
        for name in types:
            if name in OPERATORS:
                raise ValueError(f"graph operator {name} is registered twice")
            OPERATORS[name] = GraphOperator(compute, lists, writes)
        return compute

    return register
