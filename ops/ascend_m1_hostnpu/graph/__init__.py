"""An interpreter for the CANN graph that TorchAir makes of a model, in place of CANN's graph engine.

TorchAir lowers a traced function to a graph in GE's protobuf format and hands it to the engine. `install`, called when
TorchAir is imported, replaces the engine's entry points: the graph is compiled here into steps of plain torch on the
CPU, which read and write the memory of the tensors that TorchAir passes. What it proves: the graph is well formed,
computes the right numbers, and has the operators it should (`graphs[-1].types`). What it cannot prove: fusion, memory
planning, kernels and speed of CANN's engine.
"""

from __future__ import annotations

from .engine import CompiledGraph, graphs, install

__all__ = ["CompiledGraph", "graphs", "install"]
