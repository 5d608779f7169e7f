"""The host NPU's suite; the stand-ins are loaded by tests/conftest.py."""

from __future__ import annotations

import torch
import torch_npu  # noqa: F401

from ascend_m1_ops.cann_graph import backend

# torch_npu 2.13: a process that has compiled with npugraph_ex can no longer compile its first CANN graph (both register
# the same decomposition, and only npugraph_ex looks whether it is there). So the first one is compiled here.
torch.compile(lambda x: x + 1, backend=backend(), fullgraph=True, dynamic=False)(torch.zeros(2).npu())
