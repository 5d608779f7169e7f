"""Loads the host NPU into this process: the stand-in libraries, then an answer behind every symbol."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

from . import atb, hccl, interrupts, launches, operators, streams, triton, triton_ascend
from .imports import after_import, print_to_stderr
from .operator import refuse_the_rest
from .settings import is_on

print_to_stderr("torch_npu")  # it warns that there is no CANN
interrupts.install()
streams.install()
hccl.install()
triton.install()
triton_ascend.install()
operators.load()
refuse_the_rest()


def _answer_torchair(module: ModuleType) -> None:
    from . import graph

    graph.install()


after_import("torchair._ge_concrete_graph.fx2ge_converter", _answer_torchair)
after_import(atb.MODULE, atb.install)
sys.path.append(str(Path(__file__).with_name("pyacl")))  # the module acl, which comes with CANN
if is_on(os.environ, "HOSTNPU_LAUNCHES"):
    launches.report_at_exit()
