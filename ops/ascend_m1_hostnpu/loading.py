"""Loads the host NPU into this process: the stand-in libraries, then an answer behind every symbol."""

from __future__ import annotations

import os
from types import ModuleType

from . import hccl, launches, operators, streams, triton
from .imports import after_import
from .operator import refuse_the_rest

streams.install()
hccl.install()
triton.install()
operators.load()
refuse_the_rest()


def _answer_torchair(module: ModuleType) -> None:
    from . import graph

    graph.install()


after_import("torchair._ge_concrete_graph.fx2ge_converter", _answer_torchair)
if "HOSTNPU_LAUNCHES" in os.environ:
    launches.report_at_exit()
